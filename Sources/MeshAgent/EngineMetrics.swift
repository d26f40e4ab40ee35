// What /metrics says at one moment: the engine takes a snapshot, which copies no series, and the
// renderer writes it out on its own thread.
import MeshCore
import MeshSystem

extension Engine {
    /// The figures as they are now.
    func snapshot() -> MetricsSnapshot {
        let counters = kernel.counters()
        var snapshot = MetricsSnapshot(
            services: services.labels, workloads: workloads.names, namesGeneration: workloads.generation,
            requests: traffic.requests,
            connections: traffic.connections, version: meshVersion, kernel: Kernel.release())
        for slot in breakers.slots where slot.breaker.policy.mode != .off {
            let attempts = attempts(of: slot)
            snapshot.breakers.append(
                MetricsSnapshot.Breaker(
                    service: slot.service, state: slot.breaker.state,
                    connect: attempts.connect,
                    request: attempts.request))
        }
        snapshot.transitions = traffic.transitions.map { key, count in
            MetricsSnapshot.Transitions(
                service: key.service, from: key.from, to: key.to, reason: key.reason, count: count)
        }
        snapshot.reaction = traffic.reactions
        snapshot.stamps.sentOK = counters[.stampSentOK]
        snapshot.stamps.sentNoRoom = counters[.stampSentNoRoom]
        snapshot.stamps.sentOutOfScope = counters[.stampSentOutOfScope]
        snapshot.stamps.receivedOK = counters[.stampReceivedOK]
        snapshot.stamps.receivedOutOfScope = counters[.stampReceivedOutOfScope]
        snapshot.samplesLost = lost(counters)
        snapshot.overDiscoveryLimit = counters[.overCap]
        snapshot.logLinesDropped = log.linesDropped
        snapshot.isControlListening = commands.isListening
        snapshot.checks = attached.faults.checks
        snapshot.faults = Fault.Part.allCases.enumerated().map { index, part in
            (
                part.rawValue, attached.faults.found[index], attached.faults.repaired[index],
                UInt64(attached.faults.broken.count { $0.part == part })
            )
        }
        snapshot.isProven = attached.isProven
        snapshot.isPinned = attached.pinError == nil
        if let journal {
            snapshot.state.isKept = journal.error == nil
            snapshot.state.commits = journal.commits
            snapshot.state.failures = journal.failures
            snapshot.state.bytes = UInt64(journal.bytes)
        }
        snapshot.leaseAge = MonotonicClock.now() - lastHeartbeat
        snapshot.refusedCalls = Privileges.refusedCalls.count
        if let process = try? ProcessStatistics.read() {
            snapshot.process.cpuTime = UInt64(process.cpuSeconds * 1_000_000_000)
            snapshot.process.residentMemory = process.residentBytes
            snapshot.process.virtualMemory = process.virtualBytes
            snapshot.process.openFileDescriptors = UInt64(process.openDescriptors)
            snapshot.process.maxFileDescriptors = process.maxDescriptors
            snapshot.process.startTime = UInt64(process.startTimeSeconds * 1_000_000_000)
        }
        return snapshot
    }

    /// What the kernel counted of a breaker's attempts, and what the agent did.
    func attempts(of slot: BreakerBook.Slot) -> BreakerAttempts {
        var attempts = kernel.attempts(slot.service)
        attempts.connect.admitted = slot.admittedConnects
        attempts.request.admitted = slot.admittedRequests
        return attempts
    }
}
