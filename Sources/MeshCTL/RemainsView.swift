// `meshctl status` where no agent runs: what goes on without one, and until when.

import MeshCore

/// The view of what an agent has left.
enum RemainsView {
    static func lines(_ answer: Answer, on page: Page, now: Double) throws(Failure) -> [String] {
        var lines: [String] = []
        func add(_ label: String, _ text: String, _ style: Style = .plain) {
            lines += Views.field(label, text, style, on: page)
        }
        let last = try answer.member("last_agent")
        let seen = try last.optionalText("seen_at").map {
            ", and was last seen \(Views.ago($0, now)) ago, at \(Format.time($0))"
        }
        add(
            "agent", "NONE RUNS: the last one had pid \(Format.plain(try last.number("pid")))\(seen ?? "")",
            .red)
        add("kernel", "\(try answer.text("kernel")), ABI \(Format.plain(try answer.number("abi_version")))")
        let hooks = try answer.list("hooks") { hook throws(Failure) in
            (name: try hook.text("name"), attached: try hook.flag("attached"))
        }
        let attached = hooks.filter(\.attached)
        add(
            "hooks",
            "\(attached.count) of \(hooks.count) attached"
                + (attached.isEmpty ? "" : ": " + attached.map(\.name).joined(separator: ", ")),
            attached.count == hooks.count ? .plain : .red)
        let interfaces = try answer.list("interfaces") { item throws(Failure) in
            "\(try item.text("name")) (\(try item.text("mode")))"
        }
        add("interfaces", interfaces.isEmpty ? "none" : interfaces.joined(separator: ", "))
        add("pins", try answer.member("pins").text("directory"))
        let lease = try answer.member("lease")
        let end = try lease.text("ends_at")
        let isValid = try lease.flag("valid")
        add(
            "lease",
            isValid
                ? "ends at \(Format.time(end)): from then on automatic breakers admit everything"
                : "OVER since \(Format.time(end)): automatic breakers admit everything",
            isValid ? .yellow : .red)
        let services = try answer.member("services")
        add(
            "services",
            "\(Format.count(try services.number("configured"))) configured, "
                + "\(Format.count(try services.number("discovered"))) discovered")
        let breakers = try answer.member("breakers")
        let rejecting = try breakers.number("rejecting")
        add(
            "breakers",
            "\(Format.count(try breakers.number("enforce"))) enforce, "
                + "\(Format.count(try breakers.number("observe"))) observe; "
                + "\(Format.count(try breakers.number("open"))) open, "
                + "\(Format.count(try breakers.number("half_open"))) half_open, "
                + "\(Format.count(try breakers.number("overridden"))) overridden; "
                + "\(Format.count(rejecting)) reject now", rejecting > 0 ? .red : .plain)
        let overrides = try answer.list("overrides") { item throws(Failure) in
            let word = try item.text("state") == "open" ? "open" : "closed"
            return "\(try item.text("service")) forced \(word) by \(try item.text("actor")) until "
                + Format.time(try item.text("expires_at"))
        }
        for (index, override) in overrides.enumerated() {
            add(index == 0 ? "overrides" : "", override, .yellow)
        }
        if let error = try answer.member("state").optionalText("error") {
            add("state", "of no use, so names and reasons are not known: \(error)", .red)
        }
        lines.append("")
        lines += Views.prose(
            "To go on: start an agent, which takes all of this over. To be rid of it: meshctl cleanup.",
            on: page)
        return lines
    }
}
