// The control API: what meshctl asks over the UNIX socket, and the metrics endpoint's routes.
// docs/control-api.md is its reference; the JSON is stable.
import CMeshABI
import Glibc
import MeshCore
import MeshSystem

extension HTTPResponse {
    /// A JSON body.
    static func json(_ value: JSONValue, status: Int = 200) -> HTTPResponse {
        HTTPResponse(
            status: status, headers: [("Content-Type", "application/json")], body: value.bytes() + [10])
    }

    /// An error for people; `suggestion` is a name that was probably meant.
    static func error(_ text: String, status: Int, suggestion: String? = nil) -> HTTPResponse {
        .json(
            ["error": .string(text), "suggestion": suggestion.map { .string($0) } ?? .null], status: status)
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
func metricsRouter(_ shared: SharedState) -> HTTPRouter<HTTPHandler> {
    var router = HTTPRouter<HTTPHandler>()
    router.add("GET", "/metrics") { exchange in
        shared.mailbox.post(.ask(exchange) { engine, exchange in engine.renderMetrics(exchange) })
        return .deferred
    }
    router.add("GET", "/healthz") { _ in
        .respond(shared.isAlive ? .text("ok") : .text("the engine has not turned for 30 s", status: 503))
    }
    router.add("GET", "/readyz") { exchange in
        guard shared.isReady && shared.isAlive else {
            return .respond(.text("not ready", status: 503))
        }
        shared.mailbox.post(.ask(exchange) { engine, exchange in engine.readiness(exchange) })
        return .deferred
    }
    return router
}

/// Everything that meshctl calls.
func controlRouter(_ shared: SharedState, log: Log) -> HTTPRouter<HTTPHandler> {
    var router = HTTPRouter<HTTPHandler>()
    func add(
        _ method: String, _ pattern: String,
        _ action: @escaping @Sendable (Engine, HTTPExchange) throws(Refusal) -> HTTPReply
    ) {
        router.add(method, pattern) { exchange in
            // The socket's mode keeps others out already; this holds if somebody changed it.
            guard let peer = exchange.peer, peer.uid == 0 || peer.uid == geteuid() else {
                log.write(
                    .warning, "control call refused",
                    [
                        "uid": exchange.peer.map { .integer($0.uid) } ?? .null,
                        "call": .string("\(method) \(exchange.request.path)"),
                    ])
                return .respond(.error("only root may control the agent", status: 403))
            }
            shared.mailbox.post(
                .ask(exchange) { engine, exchange in
                    do throws(Refusal) {
                        return try action(engine, exchange)
                    } catch {
                        return .respond(
                            .error(error.text, status: error.status, suggestion: error.suggestion))
                    }
                })
            return .deferred
        }
    }
    add("GET", "/v1/status") { engine, _ in .respond(.json(engine.status())) }
    add("GET", "/v1/services") { engine, _ in .respond(.json(engine.serviceList())) }
    add("GET", "/v1/breakers") { engine, _ in .respond(.json(engine.breakerList())) }
    add("GET", "/v1/breakers/{name}") { engine, exchange throws(Refusal) in
        let slot = try engine.breaker(named: exchange.parameters[0])
        return .respond(.json(engine.breakerJSON(slot, withHistory: true)))
    }
    add("POST", "/v1/breakers/{name}/open") { engine, exchange throws(Refusal) in
        .respond(.json(try engine.force(.open, exchange)))
    }
    add("POST", "/v1/breakers/{name}/close") { engine, exchange throws(Refusal) in
        .respond(.json(try engine.force(.close, exchange)))
    }
    add("POST", "/v1/breakers/{name}/auto") { engine, exchange throws(Refusal) in
        .respond(.json(try engine.endOverride(exchange)))
    }
    add("GET", "/v1/flows") { engine, exchange throws(Refusal) in try engine.flows(exchange) }
    add("GET", "/v1/events") { engine, exchange in engine.events(exchange) }
    add("GET", "/v1/traces") { engine, _ in .respond(.json(engine.traceList())) }
    add("PUT", "/v1/traces/{pid}") { engine, exchange throws(Refusal) in
        .respond(.json(try engine.bindTrace(exchange)))
    }
    add("DELETE", "/v1/traces/{pid}") { engine, exchange throws(Refusal) in
        .respond(.json(try engine.unbindTrace(exchange)))
    }
    return router
}

// MARK: - Looking

extension Engine {
    func status() -> JSONValue {
        drainAll()
        let now = MonotonicClock.now()
        let counters = kernel.counters()
        let age = now - lastHeartbeat
        let states = breakers.slots.map(\.breaker)
        return [
            "version": .string(meshVersion), "pid": .integer(getpid()), "kernel": .string(Kernel.release()),
            "abi_version": .integer(MESH_ABI_VERSION), "started_at": .time(startedAt),
            "uptime_seconds": .seconds(now - startedMonotonic),
            "config": [
                "path": options.configuration.map { .string($0) } ?? .null,
                "loaded_at": .time(configurationLoaded),
                "error": configurationError.map { .string($0) } ?? .null,
            ],
            "privileges": privileges(),
            "cgroup": .string(kernel.cgroupPath),
            "hooks": .array(
                attached.hooks.map { hook in
                    [
                        "name": .string(hook.name), "where": .string(hook.place),
                        "attached": .bool(hook.isAttached),
                        "detail": .string(hook.detail),
                    ]
                }),
            "interfaces": .array(
                attached.interfaces.map { ["name": .string($0.name), "mode": .string($0.mode.rawValue)] }),
            "pins": [
                "directory": kernel.pins.map { .string($0.path) } ?? .null,
                "error": attached.pinError.map { .string($0.description) } ?? .null,
                "takeover": .bool(kernel.isTakeover),
            ],
            "enforcement": [
                "checks": .integer(attached.faults.checks),
                "faults": .integer(attached.faults.found.reduce(0, +)),
                "repairs": .integer(attached.faults.repaired.reduce(0, +)),
                "broken": .array(attached.faults.broken.map { json($0) }),
                "proven": .bool(attached.isProven),
                "unproven_reason": attached.unprovenReason.map { .string($0.description) } ?? .null,
            ],
            "lease": [
                "seconds": .seconds(configuration.breakers.lease), "age_seconds": .seconds(age),
                "valid": .bool(age < configuration.breakers.lease),
            ],
            "services": [
                "configured": .integer(services.configuredCount),
                "discovered": .integer(services.discoveredCount),
                "discovery_limit": .integer(configuration.limits.maxDiscoveredServices),
                "over_limit_connections": .integer(counters[.overCap]),
            ],
            "breakers": .object(
                states.counts + [
                    ("open_limit", .integer(breakers.share.limit)),
                    ("held_closed", .integer(states.count { $0.heldClosed })),
                    ("unenforced_requests", .integer(counters[.unenforced])),
                ]),
            "connections_active": .integer(traffic.connections.active),
            "samples": [
                "received": .integer(samplesReceived),
                "lost": .array(
                    lost(counters).map { ["stage": .string($0.stage), "count": .integer($0.count)] }),
            ],
            "series": [
                "used": .integer(traffic.requests.count), "limit": .integer(traffic.maxSeries),
                "dropped": .integer(traffic.requests.dropped + traffic.connections.dropped),
            ],
            "stamps": [
                "sent_ok": .integer(counters[.stampSentOK]),
                "sent_no_room": .integer(counters[.stampSentNoRoom]),
                "sent_out_of_scope": .integer(counters[.stampSentOutOfScope]),
                "received_ok": .integer(counters[.stampReceivedOK]),
                "received_out_of_scope": .integer(counters[.stampReceivedOutOfScope]),
            ],
        ]
    }

    private func json(_ fault: Fault) -> JSONValue {
        [
            "part": .string(fault.part.rawValue), "what": .string(fault.what),
            "where": .string(fault.place), "fault": .string(fault.fault),
            "error": fault.error.map { .string($0.description) } ?? .null,
        ]
    }

    /// What the agent may do, as the kernel has it.
    private func privileges() -> JSONValue {
        let now = try? Privileges.now()
        return [
            "capabilities": .array((now?.capabilities.names ?? []).map { .string($0) }),
            "no_new_privileges": .bool(now?.gainsNone ?? false),
            "calls_filtered": .bool(now?.isFiltered ?? false),
            "calls_refused": .integer(Privileges.refusedCalls.count),
        ]
    }

    /// What was lost on its way here, by where.
    func lost(_ counters: KernelCounters) -> [(stage: String, count: UInt64)] {
        [
            ("ring", counters[.lostRing]), ("storage", counters[.lostStorage]), ("decode", samplesMalformed),
        ]
    }

    func serviceList() -> JSONValue {
        drainAll()
        let now = MonotonicClock.now()
        var rows: [JSONValue] = []
        for info in services.byID.values.filter(\.isActive).sorted(by: { $0.name < $1.name }) {
            let slot = breakers.slot(of: info.id)
            let roles = [Sample.Role.client, .server].filter { traffic.hasRequests(info.id, $0) }
            // A configured service is shown even when nobody has called it yet.
            let shown = roles.isEmpty && info.kind == .configured ? [.client] : roles
            for role in shown {
                let recent = traffic.summary(info.id, role, at: now)
                let totals = traffic.totals(info.id, role)
                rows.append([
                    "name": .string(info.name), "id": .integer(info.id), "kind": .string(info.kind.rawValue),
                    "role": .string(role.label), "rate_per_second": .number(recent.rate),
                    "error_ratio": .number(recent.errorRatio), "p50_seconds": .optional(recent.p50),
                    "p90_seconds": .optional(recent.p90), "p99_seconds": .optional(recent.p99),
                    "requests_total": .integer(totals.requests), "errors_total": .integer(totals.errors),
                    "breaker": slot.map { briefBreaker(breakers.slots[$0].breaker) } ?? .null,
                ])
            }
        }
        return ["services": .array(rows)]
    }

    private func briefBreaker(_ breaker: Breaker) -> JSONValue {
        [
            "state": .string(breaker.state.label), "mode": .string(breaker.policy.mode.label),
            "override": breaker.override.map {
                ["state": .string($0.forced.label), "expires_at": .time(wallTime($0.expiresAt))]
            } ?? .null,
        ]
    }

    func breakerList() -> JSONValue {
        drainAll()
        let active = breakers.slots.indices.filter {
            services.byID[breakers.slots[$0].service]?.isActive == true
        }
        let sorted = active.sorted {
            services.name(breakers.slots[$0].service) < services.name(breakers.slots[$1].service)
        }
        return ["breakers": .array(sorted.map { breakerJSON($0, withHistory: false) })]
    }

    /// The ID of a service, be it one that was discovered just now.
    private func service(named name: String) -> UInt32? {
        if let id = services.id(named: name) { return id }
        drainAll()
        return services.id(named: name)
    }

    /// The slot of a service's breaker.
    func breaker(named name: String) throws(Refusal) -> Int {
        guard let id = service(named: name) else { throw .noService(name, among: services.activeNames) }
        guard let slot = breakers.slot(of: id), breakers.slots[slot].breaker.policy.mode != .off else {
            throw .noBreaker(name)
        }
        return slot
    }

    func breakerJSON(_ index: Int, withHistory: Bool) -> JSONValue {
        let now = MonotonicClock.now()
        refresh(index, at: now)
        let slot = breakers.slots[index]
        let name = services.name(slot.service)
        var fields = slot.breaker.json(
            service: name, id: slot.service, attempts: attempts(of: slot),
            wallOffset: MonotonicClock.wallOffset())
        if withHistory { fields.append(("history", .array(history.events(of: name).map(\.json)))) }
        return .object(fields)
    }

    func events(_ exchange: HTTPExchange) -> HTTPReply {
        guard exchange.request.parameter("follow") == "1" else {
            return .respond(.json(["events": .array(history.recent.map(\.json))]))
        }
        var head = HTTPResponse(status: 200, headers: [("Content-Type", "application/x-ndjson")], body: [])
        for event in history.recent { head.body += event.json.bytes() + [10] }
        follow(Follower(exchange: exchange, interest: .events))
        return .stream(head, dropped: droppedLine)
    }

    private var droppedLine: [UInt8] {
        JSONValue.object([("error", "this client was too slow and has missed what happened since")]).bytes()
            + [10]
    }

    func flows(_ exchange: HTTPExchange) throws(Refusal) -> HTTPReply {
        let service = exchange.request.parameter("service")
        if let service, self.service(named: service) == nil {
            throw .noService(service, among: services.activeNames)
        }
        var trace: TraceID?
        if let text = exchange.request.parameter("trace") {
            trace = TraceID(text)
            if trace == nil {
                throw Refusal(
                    status: 400,
                    text: "a trace ID is 32 hexadecimal digits, not all zero; got \(text.quoted())")
            }
        }
        if exchange.request.parameter("follow") == "1" {
            follow(Follower(exchange: exchange, interest: .flows(service: service, trace: trace)))
            let head = HTTPResponse(
                status: 200, headers: [("Content-Type", "application/x-ndjson")], body: [])
            return .stream(head, dropped: droppedLine)
        }
        drainAll()
        let connections: [KernelConnection]
        do {
            connections = try kernel.connections()
        } catch {
            throw Refusal(status: 500, text: error.description)
        }
        let now = MonotonicClock.now()
        var rows: [JSONValue] = []
        for connection in connections {
            learn(connection.service)
            let name = services.name(connection.service)
            guard service == nil || service == name, trace == nil || trace == connection.trace else {
                continue
            }
            rows.append([
                "service": .string(name), "role": .string(connection.role.label),
                "workload": .string(workloadName(connection.workload)),
                "local": .string(connection.local.description),
                "remote": .string(connection.remote.description), "trace_id": .trace(connection.trace),
                "protocol": .string(connection.wireProtocol.label),
                "age_seconds": .seconds(now > connection.opened ? now - connection.opened : 0),
                "pending": .bool(connection.isPending), "adopted": .bool(connection.isAdopted),
                "sent_bytes": .integer(connection.sentBytes),
                "received_bytes": .integer(connection.receivedBytes),
            ])
        }
        return .respond(.json(["connections": .array(rows)]))
    }

    func traceList() -> JSONValue {
        let rows = bindings.bindings.values.sorted { $0.pid < $1.pid }.map { binding -> JSONValue in
            [
                "pid": .integer(binding.pid), "trace_id": .trace(binding.trace),
                "since": .time(wallTime(binding.since)),
            ]
        }
        return ["bindings": .array(rows)]
    }
}

// MARK: - Changing

extension Engine {
    func force(_ forced: BreakerOverride.Forced, _ exchange: HTTPExchange) throws(Refusal) -> JSONValue {
        let slot = try breaker(named: exchange.parameters[0])
        let body = try body(exchange)
        let given = body["for_seconds"] ?? .null
        guard let seconds = given.isNull ? OverrideWish.usualSeconds : given.double else {
            throw Refusal(status: 400, text: "\"for_seconds\" is a number of seconds")
        }
        let wish = try OverrideWish(reason: body["reason"]?.string, seconds: seconds)
        force(slot, forced, actor: actor(exchange), reason: wish.reason, for: wish.duration)
        return breakerJSON(slot, withHistory: false)
    }

    func endOverride(_ exchange: HTTPExchange) throws(Refusal) -> JSONValue {
        let slot = try breaker(named: exchange.parameters[0])
        release(slot, actor: actor(exchange))
        return breakerJSON(slot, withHistory: false)
    }

    func bindTrace(_ exchange: HTTPExchange) throws(Refusal) -> JSONValue {
        let pid = try processID(exchange)
        var trace = TraceID(high: .random(in: 1...UInt64.max), low: .random(in: 0...UInt64.max))!
        if let value = try body(exchange)["trace_id"], !value.isNull {
            guard let text = value.string, let given = TraceID(text) else {
                throw Refusal(status: 400, text: "a trace ID is 32 hexadecimal digits, not all zero")
            }
            trace = given
        }
        do throws(SystemError) {
            try bind(pid: pid, trace)
        } catch {
            throw Refusal(
                status: error.errno == ESRCH ? 404 : 500,
                text: error.errno == ESRCH ? "there is no process \(pid)" : error.description)
        }
        return ["pid": .integer(pid), "trace_id": .trace(trace)]
    }

    func unbindTrace(_ exchange: HTTPExchange) throws(Refusal) -> JSONValue {
        let pid = try processID(exchange)
        guard unbind(pid: pid) else {
            throw Refusal(status: 404, text: "process \(pid) has no trace ID bound")
        }
        return ["pid": .integer(pid)]
    }

    private func processID(_ exchange: HTTPExchange) throws(Refusal) -> UInt32 {
        guard let pid = Int32(exchange.parameters[0]), pid > 0 else {
            throw Refusal(status: 400, text: "\(exchange.parameters[0].quoted()) is no process ID")
        }
        return UInt32(pid)
    }

    private func body(_ exchange: HTTPExchange) throws(Refusal) -> JSONValue {
        if exchange.request.body.isEmpty { return .object([]) }
        do {
            let value = try JSONValue.parse(exchange.request.body)
            guard value.object != nil else { throw Refusal(status: 400, text: "the body is no JSON object") }
            return value
        } catch let error as JSONError {
            throw Refusal(status: 400, text: "the body is no JSON: \(error.description)")
        } catch {
            throw Refusal(status: 400, text: "the body is no JSON object")
        }
    }

    /// Who asks, as histories and logs name them.
    private func actor(_ exchange: HTTPExchange) -> String {
        exchange.peer.map { actorName(userNames[$0.uid], uid: $0.uid, pid: $0.pid) } ?? "unknown"
    }
}

extension JSONValue {
    static func optional(_ value: Double?) -> JSONValue { value.map { .number($0) } ?? .null }

    static func trace(_ trace: TraceID?) -> JSONValue { trace.map { .string($0.description) } ?? .null }

    static func time(_ time: MeshSystem.WallTime) -> JSONValue {
        .string(RFC3339.format(seconds: time.seconds, nanoseconds: time.nanoseconds))
    }
}
