// What a person configures about a breaker, in the units that the state machine works with.

/// How a breaker behaves. Durations are nanoseconds, rates shares from 0 to 1. The defaults are those of
/// a `breaker` object with nothing in it.
public struct BreakerPolicy: Equatable, Sendable {
    /// What a breaker does with its decisions. The raw values are those of `enum mesh_mode`.
    public enum Mode: UInt8, Sendable {
        /// Computes nothing and rejects nothing.
        case off = 0
        /// Computes everything and rejects nothing.
        case observe = 1
        /// Rejects.
        case enforce = 2

        /// The mode as the configuration spells it.
        public var label: String {
            switch self {
            case .off: "off"
            case .observe: "observe"
            case .enforce: "enforce"
            }
        }
    }

    /// What it does with its decisions.
    public var mode: Mode = .enforce
    /// How far back the rates look.
    public var window: UInt64 = 10_000_000_000
    /// How many requests the window must hold before a rate can trip the breaker.
    public var minimumRequests: UInt64 = 20
    /// It trips when this share of the window's requests failed; 0: never for that.
    public var failureRate: Double = 0.5
    /// It trips when this many failures came in a row; 0: never for that.
    public var consecutiveFailures: UInt32 = 5
    /// Responses with these statuses are failures.
    public var failureStatuses = Configuration.StatusSet.serverErrors
    /// A request that took this long is a slow call; 0: none is.
    public var slowCallDuration: UInt64 = 0
    /// It trips when this share of the window's requests were slow; 0: never for that.
    public var slowCallRate: Double = 0.5
    /// How long it stays open the first time. Each time a probe or the ramp fails it is twice as long.
    public var openFor: UInt64 = 5_000_000_000
    /// It never stays open longer than this.
    public var maxOpenFor: UInt64 = 60_000_000_000
    /// The share of attempts that a half-open breaker admits.
    public var probeRatio: Double = 0.01
    /// A half-open breaker admits at least one attempt per interval.
    public var probeInterval: UInt64 = 1_000_000_000
    /// So many probes must succeed before the ramp starts; at least 1.
    public var probeSuccesses: UInt32 = 3
    /// How long the ramp takes, half of it at 10 %, half at 50 %; 0: it closes at once.
    public var ramp: UInt64 = 10_000_000_000
    /// Whether it leaves established connections alone.
    public var drain = false

    /// A policy with the defaults.
    public init() {}

    /// The policy that a service's configuration asks for; without a breaker, the mode is `off`.
    public init(_ configuration: Configuration.Breaker?) {
        guard let configuration else {
            mode = .off
            return
        }
        mode =
            switch configuration.mode {
            case .enforce: .enforce
            case .observe: .observe
            case .off: .off
            }
        window = configuration.window
        minimumRequests = UInt64(clamping: configuration.minimumRequests)
        failureRate = configuration.failureRate
        consecutiveFailures = UInt32(clamping: configuration.consecutiveFailures)
        failureStatuses = configuration.failureStatuses
        slowCallDuration = configuration.slowCallDuration ?? 0
        slowCallRate = configuration.slowCallRate
        openFor = configuration.openFor
        maxOpenFor = configuration.maxOpenFor
        probeRatio = configuration.probe.ratio
        probeInterval = configuration.probe.interval
        probeSuccesses = UInt32(clamping: configuration.probe.successes)
        ramp = configuration.probe.ramp
        drain = configuration.established == .drain
    }

    /// Whether slow calls can trip the breaker.
    public var watchesSlowCalls: Bool { slowCallDuration > 0 && slowCallRate > 0 }
}
