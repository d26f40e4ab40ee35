// What the commands show, as lines: pure functions of an answer, a page and the time, so that
// tests compare them letter by letter.

/// The views of lists and of single breakers; ``StatusView`` has the status.
enum Views {
    // MARK: services

    static func services(_ rows: [ServiceRow], on page: Page) -> [String] {
        guard !rows.isEmpty else {
            return prose(
                "no services seen yet: no connection was made on this node since the agent started, and its "
                    + "configuration names none. Send some traffic, or add \"services\" to the configuration.",
                on: page)
        }
        var table = Table([
            .left("SERVICE", cut: 16), .left("KIND", drop: 0), .left("ROLE"), .right("RATE"),
            .right("ERRORS"),
            .right("P50"), .right("P90", drop: 3), .right("P99"), .right("REQUESTS", drop: 2),
            .right("FAILED", drop: 1), .left("BREAKER"),
        ])
        let order = rows.sorted { ($0.name, $0.role) < ($1.name, $1.role) }
        for row in order {
            table.add([
                Cell(row.name), Cell(row.kind, .dim), Cell(row.role), Cell(Format.rate(row.rate)),
                errors(row),
                latency(row.p50, page), latency(row.p90, page), latency(row.p99, page),
                Cell(Format.count(row.requests)), Cell(Format.count(row.errors)), breaker(row.breaker),
            ])
        }
        return table.lines(on: page)
    }

    /// A share of errors stands out from one percent on.
    static func errors(_ row: ServiceRow) -> Cell {
        guard row.rate > 0 || row.requests > 0 else { return "-" }
        let style: Style = row.errorRatio >= 0.1 ? .red : row.errorRatio >= 0.01 ? .yellow : .plain
        return Cell(Format.percent(row.errorRatio), style)
    }

    static func latency(_ seconds: Double?, _ page: Page) -> Cell {
        Cell(Format.latency(seconds, ascii: page.ascii))
    }

    /// `open`, and in brackets what keeps it from being what it seems.
    static func breaker(_ breaker: ServiceRow.BreakerSummary?) -> Cell {
        guard let breaker else { return Cell("-", .dim) }
        guard breaker.mode != "off" else { return Cell("off", .dim) }
        var notes: [String] = []
        if breaker.overrideState != nil { notes.append("override") }
        if breaker.mode != "enforce" { notes.append(breaker.mode) }
        let text = breaker.state + (notes.isEmpty ? "" : " (\(notes.joined(separator: ", ")))")
        return Cell(text, style(ofState: breaker.state))
    }

    static func style(ofState state: String) -> Style {
        switch state {
        case "open": .red
        case "half_open": .yellow
        case "closed": .green
        default: .plain
        }
    }

    // MARK: breakers

    static func breakers(_ breakers: [Breaker], on page: Page, now: Double) -> [String] {
        guard !breakers.isEmpty else {
            return prose(
                "no breakers configured: give a service a \"breaker\" in the agent's configuration, then send the "
                    + "agent SIGHUP.", on: page)
        }
        var table = Table([
            .left("SERVICE", cut: 16), .left("STATE"), .left("MODE"), .left("WHY", cut: 8), .right("SINCE"),
            .right("REQUESTS", drop: 1), .right("FAILED"), .right("SLOW", drop: 2),
            .right("REJECTED", drop: 3),
            .left("OVERRIDE", cut: 16),
        ])
        for breaker in breakers.sorted(by: { $0.service < $1.service }) {
            let window = breaker.window
            table.add([
                Cell(breaker.service),
                breaker.isPastLease
                    ? Cell("\(breaker.state) (lease over)", .dim)
                    : Cell(breaker.state, style(ofState: breaker.state)),
                Cell(breaker.mode, breaker.mode == "enforce" ? .plain : .dim),
                Cell(
                    breaker.heldClosed ? "held_closed" : breaker.reason ?? "-",
                    breaker.heldClosed ? .red : .plain),
                Cell(ago(breaker.since, now)),
                Cell(Format.count(window.requests)),
                Cell(window.requests > 0 ? Format.percent(window.failureRatio) : "-"),
                Cell(window.requests > 0 ? Format.percent(window.slowRatio) : "-"),
                Cell(Format.count(breaker.mode == "observe" ? breaker.wouldReject : breaker.rejected)),
                overrideSummary(breaker.override, now),
            ])
        }
        return table.lines(on: page)
    }

    static func breaker(_ breaker: Breaker, on page: Page, now: Double) -> [String] {
        let window = breaker.window
        let mode = breaker.mode == "observe" ? "observe: nothing is rejected" : breaker.mode
        var lines = [
            "\(page.paint(breaker.service.harmless, .bold))  "
                + "\(page.paint(breaker.state.harmless, style(ofState: breaker.state)))  (\(mode.harmless))"
        ]
        func add(_ label: String, _ text: String) {
            lines.append(contentsOf: field(label, text, on: page))
        }
        add(
            "why",
            "\(breaker.reason ?? "never changed"), since \(Format.time(breaker.since)) (\(ago(breaker.since, now)) ago)"
        )
        if breaker.isPastLease {
            add("lease", "over, as no agent runs: it admits everything")
        }
        if breaker.heldClosed {
            add(
                "held",
                "its rules say open, but breakers.maxOpenShare of all breakers are open: it stays closed")
        }
        if breaker.override == nil, let until = breaker.openUntil {
            let next = left(until, now).map { "in \($0)" } ?? "now"
            add("until", "\(Format.time(until)) (\(next)), then half_open")
        }
        if breaker.state == "half_open", breaker.override == nil {
            let share = Format.percent(breaker.probeShare)
            add(
                "probing",
                "\(share) of attempts admitted, \(Format.count(breaker.probeSuccesses, "success", "successes"))"
            )
        }
        if let override = breaker.override {
            let word = override.state == "open" ? "forced open" : "forced closed"
            add("override", "\(word) by \(override.actor): \(override.reason.quotedForPeople)")
            add("", expiry(override.expiresAt, now))
        } else {
            add("override", "none")
        }
        if window.requests > 0 {
            add(
                "window",
                "\(Format.count(window.requests, "request")) in \(Format.age(window.seconds)): "
                    + "\(Format.count(window.failures)) failed (\(Format.percent(window.failureRatio))), "
                    + "\(Format.count(window.slow)) slow (\(Format.percent(window.slowRatio)))"
                    + (window.consecutiveFailures > 0
                        ? ", the last \(Format.count(window.consecutiveFailures)) failed in a row" : ""))
        } else {
            add("window", "no requests in the last \(Format.age(window.seconds))")
        }
        lines.append("")
        var attempts = Table([
            .left("ATTEMPTS"), .right("ADMITTED"), .right("PROBES"), .right("REJECTED"),
            .right("WOULD REJECT"),
        ])
        for (name, counts) in [("connect", breaker.connects), ("request", breaker.requests)] {
            attempts.add([
                Cell(name), Cell(Format.count(counts.admitted)), Cell(Format.count(counts.probe)),
                Cell(Format.count(counts.rejected)), Cell(Format.count(counts.wouldReject)),
            ])
        }
        lines += attempts.lines(on: page)
        lines.append("")
        if breaker.history.isEmpty {
            lines += prose("no history: it has been as it is since the agent started", on: page)
        } else {
            lines.append(page.paint("HISTORY", .bold))
            lines += breaker.history.map { event($0, named: false, on: page) }
        }
        return lines
    }

    /// The line that says what an override command did.
    static func overrideDone(_ breaker: Breaker, on page: Page, now: Double) -> [String] {
        let name = page.paint(breaker.service.harmless, .bold)
        let state = page.paint(breaker.state.harmless, style(ofState: breaker.state))
        guard let override = breaker.override else {
            return ["\(name) is back to automatic: \(state)"]
        }
        let word = page.paint(
            override.state == "open" ? "open" : "closed", override.state == "open" ? .red : .green)
        return [
            "\(name) is forced \(word), \(expiry(override.expiresAt, now).harmless)",
            "to end it: meshctl breaker auto \(breaker.service.harmless)",
        ]
    }

    // MARK: events

    static func events(_ events: [Event], on page: Page) -> [String] {
        guard !events.isEmpty else {
            return prose(
                "no events yet: no breaker has changed and nobody has forced one since the agent started. "
                    + "To wait for them: meshctl events --follow", on: page)
        }
        return events.map { event($0, named: true, on: page) }
    }

    /// One event on one line: `2026-01-02 03:04:05Z  payments  closed → open (failure_rate)`.
    static func event(_ event: Event, named: Bool, on page: Page) -> String {
        let arrow = page.ascii ? "->" : "→"
        func state(_ name: String?) -> String {
            page.paint((name ?? "?").harmless, style(ofState: name ?? ""))
        }
        var what: String
        switch event.kind {
        case "transition":
            what = "\(state(event.from)) \(arrow) \(state(event.to)) (\(event.reason.harmless))"
        case "override":
            what = "forced \(state(event.to)) by \(event.actor.harmless)"
            if let expiry = event.expiresAt { what += " until \(Format.time(expiry).harmless)" }
        case "override_end":
            let how = event.reason == "override_expired" ? "expired" : "ended by \(event.actor.harmless)"
            what = "override \(how), now \(state(event.to))"
        case "reload":
            what = "configuration reloaded by \(event.actor.harmless)"
            if let to = event.to { what += ", now \(state(to))" }
        case "held_closed":
            what = "held closed: too many breakers are open (\(event.reason.harmless))"
        default:
            what = "\(event.kind.harmless) (\(event.reason.harmless))"
        }
        if let text = event.text, !text.isEmpty { what += ": \(text.quotedForPeople)" }
        let time = Format.time(event.time).harmless
        guard named else { return "\(time)  \(what)" }
        return "\(time)  \(event.service.harmless.padded(to: 20))  \(what)"
    }

    // MARK: flows

    static func connections(_ connections: [Connection], filtered: Bool, on page: Page) -> [String] {
        guard !connections.isEmpty else {
            return prose(
                filtered
                    ? "no open connection fits: short ones are gone before they are listed. To see them as they "
                        + "come: meshctl flows --follow"
                    : "no open connections seen. To see the short ones as they come: meshctl flows --follow",
                on: page)
        }
        var table = Table([
            .left("SERVICE", cut: 12), .left("ROLE"), .left("WORKLOAD", cut: 10, drop: 1),
            .left("LOCAL", drop: 2),
            .left("REMOTE"), .left("PROTO", drop: 4), .right("AGE"), .right("SENT", drop: 3),
            .right("RECEIVED", drop: 3), .left("NOTES", drop: 0), .left("TRACE", cut: 8),
        ])
        for connection in connections {
            let notes = [connection.pending ? "pending" : nil, connection.adopted ? "adopted" : nil]
            let text = notes.compactMap { $0 }.joined(separator: ",")
            table.add([
                Cell(connection.service), Cell(connection.role), Cell(connection.workload),
                Cell(connection.local), Cell(connection.remote), Cell(connection.proto),
                Cell(Format.age(connection.age)), Cell(Format.bytes(connection.sent)),
                Cell(Format.bytes(connection.received)), Cell(text.isEmpty ? "-" : text),
                Cell(connection.traceID ?? "-", .dim),
            ])
        }
        return table.lines(on: page)
    }

    /// The columns of ``flow(_:on:)``, wide enough for most lines from the start.
    static let flowTable = Table([
        .left("TIME", minimum: 13), .left("EVENT", minimum: 7), .left("ROLE", minimum: 6),
        .left("SERVICE", minimum: 20, cut: 12), .left("WORKLOAD", minimum: 20, cut: 10, drop: 0),
        .left("LOCAL", minimum: 21, drop: 1), .left("REMOTE", minimum: 21), .left("CODE", minimum: 7),
        .right("TOOK", minimum: 6), .left("DECISION", minimum: 12, drop: 2),
        .left("TRACE", minimum: 32, cut: 8),
    ])

    static func flow(_ flow: FlowEvent, page: Page) -> [Cell] {
        let isFailure = flow.code.map { $0 != "ok" && !"123".contains($0.prefix(1)) } ?? false
        let decision: Cell = flow.decision.map { Cell($0, $0 == "probe" ? .yellow : .red) } ?? "-"
        return [
            Cell(String(flow.time.dropFirst(11)), .dim), Cell(flow.event), Cell(flow.role),
            Cell(flow.service),
            Cell(flow.workload), Cell(flow.local), Cell(flow.remote),
            Cell(flow.code ?? "-", isFailure ? .red : .plain), latency(flow.duration, page), decision,
            Cell(flow.traceID ?? "-", .dim),
        ]
    }

    // MARK: traces

    static func bindings(_ bindings: [Binding], on page: Page, now: Double) -> [String] {
        guard !bindings.isEmpty else {
            return prose(
                "no process is bound to a trace ID. To bind one: meshctl trace bind --pid PID --trace ID",
                on: page)
        }
        var table = Table([.right("PID"), .left("TRACE"), .right("SINCE")])
        for binding in bindings {
            table.add([
                Cell(Format.plain(binding.pid)), Cell(binding.traceID ?? "-"), Cell(ago(binding.since, now)),
            ])
        }
        return table.lines(on: page)
    }

    // MARK: parts

    /// Text for people, wrapped at the page's width.
    static func prose(_ text: String, on page: Page) -> [String] {
        guard let width = page.width else { return [text.harmless] }
        return text.harmless.wrapped(to: width)
    }

    /// A label and its text, wrapped under itself.
    static func field(_ label: String, _ text: String, _ style: Style = .plain, on page: Page) -> [String] {
        let indent = 13
        let lines = page.width.map { text.harmless.wrapped(to: max(20, $0 - indent)) } ?? [text.harmless]
        return lines.enumerated().map { index, line in
            page.paint((index == 0 ? label : "").padded(to: indent), .dim) + page.paint(line, style)
        }
    }

    /// How long a time is past, `-` where it is none.
    static func ago(_ time: String, _ now: Double) -> String {
        Timestamp.seconds(time).map { Format.age(now - $0) } ?? "-"
    }

    /// How long until a time; nil when it has come, or is none.
    private static func left(_ time: String, _ now: Double) -> String? {
        guard let seconds = Timestamp.seconds(time), seconds > now else { return nil }
        return Format.age(seconds - now)
    }

    private static func expiry(_ time: String?, _ now: Double) -> String {
        guard let time else { return "with no expiry" }
        return "until \(Format.time(time)) (\(left(time, now).map { "\($0) left" } ?? "over now"))"
    }

    private static func overrideSummary(_ override: Breaker.Override?, _ now: Double) -> Cell {
        guard let override else { return Cell("-", .dim) }
        let rest = override.expiresAt.flatMap { left($0, now) }.map { " for \($0)" } ?? ""
        return Cell("\(override.state)\(rest) by \(override.actor)", .yellow)
    }
}

extension String {
    /// The text in quotes, with nothing in it that a terminal would act on.
    fileprivate var quotedForPeople: String { "\"\(harmless)\"" }
}
