// Renders a snapshot as Prometheus text or OpenMetrics. docs/metrics.md describes every metric.

/// Renders snapshots. It keeps the labels of each series that it has rendered, so keep it, too.
public struct MetricsEncoder: Sendable {
    private var requestLabels = LabelCache()
    private var connectionLabels = LabelCache()
    private var generation: UInt64?

    /// An encoder that has rendered nothing yet.
    public init() {}

    /// Renders a snapshot as one page of UTF-8.
    public mutating func encode(_ snapshot: MetricsSnapshot, as format: MetricsFormat) -> [UInt8] {
        var page: [UInt8] = []
        encode(snapshot, as: format) { page.append(contentsOf: $0) }
        return page
    }

    /// Renders a snapshot piece by piece, so that a page of any size takes little memory: `emit` is called
    /// with some 64 kB of UTF-8 at a time, in order, ending on whole lines.
    public mutating func encode(
        _ snapshot: MetricsSnapshot, as format: MetricsFormat, emit: ([UInt8]) -> Void
    ) {
        if generation != snapshot.namesGeneration {
            requestLabels = LabelCache()
            connectionLabels = LabelCache()
            generation = snapshot.namesGeneration
        }
        requestLabels.follow(snapshot.requests.count, snapshot.requests.key, snapshot.requestLabels)
        connectionLabels.follow(
            snapshot.connections.count, snapshot.connections.key, snapshot.connectionLabels)

        var writer = MetricsWriter(format: format)
        writer.bytes.reserveCapacity(MetricsEncoder.pieceLength + 8192)
        func flush(_ writer: inout MetricsWriter, last: Bool = false) {
            guard last || writer.bytes.count >= MetricsEncoder.pieceLength else { return }
            emit(writer.bytes)
            writer.bytes.removeAll(keepingCapacity: true)
        }
        encodeRequests(snapshot, &writer, flush: { flush(&$0) })
        encodeConnections(snapshot, &writer, flush: { flush(&$0) })
        encodeBreakers(snapshot, &writer, flush: { flush(&$0) })
        encodeAgent(snapshot, &writer)
        encodeFaults(snapshot, &writer)
        encodeProcess(snapshot.process, &writer)
        writer.end()
        flush(&writer, last: true)
    }

    private static let pieceLength = 64 << 10

    private typealias Flush = (inout MetricsWriter) -> Void

    private func encodeRequests(_ snapshot: MetricsSnapshot, _ writer: inout MetricsWriter, flush: Flush) {
        let name = "mesh_request_duration_seconds"
        writer.family(
            name, .histogram,
            "Time from the first byte of a request to the first byte of its response, in seconds.")
        let table = snapshot.requests
        let edges = MetricsWriter.edges(of: table.bounds)
        for row in 0..<table.count {
            writer.histogram(
                name, requestLabels[row], edges: edges, sum: table.sum(row),
                bucket: { table.bucket(row, $0) },
                exemplar: { table.exemplar(row, $0) })
            flush(&writer)
        }
    }

    private func encodeConnections(_ snapshot: MetricsSnapshot, _ writer: inout MetricsWriter, flush: Flush) {
        let table = snapshot.connections
        let clients = (0..<table.count).filter { table.key($0).role == .client }

        let duration = "mesh_connect_duration_seconds"
        writer.family(
            duration, .histogram,
            "Time that successful connects took, from SYN to established, in seconds.")
        let edges = MetricsWriter.edges(of: table.bounds)
        for row in clients {
            writer.histogram(
                duration, connectionLabels.stem(row), edges: edges, sum: table.sum(row),
                bucket: { table.bucket(row, $0) })
            flush(&writer)
        }

        func perRow(
            _ name: String, _ type: MetricsType, _ counter: ConnectionTable.Counter, _ help: String,
            _ writer: inout MetricsWriter
        ) {
            writer.family(name, type, help)
            let sample = type == .counter ? name + "_total" : name
            for row in 0..<table.count {
                writer.sample(sample, connectionLabels[row], table.value(row, counter))
                flush(&writer)
            }
        }
        perRow(
            "mesh_connections_opened", .counter, .opened,
            "Connections made (client) or accepted (server) since the agent started.", &writer)

        writer.family(
            "mesh_connections_failed", .counter,
            "Connects that failed, by how. Rejected ones are not among them.")
        for row in clients {
            for outcome in Sample.Outcome.allCases where outcome != .ok {
                let labels =
                    connectionLabels.stem(row) + MetricsWriter.labels(["reason": outcome.label], after: true)
                let counter = ConnectionTable.Counter(failure: outcome)
                writer.sample("mesh_connections_failed_total", labels, table.value(row, counter))
            }
            flush(&writer)
        }

        perRow(
            "mesh_connections_active", .gauge, .active,
            "Connections that are open now, those older than the agent included.", &writer)
        perRow("mesh_sent_bytes", .counter, .sentBytes, "TCP payload sent, in bytes.", &writer)
        perRow("mesh_received_bytes", .counter, .receivedBytes, "TCP payload received, in bytes.", &writer)

        writer.family(
            "mesh_tcp_retransmitted_segments", .counter, "TCP segments that this node's sockets sent again.")
        for row in 0..<table.count {
            // This one does not tell roles apart: two rows of one service and workload are one series.
            let other = table.row(of: table.key(row).withOtherRole)
            if other != nil && table.key(row).role == .server { continue }
            let segments =
                table.value(row, .retransmits) &+ (other.map { table.value($0, .retransmits) } ?? 0)
            writer.sample("mesh_tcp_retransmitted_segments_total", connectionLabels.stem(row), segments)
            flush(&writer)
        }
    }

    private func encodeBreakers(_ snapshot: MetricsSnapshot, _ writer: inout MetricsWriter, flush: Flush) {
        writer.family(
            "mesh_breaker_state", .gauge,
            "1 for the state that the breaker is in, overrides included, else 0.")
        for breaker in snapshot.breakers {
            for state in BreakerState.allCases {
                let labels = MetricsWriter.labels([
                    "service": snapshot.serviceName(breaker.service), "state": state.label,
                ])
                writer.sample("mesh_breaker_state", labels, breaker.state == state ? 1 : 0)
            }
            flush(&writer)
        }
        writer.family(
            "mesh_breaker_transitions", .counter, "Changes of breakers' states, overrides included.")
        for transition in snapshot.transitions {
            let labels = MetricsWriter.labels([
                "service": snapshot.serviceName(transition.service), "from": transition.from.label,
                "to": transition.to.label, "reason": transition.reason.rawValue,
            ])
            writer.sample("mesh_breaker_transitions_total", labels, transition.count)
            flush(&writer)
        }
        writer.family(
            "mesh_breaker_attempts", .counter,
            "Attempts at connects and requests by what the breaker decided; would_reject ones were let through."
        )
        for breaker in snapshot.breakers {
            for (point, attempts) in [("connect", breaker.connect), ("request", breaker.request)] {
                for (decision, count) in [
                    ("admitted", attempts.admitted), ("rejected", attempts.rejected),
                    ("probe", attempts.probe),
                    ("would_reject", attempts.wouldReject),
                ] {
                    let labels = MetricsWriter.labels([
                        "service": snapshot.serviceName(breaker.service), "point": point,
                        "decision": decision,
                    ])
                    writer.sample("mesh_breaker_attempts_total", labels, count)
                }
            }
            flush(&writer)
        }
        let reaction = snapshot.reaction
        writer.family(
            "mesh_breaker_reaction_seconds", .histogram,
            "Time from the end of the request that decided to the kernel knowing the new state, in seconds.")
        writer.histogram(
            "mesh_breaker_reaction_seconds", [], edges: MetricsWriter.edges(of: reaction.bounds),
            sum: reaction.sum,
            bucket: { reaction.buckets[$0] })
    }

    private func encodeAgent(_ snapshot: MetricsSnapshot, _ writer: inout MetricsWriter) {
        let stamps = snapshot.stamps
        writer.family(
            "mesh_stamps", .counter, "SYNs by what became of their stamp, the trace ID as a TCP option.")
        for (direction, result, count) in [
            ("sent", "ok", stamps.sentOK), ("sent", "no_room", stamps.sentNoRoom),
            ("sent", "out_of_scope", stamps.sentOutOfScope), ("received", "ok", stamps.receivedOK),
            ("received", "out_of_scope", stamps.receivedOutOfScope),
        ] {
            let labels = MetricsWriter.labels(["direction": direction, "result": result])
            writer.sample("mesh_stamps_total", labels, count)
        }
        writer.family("mesh_agent_build_info", .gauge, "Always 1; the labels say what runs where.")
        writer.sample(
            "mesh_agent_build_info",
            MetricsWriter.labels(["version": snapshot.version, "kernel": snapshot.kernel]), 1)
        writer.family("mesh_agent_samples_lost", .counter, "Samples that were lost, by where.")
        for (stage, count) in snapshot.samplesLost {
            writer.sample("mesh_agent_samples_lost_total", MetricsWriter.labels(["stage": stage]), count)
        }
        writer.family(
            "mesh_agent_series_dropped", .counter,
            "Samples that were counted under another series, because there were too many.")
        writer.sample(
            "mesh_agent_series_dropped_total", [], snapshot.requests.dropped &+ snapshot.connections.dropped)
        writer.family(
            "mesh_agent_over_discovery_limit", .counter,
            "Connections whose service is other, because no more services were to be discovered.")
        writer.sample("mesh_agent_over_discovery_limit_total", [], snapshot.overDiscoveryLimit)
        writer.family(
            "mesh_agent_lease_age_seconds", .gauge, "Time since the lease was last renewed, in seconds.")
        writer.sample("mesh_agent_lease_age_seconds", [], nanoseconds: snapshot.leaseAge)
        writer.family(
            "mesh_agent_refused_calls", .counter, "System calls that were refused to the agent itself.")
        writer.sample("mesh_agent_refused_calls_total", [], snapshot.refusedCalls)
        writer.family(
            "mesh_agent_log_lines_dropped", .counter,
            "Lines of the agent's log that were never written: nobody read them, or the disk is full.")
        writer.sample("mesh_agent_log_lines_dropped_total", [], snapshot.logLinesDropped)
        writer.family(
            "mesh_agent_control_listening", .gauge,
            "1 if the control socket is where meshctl looks for it, else 0.")
        writer.sample("mesh_agent_control_listening", [], snapshot.isControlListening ? 1 : 0)
        writer.family(
            "mesh_agent_pinned", .gauge,
            "1 if maps and programs are pinned, so that what is enforced outlives the agent, else 0.")
        writer.sample("mesh_agent_pinned", [], snapshot.isPinned ? 1 : 0)
        writer.family(
            "mesh_agent_state_kept", .gauge, "1 if what the agent knows outlives it, else 0.")
        writer.sample("mesh_agent_state_kept", [], snapshot.state.isKept ? 1 : 0)
        writer.family("mesh_agent_state_commits", .counter, "How often this process committed the state.")
        writer.sample("mesh_agent_state_commits_total", [], snapshot.state.commits)
        writer.family(
            "mesh_agent_state_failures", .counter, "How often this process could not write the state.")
        writer.sample("mesh_agent_state_failures_total", [], snapshot.state.failures)
        writer.family("mesh_agent_state_bytes", .gauge, "Size of the file that holds the state, in bytes.")
        writer.sample("mesh_agent_state_bytes", [], snapshot.state.bytes)
    }

    private func encodeFaults(_ snapshot: MetricsSnapshot, _ writer: inout MetricsWriter) {
        writer.family(
            "mesh_agent_enforcement_checks", .counter,
            "How often the agent looked whether all that enforces is in place.")
        writer.sample("mesh_agent_enforcement_checks_total", [], snapshot.checks)
        let labels = snapshot.faults.map { MetricsWriter.labels(["part": $0.part]) }
        writer.family(
            "mesh_agent_enforcement_faults", .counter,
            "What enforces and was found detached, replaced or removed, each once until it is over.")
        for (labels, fault) in zip(labels, snapshot.faults) {
            writer.sample("mesh_agent_enforcement_faults_total", labels, fault.found)
        }
        writer.family("mesh_agent_enforcement_repairs", .counter, "Of those, what the agent repaired.")
        for (labels, fault) in zip(labels, snapshot.faults) {
            writer.sample("mesh_agent_enforcement_repairs_total", labels, fault.repaired)
        }
        writer.family(
            "mesh_agent_enforcement_broken", .gauge,
            "What enforces and is missing now, because it could not be repaired.")
        for (labels, fault) in zip(labels, snapshot.faults) {
            writer.sample("mesh_agent_enforcement_broken", labels, fault.broken)
        }
        writer.family(
            "mesh_agent_enforcement_proven", .gauge,
            "1 if a connect that had to be refused was, when last tried, else 0.")
        writer.sample("mesh_agent_enforcement_proven", [], snapshot.isProven ? 1 : 0)
    }

    private func encodeProcess(_ process: MetricsSnapshot.Process, _ writer: inout MetricsWriter) {
        writer.family(
            "process_cpu_seconds", .counter, "CPU time used by the agent, user and system, in seconds.")
        writer.sample("process_cpu_seconds_total", [], nanoseconds: process.cpuTime)
        for (name, help, value) in [
            (
                "process_resident_memory_bytes", "Resident memory of the agent, in bytes.",
                process.residentMemory
            ),
            ("process_virtual_memory_bytes", "Virtual memory of the agent, in bytes.", process.virtualMemory),
            ("process_open_fds", "File descriptors that the agent has open.", process.openFileDescriptors),
            ("process_max_fds", "File descriptors that the agent may open.", process.maxFileDescriptors),
        ] {
            writer.family(name, .gauge, help)
            writer.sample(name, [], value)
        }
        writer.family(
            "process_start_time_seconds", .gauge, "When the agent started, in seconds since 1970-01-01 UTC.")
        writer.sample("process_start_time_seconds", [], nanoseconds: process.startTime)
    }
}

extension MetricsSnapshot {
    fileprivate func serviceName(_ service: UInt32) -> String {
        Int(service) < services.count ? services[Int(service)] : "service-\(service)"
    }

    private func workloadName(_ workload: UInt32) -> String {
        Int(workload) < workloads.count ? workloads[Int(workload)] : "workload-\(workload)"
    }

    fileprivate func requestLabels(_ key: SeriesKey) -> (stem: [UInt8], rest: [UInt8]) {
        let code = key.code < 100 ? Sample.Outcome(rawValue: UInt8(key.code))?.label : nil
        return (
            stem(key),
            MetricsWriter.labels(
                [
                    "role": key.role.label, "protocol": key.wireProtocol.label,
                    "code": code ?? String(key.code),
                ], after: true)
        )
    }

    fileprivate func connectionLabels(_ key: SeriesKey) -> (stem: [UInt8], rest: [UInt8]) {
        (stem(key), MetricsWriter.labels(["role": key.role.label], after: true))
    }

    private func stem(_ key: SeriesKey) -> [UInt8] {
        MetricsWriter.labels(["service": serviceName(key.service), "workload": workloadName(key.workload)])
    }
}

/// The labels of each row of a table, rendered once, end to end in one array.
private struct LabelCache {
    private var keys: [SeriesKey] = []
    private var bytes: [UInt8] = []
    /// Per row: where its labels begin, where service and workload end, where all end.
    private var places: [(start: Int, stem: Int, end: Int)] = []

    /// Renders the rows that are new. If a row is not what it was, the table was compacted: renders all.
    mutating func follow(
        _ count: Int, _ key: (Int) -> SeriesKey, _ render: (SeriesKey) -> (stem: [UInt8], rest: [UInt8])
    ) {
        if count < keys.count || keys.indices.contains(where: { keys[$0] != key($0) }) { self = LabelCache() }
        for row in keys.count..<count {
            let labels = render(key(row))
            let start = bytes.count
            bytes += labels.stem
            bytes += labels.rest
            keys.append(key(row))
            places.append((start, start + labels.stem.count, bytes.count))
        }
    }

    /// All labels of a row.
    subscript(row: Int) -> ArraySlice<UInt8> { bytes[places[row].start..<places[row].end] }

    /// Service and workload of a row.
    func stem(_ row: Int) -> ArraySlice<UInt8> { bytes[places[row].start..<places[row].stem] }
}
