// What happened to breakers: a bounded memory of events, for `meshctl events` and `breaker show`.
// Each event has a number, so that it is the same one after a restart.
import MeshCore

/// The most recent events of all services, and of each.
struct History {
    /// How many events are kept in all.
    private static let limit = 1000

    private var all = BreakerHistory(capacity: limit)
    private var byService: [String: BreakerHistory] = [:]
    /// The number of the next event.
    private var next: UInt64 = 0
    /// Those that have come since the history was last saved.
    private var unsaved = BreakerHistory(capacity: limit)
    /// What a save that is under way has still to add: of these services the events before `oldest`, then these,
    /// the oldest last.
    private var servicesWithOlder: [String] = []
    private var oldest: UInt64 = 0
    private var saving: [(number: UInt64, event: BreakerEvent)] = []

    /// Adds an event; the oldest go.
    mutating func append(_ event: BreakerEvent) {
        unsaved.append(event, number: next)
        insert(event, number: next)
    }

    private mutating func insert(_ event: BreakerEvent, number: UInt64) {
        all.append(event, number: number)
        byService[event.service, default: BreakerHistory(capacity: BreakerHistory.perService)]
            .append(event, number: number)
        next = number + 1
    }

    /// The events of all services, oldest first.
    var recent: [BreakerEvent] { all.events }

    /// A service's events, oldest first.
    func events(of service: String) -> [BreakerEvent] { byService[service]?.events ?? [] }

    /// Begins to save: the events so far.
    mutating func beginSave(_ scope: StateScope) {
        if scope == .everything {
            unsaved = all
            // A service's may be older than the oldest of all.
            oldest = all.numbered.first?.number ?? 0
            servicesWithOlder = all.total > UInt64(all.capacity) ? Array(byService.keys) : []
        }
        saving = unsaved.numbered.reversed()
        unsaved = BreakerHistory(capacity: History.limit)
    }

    /// Adds the events that there were at `beginSave`, those of one service or of all in order.
    /// - Parameter limit: How many at most, but for those of a last service; so many less afterwards.
    mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        while limit > 0, let service = servicesWithOlder.popLast() {
            for (number, event) in byService[service]?.numbered ?? [] where number < oldest {
                writer.append(.event(number: number, event))
                limit -= 1
            }
        }
        while limit > 0, let (number, event) = saving.popLast() {
            writer.append(.event(number: number, event))
            limit -= 1
        }
    }

    /// Takes over an event; false if it does not come after the one before of its service.
    mutating func restore(_ event: BreakerEvent, number: UInt64) -> Bool {
        let last = byService[event.service]?.last
        guard number < .max, last == nil || number > last! else { return false }
        // Those that come before their time are older than all that are kept of all services: they go again.
        let next = max(next, number + 1)
        insert(event, number: number)
        self.next = next
        return true
    }
}
