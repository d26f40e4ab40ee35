// What happened to breakers and who did it: the history, the audit log, `meshctl events`.

/// Something that happened to a breaker. Times are nanoseconds since 1970.
public struct BreakerEvent: Equatable, Sendable {
    /// What happened.
    public enum Kind: String, Sendable, CaseIterable {
        /// Its effective state changed.
        case transition
        /// A person forced a state.
        case override
        /// An override ended, by a person or by itself.
        case overrideEnd = "override_end"
        /// It got a new policy.
        case reload
        /// A trip rule is met, but too many breakers are open already.
        case heldClosed = "held_closed"
    }

    /// When.
    public var time: UInt64
    /// What happened.
    public var kind: Kind
    /// The service's name.
    public var service: String
    /// The effective state before; nil if the event is not about states.
    public var from: BreakerState?
    /// The effective state after; nil if the event is not about states.
    public var to: BreakerState?
    /// Why, as in the label `reason`.
    public var reason: BreakerReason
    /// Who: `agent`, or a person as in `root (pid 1234)`.
    public var actor: String
    /// Why, in the person's words.
    public var text: String?
    /// When the override ends by itself.
    public var expiresAt: UInt64?
    /// It happened where no agent ran, so it is in no log as yet: the next agent sees to that.
    public var isUntold = false

    /// The actor of what happens by itself.
    public static let agent = "agent"

    /// An event from its parts; times in nanoseconds since 1970.
    public init(
        time: UInt64, kind: Kind, service: String, from: BreakerState? = nil, to: BreakerState? = nil,
        reason: BreakerReason, actor: String = BreakerEvent.agent, text: String? = nil,
        expiresAt: UInt64? = nil
    ) {
        self.time = time
        self.kind = kind
        self.service = service
        self.from = from
        self.to = to
        self.reason = reason
        self.actor = actor
        self.text = text
        self.expiresAt = expiresAt
    }

    /// The event of a transition. `wallOffset` is what to add to monotonic time to get nanoseconds since
    /// 1970.
    public init(_ transition: BreakerTransition, service: String, wallOffset: Int64) {
        self.init(
            time: transition.time &+ UInt64(bitPattern: wallOffset), kind: .transition, service: service,
            from: transition.from, to: transition.to, reason: transition.reason)
    }
}

/// The latest events, oldest first, in memory that does not grow past its capacity.
public struct BreakerHistory: Sendable {
    /// How many events of each service are kept.
    public static let perService = 50

    /// How many events are kept.
    public let capacity: Int
    /// How many events there ever were.
    public private(set) var total: UInt64 = 0

    private var ring: [(number: UInt64, event: BreakerEvent)] = []

    /// An empty history that keeps `capacity` events, at least one.
    public init(capacity: Int) { self.capacity = max(1, capacity) }

    /// Adds an event in place of the oldest, once there is no more room.
    public mutating func append(_ event: BreakerEvent) { append(event, number: total) }

    /// The same with a number of its own, for `numbered`.
    public mutating func append(_ event: BreakerEvent, number: UInt64) {
        if ring.count < capacity {
            ring.append((number, event))
        } else {
            ring[Int(total % UInt64(capacity))] = (number, event)
        }
        total += 1
    }

    /// The number of the newest event; nil if there is none.
    public var last: UInt64? {
        if ring.count < capacity { return ring.last?.number }
        return ring[Int((total + UInt64(capacity) - 1) % UInt64(capacity))].number
    }

    /// The events that are kept, oldest first.
    public var events: [BreakerEvent] { numbered.map(\.event) }

    /// The events that are kept, each with its number, oldest first.
    public var numbered: [(number: UInt64, event: BreakerEvent)] {
        let oldest = Int(total % UInt64(capacity))  // with room left: past the end
        return Array(ring[oldest...] + ring[..<oldest])
    }
}
