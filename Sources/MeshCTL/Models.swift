// The control API's answers as values: one struct for each kind of row, read from its JSON.

/// `GET /v1/status`.
struct Status {
    struct Hook {
        let name: String
        let place: String
        let attached: Bool
        let detail: String
    }
    struct Loss {
        let stage: String
        let count: Double
    }

    let version: String
    let pid: Double
    let kernel: String
    let abiVersion: Double
    let uptime: Double
    let configPath: String?
    let configLoadedAt: String
    let configError: String?
    /// Nil: an agent of an older version, which does not tell.
    let privileges: (capabilities: [String], gainsNone: Bool, filtered: Bool, refused: Double)?
    let cgroup: String
    let hooks: [Hook]
    let interfaces: [(name: String, mode: String)]
    let pins: (directory: String?, error: String?, takeover: Bool)
    let lease: (seconds: Double, age: Double, valid: Bool)
    let services: (configured: Double, discovered: Double, limit: Double)
    let breakers:
        (
            enforce: Double, observe: Double, open: Double, halfOpen: Double, overridden: Double,
            openLimit: Double, heldClosed: Double, unenforced: Double
        )
    let connections: Double
    let received: Double
    let lost: [Loss]
    let series: (used: Double, limit: Double, dropped: Double)
    let stamps:
        (sent: Double, noRoom: Double, sentOutOfScope: Double, received: Double, receivedOutOfScope: Double)

    init(_ answer: Answer) throws(Failure) {
        version = try answer.text("version")
        pid = try answer.number("pid")
        kernel = try answer.text("kernel")
        abiVersion = try answer.number("abi_version")
        uptime = try answer.number("uptime_seconds")
        let config = try answer.member("config")
        configPath = try config.optionalText("path")
        configLoadedAt = try config.text("loaded_at")
        configError = try config.optionalText("error")
        privileges = try answer.optional("privileges").map { held throws(Failure) in
            (
                try held.list("capabilities") { capability throws(Failure) in try capability.text() },
                try held.flag("no_new_privileges"), try held.flag("calls_filtered"),
                try held.number("calls_refused")
            )
        }
        cgroup = try answer.text("cgroup")
        hooks = try answer.list("hooks") { hook throws(Failure) in
            Hook(
                name: try hook.text("name"), place: try hook.text("where"),
                attached: try hook.flag("attached"),
                detail: try hook.text("detail"))
        }
        interfaces = try answer.list("interfaces") { interface throws(Failure) in
            (try interface.text("name"), try interface.text("mode"))
        }
        let pins = try answer.member("pins")
        self.pins = (
            try pins.optionalText("directory"), try pins.optionalText("error"), try pins.flag("takeover")
        )
        let lease = try answer.member("lease")
        self.lease = (try lease.number("seconds"), try lease.number("age_seconds"), try lease.flag("valid"))
        let services = try answer.member("services")
        self.services = (
            try services.number("configured"), try services.number("discovered"),
            try services.number("discovery_limit")
        )
        let breakers = try answer.member("breakers")
        self.breakers = (
            try breakers.number("enforce"), try breakers.number("observe"), try breakers.number("open"),
            try breakers.number("half_open"), try breakers.number("overridden"),
            try breakers.number("open_limit"),
            try breakers.number("held_closed"), try breakers.number("unenforced_requests")
        )
        connections = try answer.number("connections_active")
        let samples = try answer.member("samples")
        received = try samples.number("received")
        lost = try samples.list("lost") { loss throws(Failure) in
            Loss(stage: try loss.text("stage"), count: try loss.number("count"))
        }
        let series = try answer.member("series")
        self.series = (try series.number("used"), try series.number("limit"), try series.number("dropped"))
        let stamps = try answer.member("stamps")
        self.stamps = (
            try stamps.number("sent_ok"), try stamps.number("sent_no_room"),
            try stamps.number("sent_out_of_scope"),
            try stamps.number("received_ok"), try stamps.number("received_out_of_scope")
        )
    }
}

/// One row of `GET /v1/services`: a service in one role.
struct ServiceRow {
    struct BreakerSummary {
        let state: String
        let mode: String
        let overrideState: String?
    }

    let name: String
    let kind: String
    let role: String
    let rate: Double
    let errorRatio: Double
    let p50: Double?
    let p90: Double?
    let p99: Double?
    let requests: Double
    let errors: Double
    let breaker: BreakerSummary?

    init(_ answer: Answer) throws(Failure) {
        name = try answer.text("name")
        kind = try answer.text("kind")
        role = try answer.text("role")
        rate = try answer.number("rate_per_second")
        errorRatio = try answer.number("error_ratio")
        p50 = try answer.optionalNumber("p50_seconds")
        p90 = try answer.optionalNumber("p90_seconds")
        p99 = try answer.optionalNumber("p99_seconds")
        requests = try answer.number("requests_total")
        errors = try answer.number("errors_total")
        if let breaker = try answer.optional("breaker") {
            self.breaker = BreakerSummary(
                state: try breaker.text("state"), mode: try breaker.text("mode"),
                overrideState: try breaker.optional("override")?.text("state"))
        } else {
            breaker = nil
        }
    }
}

/// A breaker, and its history where one breaker was asked for.
struct Breaker {
    struct Override {
        let state: String
        let actor: String
        let reason: String
        let since: String
        let expiresAt: String?
    }
    struct Attempts {
        let admitted: Double
        let rejected: Double
        let probe: Double
        let wouldReject: Double

        init(_ answer: Answer) throws(Failure) {
            admitted = try answer.number("admitted")
            rejected = try answer.number("rejected")
            probe = try answer.number("probe")
            wouldReject = try answer.number("would_reject")
        }
    }
    struct Window {
        let seconds: Double
        let requests: Double
        let failures: Double
        let failureRatio: Double
        let slow: Double
        let slowRatio: Double
        let consecutiveFailures: Double
    }

    let service: String
    let state: String
    let mode: String
    /// Why it came to its state; nil: it has been in it from the start.
    let reason: String?
    let since: String
    let openUntil: String?
    let probeShare: Double
    let probeSuccesses: Double
    let override: Override?
    let window: Window
    let connects: Attempts
    let requests: Attempts
    let heldClosed: Bool
    /// Whether it rejects attempts; nil: an agent runs, and it does as its state and mode say.
    let rejects: Bool?
    let history: [Event]

    init(_ answer: Answer) throws(Failure) {
        service = try answer.text("service")
        state = try answer.text("state")
        mode = try answer.text("mode")
        reason = try answer.optionalText("reason")
        since = try answer.text("since")
        openUntil = try answer.optionalText("open_until")
        probeShare = try answer.number("probe_share")
        probeSuccesses = try answer.number("probe_successes")
        if let override = try answer.optional("override") {
            self.override = Override(
                state: try override.text("state"), actor: try override.text("actor"),
                reason: try override.text("reason"), since: try override.text("since"),
                expiresAt: try override.optionalText("expires_at"))
        } else {
            override = nil
        }
        let window = try answer.member("window")
        self.window = Window(
            seconds: try window.number("seconds"), requests: try window.number("requests"),
            failures: try window.number("failures"), failureRatio: try window.number("failure_ratio"),
            slow: try window.number("slow"), slowRatio: try window.number("slow_ratio"),
            consecutiveFailures: try window.number("consecutive_failures"))
        let attempts = try answer.member("attempts")
        connects = try Attempts(try attempts.member("connect"))
        requests = try Attempts(try attempts.member("request"))
        heldClosed = try answer.flag("held_closed")
        rejects = try answer.optional("rejects") == nil ? nil : answer.flag("rejects")
        history =
            try answer.optional("history") == nil
            ? [] : answer.list("history") { event throws(Failure) in try Event(event) }
    }

    /// Whether only the end of a dead agent's lease keeps it from rejecting.
    var isPastLease: Bool { rejects == false && mode == "enforce" && state != "closed" }
    /// Both points' rejections together.
    var rejected: Double { connects.rejected + requests.rejected }
    /// Both points' probes together.
    var probes: Double { connects.probe + requests.probe }
    /// What an observing breaker would have rejected, at both points together.
    var wouldReject: Double { connects.wouldReject + requests.wouldReject }
}

/// A transition, an override, or another thing that happened to a breaker.
struct Event {
    let time: String
    let kind: String
    let service: String
    let from: String?
    let to: String?
    let reason: String
    let actor: String
    let text: String?
    let expiresAt: String?

    init(_ answer: Answer) throws(Failure) {
        time = try answer.text("time")
        kind = try answer.text("kind")
        service = try answer.text("service")
        from = try answer.optionalText("from")
        to = try answer.optionalText("to")
        reason = try answer.text("reason")
        actor = try answer.text("actor")
        text = try answer.optionalText("text")
        expiresAt = try answer.optionalText("expires_at")
    }
}

/// One row of `GET /v1/flows`: a connection that is there now.
struct Connection {
    let service: String
    let role: String
    let workload: String
    let local: String
    let remote: String
    let traceID: String?
    let proto: String
    let age: Double
    let pending: Bool
    let adopted: Bool
    let sent: Double
    let received: Double

    init(_ answer: Answer) throws(Failure) {
        service = try answer.text("service")
        role = try answer.text("role")
        workload = try answer.text("workload")
        local = try answer.text("local")
        remote = try answer.text("remote")
        traceID = try answer.optionalText("trace_id")
        proto = try answer.text("protocol")
        age = try answer.number("age_seconds")
        pending = try answer.flag("pending")
        adopted = try answer.flag("adopted")
        sent = try answer.number("sent_bytes")
        received = try answer.number("received_bytes")
    }
}

/// One line of `GET /v1/flows?follow=1`: something that happened on a connection.
struct FlowEvent {
    let time: String
    let event: String
    let service: String
    let role: String
    let workload: String
    let local: String
    let remote: String
    let traceID: String?
    let proto: String
    let code: String?
    let duration: Double?
    let sent: Double
    let received: Double
    let decision: String?

    init(_ answer: Answer) throws(Failure) {
        time = try answer.text("time")
        event = try answer.text("event")
        service = try answer.text("service")
        role = try answer.text("role")
        workload = try answer.text("workload")
        local = try answer.text("local")
        remote = try answer.text("remote")
        traceID = try answer.optionalText("trace_id")
        proto = try answer.text("protocol")
        code = try answer.optionalText("code")
        duration = try answer.optionalNumber("duration_seconds")
        sent = try answer.number("sent_bytes")
        received = try answer.number("received_bytes")
        decision = try answer.optionalText("decision")
    }
}

/// One row of `GET /v1/traces`: a process whose connections carry a given trace ID.
struct Binding {
    let pid: Double
    let traceID: String?
    let since: String

    init(_ answer: Answer) throws(Failure) {
        pid = try answer.number("pid")
        traceID = try answer.optionalText("trace_id")
        since = try answer.text("since")
    }
}
