// What the samples add up to: the tables behind the metrics, and the recent figures behind
// `meshctl services`.
import CMeshABI
import MeshCore

/// One kind of transition of one service's breaker.
struct TransitionKey: Hashable {
    let service: UInt32
    let from: BreakerState
    let to: BreakerState
    let reason: BreakerReason
}

/// All counts and histograms. Recording a sample of known series allocates nothing. They are whole after `endRun`.
struct Traffic {
    private(set) var requests: SeriesTable
    private var connectionTable: ConnectionTable
    /// How often breakers went from one state to another, by service, states and reason.
    private(set) var transitions: [TransitionKey: UInt64] = [:]
    private(set) var reactions = MetricsHistogram.breakerReaction
    /// The transitions that were counted since they were last saved.
    private var changedTransitions: Set<TransitionKey> = []
    private var reactionsChanged = false
    /// What a save that is under way has still to add.
    private var unsavedTransitions: [(key: TransitionKey, count: UInt64)] = []
    private var unsavedReactions: MetricsHistogram?
    private var boundsChanged = true

    /// What requests with one head are counted as.
    private struct Known {
        /// Of their records.
        var head: UInt64 = 0
        /// Their row; below 0: there are none.
        var row: Int32 = -1
        /// Whether they are errors.
        var isError = false
    }

    /// A service in one role.
    private struct Recent {
        /// The cgroup of its last sample, and the row of that connection; below 0: not its own, or there was none.
        var cgroup: UInt64 = 0
        var connectionRow: Int32 = -1
        /// Whether it is among those that the end of the run settles.
        var isUnsettled = false
        /// The bytes that the samples of this run have told of, and that are not in that row yet.
        var sentBytes: Int64 = 0
        var receivedBytes: Int64 = 0
        /// The two kinds of requests that were last new, of that cgroup: many services have two usual codes.
        var known = (last: Known(), before: Known())
        var requests: UInt64 = 0
        var errors: UInt64 = 0
        var window = LatencyWindow()

        mutating func remember(_ new: Known) {
            guard known.last.head != new.head && known.before.head != new.head else { return }
            known = (last: new, before: known.last)
        }

        mutating func count(duration: UInt64, error: Bool, at time: UInt64) {
            requests &+= 1
            if error { errors &+= 1 }
            window.record(duration: duration, error: error, at: time)
        }
    }
    private var recent: [Recent] = []
    /// Those of which `recordAgain` has recorded samples in this run.
    private var unsettled: [Int32] = []
    /// Of each, the service and the role: the index into `recentIndex`.
    private var recentKeys: [UInt32] = []
    private var dirty = DirtyRows()
    /// Index into `recent` by service and role; -1: no sample yet.
    private var recentIndex = [Int32](repeating: -1, count: Int(MESH_MAX_SERVICES) * 2)
    private let buckets: [Double]
    /// How many series there may be before new ones are `other`; from the configuration at the start.
    let maxSeries: Int

    init(_ configuration: Configuration) {
        buckets = configuration.buckets
        maxSeries = configuration.limits.maxSeries
        let bounds = SeriesTable.bounds(seconds: buckets)
        requests = SeriesTable(bounds: bounds, maxSeries: maxSeries)
        connectionTable = ConnectionTable(bounds: bounds, maxSeries: maxSeries)
    }

    /// The counters of connections.
    var connections: ConnectionTable {
        assert(unsettled.isEmpty)
        return connectionTable
    }

    /// Records one sample. `wallTime` is nanoseconds since 1970, `error` what `errors` counts.
    /// - Parameter mayRepeat: Others that are like it but for their figures may be recorded with `recordAgain`.
    mutating func record(
        _ sample: Sample, workload: UInt32, wallTime: UInt64, error: Bool, mayRepeat: Bool
    ) {
        guard let index = index(sample.service, sample.role) else {
            connectionTable.record(sample, workload: workload)
            requests.record(sample, workload: workload, wallTime: wallTime)
            return
        }
        recent.withUnsafeMutableBufferPointer { recent in
            let recent = recent.baseAddress.unsafelyUnwrapped + index
            if recent.pointee.cgroup == sample.workload && recent.pointee.connectionRow >= 0 {
                connectionTable.record(sample, row: Int(recent.pointee.connectionRow))
            } else {
                Traffic.settleBytes(of: recent, in: &connectionTable)
                recent.pointee.cgroup = sample.workload
                recent.pointee.connectionRow = Int32(
                    connectionTable.record(sample, workload: workload) ?? -1)
                recent.pointee.known = (Known(), Known())
            }
            if sample.kind == .request {
                let row = requests.record(sample, workload: workload, wallTime: wallTime)
                if mayRepeat, let row, recent.pointee.connectionRow >= 0 {
                    recent.pointee.remember(Known(head: sample.head, row: Int32(row), isError: error))
                }
            } else if sample.kind != .connect || sample.outcome == .ok {
                return
            }
            // A connect that failed is a request that could not even be made: whoever looks at a service
            // that refuses must see it.
            dirty.mark(index)
            recent.pointee.count(duration: sample.duration, error: error, at: sample.time)
        }
    }

    /// Records a request that is, but for its figures, one of the last of its service and role once more.
    /// - Parameter wallOffset: What to add to a monotonic time for nanoseconds since 1970.
    /// - Returns: False if nothing was done: it is to be decoded, and recorded with `record`.
    mutating func recordAgain(_ record: SampleRecord, wallOffset: UInt64) -> Bool {
        let key = Traffic.key(record.service, isClient: record.isOfClient)
        guard key < recentIndex.count else { return false }
        let index = Int(recentIndex[key])
        guard index >= 0 else { return false }
        return recent.withUnsafeMutableBufferPointer { recent in
            let recent = recent.baseAddress.unsafelyUnwrapped + index
            guard recent.pointee.cgroup == record.workload else { return false }
            let head = record.head
            var known = recent.pointee.known.last
            if known.head != head {
                known = recent.pointee.known.before
                guard known.head == head else { return false }
            }
            guard known.row >= 0 else { return false }
            let (time, duration) = (record.time, record.duration)
            // What can be done once for all of a run is.
            if !recent.pointee.isUnsettled {
                recent.pointee.isUnsettled = true
                unsettled.append(Int32(index))
            }
            recent.pointee.sentBytes += Int64(record.sentBytes)
            recent.pointee.receivedBytes += Int64(record.receivedBytes)
            if record.retransmits != 0 {
                connectionTable.record(
                    row: Int(recent.pointee.connectionRow), sentBytes: 0, receivedBytes: 0,
                    retransmits: record.retransmits)
            }
            requests.record(
                row: Int(known.row), duration: duration, traceID: record.traceID,
                wallTime: time &+ wallOffset)
            recent.pointee.count(duration: duration, error: known.isError, at: time)
            return true
        }
    }

    /// Ends a run of samples: until then, `connections` lacks bytes of those that were recorded with `recordAgain`,
    /// and what they have changed is not all known to be.
    mutating func endRun() {
        guard !unsettled.isEmpty else { return }
        recent.withUnsafeMutableBufferPointer { recent in
            for index in unsettled {
                let recent = recent.baseAddress.unsafelyUnwrapped + Int(index)
                Traffic.settleBytes(of: recent, in: &connectionTable)
                recent.pointee.isUnsettled = false
                dirty.mark(Int(index))
            }
        }
        unsettled.removeAll(keepingCapacity: true)
    }

    private static func settleBytes(
        of recent: UnsafeMutablePointer<Recent>, in table: inout ConnectionTable
    ) {
        let (sent, received) = (recent.pointee.sentBytes, recent.pointee.receivedBytes)
        guard sent | received != 0 else { return }
        table.record(
            row: Int(recent.pointee.connectionRow), sentBytes: sent, receivedBytes: received, retransmits: 0)
        (recent.pointee.sentBytes, recent.pointee.receivedBytes) = (0, 0)
    }

    /// Forgets which samples were the last ones: rows were moved, or what is an error may have changed.
    mutating func forgetLast() {
        assert(unsettled.isEmpty)
        for index in recent.indices {
            recent[index].known = (Known(), Known())
            recent[index].connectionRow = -1
        }
    }

    /// The index into `recentIndex` of a service in a role.
    private static func key(_ service: UInt32, isClient: Bool) -> Int {
        Int(service) * 2 + (isClient ? 0 : 1)
    }

    /// The place in `recent` of a service in a role, from now on; nil for an ID that no service has.
    private mutating func index(_ service: UInt32, _ role: Sample.Role) -> Int? {
        let key = Traffic.key(service, isClient: role == .client)
        guard key < recentIndex.count else { return nil }
        if recentIndex[key] < 0 {
            recentIndex[key] = Int32(recent.count)
            recent.append(Recent())
            recentKeys.append(UInt32(key))
            dirty.append()
        }
        return Int(recentIndex[key])
    }

    private func recent(_ service: UInt32, _ role: Sample.Role) -> Recent? {
        let key = Traffic.key(service, isClient: role == .client)
        guard key < recentIndex.count, recentIndex[key] >= 0 else { return nil }
        return recent[Int(recentIndex[key])]
    }

    /// Whether the service has had a request, or a failed connect, in that role.
    func hasRequests(_ service: UInt32, _ role: Sample.Role) -> Bool {
        (recent(service, role)?.requests ?? 0) > 0
    }

    /// Rate, errors and percentiles of about the last ten seconds.
    func summary(_ service: UInt32, _ role: Sample.Role, at now: UInt64) -> LatencyWindow.Summary {
        (recent(service, role)?.window ?? LatencyWindow()).summary(at: now)
    }

    /// Requests and errors since the agent started, failed connects among both.
    func totals(_ service: UInt32, _ role: Sample.Role) -> (requests: UInt64, errors: UInt64) {
        guard let recent = recent(service, role) else { return (0, 0) }
        return (recent.requests, recent.errors)
    }

    mutating func recordTransition(service: UInt32, _ transition: BreakerTransition) {
        let key = TransitionKey(
            service: service, from: transition.from, to: transition.to, reason: transition.reason)
        transitions[key, default: 0] += 1
        changedTransitions.insert(key)
    }

    /// Records how long it took from the deciding sample to the write that opened its breaker.
    mutating func recordReaction(_ nanoseconds: UInt64) {
        reactions.record(nanoseconds)
        reactionsChanged = true
    }

    /// Ends the series of workloads that are long gone. `now` in monotonic nanoseconds.
    /// - Returns: Whether there were any.
    mutating func sweep(_ workloads: inout WorkloadDirectory, at now: UInt64) -> Bool {
        assert(unsettled.isEmpty)
        let found = workloads.sweep(requests: &requests, connections: &connectionTable, at: now)
        forgetLast()
        return found
    }

    /// Begins to save: what decisions have changed is saved as it is now, however they go on meanwhile.
    mutating func beginSave(_ scope: StateScope) {
        if scope == .everything {
            boundsChanged = true
            requests.markAll()
            connectionTable.markAll()
            dirty.markAll()
            changedTransitions = Set(transitions.keys)
            reactionsChanged = true
        }
        unsavedTransitions = changedTransitions.map { ($0, transitions[$0] ?? 0) }
        changedTransitions = []
        unsavedReactions = reactionsChanged ? reactions : nil
        reactionsChanged = false
    }

    /// Adds what decisions have changed, as it was at `beginSave`.
    /// - Parameter limit: How many rows at most; so many less afterwards.
    mutating func saveDecisions(to writer: inout StateWriter, rows limit: inout Int) {
        while limit > 0, let (key, count) = unsavedTransitions.popLast() {
            limit -= 1
            writer.transitions(service: key.service, from: key.from, to: key.to, key.reason, count: count)
        }
        if let reactions = unsavedReactions {
            writer.append(.reaction(sum: reactions.sum, buckets: reactions.buckets))
            unsavedReactions = nil
        }
    }

    /// Adds what counting has changed since the last time. The figures of the last ten seconds and exemplars are
    /// not kept.
    /// - Parameter limit: How many rows at most; so many less afterwards.
    mutating func saveCounts(to writer: inout StateWriter, rows limit: inout Int) {
        if boundsChanged { writer.append(.bounds(requests.bounds)) }
        boundsChanged = false
        assert(unsettled.isEmpty)
        requests.save(to: &writer, rows: &limit)
        connectionTable.save(to: &writer, rows: &limit)
        recent.withUnsafeBufferPointer { recent in
            recentKeys.withUnsafeBufferPointer { keys in
                dirty.take(&limit) { index in
                    writer.totals(
                        service: keys[index] / 2, keys[index] % 2 == 0 ? .client : .server,
                        requests: recent[index].requests, errors: recent[index].errors)
                }
            }
        }
    }

    /// Takes over a row of an agent before whose histograms had these bounds; false if it makes no sense.
    /// Where the configuration has others now, the histograms begin anew.
    mutating func restore(_ row: StateRow, bounds: [UInt64]) -> Bool {
        switch row {
        case .requests(let key, let values):
            return bounds != requests.bounds || requests.restore(key, values)
        case .connections(let key, let values):
            return connectionTable.restore(key, values, bounds: bounds)
        case .totals(let service, let role, let requests, let errors):
            guard let index = index(service, role) else { return false }
            recent[index].requests = requests
            recent[index].errors = errors
            return true
        case .transitions(let service, let from, let to, let reason, let count):
            transitions[TransitionKey(service: service, from: from, to: to, reason: reason)] = count
            return true
        case .reaction(let sum, let buckets):
            return reactions.restore(sum: sum, buckets: buckets)
        default:
            return false
        }
    }

    /// Takes over how many samples were counted under other series than their own.
    mutating func restore(_ counts: StateCounts) {
        requests.restore(dropped: counts.foldedRequests)
        connectionTable.restore(dropped: counts.foldedConnections)
    }

    /// Whether a reload changes what needs a restart.
    func needsRestart(for configuration: Configuration) -> Bool {
        configuration.buckets != buckets || configuration.limits.maxSeries != maxSeries
    }
}
