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

    /// Adds the events that have come since the last time, or all that are kept.
    mutating func save(_ scope: StateScope, to writer: inout StateWriter) {
        var events = unsaved.numbered
        if scope == .everything {
            // A service's may be older than the oldest of all.
            let oldest = all.numbered.first?.number ?? 0
            events = byService.values.flatMap(\.numbered).filter { $0.number < oldest }
            events.sort { $0.number < $1.number }
            events += all.numbered
        }
        for (number, event) in events { writer.append(.event(number: number, event)) }
        if !events.isEmpty { unsaved = BreakerHistory(capacity: History.limit) }
    }

    /// Takes over an event; false if it does not come after the one before.
    mutating func restore(_ event: BreakerEvent, number: UInt64) -> Bool {
        guard number >= next, number < .max else { return false }
        insert(event, number: number)
        return true
    }
}
