// Everything that /metrics says, as plain values that the encoder renders on whatever thread.

/// A histogram with fixed bounds, for what the agent measures of itself.
public struct MetricsHistogram: Equatable, Sendable {
    /// The upper bounds of the buckets in nanoseconds, ascending; past the last one is `+Inf`.
    public let bounds: [UInt64]
    /// The count of each bucket (not cumulative); the last is `+Inf`.
    public private(set) var buckets: [UInt64]
    /// The sum of what was recorded, in nanoseconds.
    public private(set) var sum: UInt64 = 0

    /// An empty histogram. `bounds` in nanoseconds, strictly ascending.
    public init(bounds: [UInt64]) {
        self.bounds = bounds
        buckets = [UInt64](repeating: 0, count: bounds.count + 1)
    }

    /// Takes over what was recorded before; false if there are not as many buckets.
    public mutating func restore(sum: UInt64, buckets: [UInt64]) -> Bool {
        guard buckets.count == self.buckets.count else { return false }
        (self.sum, self.buckets) = (sum, buckets)
        return true
    }

    /// An empty histogram for `mesh_breaker_reaction_seconds`: 50 µs to 100 ms.
    public static var breakerReaction: MetricsHistogram {
        MetricsHistogram(bounds: [
            50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000,
            50_000_000, 100_000_000,
        ])
    }

    /// Records one duration, in nanoseconds.
    public mutating func record(_ duration: UInt64) {
        buckets[histogramBucket(of: duration, in: bounds)] += 1
        sum &+= duration
    }
}

/// What the metrics say at one moment. Making one copies no series: the tables are values.
public struct MetricsSnapshot: Sendable {
    /// A breaker's part.
    public struct Breaker: Sendable {
        /// The service's ID.
        public var service: UInt32
        /// The effective state.
        public var state: BreakerState
        /// Attempts at connect().
        public var connect: BreakerAttempts.Point
        /// Attempts at the start of a request on an established connection.
        public var request: BreakerAttempts.Point

        /// A breaker's part of the metrics.
        public init(
            service: UInt32, state: BreakerState, connect: BreakerAttempts.Point = .init(),
            request: BreakerAttempts.Point = .init()
        ) {
            self.service = service
            self.state = state
            self.connect = connect
            self.request = request
        }
    }

    /// How often a breaker went from one state to another for one reason.
    public struct Transitions: Sendable {
        /// The service's ID.
        public var service: UInt32
        /// The state it left.
        public var from: BreakerState
        /// The state it entered.
        public var to: BreakerState
        /// Why.
        public var reason: BreakerReason
        /// How often.
        public var count: UInt64

        /// A count of transitions.
        public init(
            service: UInt32, from: BreakerState, to: BreakerState, reason: BreakerReason, count: UInt64
        ) {
            self.service = service
            self.from = from
            self.to = to
            self.reason = reason
            self.count = count
        }
    }

    /// SYNs with and without stamps.
    public struct Stamps: Equatable, Sendable {
        /// SYNs that were stamped.
        public var sentOK: UInt64 = 0
        /// SYNs that had no room for a stamp.
        public var sentNoRoom: UInt64 = 0
        /// SYNs to destinations that may not see a stamp.
        public var sentOutOfScope: UInt64 = 0
        /// Stamps that were read.
        public var receivedOK: UInt64 = 0
        /// Stamps from where none are believed.
        public var receivedOutOfScope: UInt64 = 0

        /// No SYNs at all.
        public init() {}
    }

    /// What is to be known of the state that outlives the agent.
    public struct State: Equatable, Sendable {
        /// Whether it is kept.
        public var isKept = false
        /// How many commits this process has made.
        public var commits: UInt64 = 0
        /// How often this process could not write it.
        public var failures: UInt64 = 0
        /// How many bytes its file has.
        public var bytes: UInt64 = 0

        /// One that is not kept.
        public init() {}
    }

    /// What the kernel says about the agent's process.
    public struct Process: Equatable, Sendable {
        /// CPU time used, user and system, in nanoseconds.
        public var cpuTime: UInt64 = 0
        /// Resident memory in bytes.
        public var residentMemory: UInt64 = 0
        /// Virtual memory in bytes.
        public var virtualMemory: UInt64 = 0
        /// Open file descriptors.
        public var openFileDescriptors: UInt64 = 0
        /// How many file descriptors may be open.
        public var maxFileDescriptors: UInt64 = 0
        /// When the process started, in nanoseconds since 1970.
        public var startTime: UInt64 = 0

        /// A process that used nothing yet.
        public init() {}
    }

    /// The names of services by their IDs, each name once; an ID without a name is shown as `service-ID`.
    public var services: [String]
    /// The names of workloads by their indices, each name once; index 0 is `other`.
    public var workloads: [String]
    /// Change it whenever a name that was there before changed; additions need no change.
    public var namesGeneration: UInt64
    /// Requests.
    public var requests: SeriesTable
    /// Connections.
    public var connections: ConnectionTable
    /// Breakers whose mode is not `off`, one per service.
    public var breakers: [Breaker] = []
    /// Transitions, each combination once.
    public var transitions: [Transitions] = []
    /// How long it took from the deciding sample's time to the write of the map.
    public var reaction = MetricsHistogram.breakerReaction
    /// Stamps.
    public var stamps = Stamps()
    /// The agent's version.
    public var version: String
    /// The kernel's release.
    public var kernel: String
    /// Samples lost, by the stage at which, each stage once.
    public var samplesLost: [(stage: String, count: UInt64)] = []
    /// Connections that count as `other` because there were too many services to discover one more.
    public var overDiscoveryLimit: UInt64 = 0
    /// How long ago the lease was last renewed, in nanoseconds.
    public var leaseAge: UInt64 = 0
    /// System calls that the agent's own filter refused.
    public var refusedCalls: UInt64 = 0
    /// Lines of the agent's log that were never written.
    public var logLinesDropped: UInt64 = 0
    /// Whether the control socket is where clients look for it.
    public var isControlListening = false
    /// What was found missing of what enforces, by part, each part once: how often, how often it was repaired,
    /// and how much is missing now.
    public var faults: [(part: String, found: UInt64, repaired: UInt64, broken: UInt64)] = []
    /// How often was looked for that.
    public var checks: UInt64 = 0
    /// Whether the last look found that a connect is refused that has to be.
    public var isProven = false
    /// Whether all that is enforced outlives the agent.
    public var isPinned = false
    /// The state that outlives the agent.
    public var state = State()
    /// The agent's process.
    public var process = Process()

    /// A snapshot with the parts that have no default; the others are set afterwards.
    public init(
        services: [String], workloads: [String], namesGeneration: UInt64, requests: SeriesTable,
        connections: ConnectionTable, version: String, kernel: String
    ) {
        self.services = services
        self.workloads = workloads
        self.namesGeneration = namesGeneration
        self.requests = requests
        self.connections = connections
        self.version = version
        self.kernel = kernel
    }
}
