// A breaker as the control API shows it, whoever asks whom: docs/control-api.md.

/// What became of attempts on a breaker's service.
public struct BreakerAttempts: Equatable, Sendable {
    /// At one point.
    public struct Point: Equatable, Sendable {
        /// Attempts that were simply admitted. The kernel does not count them: their samples do.
        public var admitted: UInt64 = 0
        /// Attempts that were rejected.
        public var rejected: UInt64 = 0
        /// Attempts that a half-open breaker admitted.
        public var probe: UInt64 = 0
        /// Attempts that an observing breaker would have rejected.
        public var wouldReject: UInt64 = 0

        /// No attempts, but for those given.
        public init(admitted: UInt64 = 0, rejected: UInt64 = 0, probe: UInt64 = 0, wouldReject: UInt64 = 0) {
            self.admitted = admitted
            self.rejected = rejected
            self.probe = probe
            self.wouldReject = wouldReject
        }
    }

    /// At connect().
    public var connect: Point
    /// At the start of requests on established connections.
    public var request: Point

    /// The attempts at both points; none by default.
    public init(connect: Point = Point(), request: Point = Point()) {
        self.connect = connect
        self.request = request
    }
}

extension Breaker {
    /// The members of the object BREAKER, but for its history.
    /// - Parameters:
    ///   - name: The service's name.
    ///   - id: The service's ID.
    ///   - wallOffset: What to add to monotonic time for nanoseconds since 1970.
    public func json(
        service name: String, id: UInt32, attempts: BreakerAttempts, wallOffset: UInt64
    ) -> [(key: String, value: JSONValue)] {
        func time(_ monotonic: UInt64) -> JSONValue { .time(monotonic &+ wallOffset) }
        return [
            ("service", .string(name)), ("id", .integer(id)), ("state", .string(state.label)),
            ("mode", .string(policy.mode.label)),
            ("reason", reason.map { .string($0.rawValue) } ?? .null), ("since", time(since)),
            ("open_until", openDeadline.map(time) ?? .null), ("probe_share", .number(probeShare)),
            ("probe_successes", .integer(probeSuccesses)),
            ("override", override?.json(wallOffset: wallOffset) ?? .null),
            (
                "window",
                [
                    "seconds": .seconds(policy.window), "requests": .integer(counts.requests),
                    "failures": .integer(counts.failures), "failure_ratio": .number(counts.failureRatio),
                    "slow": .integer(counts.slow), "slow_ratio": .number(counts.slowRatio),
                    "consecutive_failures": .integer(consecutiveFailures),
                ]
            ),
            ("attempts", ["connect": attempts.connect.json, "request": attempts.request.json]),
            ("held_closed", .bool(heldClosed)),
        ]
    }
}

extension BreakerOverride {
    /// The member `override` of the object BREAKER.
    public func json(wallOffset: UInt64) -> JSONValue {
        [
            "state": .string(forced.label), "actor": .string(actor), "reason": .string(reason),
            "since": .time(since &+ wallOffset), "expires_at": .time(expiresAt &+ wallOffset),
        ]
    }
}

extension [Breaker] {
    /// How many there are of each kind, as the status has it.
    public var counts: [(key: String, value: JSONValue)] {
        [
            ("enforce", .integer(count { $0.policy.mode == .enforce })),
            ("observe", .integer(count { $0.policy.mode == .observe })),
            ("open", .integer(count { $0.state == .open })),
            ("half_open", .integer(count { $0.state == .halfOpen })),
            ("overridden", .integer(count { $0.override != nil })),
        ]
    }
}

extension BreakerAttempts.Point {
    fileprivate var json: JSONValue {
        [
            "admitted": .integer(admitted), "rejected": .integer(rejected), "probe": .integer(probe),
            "would_reject": .integer(wouldReject),
        ]
    }
}

extension JSONValue {
    /// Nanoseconds as a number of seconds.
    public static func seconds(_ nanoseconds: UInt64) -> JSONValue {
        .number(Double(nanoseconds) / 1_000_000_000)
    }

    /// Nanoseconds since 1970 as a time.
    public static func time(_ nanoseconds: UInt64) -> JSONValue {
        .string(
            RFC3339.format(
                seconds: Int64(nanoseconds / 1_000_000_000), nanoseconds: UInt32(nanoseconds % 1_000_000_000))
        )
    }
}
