// The kernel half as the engine sees it: loaded programs, and the maps, each with the one way in which the
// agent writes or reads it. Where programs are attached: Attachments.swift.
import BPFRuntime
import CMeshABI
import CMeshSystem
import Glibc
import MeshCore
import MeshMaps
import MeshSystem

/// What the kernel counted, summed over its CPUs.
struct KernelCounters {
    enum Counter: Int, CaseIterable {
        case stampSentOK, stampSentNoRoom, stampSentOutOfScope, stampReceivedOK, stampReceivedOutOfScope
        case lostRing, lostStorage, overCap, unenforced, resets
    }
    fileprivate var values = [UInt64](repeating: 0, count: Counter.allCases.count)

    subscript(counter: Counter) -> UInt64 { values[counter.rawValue] }
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
final class KernelSide: CgroupTree {
    /// The cgroup that the programs are attached to, as a path below the root: `/` is everything.
    let cgroupPath: String

    private var ring: RingBuffer
    private let control: MappedArray
    private var breakers: BreakerMaps
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
    /// Where everything is pinned that outlives the agent; nil if it cannot be.
    let pins: PinDirectory?
    /// Whether the maps, or what is in them, are those of an earlier agent.
    let isTakeover: Bool
    /// The maps of another layout that this agent has replaced, until their programs have ended.
    private(set) var replaced: ReplacedMaps?
    /// Of those, the ones of which nothing could be kept.
    private(set) var notKept: [String] = []
    /// The programs at the cgroup and on interfaces, and all that is pinned.
    let attachments: Attachments

    /// What is in the endpoint maps now, to write only differences.
    private var writtenEndpoints: [Endpoint: UInt32] = [:]
    private var writtenExempt: Set<Network> = []
    private var writtenScope: Set<Network> = []

    /// Says what this machine lacks, before anything is opened: each missing thing has its own line, and
    /// the first required one is why the agent cannot start.
    /// - Parameter pins: If an earlier agent of this build ran with them, the kernel has all that it needs.
    static func checkMachine(_ configuration: Configuration, _ pins: PinDirectory) throws(SystemError) {
        let root = try? Mount.cgroup2()
        let path = root.map { full(normalized(configuration.cgroup, root: $0), root: $0) }
        // Before the probes, which would say only that it cannot be attached to.
        if let path, access(path, F_OK) != 0 {
            throw SystemError(
                "find", "the cgroup \(path)",
                hint: "create it, or correct \"cgroup\" in the configuration")
        }
        if isLoaded(pins) { return }
        if let missing = KernelProbe.run(cgroup: path).first(where: { $0.required && !$0.ok }) {
            throw SystemError("run on", "this machine", errno: ENOTSUP, reason: missing.sentence)
        }
    }

    /// Loads the programs, with the maps that an earlier agent left if they are of this layout, else with
    /// fresh ones. Nothing is attached.
    init(configuration: Configuration, instance: Instance) throws(SystemError) {
        let root = try Mount.cgroup2()
        cgroupPath = KernelSide.normalized(configuration.cgroup, root: root)
        var loaded = try KernelSide.load(PinDirectory(instance))
        pins = loaded.pins
        let old = loaded.pins.flatMap { pins in
            loaded.isTakeover ? nil : try? ReplacedMaps(in: pins.mapDirectory)
        }
        isTakeover = loaded.isTakeover || old != nil
        StartStep.reached("maps-loaded")
        if old != nil, let pins = loaded.pins {
            notKept = try loaded.copy(from: pins.mapDirectory)
            StartStep.reached("maps-copied")
        }
        ring = try RingBuffer(loaded.map(named: "events"))
        control = try loaded.map(named: ".data.control").mapped()
        breakers = try BreakerMaps(
            breakers: loaded.map(named: "breakers"), attempts: loaded.map(named: "attempts"))
        endpoints = try loaded.map(named: "endpoints")
        prefixes = try loaded.map(named: "prefixes")
        discoveredMap = try loaded.map(named: "discovered")
        exempt = try loaded.map(named: "exempt")
        scope = try loaded.map(named: "scope")
        bindings = try loaded.map(named: "bindings")
        countersMap = try loaded.map(named: "counters")
        connectionsMap = try loaded.map(named: "connections")
        connectionIterator = try loaded.program(named: "mesh_connections")
        cgroupIterator = try loaded.program(named: "mesh_cgroup")
        let tcIngress = try LoadedProgram(loaded.program(named: "mesh_tc_ingress"))
        let tcEgress = try LoadedProgram(loaded.program(named: "mesh_tc_egress"))
        var programs: [(name: String, program: LoadedProgram)] = []
        for hook in CgroupHook.all {
            programs.append((hook.name, try LoadedProgram(loaded.program(named: hook.program))))
        }
        var pinSet: PinSet?
        if let pins, let lock = loaded.lock.take() {
            let set = PinSet(pins, lock: lock)
            for map in PinDirectory.maps { try set.add(loaded.map(named: map)) }
            try set.add(connectionIterator)
            try set.add(cgroupIterator)
            for program in [tcIngress, tcEgress] + programs.map(\.program) { try set.add(program.program) }
            pinSet = set
        }
        attachments = try Attachments(
            cgroup: (path: cgroupPath, directory: KernelSide.full(cgroupPath, root: root)),
            programs: (cgroup: programs, ingress: tcIngress, egress: tcEgress),
            breakers: loaded.map(named: "breakers"), attempts: loaded.map(named: "attempts"),
            pins: pins, pinSet: pinSet, pinError: loaded.error, filterHandle: instance.filterHandle)
        let control = self.control.element(0, as: mesh_control.self)
        control.pointee.agent_tgid = UInt32(getpid())
        if !loaded.isTakeover {
            control.pointee.first_discovered = ServiceTable.firstDiscovered
            if old == nil {
                control.pointee.next_service = 1
                control.pointee.instance = UInt64.random(in: 1 ... .max)
            }
            control.pointee.abi_version = KernelSide.layout
            StartStep.reached("maps-marked")
            try pins?.putSpareInPlace()
            StartStep.reached("maps-placed")
        }
        replaced = old ?? pins.flatMap { ReplacedMaps.unfinished($0) }
        if isTakeover {
            wakeForAll()
            try readBack()
        }
    }

    /// The version of what the maps hold; a test may pretend another.
    static let layout =
        getenv("MESH_AGENT_LAYOUT").flatMap { UInt32(String(cString: $0)) } ?? UInt32(MESH_ABI_VERSION)

    /// Where maps and programs come from: the pins that an earlier agent of this build left, else the object.
    private struct Loaded: ~Copyable {
        let object: BPFObject?
        var lock: FileDescriptor?
        let pins: PinDirectory?
        let error: SystemError?
        let isTakeover: Bool

        func map(named name: String) throws(SystemError) -> BPFMap {
            switch object {
            case .some(let object): return try object.map(named: name)
            case .none:
                let path = PinDirectory.pin(of: name, in: pins!.mapDirectory)
                return try BPFMap.pinned(at: path, name: name)
            }
        }

        func program(named name: String) throws(SystemError) -> BPFProgram {
            switch object {
            case .some(let object): return try object.program(named: name)
            case .none: return try PinDirectory.program(named: name, with: pins!.mapDirectory)
            }
        }

        /// Copies what can be from maps of another layout.
        func copy(from directory: String) throws(SystemError) -> [String] {
            switch object {
            case .some(let object): return try ReplacedMaps.copy(from: directory, to: object)
            case .none: return []
            }
        }
    }

    /// Loads the object with pinned maps if that can be; or finds it loaded.
    private static func load(_ pins: PinDirectory) throws(SystemError) -> Loaded {
        do throws(SystemError) {
            try pins.prepare()
            let lock = try pins.lock()
            if isLoaded(pins) {
                return Loaded(object: nil, lock: lock, pins: pins, error: nil, isTakeover: true)
            }
            let object = try BPFObject.mesh()
            let isTakeover = fits(object, pins)
            if !isTakeover { try pins.makeSpare() }
            let directory = isTakeover ? pins.mapDirectory : pins.spareDirectory
            for map in PinDirectory.maps {
                try object.setPin(ofMap: map, PinDirectory.pin(of: map, in: directory))
            }
            try object.load()
            // Without them the next start takes longer, and that is all.
            try? PinDirectory.keepPrograms(of: object, with: directory)
            return Loaded(object: object, lock: lock, pins: pins, error: nil, isTakeover: isTakeover)
        } catch {
            if error.errno == EWOULDBLOCK { throw error.advising("stop it first, or choose other --pins") }
            // What does not load without pins either has another reason.
            let object = try BPFObject.mesh()
            try object.load()
            return Loaded(object: object, lock: nil, pins: nil, error: error, isTakeover: false)
        }
    }

    /// Whether an earlier agent of this very build has left its programs and maps.
    static func isLoaded(_ pins: PinDirectory) -> Bool {
        // Somebody may have removed some.
        pins.isWhole(programs: CgroupHook.all.map(\.program) + otherPrograms) && isOfThisLayout(pins)
    }

    /// The programs that are not at a cgroup.
    private static let otherPrograms = [
        "mesh_connections", "mesh_cgroup", "mesh_tc_ingress", "mesh_tc_egress",
    ]

    private static func isOfThisLayout(_ pins: PinDirectory) -> Bool {
        (try? mesh_control.pinned(in: pins.mapDirectory))?.abi_version == layout
    }

    /// Whether there are pinned maps of the layout that this agent knows.
    private static func fits(_ object: borrowing BPFObject, _ pins: PinDirectory) -> Bool {
        for name in PinDirectory.maps {
            let path = PinDirectory.pin(of: name, in: pins.mapDirectory)
            guard object.fits(map: name, pinned: path) else { return false }
        }
        return isOfThisLayout(pins)
    }

    private static func full(_ path: String, root: String) -> String { path == "/" ? root : root + path }

    /// `auto` (nil) is the root; a path may be given from the root or from the file system's.
    private static func normalized(_ path: String?, root: String) -> String {
        guard var path else { return "/" }
        if path == root || path.hasPrefix(root + "/") { path.removeFirst(root.count) }
        let parts = path.split(separator: "/")
        return "/" + parts.joined(separator: "/")
    }

    // MARK: - Taking over

    /// What the earlier agent left, for the engine to go on from. Read once, at the start.
    func inheritance() throws(SystemError) -> Inheritance {
        var found = Inheritance()
        found.endpoints = writtenEndpoints
        found.leaseUntil = mesh_load_acquire_u64(field(\mesh_control.lease_until_ns))
        found.nextService = min(
            mesh_load_acquire_u32(field(\mesh_control.next_service)), ServiceTable.firstDiscovered)
        found.words = try breakers.words(below: found.nextService)
        for (pid, trace) in try bindings.entries(keys: UInt32.self, values: mesh_trace_id.self) {
            if let trace = TraceID(trace.bytes) { found.bindings.append((pid, trace)) }
        }
        return found
    }

    /// Reads what is in the maps, so that only differences are written.
    private func readBack() throws(SystemError) {
        for (key, id) in try endpoints.entries(keys: mesh_endpoint.self, values: UInt32.self) {
            writtenEndpoints[Endpoint(key)] = id
        }
        for (key, id) in try prefixes.entries(keys: mesh_prefix.self, values: UInt32.self) {
            if let endpoint = Endpoint(key) { writtenEndpoints[endpoint] = id }
        }
        writtenExempt = try networks(exempt)
        writtenScope = try networks(scope)
    }

    private func networks(_ map: borrowing BPFMap) throws(SystemError) -> Set<Network> {
        Set(try map.entries(keys: mesh_network.self, values: UInt8.self).compactMap { Network($0.key) })
    }

    /// Brings over what the programs of another layout did since their maps were copied, now that they have ended.
    /// - Parameters:
    ///   - learn: Is told of what they discovered.
    ///   - take: Gets the records that still wait in their ring buffer, oldest first.
    func finishReplacing(
        learn: (UInt32, Sample.Role, IPAddress, UInt16) -> Void, take: (UnsafeRawBufferPointer) -> Void
    ) throws(SystemError) {
        guard let replaced else { return }
        try replaced.moveAttempts(to: breakers.attemptsMap)
        for (key, id) in replaced.discoveries() {
            // Known by now under another ID, or full: then samples keep this one, and its name.
            try? discoveredMap.update(key, id, .create)
            if let role = Sample.Role(rawValue: UInt8(truncatingIfNeeded: key.role)) {
                learn(id, role, IPAddress(key.address), key.port)
            }
        }
        _ = replaced.consume(take)
        self.replaced = nil
    }

    /// The number made with the maps: the state that belongs to them has it too.
    var instance: UInt64 { mesh_load_relaxed_u64(field(\mesh_control.instance)) }

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

    /// Bytes of records that were handed over and not released.
    var heldBytes: Int { ring.heldBytes }

    /// How far records were handed over, and how far they were shown.
    var ringPositions: (counted: UInt64, decided: UInt64) { (ring.position, ring.shownPosition) }

    /// Gives the room of what was handed over back to the kernel: whoever reads after this process does not
    /// see it again.
    func release() { ring.release() }

    /// Goes on where an agent before this one was: see `RingBuffer.resume`.
    func resume(_ commit: StateCommit) -> (shown: Int, unknown: UInt64)? {
        ring.resume(at: commit.counted, shown: commit.decided)
    }

    /// Hands over records, oldest first. They stay in the ring buffer until `release`.
    func consumeWhile(limit: Int, _ body: (UnsafeRawBufferPointer) -> Bool) -> Int {
        ring.consumeWhile(limit: limit, body)
    }

    // MARK: - What programs read

    /// Makes room for the breakers of services with IDs up to this one.
    func reserve(service: UInt32) throws(SystemError) { try breakers.reserve(service: service) }

    /// Writes a breaker, and how many may reject.
    /// - Parameters:
    ///   - before: What was last written.
    ///   - enforcing: How many may reject, to be kept up to date.
    func write(
        _ word: BreakerKernelWord, inPlaceOf before: BreakerKernelWord?, service: UInt32,
        enforcing: inout UInt32
    ) {
        breakers.write(word, inPlaceOf: before, service: service, enforcing: &enforcing, control)
    }

    private func field(_ path: PartialKeyPath<mesh_control>) -> UnsafeMutableRawPointer {
        control[0] + MemoryLayout<mesh_control>.offset(of: path)!
    }

    /// The heartbeat.
    func setLease(until time: UInt64) { mesh_store_release_u64(field(\mesh_control.lease_until_ns), time) }

    /// How many breakers may reject; 0 lets tc pass everything at once.
    func setEnforcing(_ count: UInt32) { BreakerMaps.setEnforcing(count, control) }

    /// When the ring buffer is looked at whatever happens: until then the kernel wakes nobody. 0: it does.
    func setNextLook(at time: UInt64) { mesh_store_release_u64(field(\mesh_control.next_look_ns), time) }

    /// The CPU on which the program ran that last woke the engine.
    var wakerCPU: UInt32 { mesh_load_acquire_u32(field(\mesh_control.waker_cpu)) }

    /// Whether samples should carry addresses.
    func setFlowsWanted(_ wanted: Bool) {
        mesh_store_release_u32(field(\mesh_control.flows_wanted), wanted ? 1 : 0)
    }

    /// The kernel side of an agent that ended may still wait for its next look.
    private func wakeForAll() {
        setNextLook(at: 0)
        setFlowsWanted(false)
    }

    /// Notes which ID the next configured service gets: before the last one is in use.
    func setNextService(_ id: UInt32) { mesh_store_release_u32(field(\mesh_control.next_service), id) }

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
        StartStep.reached("endpoints-written")
        if changed.isEmpty && gone.isEmpty { return }
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
    func attempts(_ service: UInt32) -> BreakerAttempts { breakers.attempts(service) }

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

    /// The root's: kernfs begins to count with it.
    private static let rootCgroup: UInt64 = 1

    /// The path of the cgroup with that ID, from the root of cgroup2; nil if there is none any more.
    func path(ofCgroup id: UInt64) -> String? {
        guard let bytes = try? BPFLink.iterator(cgroupIterator, overCgroup: id).readIterator() else {
            return nil
        }
        // The root has an empty one, and so has a cgroup that went between being found and being read.
        if bytes.isEmpty { return id == KernelSide.rootCgroup ? "/" : nil }
        return String(decoding: bytes, as: UTF8.self)
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
