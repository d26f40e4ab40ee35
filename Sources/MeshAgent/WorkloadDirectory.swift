// From a cgroup's ID, which the kernel puts into samples, to the workload's name. The ID is the
// inode number of the cgroup's directory, and its file handle (fs/kernfs/mount.c).
import CMeshSystem
import Glibc
import MeshCore
import MeshSystem

/// Names workloads, and gives each name a small number for keys.
struct WorkloadDirectory {
    /// Past this many cgroups the cache begins anew: on a node that makes many short-lived cgroups
    /// it would else grow for ever.
    private static let cacheLimit = 65_536
    /// Past this many names, the rest are `other`, for the same reason.
    private static let nameLimit = 65_536

    private let root: String
    private var indexByCgroup: [UInt64: UInt32] = [:]
    private var indexByName: [String: UInt32] = [:]
    /// The names by number. Number 0 is `other`.
    private(set) var names: [String] = []
    // The last answer: samples come in runs of the same workload.
    private var lastCgroup: UInt64 = 0
    private var lastIndex: UInt32 = 0

    /// - Parameter root: Where cgroup2 is mounted.
    init(root: String) {
        self.root = root
        _ = index(named: "other")
    }

    /// The number of a workload's name.
    mutating func index(cgroup: UInt64) -> UInt32 {
        if cgroup == lastCgroup { return lastIndex }
        let index: UInt32
        if let known = indexByCgroup[cgroup] {
            index = known
        } else {
            // A cgroup that is gone has no name any more; nor has one outside the mount's root.
            let path = cgroupPath(cgroup)
            index = self.index(named: path.map { WorkloadName.name(cgroupPath: $0) } ?? "unknown")
            if indexByCgroup.count >= WorkloadDirectory.cacheLimit { indexByCgroup.removeAll() }
            indexByCgroup[cgroup] = index
        }
        lastCgroup = cgroup
        lastIndex = index
        return index
    }

    private mutating func index(named name: String) -> UInt32 {
        if let known = indexByName[name] { return known }
        guard names.count < WorkloadDirectory.nameLimit else { return 0 }
        let index = UInt32(names.count)
        names.append(name)
        indexByName[name] = index
        return index
    }

    /// The cgroup's path below the mount, beginning with `/`.
    private func cgroupPath(_ id: UInt64) -> String? {
        let opened = mesh_open_cgroup(root, id)
        guard opened >= 0 else { return nil }
        let file = FileDescriptor(owning: opened)
        var buffer = [UInt8](repeating: 0, count: 4096)
        let length = readlink("/proc/self/fd/\(file.descriptor)", &buffer, buffer.count)
        guard length > 0 else { return nil }
        let path = String(decoding: buffer.prefix(length), as: UTF8.self)
        guard path.hasPrefix(root), !path.hasSuffix(" (deleted)") else { return nil }
        let below = path.dropFirst(root.count)
        return below.isEmpty ? "/" : String(below)
    }
}
