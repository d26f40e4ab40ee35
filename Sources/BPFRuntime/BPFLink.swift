// Attaching programs with links. The kernel detaches them when the last descriptor is closed, so a killed
// process leaves nothing behind; unless they are pinned: then they stay until somebody removes them.
import CLibBPF
import Glibc
import MeshSystem

/// Which way packets go through an interface.
public enum TrafficDirection: String, Sendable, CaseIterable {
    /// In from the wire.
    case ingress
    /// Out to the wire.
    case egress
}

/// What a link does at a moment, as the kernel tells it.
public struct LinkState: Equatable, Sendable {
    /// The program that runs, by the kernel's number.
    public var program: UInt32
    /// Where: a cgroup's ID, or an interface's number; 0 if it was detached, or what it was attached to is gone.
    public var target: UInt64
}

/// A program attached somewhere; detached when this goes away, unless it is pinned.
public struct BPFLink: ~Copyable, Sendable {
    private let file: FileDescriptor
    /// Where it is pinned; nil if it is not.
    public private(set) var pin: String?

    private init(_ file: consuming FileDescriptor, pin: String? = nil) {
        self.file = file
        self.pin = pin
    }

    deinit {
        if pin == nil { detach() }
    }

    /// The link's descriptor.
    public var descriptor: Int32 { file.descriptor }

    private func detach() {
        // Closing would do, were it not for a child that is between fork and exec and holds a copy.
        // An iterator is attached nowhere, and answers with an error.
        _ = bpf_link_detach(file.descriptor)
    }

    // MARK: Pins

    /// Opens a link that an earlier process pinned; nil if there is none at that path.
    public static func pinned(at path: String) throws(SystemError) -> BPFLink? {
        let result = bpf_obj_get(path)
        if result == -ENOENT { return nil }
        guard result >= 0 else { throw SystemError("open", "the eBPF link \(path)", errno: -result) }
        return BPFLink(FileDescriptor(owning: result), pin: path)
    }

    /// What it does now. For links to cgroups and interfaces.
    public func state() throws(SystemError) -> LinkState {
        var info = bpf_link_info()
        var size = UInt32(MemoryLayout<bpf_link_info>.size)
        let result = bpf_obj_get_info_by_fd(descriptor, &info, &size)
        guard result == 0 else { throw SystemError("inspect", "an eBPF link", errno: -result) }
        // A tcx link begins with the interface's number, as an xdp link does, which older headers know.
        let isCgroup = info.type == BPF_LINK_TYPE_CGROUP.rawValue
        return LinkState(
            program: info.prog_id, target: isCgroup ? info.cgroup.cgroup_id : UInt64(info.xdp.ifindex))
    }

    /// Whether it still is attached: the kernel detaches it when its cgroup or interface goes.
    public var isAttached: Bool { ((try? state())?.target ?? 0) != 0 }

    /// Pins it: from now on it outlives this process. Again, if that pin was removed.
    public mutating func pin(at path: String) throws(SystemError) {
        let result = bpf_obj_pin(descriptor, path)
        guard result == 0 else { throw SystemError("pin", "the eBPF link \(path)", errno: -result) }
        pin = path
    }

    /// Puts another program in the place of the one that is attached: each packet and call meets one of them.
    /// - Throws: `ENOLINK` if what it was attached to is gone.
    public func update(_ program: borrowing BPFProgram) throws(SystemError) {
        let result = bpf_link_update(descriptor, program.descriptor, nil)
        guard result == 0 else {
            throw SystemError("replace the program of", "the eBPF link \(pin ?? "")", errno: -result)
        }
    }

    /// Detaches it, pinned or not.
    public consuming func remove() {
        detach()
        if let pin { unlink(pin) }
    }

    /// Removes the pin of one that was attached to something that is gone, and so is detached already. Closed
    /// before that, it is the kernel's to free in its own time; to detach it would wait for the same lock as
    /// attaching does.
    public consuming func discard() {
        let pin = self.pin
        _ = consume self
        if let pin { unlink(pin) }
    }

    // MARK: Attaching

    /// Attaches a program to a cgroup2 directory and all below it, beside what others attached there.
    public static func cgroup(
        _ program: borrowing BPFProgram, path: String
    ) throws(SystemError) -> BPFLink {
        let directory = try FileDescriptor(opening: path, O_RDONLY | O_DIRECTORY)
        let result = bpf_link_create(program.descriptor, directory.descriptor, program.attachType, nil)
        let hint: String? =
            switch -result {
            case EBADF: "give the path of a cgroup2 directory"
            case EPERM: "run this as root; else another program holds that cgroup exclusively"
            default: nil
            }
        return try link(result, program.name, "cgroup \(path)", hint)
    }

    /// Attaches a program to an interface with tcx, after those that are there (kernel ≥ 6.6).
    /// - Throws: `EINVAL` on a kernel without tcx, `ENODEV` if the interface is gone.
    public static func tcx(
        _ program: borrowing BPFProgram, interface: Int32, _ direction: TrafficDirection
    ) throws(SystemError) -> BPFLink {
        let result = bpf_link_create(program.descriptor, interface, attachType(direction), nil)
        return try link(
            result, program.name, "\(direction.rawValue) of interface \(interface)",
            result == -EINVAL ? "use a clsact filter: tcx needs kernel 6.6" : nil)
    }

    /// Makes an iterator over the elements of a map, to be read with `readIterator`.
    public static func iterator(
        _ program: borrowing BPFProgram, over map: borrowing BPFMap
    ) throws(SystemError) -> BPFLink {
        let result = clibbpf_link_map_iterator(program.descriptor, map.descriptor)
        return try link(result, program.name, "eBPF map \(map.name)", nil)
    }

    /// Makes an iterator over a single cgroup, to be read with `readIterator`.
    /// - Throws: `ENOENT` if the cgroup is gone.
    public static func iterator(
        _ program: borrowing BPFProgram, overCgroup id: UInt64
    ) throws(SystemError) -> BPFLink {
        let result = clibbpf_link_cgroup_iterator(program.descriptor, id)
        return try link(result, program.name, "cgroup \(id)", nil)
    }

    /// Runs an iterator's program on every element, and returns what it wrote.
    public func readIterator() throws(SystemError) -> [UInt8] {
        let result = bpf_iter_create(descriptor)
        guard result >= 0 else { throw SystemError("open", "an eBPF iterator", errno: -result) }
        let file = FileDescriptor(owning: result)
        var bytes: [UInt8] = []
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 8)
        defer { buffer.deallocate() }
        while case .bytes(let count) = try file.read(into: buffer) { bytes += buffer.prefix(count) }
        return bytes
    }

    /// BPF_TCX_INGRESS and BPF_TCX_EGRESS, which the headers of Debian 12 do not have yet.
    static func attachType(_ direction: TrafficDirection) -> bpf_attach_type {
        bpf_attach_type(direction == .ingress ? 46 : 47)
    }

    private static func link(
        _ result: Int32, _ program: String, _ target: String, _ hint: String?
    ) throws(SystemError) -> BPFLink {
        guard result >= 0 else {
            throw SystemError("attach", "\(program) to \(target)", errno: -result, hint: hint)
        }
        return BPFLink(FileDescriptor(owning: result))
    }
}
