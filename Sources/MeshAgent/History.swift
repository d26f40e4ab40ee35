// What happened to breakers: a bounded memory of events, for `meshctl events` and `breaker show`.
import MeshCore

/// The most recent events of all services, and of each.
struct History {
    /// How many events are kept in all, and per service.
    private static let limit = 1000
    private static let perServiceLimit = 50

    private var all = BreakerHistory(capacity: limit)
    private var byService: [String: BreakerHistory] = [:]

    /// Adds an event; the oldest go.
    mutating func append(_ event: BreakerEvent) {
        all.append(event)
        byService[event.service, default: BreakerHistory(capacity: History.perServiceLimit)].append(event)
    }

    /// The events of all services, oldest first.
    var recent: [BreakerEvent] { all.events }

    /// A service's events, oldest first.
    func events(of service: String) -> [BreakerEvent] { byService[service]?.events ?? [] }
}
