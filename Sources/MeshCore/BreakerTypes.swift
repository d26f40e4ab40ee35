// The words of the breaker: its states, why it changes, what it is told and what it tells.
import CMeshABI

/// The state of a breaker. The raw values are those of `enum mesh_state`.
public enum BreakerState: UInt8, Sendable, CaseIterable {
    /// Admits everything.
    case closed = 0
    /// Rejects everything.
    case open = 1
    /// Admits probes.
    case halfOpen = 2

    /// The state as metrics and JSON spell it.
    public var label: String {
        switch self {
        case .closed: "closed"
        case .open: "open"
        case .halfOpen: "half_open"
        }
    }
}

/// Why a breaker changed. The raw values are those of the label `reason`.
public enum BreakerReason: String, Sendable, CaseIterable {
    /// The failure rate reached its threshold.
    case failureRate = "failure_rate"
    /// So many failures came in a row.
    case consecutiveFailures = "consecutive_failures"
    /// The slow-call rate reached its threshold.
    case slowCalls = "slow_calls"
    /// A probe failed.
    case probeFailed = "probe_failed"
    /// A trip rule was met during the ramp.
    case rampFailed = "ramp_failed"
    /// It was open for as long as it should be.
    case deadline = "deadline"
    /// The ramp ended well.
    case recovered = "recovered"
    /// A person forced it, or ended that.
    case override = "override"
    /// An override ended by itself.
    case overrideExpired = "override_expired"
    /// A new configuration switched it off.
    case reload = "reload"
}

/// A change of a breaker's effective state.
public struct BreakerTransition: Equatable, Sendable {
    /// The state it left.
    public var from: BreakerState
    /// The state it entered.
    public var to: BreakerState
    /// Why.
    public var reason: BreakerReason
    /// When, in monotonic nanoseconds. A deadline's transition has the deadline's time, because that is
    /// when the kernel made it.
    public var time: UInt64

    /// A transition from its parts.
    public init(from: BreakerState, to: BreakerState, reason: BreakerReason, time: UInt64) {
        self.from = from
        self.to = to
        self.reason = reason
        self.time = time
    }
}

/// What one ended attempt tells a breaker.
public struct BreakerOutcome: Equatable, Sendable {
    /// Whether it failed.
    public var failure: Bool
    /// Whether it was a slow call.
    public var slow: Bool
    /// Whether a half-open breaker had admitted it.
    public var probe: Bool
    /// Whether it was a connect() rather than a request.
    public var connect: Bool
    /// How long it took, in nanoseconds: tells when it began.
    public var duration: UInt64

    /// An outcome from its parts; `duration` in nanoseconds.
    public init(
        failure: Bool, slow: Bool = false, probe: Bool = false, connect: Bool = false, duration: UInt64 = 0
    ) {
        self.failure = failure
        self.slow = slow
        self.probe = probe
        self.connect = connect
        self.duration = duration
    }
}

/// A state that a person forced on a breaker, with who, why and until when.
public struct BreakerOverride: Equatable, Sendable {
    /// What can be forced. The raw values are those of `enum mesh_override`.
    public enum Forced: UInt8, Sendable {
        /// Reject everything.
        case open = 1
        /// Admit everything.
        case close = 2

        /// The override as JSON spells it.
        public var label: String { self == .open ? "open" : "close" }
        /// The state that it forces.
        public var state: BreakerState { self == .open ? .open : .closed }
    }

    /// What is forced.
    public var forced: Forced
    /// Who forced it, as the audit log names them.
    public var actor: String
    /// Why, in their words.
    public var reason: String
    /// Since when, in monotonic nanoseconds.
    public var since: UInt64
    /// When it ends by itself, in monotonic nanoseconds.
    public var expiresAt: UInt64

    /// An override from its parts; times in monotonic nanoseconds.
    public init(forced: Forced, actor: String, reason: String, since: UInt64, expiresAt: UInt64) {
        self.forced = forced
        self.actor = actor
        self.reason = reason
        self.since = since
        self.expiresAt = expiresAt
    }
}

/// Everything that a breaker knows besides its policy and its override: what it takes to go on in another
/// process as if nothing had been. The fields are those of `Breaker`; times in monotonic nanoseconds.
public struct BreakerMemory: Equatable, Sendable {
    /// Where in its ramp a half-open breaker is.
    public enum Ramp: UInt8, Sendable { case none, first, second }

    /// The automatic state.
    public var state: BreakerState
    /// Why the effective state is what it is.
    public var reason: BreakerReason?
    /// Since when it is.
    public var since: UInt64
    /// How many failures came in a row.
    public var consecutiveFailures: UInt32
    /// How many probes have succeeded.
    public var probeSuccesses: UInt32
    /// The trip rule that is met while the open-share limit keeps it closed.
    public var heldReason: BreakerReason?
    /// What it saw lately.
    public var window: SlidingWindow
    /// When an open breaker becomes half-open.
    public var openUntil: UInt64
    /// When it last became half-open.
    public var epoch: UInt64
    /// Where in its ramp it is.
    public var ramp: Ramp
    /// When the ramp began.
    public var rampStart: UInt64
    /// How many times in a row it has reopened.
    public var reopened: UInt32
    /// Whether the failures in a row are connects only.
    public var streakOfConnects: Bool
    /// Whether a request ever ended.
    public var sawRequest: Bool
    /// The state of its jitter's generator.
    public var random: UInt64

    /// Whether it is what the kernel was told, or what has become of that with its deadline.
    func fits(_ word: BreakerKernelWord) -> Bool {
        if state == .halfOpen && word.state == .open { return epoch == word.openUntil }
        return state == word.state && (state != .open || openUntil == word.openUntil)
    }
}

/// Everything that the kernel needs to know about a breaker: the fields of `struct mesh_breaker` under
/// their own names, to be compared with what was last written there.
public struct BreakerKernelWord: Equatable, Sendable {
    /// `state`: the automatic one, under any override.
    public var state: BreakerState
    /// `mode`.
    public var mode: BreakerPolicy.Mode
    /// `override_state`: nil is `MESH_OVERRIDE_NONE`.
    public var forced: BreakerOverride.Forced?
    /// `MESH_BREAKER_DRAIN`.
    public var drain: Bool
    /// `MESH_BREAKER_ALERT`.
    public var alert: Bool
    /// `probe_share`, of 2^32.
    public var probeShare: UInt32
    /// `open_until_ns`; 0 unless open.
    public var openUntil: UInt64
    /// `probe_interval_ns`.
    public var probeInterval: UInt64
    /// `override_until_ns`; 0 without an override.
    public var overrideUntil: UInt64
    /// `slow_ns`.
    public var slow: UInt64
    /// `urgent_classes`.
    public var urgentClasses: UInt32
}

extension BreakerKernelWord {
    /// What a program reads; nil if nothing was ever written there.
    public init?(_ entry: mesh_breaker) {
        let flags = UInt32(entry.flags)
        self.init(
            state: BreakerState(rawValue: entry.state) ?? .closed,
            mode: BreakerPolicy.Mode(rawValue: entry.mode) ?? .off,
            forced: BreakerOverride.Forced(rawValue: entry.override_state),
            drain: flags & MESH_BREAKER_DRAIN.rawValue != 0, alert: flags & MESH_BREAKER_ALERT.rawValue != 0,
            probeShare: entry.probe_share, openUntil: entry.open_until_ns,
            probeInterval: entry.probe_interval_ns, overrideUntil: entry.override_until_ns,
            slow: entry.slow_ns, urgentClasses: entry.urgent_classes)
        if self == BreakerKernelWord.none { return nil }
    }

    /// Whether it is that of a breaker that is closed and not forced.
    public var isAtEase: Bool { state == .closed && forced == nil }

    /// Whether the kernel may reject an attempt by it, now or when a deadline has passed.
    public var mayReject: Bool { mode == .enforce && (forced == .open || state != .closed) }

    /// The override that it tells of, with who and why if that is the one that is known; nil if it tells of none.
    public func override(known: BreakerOverride?) -> BreakerOverride? {
        guard let forced else { return nil }
        if let known, known.forced == forced, known.expiresAt == overrideUntil { return known }
        return BreakerOverride(
            forced: forced, actor: "unknown", reason: "forced before the agent was restarted", since: 0,
            expiresAt: overrideUntil)
    }

    /// That of a service without a breaker.
    public static let none = BreakerKernelWord(
        state: .closed, mode: .off, forced: nil, drain: false, alert: false, probeShare: 0, openUntil: 0,
        probeInterval: 0, overrideUntil: 0, slow: 0, urgentClasses: 0)
}

/// How many breakers automation may hold open or half-open at once: local trouble looks like everyone
/// failing, and then rejecting everything would make it worse.
public struct BreakerOpenShare: Equatable, Sendable {
    /// How many breakers there are whose mode is not `off`.
    public var breakers: Int
    /// The configured share of them, 0 to 1.
    public var share: Double
    /// How many of them automation holds open or half-open.
    public private(set) var open = 0

    /// A limiter that counts nothing yet.
    public init(breakers: Int, share: Double) {
        self.breakers = breakers
        self.share = share
    }

    /// How many may be held open or half-open: the share of all, rounded down, but at least one. (A little
    /// is added, because 0.29 of 100 is less than 29 in doubles.)
    public var limit: Int { max(1, Int((share * Double(breakers) + 1e-9).rounded(.down))) }

    /// Whether one more breaker may open.
    public var mayOpen: Bool { open < limit }

    /// Keeps count: call it after whatever may have changed a breaker, with `Breaker.holdsOpen` from
    /// before and after.
    public mutating func update(from before: Bool, to after: Bool) {
        if before != after { open += after ? 1 : -1 }
    }
}
