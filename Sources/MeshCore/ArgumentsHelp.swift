// Help texts, made from a program's description.

extension ArgumentProgram {
    /// The help of the program (an empty path), a group or a command, with a newline at the end. An unknown
    /// path gives the help of the longest known part of it.
    public func help(_ path: [String] = []) -> String {
        if let command = command(path) { return lines(of: command).joined(separator: "\n") + "\n" }
        let words = words(after: path)
        if words.isEmpty && !path.isEmpty { return help(Array(path.dropLast())) }
        let members = commands.filter { $0.path.starts(with: path) }
        let prefix = ([name] + path).joined(separator: " ")
        var lines = path.isEmpty ? [summary, ""] : []
        lines += ["usage: \(prefix) COMMAND ...", "", "commands:"]
        lines += columns(members.map { (usage($0, withOptions: false), $0.summary) })
        lines += ["", "options:"] + columns(options.map(row(of:)))
        let examples = members.compactMap(\.examples.first)
        if !examples.isEmpty { lines += ["", "examples:"] + examples.flatMap(lines(of:)) }
        lines += ["", "More about a command: \(prefix) COMMAND --help"]
        return lines.joined(separator: "\n") + "\n"
    }

    /// How a command is written: `meshctl breaker open SERVICE --reason TEXT [--for TIME]`.
    func usage(_ command: ArgumentCommand) -> String {
        name + " " + usage(command, withOptions: true)
    }

    private func usage(_ command: ArgumentCommand, withOptions: Bool) -> String {
        var words = command.path
        for operand in command.operands {
            switch operand.count {
            case .one: words.append(operand.name)
            case .optional: words.append("[\(operand.name)]")
            case .any: words.append("[\(operand.name)...]")
            }
        }
        for option in withOptions ? command.options : [] {
            let text = "--" + option.name + (option.value.map { " " + $0 } ?? "")
            words.append(option.isRequired ? text : "[\(text)]")
        }
        return words.joined(separator: " ")
    }

    private func lines(of command: ArgumentCommand) -> [String] {
        var lines = ["\(name) \(command.path.joined(separator: " ")): \(command.summary)", ""]
        lines.append("usage: \(usage(command))")
        for paragraph in command.details { lines += [""] + wrapped(paragraph) }
        if !command.options.isEmpty { lines += ["", "options:"] + columns(command.options.map(row(of:))) }
        lines += ["", "options of every command:"] + columns(options.map(row(of:)))
        if !command.examples.isEmpty { lines += ["", "examples:"] + command.examples.flatMap(lines(of:)) }
        return lines
    }

    private func lines(of example: ArgumentCommand.Example) -> [String] {
        ["  # \(example.does)", "  \(example.line)"]
    }

    private func row(of option: ArgumentOption) -> (String, String) {
        let short = option.short.map { "-\($0), " } ?? "    "
        return (short + "--" + option.name + (option.value.map { " " + $0 } ?? ""), option.summary)
    }

    private func columns(_ rows: [(String, String)]) -> [String] {
        let width = rows.map(\.0.count).max() ?? 0
        return rows.map { row in
            "  " + row.0 + String(repeating: " ", count: width - row.0.count + 2) + row.1
        }
    }

    private func wrapped(_ paragraph: String, width: Int = 80) -> [String] {
        var lines: [String] = []
        for word in paragraph.split(separator: " ") {
            if let last = lines.last, last.count + 1 + word.count <= width {
                lines[lines.count - 1] = last + " " + word
            } else {
                lines.append(String(word))
            }
        }
        return lines
    }
}
