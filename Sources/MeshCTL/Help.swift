// Help texts, made from the commands' descriptions.

/// What `--help` prints.
enum Help {
    /// The overview of all commands.
    static func overview() -> [String] {
        var lines = [
            "meshctl looks at this node's mesh agent, and forces its circuit breakers.", "",
            "usage: meshctl [--control PATH] [-o table|json] COMMAND ...", "", "commands:",
        ]
        lines += entries(Catalog.visible.filter { $0.action != nil }.map { (usage($0, withOptions: false), $0.summary) })
        lines += ["", "options:"] + entries(Catalog.globals.map { (term($0), $0.summary) })
        lines += [
            "", "exit codes:",
            "  0  done", "  1  the agent says no", "  2  wrong usage", "  3  no agent there", "",
            "examples:",
        ]
        lines += entries(overviewExamples)
        return lines + ["", "More about a command: meshctl COMMAND --help"]
    }

    /// The help of one command, or of a group.
    static func command(_ command: Command) -> [String] {
        guard command.action != nil else { return group(command) }
        var lines = ["meshctl \(command.name): \(command.summary)", "", "usage: meshctl \(usage(command, withOptions: true))"]
        if !command.details.isEmpty {
            lines.append("")
            for paragraph in command.details { lines += paragraph.wrapped(to: 79) }
        }
        if !command.options.isEmpty {
            lines += ["", "options:"] + entries(command.options.map { (term($0), $0.summary) })
        }
        lines += ["", "global options:"] + entries(Catalog.globals.map { (term($0), $0.summary) })
        if !command.examples.isEmpty {
            lines += ["", command.examples.count == 1 ? "example:" : "examples:"]
            for example in command.examples { lines += ["  # \(example.does)", "  \(example.line)"] }
        }
        return lines
    }

    /// How a command is written: `breaker open SERVICE --reason TEXT [--for TIME]`.
    static func usage(_ command: Command, withOptions: Bool) -> String {
        var words = [command.name]
        for operand in command.operands {
            switch operand.count {
            case .one: words.append(shown(operand))
            case .optional: words.append("[\(shown(operand))]")
            case .any: words.append("[\(operand.name)...]")
            }
        }
        guard withOptions else { return words.joined(separator: " ") }
        for option in command.options {
            let text = "--" + option.name + (option.value.map { " \($0)" } ?? "")
            words.append(option.isRequired ? text : "[\(text)]")
        }
        return words.joined(separator: " ")
    }

    private static func group(_ group: Command) -> [String] {
        let children = Catalog.children(of: group.path)
        var lines = ["meshctl \(group.name): \(group.summary)", "", "usage: meshctl \(group.name) COMMAND ...", "", "commands:"]
        lines += entries(children.map { (usage($0, withOptions: false), $0.summary) })
        lines += ["", "examples:"]
        for example in children.compactMap(\.examples.first) { lines += ["  # \(example.does)", "  \(example.line)"] }
        return lines + ["", "More about a command: meshctl \(group.name) COMMAND --help"]
    }

    private static var overviewExamples: [(String, String)] {
        [
            ("meshctl status", "is all well on this node?"),
            ("meshctl top", "watch services and breakers"),
            ("meshctl breaker open payments --reason 'INC-1234' --for 10m", "reject all calls to payments"),
            ("sudo meshctl doctor", "what does this kernel lack?"),
        ]
    }

    private static func shown(_ operand: Operand) -> String {
        guard case .choices(let choices) = operand.completion else { return operand.name }
        return choices.joined(separator: "|")
    }

    private static func term(_ option: Option) -> String {
        (option.short.map { "-\($0), " } ?? "    ") + "--" + option.name + (option.value.map { " \($0)" } ?? "")
    }

    /// Terms on the left, what they mean on the right.
    private static func entries(_ entries: [(String, String)]) -> [String] {
        let width = entries.map(\.0.columns).max() ?? 0
        return entries.map { "  " + $0.0.padded(to: width) + "  " + $0.1 }
    }
}
