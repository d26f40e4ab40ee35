// What an agent finds in pinned maps when it takes over from one that ended. The maps say what is enforced
// and which IDs are in use; names and the words of people are not in them, but in the state.
import BPFRuntime
import CMeshABI
import MeshCore
import MeshSystem

/// What an earlier agent left.
struct Inheritance {
    /// Which service an endpoint is of.
    var endpoints: [Endpoint: UInt32] = [:]
    /// The ID that the next configured service gets.
    var nextService: UInt32 = 1
    /// The breakers of configured services, those that are or were there.
    var words: [UInt32: BreakerKernelWord] = [:]
    /// The trace IDs bound to processes.
    var bindings: [(pid: UInt32, trace: TraceID)] = []
    /// Until when the earlier agent's lease holds, in monotonic nanoseconds.
    var leaseUntil: UInt64 = 0
    /// The names of services by ID, of those that the state knows.
    var names: [UInt32: String] = [:]
    /// What people forced, with who and why, of those that the state knows.
    var overrides: [UInt32: BreakerOverride] = [:]
    /// What the state knows of the bindings.
    var bound: [UInt32: StateBinding] = [:]
    /// Whether the state knows all that was counted: then it knows more of breakers than the maps do.
    var isStateCurrent = false

    /// Finds names for IDs without one: a configured service has the ID that most of its endpoints have.
    mutating func nameServices(of configuration: Configuration) {
        var known = Set(names.values)
        for service in configuration.services where known.insert(service.name).inserted {
            var votes: [UInt32: Int] = [:]
            for endpoint in service.endpoints {
                if let id = endpoints[endpoint], names[id] == nil { votes[id, default: 0] += 1 }
            }
            // Of equal ones the lower, so that it is the same each time.
            if let id = votes.max(by: { ($0.value, $1.key) < ($1.value, $0.key) })?.key {
                names[id] = service.name
            }
        }
    }

    /// The override on a breaker, from the state if it knows it, else as far as the kernel does.
    func override(of service: UInt32) -> BreakerOverride? {
        words[service]?.override(known: overrides[service])
    }
}

extension Endpoint {
    /// The endpoint that a key of `endpoints` stands for.
    init(_ key: mesh_endpoint) {
        self.init(network: Network(IPAddress(key.address)), port: key.port)
    }

    /// The endpoint that a key of `prefixes` stands for; nil for one that no agent writes.
    init?(_ key: mesh_prefix) {
        guard key.length >= 16, let network = Network(IPAddress(key.address), bits: Int(key.length) - 16)
        else {
            return nil
        }
        self.init(network: network, port: UInt16(key.port.0) << 8 | UInt16(key.port.1))
    }
}

extension Network {
    /// The network that a key of `exempt` or `scope` stands for; nil for one that no agent writes.
    init?(_ key: mesh_network) { self.init(IPAddress(key.address), bits: Int(key.length)) }
}
