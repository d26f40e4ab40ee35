// The metrics page, byte for byte, in both formats; promtool's opinion of it, where there is promtool.
import Foundation
import Testing

@testable import MeshCore

struct MetricsTests {
    static func snapshot(
        names: [String] = ["other", "payments"], workloads: [String] = ["other", "nginx.service"]
    )
        -> MetricsSnapshot
    {
        var requests = SeriesTable(bounds: [500_000, 1_000_000_000], maxSeries: 10)
        var connections = ConnectionTable(bounds: [500_000, 1_000_000_000], maxSeries: 10)
        for (duration, status, outcome) in [
            (400_000, 200, .ok), (500_000, 200, .ok), (700_000, 200, .ok), (2_500_000_001, 503, .ok),
            (30_000_000_000, 0, .aborted),
        ] as [(UInt64, UInt16, Sample.Outcome)] {
            let sample = Sample(
                kind: .request, role: .client, wireProtocol: .http, outcome: outcome, status: status,
                service: 1,
                duration: duration, sentBytes: 10, receivedBytes: 100,
                traceID: TraceID(high: 0x0af7_6519_16cd_43dd, low: 0x8448_eb21_1c80_319c))
            requests.record(sample, workload: 1, wallTime: 1_700_000_000_250_000_000)
            connections.record(sample, workload: 1)
        }
        connections.record(Sample(kind: .connect, role: .client, service: 1, duration: 600_000), workload: 1)
        connections.record(
            Sample(kind: .connect, role: .client, outcome: .refused, service: 1, duration: 5), workload: 1)
        connections.record(
            Sample(kind: .accept, role: .server, service: 1, retransmits: 3, sentBytes: 7), workload: 1)
        var snapshot = MetricsSnapshot(
            services: names, workloads: workloads, namesGeneration: 1, requests: requests,
            connections: connections,
            version: "0.1.0", kernel: "6.1.0-13-amd64")
        snapshot.breakers = [
            .init(
                service: 1, state: .halfOpen,
                connect: .init(admitted: 5, rejected: 6, probe: 7, wouldReject: 8),
                request: .init(admitted: 1))
        ]
        snapshot.transitions = [
            .init(service: 1, from: .closed, to: .open, reason: .consecutiveFailures, count: 2)
        ]
        snapshot.reaction.record(50_000)
        snapshot.reaction.record(50_001)
        snapshot.reaction.record(200_000_000)
        snapshot.stamps.sentOK = 11
        snapshot.stamps.sentNoRoom = 12
        snapshot.stamps.sentOutOfScope = 13
        snapshot.stamps.receivedOK = 14
        snapshot.stamps.receivedOutOfScope = 15
        snapshot.samplesLost = [("ring", 1), ("storage", 0)]
        snapshot.leaseAge = 400_000_000
        snapshot.refusedCalls = 16
        snapshot.logLinesDropped = 17
        snapshot.isControlListening = true
        snapshot.checks = 17
        snapshot.faults = [("cgroup", 3, 2, 1), ("interface", 0, 0, 0)]
        snapshot.isProven = true
        snapshot.isPinned = true
        snapshot.state.isKept = true
        (snapshot.state.commits, snapshot.state.failures, snapshot.state.bytes) = (8, 1, 4096)
        snapshot.process.cpuTime = 1_230_000_000
        snapshot.process.residentMemory = 12_345_678
        snapshot.process.virtualMemory = 99_000_000
        snapshot.process.openFileDescriptors = 20
        snapshot.process.maxFileDescriptors = 1024
        snapshot.process.startTime = 1_700_000_000_500_000_000
        return snapshot
    }

    private static func page(_ snapshot: MetricsSnapshot, _ format: MetricsFormat) -> String {
        var encoder = MetricsEncoder()
        return String(decoding: encoder.encode(snapshot, as: format), as: UTF8.self)
    }

    @Test func textIsWhatItShouldBe() {
        let page = MetricsTests.page(MetricsTests.snapshot(), .text)
        let lines = page.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        #expect(lines.last == "")
        let samples = lines.filter { !$0.hasPrefix("#") && !$0.isEmpty }
        #expect(samples == MetricsTests.expectedSamples)
        let types = lines.filter { $0.hasPrefix("# TYPE") }.map { String($0.dropFirst(7)) }
        #expect(types == MetricsTests.expectedTypes)
        #expect(lines.filter { $0.hasPrefix("# HELP") }.count == types.count)
        #expect(!page.contains("# EOF") && !page.contains("# UNIT") && !page.contains("trace_id"))
    }

    static let client = #"service="payments",workload="nginx.service""#

    static let expectedSamples = [
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="200",le="0.0005"} 2"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="200",le="1.0"} 3"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="200",le="+Inf"} 3"#,
        #"mesh_request_duration_seconds_sum{\#(client),role="client",protocol="http",code="200"} 0.0016"#,
        #"mesh_request_duration_seconds_count{\#(client),role="client",protocol="http",code="200"} 3"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="503",le="0.0005"} 0"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="503",le="1.0"} 0"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="503",le="+Inf"} 1"#,
        #"mesh_request_duration_seconds_sum{\#(client),role="client",protocol="http",code="503"} 2.500000001"#,
        #"mesh_request_duration_seconds_count{\#(client),role="client",protocol="http",code="503"} 1"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="aborted",le="0.0005"} 0"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="aborted",le="1.0"} 0"#,
        #"mesh_request_duration_seconds_bucket{\#(client),role="client",protocol="http",code="aborted",le="+Inf"} 1"#,
        #"mesh_request_duration_seconds_sum{\#(client),role="client",protocol="http",code="aborted"} 30"#,
        #"mesh_request_duration_seconds_count{\#(client),role="client",protocol="http",code="aborted"} 1"#,
        #"mesh_connect_duration_seconds_bucket{\#(client),le="0.0005"} 0"#,
        #"mesh_connect_duration_seconds_bucket{\#(client),le="1.0"} 1"#,
        #"mesh_connect_duration_seconds_bucket{\#(client),le="+Inf"} 1"#,
        #"mesh_connect_duration_seconds_sum{\#(client)} 0.0006"#,
        #"mesh_connect_duration_seconds_count{\#(client)} 1"#,
        #"mesh_connections_opened_total{\#(client),role="client"} 1"#,
        #"mesh_connections_opened_total{\#(client),role="server"} 1"#,
        #"mesh_connections_failed_total{\#(client),reason="refused"} 1"#,
        #"mesh_connections_failed_total{\#(client),reason="timeout"} 0"#,
        #"mesh_connections_failed_total{\#(client),reason="unreachable"} 0"#,
        #"mesh_connections_failed_total{\#(client),reason="reset"} 0"#,
        #"mesh_connections_failed_total{\#(client),reason="aborted"} 0"#,
        #"mesh_connections_active{\#(client),role="client"} 1"#,
        #"mesh_connections_active{\#(client),role="server"} 1"#,
        #"mesh_sent_bytes_total{\#(client),role="client"} 50"#,
        #"mesh_sent_bytes_total{\#(client),role="server"} 7"#,
        #"mesh_received_bytes_total{\#(client),role="client"} 500"#,
        #"mesh_received_bytes_total{\#(client),role="server"} 0"#,
        #"mesh_tcp_retransmitted_segments_total{\#(client)} 3"#,
        #"mesh_breaker_state{service="payments",state="closed"} 0"#,
        #"mesh_breaker_state{service="payments",state="open"} 0"#,
        #"mesh_breaker_state{service="payments",state="half_open"} 1"#,
        #"mesh_breaker_transitions_total{service="payments",from="closed",to="open",reason="consecutive_failures"} 2"#,
        #"mesh_breaker_attempts_total{service="payments",point="connect",decision="admitted"} 5"#,
        #"mesh_breaker_attempts_total{service="payments",point="connect",decision="rejected"} 6"#,
        #"mesh_breaker_attempts_total{service="payments",point="connect",decision="probe"} 7"#,
        #"mesh_breaker_attempts_total{service="payments",point="connect",decision="would_reject"} 8"#,
        #"mesh_breaker_attempts_total{service="payments",point="request",decision="admitted"} 1"#,
        #"mesh_breaker_attempts_total{service="payments",point="request",decision="rejected"} 0"#,
        #"mesh_breaker_attempts_total{service="payments",point="request",decision="probe"} 0"#,
        #"mesh_breaker_attempts_total{service="payments",point="request",decision="would_reject"} 0"#,
        #"mesh_breaker_reaction_seconds_bucket{le="5e-05"} 1"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.0001"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.00025"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.0005"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.001"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.0025"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.005"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.01"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.025"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.05"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="0.1"} 2"#,
        #"mesh_breaker_reaction_seconds_bucket{le="+Inf"} 3"#,
        #"mesh_breaker_reaction_seconds_sum 0.200100001"#,
        #"mesh_breaker_reaction_seconds_count 3"#,
        #"mesh_stamps_total{direction="sent",result="ok"} 11"#,
        #"mesh_stamps_total{direction="sent",result="no_room"} 12"#,
        #"mesh_stamps_total{direction="sent",result="out_of_scope"} 13"#,
        #"mesh_stamps_total{direction="received",result="ok"} 14"#,
        #"mesh_stamps_total{direction="received",result="out_of_scope"} 15"#,
        #"mesh_agent_build_info{version="0.1.0",kernel="6.1.0-13-amd64"} 1"#,
        #"mesh_agent_samples_lost_total{stage="ring"} 1"#,
        #"mesh_agent_samples_lost_total{stage="storage"} 0"#,
        "mesh_agent_series_dropped_total 0", "mesh_agent_over_discovery_limit_total 0",
        "mesh_agent_lease_age_seconds 0.4",
        "mesh_agent_refused_calls_total 16",
        "mesh_agent_log_lines_dropped_total 17",
        "mesh_agent_control_listening 1",
        "mesh_agent_pinned 1",
        "mesh_agent_state_kept 1",
        "mesh_agent_state_commits_total 8",
        "mesh_agent_state_failures_total 1",
        "mesh_agent_state_bytes 4096",
        "mesh_agent_enforcement_checks_total 17",
        "mesh_agent_enforcement_faults_total{part=\"cgroup\"} 3",
        "mesh_agent_enforcement_faults_total{part=\"interface\"} 0",
        "mesh_agent_enforcement_repairs_total{part=\"cgroup\"} 2",
        "mesh_agent_enforcement_repairs_total{part=\"interface\"} 0",
        "mesh_agent_enforcement_broken{part=\"cgroup\"} 1",
        "mesh_agent_enforcement_broken{part=\"interface\"} 0",
        "mesh_agent_enforcement_proven 1",
        "process_cpu_seconds_total 1.23",
        "process_resident_memory_bytes 12345678",
        "process_virtual_memory_bytes 99000000",
        "process_open_fds 20",
        "process_max_fds 1024",
        "process_start_time_seconds 1700000000.5",
    ]

    static let expectedTypes = [
        "mesh_request_duration_seconds histogram", "mesh_connect_duration_seconds histogram",
        "mesh_connections_opened_total counter", "mesh_connections_failed_total counter",
        "mesh_connections_active gauge", "mesh_sent_bytes_total counter", "mesh_received_bytes_total counter",
        "mesh_tcp_retransmitted_segments_total counter", "mesh_breaker_state gauge",
        "mesh_breaker_transitions_total counter", "mesh_breaker_attempts_total counter",
        "mesh_breaker_reaction_seconds histogram", "mesh_stamps_total counter", "mesh_agent_build_info gauge",
        "mesh_agent_samples_lost_total counter", "mesh_agent_series_dropped_total counter",
        "mesh_agent_over_discovery_limit_total counter",
        "mesh_agent_lease_age_seconds gauge", "mesh_agent_refused_calls_total counter",
        "mesh_agent_log_lines_dropped_total counter", "mesh_agent_control_listening gauge",
        "mesh_agent_pinned gauge", "mesh_agent_state_kept gauge",
        "mesh_agent_state_commits_total counter", "mesh_agent_state_failures_total counter",
        "mesh_agent_state_bytes gauge",
        "mesh_agent_enforcement_checks_total counter", "mesh_agent_enforcement_faults_total counter",
        "mesh_agent_enforcement_repairs_total counter", "mesh_agent_enforcement_broken gauge",
        "mesh_agent_enforcement_proven gauge", "process_cpu_seconds_total counter",
        "process_resident_memory_bytes gauge", "process_virtual_memory_bytes gauge", "process_open_fds gauge",
        "process_max_fds gauge", "process_start_time_seconds gauge",
    ]

    @Test func openMetricsSaysTheSameWithExemplars() {
        let page = MetricsTests.page(MetricsTests.snapshot(), .openMetrics)
        #expect(page.hasSuffix("\n# EOF\n"))
        let lines = page.split(separator: "\n").map(String.init)
        let samples = lines.filter { !$0.hasPrefix("#") }
        #expect(samples.map { $0.components(separatedBy: " # ")[0] } == MetricsTests.expectedSamples)
        #expect(
            samples[0]
                == MetricsTests.expectedSamples[0]
                + #" # {trace_id="0af7651916cd43dd8448eb211c80319c"} 0.0005 1700000000.25"#)
        #expect(samples.filter { $0.contains("trace_id") }.count == 4)
        let types = lines.filter { $0.hasPrefix("# TYPE") }.map { String($0.dropFirst(7)) }
        #expect(
            types
                == MetricsTests.expectedTypes.map {
                    $0.replacingOccurrences(of: "_total counter", with: " counter")
                })
        #expect(lines.contains("# UNIT mesh_sent_bytes bytes"))
        #expect(lines.contains("# UNIT process_cpu_seconds seconds"))
        // Every unit is the end of its family's name, as the standard demands.
        for line in lines where line.hasPrefix("# UNIT") {
            let words = line.split(separator: " ")
            #expect(words[2].hasSuffix("_" + words[3]))
        }
    }

    /// Samples of a family stand together, below its TYPE, and no series comes twice.
    @Test(arguments: [MetricsFormat.text, .openMetrics])
    func familiesStandTogether(format: MetricsFormat) {
        var family = ""
        var series: Set<Substring> = []
        for line in MetricsTests.page(MetricsTests.snapshot(), format).split(separator: "\n") {
            let words = line.split(separator: " ")
            if line.hasPrefix("# TYPE") { family = String(words[2]) }
            guard !line.hasPrefix("#") else { continue }
            #expect(line.hasPrefix(family))
            #expect(series.insert(words[0]).inserted)
        }
    }

    /// What anyone put into a name stays within its quotes.
    @Test(arguments: [
        (#"a"} 1"#, #"a\"} 1"#), ("a\nb 2", #"a\nb 2"#), (#"a\"#, #"a\\"#), (#"\""#, #"\\\""#),
        ("a\rb\tc\u{0}d\u{7f}", "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"), ("größe 🙂", "größe 🙂"), ("", ""),
    ])
    func labelsAreEscaped(name: String, escaped: String) {
        for format in [MetricsFormat.text, .openMetrics] {
            var snapshot = MetricsTests.snapshot(names: ["other", name], workloads: ["other", name])
            snapshot.samplesLost = [(name, 1)]
            snapshot.version = name
            let page = MetricsTests.page(snapshot, format)
            let usual = MetricsTests.page(MetricsTests.snapshot(), format)
            #expect(page.contains(#"{service="\#(escaped)",workload="\#(escaped)",role="client""#))
            #expect(page.contains(#"mesh_agent_samples_lost_total{stage="\#(escaped)"} 1"#))
            let count = { (text: String) in text.utf8.filter { $0 == 0x0a }.count }
            #expect(count(page) == count(usual) - 1, "one stage less, and no line more")
            #expect(!page.utf8.contains { $0 < 0x20 && $0 != 0x0a })
        }
    }

    @Test func bytesThatAreNoTextBecomeText() {
        let name = String(decoding: [0x61, 0xff, 0xfe, 0x0a, 0xc0, 0x80, 0x22], as: UTF8.self)
        let page = MetricsTests.page(MetricsTests.snapshot(names: ["other", name]), .text)
        #expect(page.contains("service=\"a\u{fffd}\u{fffd}\\n\u{fffd}\u{fffd}\\\"\""))
    }

    @Test func namesThatAreMissingAreTold() {
        let page = MetricsTests.page(MetricsTests.snapshot(names: [], workloads: []), .text)
        #expect(page.contains(#"{service="service-1",workload="workload-1",role="#))
    }

    @Test func rolesOfOneWorkloadAreOneSeriesWhereRolesAreNotTold() {
        var snapshot = MetricsTests.snapshot()
        snapshot.connections.record(
            Sample(kind: .bytes, role: .client, service: 1, retransmits: 4), workload: 1)
        snapshot.connections.record(
            Sample(kind: .bytes, role: .server, service: 0, retransmits: 9), workload: 1)
        let lines = MetricsTests.page(snapshot, .text).split(separator: "\n")
            .filter { $0.hasPrefix("mesh_tcp_retransmitted_segments_total") }
        #expect(
            lines == [
                #"mesh_tcp_retransmitted_segments_total{service="payments",workload="nginx.service"} 7"#,
                #"mesh_tcp_retransmitted_segments_total{service="other",workload="nginx.service"} 9"#,
            ])
    }

    @Test func cachedLabelsFollowTheTables() {
        var encoder = MetricsEncoder()
        func page(_ snapshot: MetricsSnapshot) -> String {
            let bytes = encoder.encode(snapshot, as: .text)
            var fresh = MetricsEncoder()
            #expect(bytes == fresh.encode(snapshot, as: .text))
            return String(decoding: bytes, as: UTF8.self)
        }
        var snapshot = MetricsTests.snapshot()
        _ = page(snapshot)
        // A row more.
        snapshot.requests.record(
            SeriesKey(service: 0, workload: 0, role: .server), duration: 1, traceID: nil, wallTime: 0)
        #expect(
            page(snapshot).contains(
                #"{service="other",workload="other",role="server",protocol="tcp",code="ok""#))
        // Rows less.
        snapshot.requests.removeAll { $0.code == 200 }
        #expect(!page(snapshot).contains(#"code="200""#))
        // Another row in the place of one.
        snapshot.requests.removeAll { $0.code == 503 }
        snapshot.requests.record(
            SeriesKey(service: 1, workload: 1, role: .server), duration: 1, traceID: nil, wallTime: 0)
        _ = page(snapshot)
        // Other names.
        snapshot.services[1] = "billing"
        snapshot.namesGeneration += 1
        #expect(page(snapshot).contains(#"service="billing""#))
    }

    @Test func piecesAreTheWholePage() {
        var snapshot = MetricsTests.snapshot()
        var table = SeriesTable(bounds: snapshot.requests.bounds, maxSeries: 3_000)
        for service: UInt32 in 0..<3_000 {
            table.record(
                SeriesKey(service: service, workload: 1, role: .client), duration: 5, traceID: nil,
                wallTime: 0)
        }
        snapshot.requests = table
        var encoder = MetricsEncoder()
        var pieces: [[UInt8]] = []
        encoder.encode(snapshot, as: .openMetrics) { pieces.append($0) }
        #expect(pieces.count > 5)
        #expect(pieces.allSatisfy { $0.count < 80_000 && $0.last == 0x0a })
        #expect(Array(pieces.joined()) == encoder.encode(snapshot, as: .openMetrics))
    }

    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/promtool")))
    func promtoolFindsNothing() throws {
        let names = ["other", #"nasty "name"\ "# + "\n\u{1}ü"]
        for snapshot in [MetricsTests.snapshot(), MetricsTests.snapshot(names: names, workloads: names)] {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "/usr/bin/promtool")
            process.arguments = ["check", "metrics"]
            let (input, output) = (Pipe(), Pipe())
            process.standardInput = input
            process.standardOutput = output
            process.standardError = output
            try process.run()
            try input.fileHandleForWriting.write(contentsOf: Data(MetricsTests.page(snapshot, .text).utf8))
            try input.fileHandleForWriting.close()
            let said = try output.fileHandleForReading.readToEnd() ?? Data()
            process.waitUntilExit()
            #expect(String(decoding: said, as: UTF8.self) == "")
            #expect(process.terminationStatus == 0)
        }
    }
}
