// Records of the ring buffer. The kernel wrote them, and they are checked all the same: none may crash the
// agent or grow its tables past their limits, and each is counted once.
import CMeshABI
import MeshCore
import Testing

@testable import MeshAgent
@testable import MeshCore

/// A machine without a cgroup: every workload is unknown.
private final class NoCgroups: CgroupTree {
    func isCgroup(_ id: UInt64) -> Bool { false }
    func path(ofCgroup id: UInt64) -> String? { nil }
}

@Suite(.serialized) struct RecordFuzzTests {
    @Test func records() throws {
        var configuration = Configuration()
        configuration.limits.maxSeries = 1000
        var policy = BreakerPolicy()
        policy.consecutiveFailures = 3
        var book = BreakerBook(share: 1)
        _ = book.configure((1...4).map { ($0, policy) }, share: 1, at: 1)
        var intake = Intake(
            workloads: WorkloadDirectory(NoCgroups()), breakers: book, traffic: Traffic(configuration))
        _ = intake.services.configure((1...4).map { Configuration.Service(name: "s\($0)", endpoints: []) })
        var inputs: UInt64 = 0
        var announced: UInt64 = 0
        // Services, addresses, times: what makes fields plausible again.
        let words = [
            "\u{1}\u{0}\u{0}\u{0}", "\u{2}", "\u{3}", "\u{7}", "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
        ]
        try Fuzzer("record", short: 20_000, words: words).run { input, _ in
            inputs += 1
            let before = intake.received
            // Without followers it may be counted like the one before: the second of the two is.
            intake.isFollowed = inputs % 3 == 0
            input.withUnsafeBytes { record in
                for _ in 0..<2 {
                    if !intake.decide(record) { _ = intake.takeUnsettled() }
                    if !intake.count(record) { _ = intake.takeWork() }
                }
                announced +=
                    SampleDiscovery(record: record).map { ServiceTable.isDiscovered($0.service) } == true
                    ? 2 : 0
            }
            try holds(
                intake.received + intake.malformed + announced == 2 * inputs,
                "\(2 * inputs) records, of them \(intake.received) received, \(intake.malformed) malformed, "
                    + "\(announced) announcements")
            try holds(intake.traffic.requests.count <= 8000, "\(intake.traffic.requests.count) series")
            try holds(intake.services.labels.count <= Int(MESH_MAX_SERVICES), "a label for each number")
            // Longer than what has gone is kept: rows move.
            if inputs % 256 == 0 { intake.endRun() }
            if inputs % 4096 == 0 { _ = intake.sweep(at: inputs * 1_000_000_000) }
            return intake.received > before
        }
        intake.endRun()
        var encoder = MetricsEncoder()
        let snapshot = MetricsSnapshot(
            services: intake.services.labels, workloads: intake.workloads.names, namesGeneration: 0,
            requests: intake.traffic.requests, connections: intake.traffic.connections, version: "0",
            kernel: "0")
        for format in [MetricsFormat.text, .openMetrics] {
            for line in encoder.encode(snapshot, as: format).split(separator: 0x0a) {
                #expect(
                    line.starts(with: "# ".utf8) || line.starts(with: "mesh_".utf8)
                        || line.starts(with: "process_".utf8))
            }
        }
    }
}
