// Numbers workloads, so that a series key holds one in 28 bits, and forgets those that are long gone.

/// The names of workloads by cgroup ID, as indices that fit in a series key. Several cgroups may have one
/// name, and then have one index, so that no series comes twice.
public struct WorkloadTable: Sendable {
    /// The names by index; index 0 is `other`, an index that is free has the empty name.
    public private(set) var names = ["other"]
    /// Goes up when an index is freed, because it may get another name: `MetricsSnapshot.namesGeneration`.
    public private(set) var generation: UInt64 = 0
    /// How many names there may be; past it a cgroup is `other`.
    public let limit: Int

    private var indexByCgroup: [UInt64: UInt32] = [:]
    private var indexByName: [String: UInt32] = ["other": SeriesKey.otherWorkload]
    /// How many cgroups have each index.
    private var users: [UInt32] = [1]
    /// Since when the indices without a cgroup have been without one.
    private var idleSince: [UInt32: UInt64] = [:]
    private var free: [UInt32] = []
    /// The cgroups that were added since the table was last saved.
    private var added: [UInt64] = []
    /// Until the first save nothing is noted one by one: there may never be one.
    private var isAllUnsaved = true
    /// What a save that is under way has still to add.
    private var unsavedNames: [Int] = []
    private var unsavedCgroups: [UInt64] = []

    /// A table that knows only `other`. `limit` is how many names it may hold.
    public init(limit: Int) {
        self.limit = min(limit, Int(SeriesKey.workloadLimit))
    }

    /// The index of a cgroup; nil if it has to be added first.
    public func index(ofCgroup id: UInt64) -> UInt32? { indexByCgroup[id] }

    /// The cgroups that were added and not removed, in no order.
    public var cgroups: some Collection<UInt64> { indexByCgroup.keys }

    /// Gives a cgroup the index of its name, and returns it.
    ///
    /// - Parameters:
    ///   - id: The cgroup's ID.
    ///   - path: Its path below the mount of cgroup2.
    @discardableResult
    public mutating func add(cgroup id: UInt64, path: String) -> UInt32 {
        if let known = indexByCgroup[id] { return known }
        let index = index(ofName: WorkloadName.name(cgroupPath: path))
        indexByCgroup[id] = index
        users[Int(index)] += 1
        idleSince[index] = nil
        if !isAllUnsaved { added.append(id) }
        return index
    }

    /// Forgets a cgroup that is gone. `now` in monotonic nanoseconds: from then on its name is idle, unless
    /// another cgroup has it.
    public mutating func remove(cgroup id: UInt64, at now: UInt64) {
        guard let index = indexByCgroup.removeValue(forKey: id) else { return }
        users[Int(index)] -= 1
        if users[Int(index)] == 0 { idleSince[index] = now }
    }

    /// Ends the series of workloads that have been idle since `time` (monotonic nanoseconds) or longer, and
    /// frees their names, except where a connection is still open. Give scrapers some minutes to see the
    /// last of them. Not for the record path.
    public mutating func sweep(
        idleSince time: UInt64, requests: inout SeriesTable, connections: inout ConnectionTable
    ) {
        let idle = idleSince.filter { $0.value <= time }
        guard !idle.isEmpty else { return }
        requests.removeAll { idle[$0.workload] != nil }
        connections.removeAll { idle[$0.workload] != nil }
        let busy = Set((0..<connections.count).map { connections.key($0).workload })
        for index in idle.keys where !busy.contains(index) {
            indexByName[names[Int(index)]] = nil
            names[Int(index)] = ""
            idleSince[index] = nil
            free.append(index)
            generation += 1
        }
    }

    /// Has `save` add all that there is. What has gone takes all of it to tell.
    public mutating func markAll() {
        isAllUnsaved = true
        added = []
    }

    /// Whether `save` has something to add besides what `markAll` asked for.
    public var hasUnsaved: Bool { !added.isEmpty }

    /// Adds what has come since the last time.
    /// - Parameter limit: How many rows at most, or one more; so many less afterwards.
    public mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        if isAllUnsaved && limit > 0 {
            isAllUnsaved = false
            unsavedNames = names.indices.filter { !names[$0].isEmpty }
            unsavedCgroups = Array(indexByCgroup.keys)
        }
        // Names come before what has them.
        while limit > 0, let index = unsavedNames.popLast() {
            writer.append(.workload(index: UInt32(index), name: names[index]))
            limit -= 1
        }
        while limit > 0, let id = unsavedCgroups.popLast() {
            guard let index = indexByCgroup[id] else { continue }
            writer.append(.cgroup(id: id, index: index))
            limit -= 1
        }
        while limit > 0, let id = added.popLast() {
            guard let index = indexByCgroup[id] else { continue }
            writer.append(.workload(index: index, name: names[Int(index)]))
            writer.append(.cgroup(id: id, index: index))
            limit -= 2
        }
    }

    /// Gives an index the name that it had. False if it cannot have it. Call `restored` after the last one.
    public mutating func restore(index: UInt32, name: String) -> Bool {
        if index == SeriesKey.otherWorkload { return name == names[0] }
        guard index < limit, !name.isEmpty, indexByName[name].map({ $0 == index }) ?? true else {
            return false
        }
        while names.count <= Int(index) {
            names.append("")
            users.append(0)
        }
        guard names[Int(index)].isEmpty || names[Int(index)] == name else { return false }
        names[Int(index)] = name
        indexByName[name] = index
        return true
    }

    /// Gives a cgroup the index that it had, whose name was restored before. False if it has none.
    public mutating func restore(cgroup id: UInt64, index: UInt32) -> Bool {
        guard Int(index) < names.count, !names[Int(index)].isEmpty,
            indexByCgroup[id].map({ $0 == index }) ?? true
        else { return false }
        if indexByCgroup.updateValue(index, forKey: id) == nil { users[Int(index)] += 1 }
        return true
    }

    /// Ends restoring: indices without a name are free, those without a cgroup idle since `now` (monotonic
    /// nanoseconds).
    public mutating func restored(at now: UInt64) {
        for index in names.indices.dropFirst() {
            if names[index].isEmpty {
                free.append(UInt32(index))
            } else if users[index] == 0 {
                idleSince[UInt32(index)] = now
            }
        }
    }

    private mutating func index(ofName name: String) -> UInt32 {
        if let known = indexByName[name] { return known }
        let index: UInt32
        if let reused = free.popLast() {
            index = reused
            names[Int(index)] = name
        } else if names.count < limit {
            index = UInt32(names.count)
            names.append(name)
            users.append(0)
        } else {
            return SeriesKey.otherWorkload
        }
        indexByName[name] = index
        return index
    }
}
