// What is done with each record of the ring buffer: it is shown to its breaker, and counted. It is one
// value, so that the engine reaches it once for thousands of records; what takes more than counting is
// left to the engine, by ending the run.
import CMeshABI
import MeshCore

/// The tables that samples fill.
struct Intake {
    var services = ServiceTable()
    var workloads: WorkloadDirectory
    var breakers: BreakerBook
    var traffic: Traffic
    /// Someone wants to be told of each sample.
    var isFollowed = false
    /// What to add to a monotonic time for nanoseconds since 1970.
    var wallOffset: UInt64 = 0

    private(set) var received: UInt64 = 0
    private(set) var malformed: UInt64 = 0
    /// What they were when they were last saved; nil if they are to be saved whatever they are.
    private var saved: (received: UInt64, malformed: UInt64)?
    /// Whether the save that is under way is not of decisions alone.
    private var savesCounts = false
    /// Whether a sample came that a breaker may act on; for the engine to read and reset.
    var sawUrgent = false
    /// A breaker that a sample has left to settle, for the engine to do; nil if none.
    private(set) var unsettled: Unsettled?
    /// What counting the last record has left for the engine to do; nil if nothing.
    private(set) var work: Work?

    /// A breaker whose kernel word, or whose history, is behind.
    struct Unsettled {
        let slot: Int
        let transitions: [BreakerTransition]
        let sample: Sample
    }

    /// What is more than counting.
    struct Work {
        let sample: Sample
        /// The service's name is not known yet: its announcement found the ring buffer full.
        let isUnknown: Bool
        /// The connection's ends, for those who follow.
        let tuple: SampleTuple?
    }

    init(workloads: WorkloadDirectory, breakers: BreakerBook, traffic: Traffic) {
        self.workloads = workloads
        self.breakers = breakers
        self.traffic = traffic
    }

    /// Shows a record to its breaker, ahead of its being counted. False if it leaves the breaker to settle
    /// before the next one.
    mutating func decide(_ record: UnsafeRawBufferPointer) -> Bool {
        // Most records are none of theirs, or went well like those before: they are not worth decoding twice.
        guard let record = SampleRecord(record), record.isOfAttempt,
            let slot = breakers.slot(of: record.service), !breakers.recordAgain(record, slot: slot),
            let sample = Sample(record), let change = breakers.record(sample)
        else { return true }
        sawUrgent = sawUrgent || change.isUrgent
        if change.isSettled { return true }
        unsettled = Unsettled(slot: change.slot, transitions: change.transitions, sample: sample)
        return false
    }

    /// Counts a record. False if it leaves work to do before the next one.
    mutating func count(_ record: UnsafeRawBufferPointer) -> Bool {
        guard let found = SampleRecord(record) else {
            other(record)
            return true
        }
        if !isFollowed && traffic.recordAgain(found, wallOffset: wallOffset) {
            received += 1
            return true
        }
        guard let sample = Sample(found) else {
            malformed += 1
            return true
        }
        received += 1
        let isKnown = services.isKnown(sample.service)
        traffic.record(
            sample, workload: workloads.index(cgroup: sample.workload),
            wallTime: sample.time &+ wallOffset, error: breakers.isFailure(sample), mayRepeat: isKnown)
        if isKnown && !isFollowed { return true }
        work = Work(
            sample: sample, isUnknown: !isKnown, tuple: isFollowed ? SampleTuple(record: record) : nil)
        return false
    }

    /// Ends a run of records that were counted: figures are whole from then on, until the next is counted.
    mutating func endRun() { traffic.endRun() }

    /// Follows a configuration: see `BreakerBook.configure`.
    mutating func configure(
        _ policies: [(service: UInt32, policy: BreakerPolicy)], share: Double, at now: UInt64
    ) -> [(slot: Int, transitions: [BreakerTransition])] {
        traffic.forgetLast()
        return breakers.configure(policies, share: share, at: now)
    }

    /// Ends the series of workloads that are long gone. `now` in monotonic nanoseconds.
    /// - Returns: Whether there were any.
    mutating func sweep(at now: UInt64) -> Bool { traffic.sweep(&workloads, at: now) }

    /// Begins to save so much. What breakers decide while it goes on is for the next time.
    mutating func beginSave(_ scope: StateScope) {
        savesCounts = scope != .decisions
        if scope == .everything {
            services.markAll()
            workloads.markAll()
            saved = nil
        }
        traffic.beginSave(scope)
        breakers.beginSave(scope)
    }

    /// Adds rows of what is to be saved; nothing may be counted until all are added.
    /// - Parameter limit: About how many at most; so many less afterwards.
    /// - Returns: Whether there may be more.
    mutating func save(to writer: inout StateWriter, rows limit: inout Int) -> Bool {
        breakers.save(to: &writer, rows: &limit)
        traffic.saveDecisions(to: &writer, rows: &limit)
        // Whose requests they are has to be known before they are counted again: the cgroup may be gone then.
        workloads.save(to: &writer, rows: &limit)
        if savesCounts {
            if saved == nil || saved! != (received, malformed) {
                saved = (received, malformed)
                writer.append(
                    .agent(
                        StateCounts(
                            received: received, malformed: malformed,
                            foldedRequests: traffic.requests.dropped,
                            foldedConnections: traffic.connections.dropped)))
            }
            services.save(to: &writer, rows: &limit)
            traffic.saveCounts(to: &writer, rows: &limit)
        }
        return limit <= 0
    }

    /// Takes over a row of an agent before, whose histograms had these bounds; false if it makes no sense.
    mutating func restore(_ row: StateRow, bounds: [UInt64]) -> Bool {
        switch row {
        case .agent(let counts):
            (received, malformed) = (counts.received, counts.malformed)
            traffic.restore(counts)
            return true
        case .service(let id, let name, let isConfigured, let isActive):
            return services.restore(id: id, name: name, isConfigured: isConfigured, isActive: isActive)
        case .workload(let index, let name): return workloads.restore(index: index, name: name)
        case .cgroup(let id, let index): return workloads.restore(cgroup: id, index: index)
        case .breaker, .override: return breakers.restore(row)
        default: return traffic.restore(row, bounds: bounds)
        }
    }

    /// The breaker that was left to settle.
    mutating func takeUnsettled() -> Unsettled? {
        defer { unsettled = nil }
        return unsettled
    }

    /// What counting the last record left to do.
    mutating func takeWork() -> Work? {
        defer { work = nil }
        return work
    }

    private mutating func other(_ record: UnsafeRawBufferPointer) {
        if let discovery = SampleDiscovery(record: record), ServiceTable.isDiscovered(discovery.service) {
            services.discovered(
                id: discovery.service, role: discovery.role, address: discovery.address, port: discovery.port)
        } else {
            malformed += 1
        }
    }
}
