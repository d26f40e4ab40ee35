// The directory in the bpf file system in which an instance of the agent pins what outlives it:
//
//     maps/NAME                the maps, a whole set
//     maps/programs-BUILD/     the programs of a build, loaded with these maps: NAME-ATTACHTYPE
//     maps-new/NAME            a set that is not in use: it is being made, or has been replaced
//     links/PROGRAM-PLACE      programs at a cgroup (its ID) or an interface (network namespace, number)
//     links/clsact-PLACE/      an empty directory: the agent's filters are on that interface. A filter
//                              cannot be pinned, and stays by itself
//     links/qdisc-PLACE/       the clsact qdisc there is the agent's own
//
// Each step leaves the directory so that whoever comes next can go on from there, or remove it.
import CLibBPF
import CMeshSystem
import Glibc
import MeshSystem

/// Where something is attached, as part of a pin's name.
public struct PinPlace: Equatable, Sendable {
    /// `12-3`, or the ID of a cgroup.
    public let text: String

    /// A cgroup, by its ID.
    public init(cgroup: UInt64) { text = "\(cgroup)" }

    /// An interface, by the number of its network namespace and its own.
    public init(netns: UInt64, interface: Int32) { text = "\(netns)-\(interface)" }

    /// The namespace and number in the text of an interface's place; nil for any other text.
    static func parse(_ text: Substring) -> (netns: UInt64, interface: Int32)? {
        let parts = text.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2, let netns = UInt64(parts[0]), let interface = Int32(parts[1]) else {
            return nil
        }
        return (netns, interface)
    }
}

/// An instance's pins.
public struct PinDirectory: Sendable {
    /// Where they are.
    public let path: String
    /// The handle of the instance's traffic control filters.
    private let filterHandle: UInt32

    /// The names under which maps are pinned: those in the source, but for a dot.
    public static let maps = [
        "connections", "events", "endpoints", "prefixes", "discovered", "exempt", "scope", "breakers",
        "attempts",
        "stamps", "bindings", "counters", control,
    ]
    /// The map with the layout's version.
    public static let control = ".data.control"

    /// An instance's pins, there or not.
    public init(_ instance: Instance) { self.init(path: instance.pins) }

    private init(path: String) {
        self.path = path
        filterHandle = Instance.filterHandle(pins: path)
    }

    /// Every instance's pins that are at their usual place.
    public static var all: [PinDirectory] {
        let own = ["maps", "maps-new", "links"]
        let others = directoryNames(Instance.root).filter { !own.contains($0) }
        return ([Instance.root] + others.map { "\(Instance.root)/\($0)" }).map { PinDirectory(path: $0) }
            .filter { !directoryNames($0.path).isEmpty }
    }

    /// Whether there is such a directory.
    public var isThere: Bool { exists(path) }

    /// Keeps others from working on these pins, for as long as the descriptor is open.
    /// - Throws: `EWOULDBLOCK` if somebody does.
    public func lock() throws(SystemError) -> FileDescriptor {
        let directory = try FileDescriptor(opening: path, O_RDONLY | O_DIRECTORY)
        // meshctl holds it for a moment where no agent runs.
        let deadline = MonotonicClock.now() + FileLock.patience
        while flock(directory.descriptor, LOCK_EX | LOCK_NB) != 0 {
            guard MonotonicClock.now() < deadline else {
                throw SystemError(
                    "use", path, errno: EWOULDBLOCK, reason: "a running agent has its pins there")
            }
            usleep(10_000)
        }
        return directory
    }

    /// Makes sure that something can be pinned there.
    /// - Parameter mayMount: Whether to mount the bpf file system if need be, which an agent at work may not.
    /// - Throws: If there is no bpf file system, or it cannot be written to.
    public func prepare(mayMount: Bool = true) throws(SystemError) {
        if !mayMount {
            try checkMount()
        } else if path.hasPrefix("/sys/fs/bpf/") {
            try Mount.ensureBPF()
        }
        let parent = directory(of: path)
        // An agent that ends removes the parent if it is empty, which it may be in between.
        for attempt in 1...10 {
            if parent != "/sys/fs/bpf" { try make(parent) }
            do throws(SystemError) {
                try make(path)
                break
            } catch {
                guard error.errno == ENOENT, attempt < 10 else { throw error }
            }
        }
        guard try Mount.isBPF(path) else {
            rmdir(path)
            throw SystemError(
                "pin in", path, errno: EINVAL, reason: "it is not in a bpf file system",
                hint: "choose a directory below /sys/fs/bpf")
        }
        try make(linkDirectory)
    }

    /// Says so if the bpf file system is gone from below the pins.
    private func checkMount() throws(SystemError) {
        var place = path
        while !exists(place) { place = directory(of: place) }
        guard try Mount.isBPF(place) else {
            throw SystemError(
                "pin in", path, errno: ENOENT, reason: "the bpf file system is not mounted there any more",
                hint: "mount it again")
        }
    }

    private func make(_ directory: String) throws(SystemError) {
        guard mkdir(directory, 0o700) == 0 || errno == EEXIST else {
            throw SystemError("create the directory", directory)
        }
    }

    // MARK: Maps

    /// The pins of the maps in use.
    public var mapDirectory: String { path + "/maps" }
    /// The pins of a set that is not in use.
    public var spareDirectory: String { path + "/maps-new" }

    /// Whether there are maps.
    public var hasMaps: Bool { exists(mapDirectory) }

    /// Whether this user may not even see if there are.
    public var isHidden: Bool { access(mapDirectory, F_OK) != 0 && errno == EACCES }

    /// Where a map's pin is in a directory.
    public static func pin(of map: String, in directory: String) -> String {
        directory + "/" + (map.first == "." ? String(map.dropFirst(".data.".count)) : map)
    }

    /// Begins a new set of maps.
    public func makeSpare() throws(SystemError) {
        removeMaps(spareDirectory)
        try make(spareDirectory)
    }

    /// Puts the new set in the place of the one in use, in one step.
    public func putSpareInPlace() throws(SystemError) {
        let done =
            hasMaps
            ? mesh_exchange_paths(spareDirectory, mapDirectory) : rename(spareDirectory, mapDirectory)
        guard done == 0 else { throw SystemError("put in place", spareDirectory) }
    }

    /// Removes the set that is not in use.
    public func removeSpare() { removeMaps(spareDirectory) }

    private func removeMaps(_ directory: String) {
        for path in directoryNames(directory).map({ directory + "/" + $0 }) where unlink(path) != 0 {
            removeMaps(path)
        }
        rmdir(directory)
    }

    // MARK: Programs

    /// The pins of this build's programs, loaded with the maps of a directory. To verify them takes most of a
    /// start's time; who finds them need not.
    public static func programs(with maps: String) -> String { "\(maps)/programs-\(BPFObject.meshDigest)" }

    /// Pins all programs of the embedded object, loaded with the maps of a directory.
    public static func keepPrograms(of object: borrowing BPFObject, with maps: String) throws(SystemError) {
        let spare = maps + "/programs-new"
        for name in directoryNames(spare) { unlink(spare + "/" + name) }
        try mark(spare)
        for name in object.programNames {
            let program = try object.program(named: name)
            try program.pin(at: "\(spare)/\(pin(of: program))")
        }
        // What is there already is not whole, or nobody would have loaded them.
        let directory = programs(with: maps)
        for name in directoryNames(directory) { unlink(directory + "/" + name) }
        guard rename(spare, directory) == 0 else { throw SystemError("put in place", spare) }
    }

    /// Whether all maps are pinned, and this build's programs of these names.
    public func isWhole(programs names: [String]) -> Bool {
        let there = directoryNames(PinDirectory.programs(with: mapDirectory))
        return names.allSatisfy { name in there.contains { $0.hasPrefix(name + "-") } }
            && PinDirectory.maps.allSatisfy { exists(PinDirectory.pin(of: $0, in: mapDirectory)) }
    }

    /// Opens a pinned program.
    public static func program(named name: String, with maps: String) throws(SystemError) -> BPFProgram {
        let directory = programs(with: maps)
        guard let found = directoryNames(directory).first(where: { $0.hasPrefix(name + "-") }),
            let type = UInt32(found.dropFirst(name.utf8.count + 1))
        else { throw SystemError("find", "the eBPF program \(name) in \(directory)", errno: ENOENT) }
        return try BPFProgram.pinned(
            at: "\(directory)/\(found)", name: name, attachType: bpf_attach_type(type))
    }

    /// Removes the programs of other builds.
    public func removeOtherPrograms() {
        for name in directoryNames(mapDirectory) where name.hasPrefix("programs-") {
            let path = "\(mapDirectory)/\(name)"
            if path != PinDirectory.programs(with: mapDirectory) { removeMaps(path) }
        }
    }

    /// Where a program's pin is in the directory of its build.
    static func pin(of program: borrowing BPFProgram) -> String {
        "\(program.name)-\(program.attachType.rawValue)"
    }

    // MARK: Links

    private var linkDirectory: String { path + "/links" }

    /// Where the link of a program at a place is pinned.
    public func link(_ program: String, _ place: PinPlace) -> String {
        "\(linkDirectory)/\(program)-\(place.text)"
    }

    /// The mark that filters are on an interface.
    public func filterMark(_ place: PinPlace) -> String { "\(linkDirectory)/clsact-\(place.text)" }

    /// The mark that the qdisc of an interface is the agent's own.
    public func qdiscMark(_ place: PinPlace) -> String { "\(linkDirectory)/qdisc-\(place.text)" }

    /// Leaves a mark.
    public static func mark(_ path: String) throws(SystemError) {
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else { throw SystemError("create", path) }
    }

    /// Every link's pin and every filter's mark.
    public var links: [String] { directoryNames(linkDirectory).map { "\(linkDirectory)/\($0)" } }

    /// Something that an agent left attached.
    public struct Attached: Equatable, Sendable {
        /// Where.
        public enum Place: Equatable, Sendable {
            /// A cgroup, by its ID.
            case cgroup(UInt64)
            /// An interface, by the number of its network namespace and its own.
            case interface(netns: UInt64, Int32)
        }
        /// The program's name; `clsact` for the filters of an interface.
        public let program: String
        /// Where it is.
        public let place: Place
    }

    /// What is attached by the pinned links, and by the filters that are marked.
    public var attached: [Attached] {
        links.compactMap { path in
            let name = path.split(separator: "/").last!
            guard let dash = name.firstIndex(of: "-") else { return nil }
            let program = String(name[..<dash])
            let text = name[name.index(after: dash)...]
            if program == "qdisc" { return nil }
            if program != "clsact" {
                guard let link = try? BPFLink.pinned(at: path), link.isAttached else { return nil }
            }
            if let (netns, interface) = PinPlace.parse(text) {
                if program == "clsact" {
                    // The mark alone says only that they were made.
                    let isThere = try? NetworkNamespace.inside(netns) { () throws(SystemError) in
                        try TCFilter.isLeft(interface: interface, handle: filterHandle)
                    }
                    guard isThere == true else { return nil }
                }
                return Attached(program: program, place: .interface(netns: netns, interface))
            }
            return UInt64(text).map { Attached(program: program, place: .cgroup($0)) }
        }
    }

    /// Detaches a link, or removes the filters that a mark stands for, and removes the pin or the mark.
    /// - Returns: What there was, as an item of a list for people; nil for what is no item of its own.
    /// - Throws: If the filters could not be removed; the mark is still there then.
    @discardableResult
    public func remove(link path: String) throws(SystemError) -> String? {
        let name = path.split(separator: "/").last!
        if name.hasPrefix("qdisc-") {
            rmdir(path)
            return nil
        }
        guard name.hasPrefix("clsact-") else {
            if let link = try BPFLink.pinned(at: path) { link.remove() }
            return "link \(name)"
        }
        if let (netns, interface) = PinPlace.parse(name.dropFirst("clsact-".count)) {
            let qdisc = qdiscMark(PinPlace(netns: netns, interface: interface))
            // Of a namespace without a name, nothing is left to be removed by anybody.
            _ = try NetworkNamespace.inside(netns) { () throws(SystemError) in
                try TCFilter.remove(interface: interface, handle: filterHandle, withQdisc: exists(qdisc))
            }
            rmdir(qdisc)
        }
        rmdir(path)
        return "filters \(name)"
    }

    // MARK: All of it

    /// Removes everything: links first, in the order in which an agent leaves them, then the maps.
    /// - Returns: What there was.
    /// - Throws: What could not be removed; the rest was.
    @discardableResult
    public func removeAll() throws(SystemError) -> [String] {
        var removed: [String] = []
        var failure: SystemError?
        // What begins connections first, so that none is begun and then not followed.
        let links = self.links
        let connects = links.filter { $0.contains("/mesh_connect") }
        for link in connects + links.filter({ !connects.contains($0) }) {
            do throws(SystemError) {
                if let item = try remove(link: link) { removed.append(item) }
            } catch { failure = error }
        }
        if let failure { throw failure }
        rmdir(linkDirectory)
        removed += directoryNames(mapDirectory).map { $0.hasPrefix("programs-") ? $0 : "map \($0)" }
        removeMaps(spareDirectory)
        removeMaps(mapDirectory)
        rmdir(path)
        // Others may have theirs there.
        if path != Instance.root, path.hasPrefix(Instance.root + "/") { rmdir(Instance.root) }
        return removed
    }
}
