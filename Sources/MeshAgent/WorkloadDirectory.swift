// From a cgroup's ID, which the kernel puts into samples, to the workload's name. The ID is the
// inode number of the cgroup's directory.
import MeshCore

/// Names workloads, and gives each name a small number for keys.
struct WorkloadDirectory {
    /// How many names there may be: on a node that makes short-lived cgroups without end, the rest are
    /// `other`.
    private static let nameLimit = 65_536
    /// How long the series of a workload outlive it, so that scrapers see the last of them.
    private static let grace: UInt64 = 300_000_000_000

    private let kernel: KernelSide
    private var table = WorkloadTable(limit: nameLimit)
    // The last answers, by the cgroup's lower bits: samples are of a few workloads by turns.
    private var lastCgroups = [UInt64](repeating: 0, count: WorkloadDirectory.answers)
    private var lastIndices = [UInt32](repeating: 0, count: WorkloadDirectory.answers)
    private static let answers = 64

    /// - Parameter kernel: Knows the cgroups.
    init(kernel: KernelSide) {
        self.kernel = kernel
    }

    /// The names by number. Number 0 is `other`.
    var names: [String] { table.names }

    /// Goes up when a number gets another name.
    var generation: UInt64 { table.generation }

    /// The number of a workload's name.
    mutating func index(cgroup: UInt64) -> UInt32 {
        let answer = Int(cgroup & UInt64(WorkloadDirectory.answers - 1))
        if lastCgroups[answer] == cgroup { return lastIndices[answer] }
        // A cgroup that is gone already has no name any more.
        let index =
            table.index(ofCgroup: cgroup)
            ?? table.add(
                cgroup: cgroup, path: kernel.path(ofCgroup: cgroup) ?? "/unknown")
        lastCgroups[answer] = cgroup
        lastIndices[answer] = index
        return index
    }

    /// Forgets cgroups that are gone, and the series of workloads that have been gone for long.
    mutating func sweep(requests: inout SeriesTable, connections: inout ConnectionTable, at now: UInt64) {
        for cgroup in Array(table.cgroups) where !kernel.isCgroup(cgroup) {
            table.remove(cgroup: cgroup, at: now)
        }
        for answer in lastCgroups.indices {
            (lastCgroups[answer], lastIndices[answer]) = (0, SeriesKey.otherWorkload)
        }
        guard now > WorkloadDirectory.grace else { return }
        table.sweep(
            idleSince: now - WorkloadDirectory.grace, requests: &requests, connections: &connections)
    }
}
