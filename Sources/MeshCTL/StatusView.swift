// The status on one screen: what there is in a line each, then what is wrong and what to do.

/// The view of `meshctl status`.
enum StatusView {
    /// Something that is not as it should be.
    struct Problem: Equatable {
        let what: String
        let remedy: String
    }

    static func lines(_ status: Status, on page: Page) -> [String] {
        var lines: [String] = []
        func add(_ label: String, _ text: String, _ style: Style = .plain) {
            lines += Views.field(label, text, style, on: page)
        }
        let problems = problems(of: status)
        add(
            "agent",
            "mesh-agent \(status.version), pid \(Format.plain(status.pid)), up \(Format.age(status.uptime))",
            .bold)
        add("kernel", "\(status.kernel), ABI \(Format.plain(status.abiVersion)), cgroup \(status.cgroup)")
        if let privileges = status.privileges {
            add("privileges", Self.text(privileges), privileges.refused > 0 ? .red : .plain)
        }
        add(
            "config",
            "\(status.configPath ?? "none: observes the whole machine, breaks nothing"), loaded "
                + Format.time(status.configLoadedAt), status.configError == nil ? .plain : .red)
        let attached = status.hooks.filter(\.attached)
        add(
            "hooks",
            "\(attached.count) of \(status.hooks.count) attached"
                + (attached.isEmpty ? "" : ": " + attached.map(\.name).joined(separator: ", ")),
            attached.count == status.hooks.count ? .plain : .red)
        add(
            "interfaces",
            status.interfaces.isEmpty
                ? "none" : status.interfaces.map { "\($0.name) (\($0.mode))" }.joined(separator: ", "))
        let pins = status.pins
        add(
            "pins",
            (pins.directory ?? "none") + (pins.takeover ? ", taken over from an earlier agent" : ""),
            pins.error == nil ? .plain : .yellow)
        if let found = status.enforcement {
            add(
                "enforcement",
                "checked \(Format.count(found.checks)) times, \(Format.count(found.faults)) faults, "
                    + "\(Format.count(found.repairs)) repaired; refused connects "
                    + (found.isProven ? "proven" : "not proven" + (found.unproven.map { ": \($0)" } ?? "")),
                found.broken.isEmpty ? .plain : .red)
        }
        let lease = status.lease
        add(
            "lease",
            "\(lease.valid ? "valid" : "EXPIRED"), renewed \(Format.age(lease.age)) ago, "
                + "lasts \(Format.age(lease.seconds))", lease.valid ? .green : .red)
        let services = status.services
        add(
            "services",
            "\(Format.count(services.configured)) configured, \(Format.count(services.discovered)) discovered "
                + "(at most \(Format.count(services.limit)))")
        let breakers = status.breakers
        add(
            "breakers",
            "\(Format.count(breakers.enforce)) enforce, \(Format.count(breakers.observe)) observe; "
                + "\(Format.count(breakers.open)) open, \(Format.count(breakers.halfOpen)) half_open "
                + "(at most \(Format.count(breakers.openLimit))), \(Format.count(breakers.overridden)) overridden",
            breakers.open > 0 ? .red : breakers.halfOpen > 0 || breakers.overridden > 0 ? .yellow : .plain)
        add("connections", "\(Format.count(status.connections)) active")
        let lost = status.lost.filter { $0.count > 0 }
        add(
            "samples",
            "\(Format.count(status.received)) received, "
                + (lost.isEmpty
                    ? "none lost"
                    : lost.map { "\(Format.count($0.count)) lost at \($0.stage)" }.joined(separator: ", ")),
            lost.isEmpty ? .plain : .red)
        add(
            "series",
            "\(Format.count(status.series.used)) of \(Format.count(status.series.limit)), "
                + "\(Format.count(status.series.dropped)) dropped", status.series.dropped > 0 ? .red : .plain)
        let stamps = status.stamps
        add(
            "stamps",
            "sent \(Format.count(stamps.sent)), no room \(Format.count(stamps.noRoom)), out of scope "
                + "\(Format.count(stamps.sentOutOfScope)); received \(Format.count(stamps.received)), "
                + "out of scope \(Format.count(stamps.receivedOutOfScope))")
        lines.append("")
        guard !problems.isEmpty else {
            return lines + [page.paint("no problems", .green)]
        }
        lines.append(page.paint(Format.count(Double(problems.count), "problem"), .red))
        for problem in problems {
            lines += bullet("! ", problem.what, .red, on: page)
            lines += bullet("  ", problem.remedy, .plain, on: page)
        }
        return lines
    }

    /// What the agent may do, in a line.
    static func text(
        _ privileges: (capabilities: [String], gainsNone: Bool, filtered: Bool, refused: Double)
    ) -> String {
        let held = privileges.capabilities.isEmpty ? "none" : privileges.capabilities.joined(separator: ", ")
        let calls =
            privileges.filtered
            ? "system calls filtered, \(Format.count(privileges.refused)) refused"
            : "system calls not filtered"
        return "\(held); \(privileges.gainsNone ? "no new ones" : "execve() may bring more"); \(calls)"
    }

    /// What is wrong, the worst first.
    static func problems(of status: Status) -> [Problem] {
        var problems: [Problem] = []
        if !status.lease.valid {
            problems.append(
                Problem(
                    what: "The lease is over: the kernel admits everything, whatever automatic breakers say.",
                    remedy: "The agent is stopped or starved. See its log and its CPU limit, and whether pid "
                        + "\(Format.plain(status.pid)) runs."))
        }
        // What is not pinned is told below.
        let broken = status.enforcement?.broken.filter { $0.part != "pin" } ?? []
        for fault in broken {
            problems.append(
                Problem(
                    what: "\(fault.what) at \(fault.place): \(fault.fault)",
                    remedy: "See who did it. The agent tries to put it back every few seconds, but: "
                        + fault.error))
        }
        let isTold = broken.contains { $0.part == "cgroup" }
        for hook in status.hooks where !hook.attached && !isTold {
            let detail = hook.detail.isEmpty ? "" : ": \(hook.detail)"
            problems.append(
                Problem(
                    what: "Hook \(hook.name) is not attached at \(hook.place)\(detail)",
                    remedy:
                        "What it sees and enforces is missing. Run `meshctl doctor`, then restart the agent.")
            )
        }
        if let error = status.pins.error {
            problems.append(
                Problem(
                    what: "Not everything is pinned: \(error)",
                    remedy:
                        "All works, but what is enforced ends when the agent does. Mount the bpf file system "
                        + "at /sys/fs/bpf where the agent can write to it. An agent that could pin nothing at its "
                        + "start has to be restarted."))
        }
        if let error = status.configError {
            problems.append(
                Problem(
                    what: "The last reload was refused: \(error)",
                    remedy:
                        "The configuration loaded at \(Format.time(status.configLoadedAt)) is still in force. "
                        + "Correct the file, then: kill -HUP \(Format.plain(status.pid))"))
        }
        if let refused = status.privileges?.refused, refused > 0 {
            problems.append(
                Problem(
                    what: "\(Format.count(refused, "system call")) refused to the agent: a fault in it, or "
                        + "somebody else's code.",
                    remedy:
                        "See its log for the last one's number, and report it. To run without the filter: "
                        + "mesh-agent run --no-seccomp."))
        }
        if status.breakers.heldClosed > 0 {
            let count = Format.count(status.breakers.heldClosed, "breaker")
            problems.append(
                Problem(
                    what: "\(count) held closed that would be open: the limit of "
                        + "\(Format.count(status.breakers.openLimit)) open at once is reached.",
                    remedy: "If so many fail, suspect this node or its network first. To let more open: "
                        + "breakers.maxOpenShare."))
        }
        for loss in status.lost where loss.count > 0 {
            problems.append(
                Problem(
                    what:
                        "\(Format.count(loss.count, "sample")) lost at \(loss.stage): the counts are short by these.",
                    remedy: "The agent could not keep up. Give it more CPU, and watch "
                        + "mesh_agent_samples_lost_total."))
        }
        if status.series.dropped > 0 {
            problems.append(
                Problem(
                    what: "\(Format.count(status.series.dropped)) series were over the limit and went to "
                        + "workload=\"other\".",
                    remedy:
                        "Raise limits.maxSeries above \(Format.count(status.series.limit)), or name fewer services."
                ))
        }
        if status.services.limit > 0, status.services.discovered >= status.services.limit {
            problems.append(
                Problem(
                    what:
                        "The cap of \(Format.count(status.services.limit)) discovered services is reached: new "
                        + "destinations count as `other`.",
                    remedy: "Raise limits.maxDiscoveredServices, or name services by prefix."))
        }
        if status.interfaces.isEmpty {
            problems.append(
                Problem(
                    what: "No interface has the tc hooks: rejected requests on established connections go "
                        + "through.",
                    remedy: "Check \"interfaces\" in the configuration, and run `meshctl doctor`."))
        }
        if status.breakers.unenforced > 0 {
            problems.append(
                Problem(
                    what: "\(Format.count(status.breakers.unenforced, "rejected request")) on established "
                        + "connections went through: no tc hook was on their way.",
                    remedy: "See which interfaces have it above, and whether another program's filter "
                        + "decides before it. connect() is refused all the same."))
        }
        return problems
    }

    private static func bullet(_ mark: String, _ text: String, _ style: Style, on page: Page) -> [String] {
        let lines = page.width.map { text.harmless.wrapped(to: max(20, $0 - 2)) } ?? [text.harmless]
        return lines.enumerated().map { index, line in (index == 0 ? mark : "  ") + page.paint(line, style) }
    }
}
