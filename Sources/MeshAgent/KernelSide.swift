// The kernel half as the engine sees it: loaded programs, where they are attached, and the maps, each
// with the one way in which the agent writes or reads it.
import BPFRuntime
import CMeshABI
import CMeshSystem
import Glibc
import MeshCore
import MeshSystem

/// A hook and whether its program is attached, for `meshctl status`.
struct KernelHook {
    let name: String
    let place: String
    let isAttached: Bool
    let detail: String
}

/// How a program sits on an interface.
enum InterfaceMode: String {
    case tcx
    case clsact
}

/// What the kernel counted, summed over its CPUs.
struct KernelCounters {
    enum Counter: Int, CaseIterable {
        case stampSentOK, stampSentNoRoom, stampSentOutOfScope, stampReceivedOK, stampReceivedOutOfScope
        case lostRing, lostStorage, overCap, unenforced, resets
    }
    fileprivate var values = [UInt64](repeating: 0, count: Counter.allCases.count)

    subscript(counter: Counter) -> UInt64 { values[counter.rawValue] }
}

/// What the kernel counted of a breaker's decisions.
struct KernelAttempts {
    struct Point {
        var rejected: UInt64 = 0
        var probe: UInt64 = 0
        var wouldReject: UInt64 = 0
    }
    var connect = Point()
    var request = Point()
}

/// A tracked connection.
struct KernelConnection {
    let service: UInt32
    let role: Sample.Role
    let wireProtocol: Sample.WireProtocol
    let isPending: Bool
    let isAdopted: Bool
    let workload: UInt64
    let opened: UInt64
    let sentBytes: UInt64
    let receivedBytes: UInt64
    let trace: TraceID?
    let local: AddressPort
    let remote: AddressPort
}

/// The loaded kernel side. Only the engine's thread uses it.
final class KernelSide {
    /// Where cgroup2 is mounted.
    let cgroupRoot: String
    /// The cgroup that the programs are attached to, as a path below the root: `/` is everything.
    let cgroupPath: String

    private var ring: RingBuffer
    private let control: MappedArray
    private let breakersMap: BPFMap
    private let attemptsMap: BPFMap
    /// As much of the arrays as services are configured: see `reserve`.
    private var breakers: MappedArray
    private var attempts: MappedArray
    private let endpoints: BPFMap
    private let prefixes: BPFMap
    private let discoveredMap: BPFMap
    private let exempt: BPFMap
    private let scope: BPFMap
    private let bindings: BPFMap
    private let countersMap: BPFMap
    private let connectionsMap: BPFMap
    private let connectionIterator: BPFProgram
    private let cgroupIterator: BPFProgram
    private let tcIngress: BPFProgram
    private let tcEgress: BPFProgram
    private let cgroupPrograms: [(name: String, program: Program)]
    private var cgroupLinks: [Attachment] = []
    private var attachments: [Int32: InterfaceAttachment] = [:]
    private let forceClsact: Bool

    // Boxes, because collections cannot hold what is not copyable.
    private final class Program {
        let program: BPFProgram
        init(_ program: consuming BPFProgram) { self.program = program }
    }
    private final class Attachment {
        let link: BPFLink
        init(_ link: consuming BPFLink) { self.link = link }
    }
    private final class InterfaceAttachment {
        /// As last told: it may have been renamed.
        var link: Link
        let mode: InterfaceMode
        private let ingress: BPFLink?
        private let egress: BPFLink?
        private let filter: TCFilter?

        init(_ link: Link, ingress: consuming BPFLink?, egress: consuming BPFLink?) {
            self.link = link
            mode = .tcx
            self.ingress = ingress
            self.egress = egress
            filter = nil
        }

        init(_ link: Link, filter: consuming TCFilter?) {
            self.link = link
            mode = .clsact
            ingress = nil
            egress = nil
            self.filter = filter
        }
    }

    /// What is in the endpoint maps now, to write only differences.
    private var writtenEndpoints: [Endpoint: UInt32] = [:]
    private var writtenExempt: Set<Network> = []
    private var writtenScope: Set<Network> = []

    /// The cgroup programs in the order in which they are attached: those that follow a connection
    /// before those that begin one, so that none is begun and then not followed.
    private static let cgroupHooks = [
        (name: "sock_ops", program: "mesh_sockops"), (name: "cgroup_skb ingress", program: "mesh_ingress"),
        (name: "cgroup_skb egress", program: "mesh_egress"), (name: "sock_release", program: "mesh_release"),
        (name: "connect4", program: "mesh_connect4"), (name: "connect6", program: "mesh_connect6"),
    ]

    /// Says what this machine lacks, before anything is opened: each missing thing has its own line, and
    /// the first required one is why the agent cannot start.
    static func checkMachine(_ configuration: Configuration) throws(SystemError) {
        let root = try? Mount.cgroup2()
        let path = root.map { full(normalized(configuration.cgroup, root: $0), root: $0) }
        // Before the probes, which would say only that it cannot be attached to.
        if let path, access(path, F_OK) != 0 {
            throw SystemError(
                "find", "the cgroup \(path)",
                hint: "create it, or correct \"cgroup\" in the configuration")
        }
        if let missing = KernelProbe.run(cgroup: path).first(where: { $0.required && !$0.ok }) {
            throw SystemError("run on", "this machine", errno: ENOTSUP, reason: missing.sentence)
        }
    }

    /// Loads the programs and makes the maps. Nothing is attached.
    init(configuration: Configuration) throws(SystemError) {
        forceClsact = getenv("MESH_AGENT_FORCE_CLSACT") != nil
        let root = try Mount.cgroup2()
        cgroupRoot = root
        cgroupPath = KernelSide.normalized(configuration.cgroup, root: root)
        let object = try BPFObject.mesh()
        try object.load()
        ring = try RingBuffer(object.map(named: "events"))
        control = try object.map(named: ".data.control").mapped()
        breakersMap = try object.map(named: "breakers")
        attemptsMap = try object.map(named: "attempts")
        breakers = try breakersMap.mapped(KernelSide.servicesPerMapping)
        attempts = try attemptsMap.mapped(KernelSide.servicesPerMapping, writable: false)
        endpoints = try object.map(named: "endpoints")
        prefixes = try object.map(named: "prefixes")
        discoveredMap = try object.map(named: "discovered")
        exempt = try object.map(named: "exempt")
        scope = try object.map(named: "scope")
        bindings = try object.map(named: "bindings")
        countersMap = try object.map(named: "counters")
        connectionsMap = try object.map(named: "connections")
        connectionIterator = try object.program(named: "mesh_connections")
        cgroupIterator = try object.program(named: "mesh_cgroup")
        tcIngress = try object.program(named: "mesh_tc_ingress")
        tcEgress = try object.program(named: "mesh_tc_egress")
        var programs: [(name: String, program: Program)] = []
        for hook in KernelSide.cgroupHooks {
            programs.append((hook.name, Program(try object.program(named: hook.program))))
        }
        cgroupPrograms = programs
        let control = self.control.element(0, as: mesh_control.self)
        control.pointee.agent_tgid = UInt32(getpid())
        control.pointee.first_discovered = ServiceTable.firstDiscovered
    }

    private static func full(_ path: String, root: String) -> String { path == "/" ? root : root + path }

    /// `auto` (nil) is the root; a path may be given from the root or from the file system's.
    private static func normalized(_ path: String?, root: String) -> String {
        guard var path else { return "/" }
        if path == root || path.hasPrefix(root + "/") { path.removeFirst(root.count) }
        let parts = path.split(separator: "/")
        return "/" + parts.joined(separator: "/")
    }

    // MARK: - Attaching

    /// Attaches the cgroup programs.
    func attach() throws(SystemError) {
        let path = KernelSide.full(cgroupPath, root: cgroupRoot)
        for hook in cgroupPrograms {
            cgroupLinks.append(Attachment(try BPFLink.cgroup(hook.program.program, path: path)))
        }
    }

    /// Detaches everything: what begins connections first.
    func detach() {
        while cgroupLinks.popLast() != nil {}
        attachments = [:]
    }

    /// The cgroup hooks.
    var hooks: [KernelHook] {
        cgroupPrograms.enumerated().map { index, hook in
            KernelHook(
                name: hook.name, place: "cgroup \(cgroupPath)", isAttached: index < cgroupLinks.count,
                detail: "")
        }
    }

    /// The interfaces that rejected requests can be reset on.
    var interfaces: [(name: String, mode: InterfaceMode)] {
        attachments.values.map { ($0.link.name, $0.mode) }.sorted { $0.name < $1.name }
    }

    /// Follows an interface that came, changed or went.
    /// - Parameter wanted: The configured names; `auto` is all.
    /// - Returns: What was done, for the log; nil if nothing.
    func linkChanged(_ event: LinkEvent, wanted: [String]) -> (
        message: String, interface: String, error: String?
    )? {
        switch event {
        case .removed(let link):
            return attachments.removeValue(forKey: link.index).map { _ in ("interface left", link.name, nil) }
        case .added(let link), .changed(let link):
            let isWanted = wanted.contains("auto") || wanted.contains(link.name)
            guard isWanted else {
                return attachments.removeValue(forKey: link.index).map { _ in
                    ("detached from interface", link.name, nil)
                }
            }
            if let present = attachments[link.index] {
                present.link = link
                return nil
            }
            do {
                attachments[link.index] = try attach(to: link)
                return ("attached to interface", link.name, nil)
            } catch {
                // It may be gone again already; its removal will be told.
                if error.errno == ENODEV { return nil }
                return ("rejected requests cannot be reset on an interface", link.name, error.description)
            }
        }
    }

    private func attach(to link: Link) throws(SystemError) -> InterfaceAttachment {
        if !forceClsact {
            do {
                let egress = try BPFLink.tcx(tcEgress, interface: link.index, .egress)
                // Only the host's end of a pod's veth sees a local client's packets come in.
                if link.kind == "veth" {
                    return InterfaceAttachment(
                        link, ingress: try BPFLink.tcx(tcIngress, interface: link.index, .ingress),
                        egress: egress)
                }
                return InterfaceAttachment(link, ingress: nil, egress: egress)
            } catch {
                guard error.errno == EINVAL else { throw error }
            }
        }
        var filter = try TCFilter(interface: link.index)
        try filter.attach(tcEgress, .egress)
        if link.kind == "veth" { try filter.attach(tcIngress, .ingress) }
        return InterfaceAttachment(link, filter: filter)
    }

    // MARK: - Samples

    /// Readable when the kernel wants the reader at once.
    var ringDescriptor: Int32 { ring.descriptor }

    /// How many records the ring buffer holds at most.
    var ringRecords: Int { Int(MESH_RING_BYTES) / (SampleDiscovery.length + 8) }

    /// Bytes that wait in the ring buffer.
    var pendingBytes: Int { ring.pendingBytes }

    /// Whether the last look ended at a record that a program is still writing.
    var isHeldUp: Bool { ring.isHeldUp }

    /// Shows records that were not shown before, oldest first, until `body` says false.
    @discardableResult
    func peekWhile(_ body: (UnsafeRawBufferPointer) -> Bool) -> Int { ring.peekWhile(body) }

    /// Hands over records, oldest first.
    func consumeWhile(limit: Int, _ body: (UnsafeRawBufferPointer) -> Bool) -> Int {
        ring.consumeWhile(limit: limit, body)
    }

    // MARK: - What programs read

    /// So many services' breakers and attempts are mapped at a time.
    private static let servicesPerMapping = 1024

    /// Makes room for the breakers of services with IDs up to this one.
    func reserve(service: UInt32) throws(SystemError) {
        guard Int(service) >= breakers.count || Int(service) >= attempts.count else { return }
        let count = (Int(service) / KernelSide.servicesPerMapping + 1) * KernelSide.servicesPerMapping
        breakers = try breakersMap.mapped(count)
        attempts = try attemptsMap.mapped(count, writable: false)
    }

    /// Writes a breaker. When it opens, the state comes last; when it closes, first: a program that
    /// reads in between sees one or the other, never an old deadline with a new state.
    func write(_ word: BreakerKernelWord, service: UInt32) {
        let entry = breakers[Int(service)]
        var head = UInt32(word.state.rawValue) | UInt32(word.mode.rawValue) << 8
        head |= UInt32(word.forced?.rawValue ?? 0) << 16
        let drain = word.drain ? MESH_BREAKER_DRAIN.rawValue : 0
        let alert = word.alert ? MESH_BREAKER_ALERT.rawValue : 0
        head |= (drain | alert) << 24
        let opens = word.mayReject
        // The first four fields are bytes of one word, so that they change together.
        if !opens { mesh_store_release_u32(entry, head) }
        mesh_store_release_u32(entry + 4, word.probeShare)
        mesh_store_release_u64(entry + 8, word.openUntil)
        mesh_store_release_u64(entry + 16, word.probeInterval)
        mesh_store_release_u64(entry + 24, word.overrideUntil)
        mesh_store_release_u64(entry + 32, word.slow)
        mesh_store_release_u32(entry + 40, word.urgentClasses)
        if opens { mesh_store_release_u32(entry, head) }
    }

    private func field(_ path: PartialKeyPath<mesh_control>) -> UnsafeMutableRawPointer {
        control[0] + MemoryLayout<mesh_control>.offset(of: path)!
    }

    /// The heartbeat.
    func setLease(until time: UInt64) { mesh_store_release_u64(field(\mesh_control.lease_until_ns), time) }

    /// How many breakers may reject; 0 lets tc pass everything at once.
    func setEnforcing(_ count: UInt32) { mesh_store_release_u32(field(\mesh_control.enforcing), count) }

    /// When the ring buffer is looked at whatever happens: until then the kernel wakes nobody. 0: it does.
    func setNextLook(at time: UInt64) { mesh_store_release_u64(field(\mesh_control.next_look_ns), time) }

    /// Whether samples should carry addresses.
    func setFlowsWanted(_ wanted: Bool) {
        mesh_store_release_u32(field(\mesh_control.flows_wanted), wanted ? 1 : 0)
    }

    /// Brings the maps to what a configuration says. What is added or changed comes before what goes.
    /// - Parameter ids: The services' IDs, in the configuration's order.
    func apply(_ configuration: Configuration, ids: [UInt32]) throws(SystemError) {
        mesh_store_release_u32(
            field(\mesh_control.max_discovered), UInt32(configuration.limits.maxDiscoveredServices))
        try replace(exempt, configuration.exempt, &writtenExempt)
        try replace(scope, configuration.stamp.destinations, &writtenScope)
        mesh_store_release_u32(field(\mesh_control.stamping), configuration.stamp.enabled ? 1 : 0)

        var wanted: [Endpoint: UInt32] = [:]
        for (service, id) in zip(configuration.services, ids) {
            for endpoint in service.endpoints { wanted[endpoint] = id }
        }
        let changed = wanted.filter { writtenEndpoints[$0.key] != $0.value }
        let gone = writtenEndpoints.keys.filter { wanted[$0] == nil }
        // Noted before it is done: if it fails half way, all of it is taken back.
        writtenEndpoints.merge(changed) { $1 }
        let exact = changed.filter { $0.key.network.isSingleAddress }
        try endpoints.update(keys: exact.keys.map { mesh_endpoint($0) }, values: Array(exact.values))
        for (endpoint, id) in changed where !endpoint.network.isSingleAddress {
            try prefixes.update(mesh_prefix(endpoint), id)
        }
        try endpoints.delete(keys: gone.filter { $0.network.isSingleAddress }.map { mesh_endpoint($0) })
        for endpoint in gone where !endpoint.network.isSingleAddress {
            try prefixes.delete(mesh_prefix(endpoint))
        }
        writtenEndpoints = wanted
        // Connections look their service up again with their next request.
        let generation = field(\mesh_control.generation)
        mesh_store_release_u32(generation, mesh_load_relaxed_u32(generation) &+ 1)
    }

    private func replace(
        _ map: borrowing BPFMap, _ networks: [Network], _ written: inout Set<Network>
    ) throws(SystemError) {
        let wanted = Set(networks)
        for network in wanted.subtracting(written) {
            try map.update(mesh_network(network), UInt8(1))
            written.insert(network)
        }
        for network in written.subtracting(wanted) {
            try map.delete(mesh_network(network))
            written.remove(network)
        }
    }

    /// Binds a trace ID to a process or thread.
    func bind(pid: UInt32, _ trace: TraceID) throws(SystemError) {
        try bindings.update(pid, mesh_trace_id(bytes: trace.bytes))
    }

    /// Ends a binding.
    func unbind(pid: UInt32) { _ = try? bindings.delete(pid) }

    // MARK: - What programs count

    /// The counters, summed.
    func counters() -> KernelCounters {
        var counters = KernelCounters()
        for counter in KernelCounters.Counter.allCases {
            counters.values[counter.rawValue] = (try? countersMap.sumPerCPU(UInt32(counter.rawValue))) ?? 0
        }
        return counters
    }

    /// The decisions on a service's attempts, but for those that were simply admitted.
    func attempts(_ service: UInt32) -> KernelAttempts {
        let entry = attempts[Int(service)]
        func point(_ point: mesh_point) -> KernelAttempts.Point {
            func count(_ decision: mesh_decision) -> UInt64 {
                mesh_load_relaxed_u64(entry + Int(point.rawValue * 4 + decision.rawValue) * 8)
            }
            return KernelAttempts.Point(
                rejected: count(MESH_DECISION_REJECTED), probe: count(MESH_DECISION_PROBE),
                wouldReject: count(MESH_DECISION_WOULD_REJECT))
        }
        return KernelAttempts(connect: point(MESH_POINT_CONNECT), request: point(MESH_POINT_REQUEST))
    }

    /// What the kernel discovered, read from its map.
    func discovered() -> [(id: UInt32, role: Sample.Role, address: IPAddress, port: UInt16)] {
        guard let keys = try? discoveredMap.keys(as: mesh_endpoint.self) else { return [] }
        return keys.compactMap { key in
            guard let role = Sample.Role(rawValue: UInt8(truncatingIfNeeded: key.role)),
                let id = try? discoveredMap.lookup(key, as: UInt32.self)
            else { return nil }
            return (id, role, IPAddress(key.address), key.port)
        }
    }

    /// Whether there is a cgroup with that ID.
    func isCgroup(_ id: UInt64) -> Bool {
        guard let link = try? BPFLink.iterator(cgroupIterator, overCgroup: id) else { return false }
        _ = link
        return true
    }

    /// The path of the cgroup with that ID, from the root of cgroup2; nil if there is none any more.
    func path(ofCgroup id: UInt64) -> String? {
        guard let bytes = try? BPFLink.iterator(cgroupIterator, overCgroup: id).readIterator() else {
            return nil
        }
        return bytes.isEmpty ? "/" : String(decoding: bytes, as: UTF8.self)
    }

    /// Every tracked connection, in every network namespace.
    func connections() throws(SystemError) -> [KernelConnection] {
        let size = MemoryLayout<mesh_connection_entry>.size
        let bytes = try BPFLink.iterator(connectionIterator, over: connectionsMap).readIterator()
        return bytes.withUnsafeBytes { all in
            stride(from: 0, to: all.count - all.count % size, by: size).compactMap { offset in
                KernelConnection(all.loadUnaligned(fromByteOffset: offset, as: mesh_connection_entry.self))
            }
        }
    }
}

extension KernelConnection {
    init?(_ entry: mesh_connection_entry) {
        guard let role = Sample.Role(rawValue: entry.role),
            let wireProtocol = Sample.WireProtocol(rawValue: entry.protocol)
        else { return nil }
        self.init(
            service: entry.service, role: role, wireProtocol: wireProtocol, isPending: entry.pending != 0,
            isAdopted: entry.adopted != 0, workload: entry.workload, opened: entry.opened_ns,
            sentBytes: entry.sent_bytes, receivedBytes: entry.received_bytes, trace: TraceID(entry.trace_id),
            local: AddressPort(address: IPAddress(entry.tuple.local_address), port: entry.tuple.local_port),
            remote: AddressPort(address: IPAddress(entry.tuple.remote_address), port: entry.tuple.remote_port)
        )
    }
}

extension mesh_endpoint {
    init(_ endpoint: Endpoint) {
        self.init(address: endpoint.network.address.bytes, port: endpoint.port, role: 0)
    }
}

extension mesh_prefix {
    init(_ endpoint: Endpoint) {
        self.init(
            length: UInt32(16 + endpoint.network.bits),
            port: (UInt8(endpoint.port >> 8), UInt8(truncatingIfNeeded: endpoint.port)),
            address: endpoint.network.address.bytes, pad: (0, 0))
    }
}

extension mesh_network {
    init(_ network: Network) {
        self.init(length: UInt32(network.bits), address: network.address.bytes)
    }
}
