// The configuration: every key of the file with its default, as values that are known to be valid.
// docs/configuration.md describes the keys for people.

/// What the agent is told to do. All durations are in nanoseconds.
public struct Configuration: Sendable, Equatable {
    /// Where the metrics endpoint listens.
    public var listen = AddressPort(address: IPAddress(ipv4: 0x7f00_0001), port: 9464)
    /// The cgroup whose sockets are looked at; nil is the root of cgroup2 ("auto"). A path is relative
    /// to the root of cgroup2 or absolute in the file system.
    public var cgroup: String?
    /// The interfaces that get tc hooks: names, and "auto" for those that the agent picks itself.
    public var interfaces = ["auto"]
    /// Destinations that no breaker ever rejects.
    public var exempt: [Network] = []
    /// What goes on the wire.
    public var stamp = Stamp()
    /// The upper bounds of the histogram buckets, in seconds, strictly increasing.
    public var buckets: [Double] = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
    ]
    /// What keeps memory bounded.
    public var limits = Limits()
    /// What holds for all breakers together.
    public var breakers = Breakers()
    /// The configured services, in the order of the file.
    public var services: [Service] = []

    /// The defaults: observe the whole machine, break nothing.
    public init() {}

    /// The stamping of outgoing SYNs.
    public struct Stamp: Sendable, Equatable {
        /// Whether SYNs are stamped at all.
        public var enabled = true
        /// The destinations that may see a stamp: by default private, unique-local and loopback ones.
        public var destinations: [Network] = Stamp.privateNetworks

        /// The defaults.
        public init() {}

        private static let privateNetworks: [Network] = {
            let texts = [
                "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128",
            ]
            return texts.map { text in
                do { return try Network(text) } catch { preconditionFailure("\(error)") }
            }
        }()
    }

    /// The limits.
    public struct Limits: Sendable, Equatable {
        /// How many time series are exported at most; past it, the workload is "other".
        public var maxSeries = 20_000
        /// How many services may be discovered at most.
        public var maxDiscoveredServices = 1000

        /// The defaults.
        public init() {}
    }

    /// What holds for all breakers together.
    public struct Breakers: Sendable, Equatable {
        /// The share of the breakers, from 0 to 1, that automation may hold open or half-open at once.
        public var maxOpenShare = 0.5
        /// How long the kernel trusts the last heartbeat, in nanoseconds.
        public var lease: UInt64 = 10_000_000_000

        /// The defaults.
        public init() {}
    }

    /// A configured service.
    public struct Service: Sendable, Equatable {
        /// The name: unique, without control characters, up to 200 bytes.
        public var name: String
        /// Where it listens; never empty, and no endpoint is in two services.
        public var endpoints: [Endpoint]
        /// The breaker; nil if the service is only observed.
        public var breaker: Breaker?

        /// A service from its parts.
        public init(name: String, endpoints: [Endpoint], breaker: Breaker? = nil) {
            self.name = name
            self.endpoints = endpoints
            self.breaker = breaker
        }
    }

    /// What a breaker does to the attempts that it would reject.
    public enum Mode: String, Sendable, CaseIterable {
        /// Rejects them.
        case enforce
        /// Only counts them.
        case observe
        /// Nothing: there is no breaker.
        case off
    }

    /// What happens to requests on established connections of an open breaker.
    public enum Established: String, Sendable, CaseIterable {
        /// A rejected request is answered with RST to both ends.
        case reset
        /// They are left alone.
        case drain
    }

    /// The policy of one breaker. All durations are in nanoseconds.
    public struct Breaker: Sendable, Equatable {
        /// Whether it rejects.
        public var mode = Mode.enforce
        /// The length of the sliding window.
        public var window: UInt64 = 10_000_000_000
        /// How many requests the window needs before a rate counts.
        public var minimumRequests = 20
        /// The share of failures, above 0 and up to 1, that trips it.
        public var failureRate = 0.5
        /// How many failures in a row trip it; 0 is off.
        public var consecutiveFailures = 5
        /// Which HTTP statuses are failures.
        public var failureStatuses = StatusSet.serverErrors
        /// From when on a request is slow; nil is off.
        public var slowCallDuration: UInt64?
        /// The share of slow requests, above 0 and up to 1, that trips it.
        public var slowCallRate = 0.5
        /// How long it stays open the first time.
        public var openFor: UInt64 = 5_000_000_000
        /// What the doubling of `openFor` stops at.
        public var maxOpenFor: UInt64 = 60_000_000_000
        /// What half-open admits.
        public var probe = Probe()
        /// What happens to established connections.
        public var established = Established.reset

        /// The defaults.
        public init() {}
    }

    /// How a half-open breaker finds its way back. All durations are in nanoseconds.
    public struct Probe: Sendable, Equatable {
        /// The share of attempts, from 0 to 1, that half-open admits.
        public var ratio = 0.01
        /// Half-open admits at least one attempt in this time.
        public var interval: UInt64 = 1_000_000_000
        /// How many probes must succeed before the ramp.
        public var successes = 3
        /// How long the ramp to closed takes; 0 closes at once.
        public var ramp: UInt64 = 10_000_000_000

        /// The defaults.
        public init() {}
    }

    /// A set of HTTP statuses from 100 to 599. Asking it allocates nothing.
    public struct StatusSet: Sendable, Equatable {
        private var classes: UInt32 = 0
        private var codes: [UInt16] = []

        /// The empty set.
        public init() {}

        /// The default set: 500 to 599.
        public static let serverErrors: StatusSet = {
            var set = StatusSet()
            set.insert(class: 5)
            return set
        }()

        /// Adds all statuses of a class: 5 is 500 to 599.
        public mutating func insert(class number: Int) {
            classes |= 1 << UInt32(number)
        }

        /// Adds one status.
        public mutating func insert(_ status: UInt16) {
            if !codes.contains(status) { codes.append(status) }
        }

        /// Whether a status is in the set.
        public func contains(_ status: UInt16) -> Bool {
            classes >> UInt32(status / 100) & 1 == 1 || codes.contains(status)
        }

        /// Bit n is set if some status from n00 to n99 is in the set: what the kernel side asks before it
        /// wakes the agent.
        public var classMask: UInt32 {
            codes.reduce(classes) { $0 | 1 << UInt32($1 / 100) }
        }
    }
}

/// One mistake in a configuration file.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The file, as it was named.
    public let file: String
    /// The line, counted from 1.
    public let line: Int
    /// Where in the document: `services[0].breaker.openFor`, or `(document)`.
    public let path: String
    /// What is wrong.
    public let message: String

    /// `FILE:LINE: path.to.key: what is wrong`.
    public var description: String { "\(file):\(line): \(path): \(message)" }
}

/// All mistakes in a configuration file, in the order of the file. There is at least one.
public struct ConfigurationErrors: Error, Sendable, Equatable, CustomStringConvertible {
    /// The mistakes.
    public let errors: [ConfigurationError]

    /// One line for each, without a newline at the end.
    public var description: String { errors.map(\.description).joined(separator: "\n") }
}
