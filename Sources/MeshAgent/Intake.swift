// What is done with each record of the ring buffer: decoded, counted, and shown to its breaker. It is one
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
    /// What the last record leaves for the engine to do; nil if nothing.
    private(set) var work: Work?

    /// What is more than counting.
    struct Work {
        let sample: Sample
        /// The service's name is not known yet: its announcement found the ring buffer full.
        let isUnknown: Bool
        /// A breaker that has to be settled, and its transitions.
        let breaker: (slot: Int, transitions: [BreakerTransition])?
        /// The connection's ends, for those who follow.
        let tuple: SampleTuple?
    }

    init(workloads: WorkloadDirectory, breakers: BreakerBook, traffic: Traffic) {
        self.workloads = workloads
        self.breakers = breakers
        self.traffic = traffic
    }

    /// Takes a record. False if it leaves work to do before the next one.
    mutating func take(_ record: UnsafeRawBufferPointer) -> Bool {
        guard let sample = Sample(record: record) else {
            other(record)
            return true
        }
        received += 1
        let slot = breakers.slot(of: sample.service)
        var isError = false
        var unsettled: (slot: Int, transitions: [BreakerTransition])?
        if let slot {
            if !breakers.recordQuietly(sample, slot: slot) {
                isError = breakers.isFailure(sample, slot: slot)
                if let changed = breakers.record(sample),
                    !changed.transitions.isEmpty || !breakers.isSettled(slot)
                {
                    unsettled = changed
                }
            }
        } else {
            isError = sample.isFailure(.serverErrors)
        }
        traffic.record(
            sample, workload: workloads.index(cgroup: sample.workload),
            wallTime: sample.time &+ wallOffset, error: isError)
        let isKnown = services.isKnown(sample.service)
        if unsettled == nil && isKnown && !isFollowed { return true }
        work = Work(
            sample: sample, isUnknown: !isKnown, breaker: unsettled,
            tuple: isFollowed ? SampleTuple(record: record) : nil)
        return false
    }

    /// Ends the series of workloads that are long gone. `now` in monotonic nanoseconds.
    mutating func sweep(at now: UInt64) { traffic.sweep(&workloads, at: now) }

    /// What the last record left to do.
    mutating func takeWork() -> Work? {
        defer { work = nil }
        return work
    }

    private mutating func other(_ record: UnsafeRawBufferPointer) {
        if let discovery = SampleDiscovery(record: record) {
            services.discovered(
                id: discovery.service, role: discovery.role, address: discovery.address, port: discovery.port)
        } else {
            malformed += 1
        }
    }
}
