// From a cgroup's ID, which the kernel puts into samples, to the workload's name. The ID is the
// inode number of the cgroup's directory.
import MeshCore

/// What knows the cgroups of this machine by their IDs.
protocol CgroupTree: AnyObject {
    /// Whether there is a cgroup with that ID.
    func isCgroup(_ id: UInt64) -> Bool
    /// The path of the cgroup with that ID, from the root of cgroup2; nil if there is none any more.
    func path(ofCgroup id: UInt64) -> String?
}

/// Names workloads, and gives each name a small number for keys.
struct WorkloadDirectory {
    /// How many names there may be: on a node that makes short-lived cgroups without end, the rest are
    /// `other`.
    private static let nameLimit = 65_536
    /// How long the series of a workload outlive it, so that scrapers see the last of them.
    private static let grace: UInt64 = 300_000_000_000

    private let cgroups: any CgroupTree
    private var table = WorkloadTable(limit: nameLimit)
    // The last answers, by the cgroup's lower bits: samples are of a few workloads by turns.
    private var lastCgroups = [UInt64](repeating: 0, count: WorkloadDirectory.answers)
    private var lastIndices = [UInt32](repeating: 0, count: WorkloadDirectory.answers)
    private static let answers = 64

    init(_ cgroups: any CgroupTree) {
        self.cgroups = cgroups
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
                cgroup: cgroup, path: cgroups.path(ofCgroup: cgroup) ?? "/unknown")
        lastCgroups[answer] = cgroup
        lastIndices[answer] = index
        return index
    }

    /// Forgets cgroups that are gone, and the series of workloads that have been gone for long.
    /// - Returns: Whether there were any.
    mutating func sweep(requests: inout SeriesTable, connections: inout ConnectionTable, at now: UInt64)
        -> Bool
    {
        let before = (table.generation, requests.count, connections.count)
        var isGone = false
        for cgroup in Array(table.cgroups) where !cgroups.isCgroup(cgroup) {
            table.remove(cgroup: cgroup, at: now)
            isGone = true
        }
        for answer in lastCgroups.indices {
            (lastCgroups[answer], lastIndices[answer]) = (0, SeriesKey.otherWorkload)
        }
        guard now > WorkloadDirectory.grace else { return isGone }
        table.sweep(
            idleSince: now - WorkloadDirectory.grace, requests: &requests, connections: &connections)
        return isGone || before != (table.generation, requests.count, connections.count)
    }

    /// Adds what has come since the last time, or all that there is; what has gone takes all of it to tell.
    mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        table.save(to: &writer, rows: &limit)
    }

    /// Whether `save` has something to add.
    var hasUnsaved: Bool { table.hasUnsaved }

    /// Has `save` add all that there is.
    mutating func markAll() { table.markAll() }

    /// Takes over a row of an agent before; false if it makes no sense. Call `restored` after the last one.
    mutating func restore(index: UInt32, name: String) -> Bool { table.restore(index: index, name: name) }

    /// The same for the cgroup of a workload.
    mutating func restore(cgroup: UInt64, index: UInt32) -> Bool {
        table.restore(cgroup: cgroup, index: index)
    }

    /// Ends restoring, `now` in monotonic nanoseconds.
    mutating func restored(at now: UInt64) { table.restored(at: now) }
}
