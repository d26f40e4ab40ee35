// Turns the command line into a command with its options, or into one line that says what is
// wrong with it and whose help says how it is right.

import MeshCore

/// A command line that was understood.
struct Invocation {
    let command: Command
    let operands: [String]
    private let values: [String: String]

    /// The value of an option, or "" for one that was given and takes none; nil when not given.
    func value(_ option: String) -> String? { values[option] }

    func has(_ option: String) -> Bool { values[option] != nil }

    /// What a command line asks for.
    enum Request {
        case run(Invocation)
        /// The help of a command, or the overview.
        case help(Command?)
        case version
    }

    /// Whether JSON is asked for, also on a command line that is wrong further on.
    static func wantsJSON(_ arguments: [String]) -> Bool {
        for (index, argument) in arguments.enumerated() {
            if argument == "--" { return false }
            if argument == "-ojson" || argument == "-o=json" || argument == "--output=json" { return true }
            if argument == "-o" || argument == "--output", arguments.dropFirst(index + 1).first == "json" {
                return true
            }
        }
        return false
    }

    /// Understands a command line, given without the program's name.
    static func parse(_ arguments: [String]) throws(Failure) -> Request {
        var parser = Parser(rest: arguments[...])
        return try parser.parse()
    }

    /// A parse in progress.
    private struct Parser {
        var rest: ArraySlice<String>
        var path: [String] = []
        var command: Command?
        var operands: [String] = []
        var values: [String: String] = [:]
        var onlyOperands = false

        mutating func parse() throws(Failure) -> Request {
            while let argument = rest.popFirst() {
                if argument == "--", !onlyOperands {
                    onlyOperands = true
                } else if argument.hasPrefix("-"), argument.count > 1, !onlyOperands {
                    try option(argument)
                } else {
                    try word(argument)
                }
            }
            if values["version"] != nil { return .version }
            if values["help"] != nil { return .help(command) }
            guard let command else {
                throw .usage("no command given", see: "")
            }
            guard command.action != nil else {
                let names = Catalog.children(of: path).map { $0.path[path.count] }
                throw .usage("\(command.name) needs one of: \(names.joined(separator: ", "))", see: command.name)
            }
            try check(command)
            return .run(Invocation(command: command, operands: operands, values: values))
        }

        /// A word is the next part of the command's name, or else an operand.
        mutating func word(_ word: String) throws(Failure) {
            if let command, command.action != nil {
                operands.append(word)
                return
            }
            guard let found = Catalog.command(path + [word]) else {
                let names = Catalog.children(of: path).map { $0.path[path.count] }
                let prefix = path.isEmpty ? "" : path.joined(separator: " ") + " "
                throw .usage(
                    "there is no command \((prefix + word).quoted())"
                        + hint(NearestName.suggest(word, from: names).map { prefix + $0 }),
                    see: path.joined(separator: " "))
            }
            path.append(word)
            command = found
        }

        mutating func option(_ argument: String) throws(Failure) {
            let known = Catalog.globals + (command?.options ?? [])
            var name = argument
            var attached: String?
            if argument.hasPrefix("--") {
                if let equals = argument.firstIndex(of: "=") {
                    name = String(argument[..<equals])
                    attached = String(argument[argument.index(after: equals)...])
                }
            } else if argument.count > 2 {
                name = String(argument.prefix(2))
                attached = String(argument.dropFirst(argument.dropFirst(2).first == "=" ? 3 : 2))
            }
            guard
                let option = known.first(where: {
                    "--\($0.name)" == name || ($0.short.map { short in "-\(short)" == name } ?? false)
                })
            else {
                // An option may also be right, but for another command, or too early on the line.
                let near = NearestName.suggest(name, from: known.map { "--\($0.name)" })
                let place = command.map { "meshctl \($0.name)" } ?? "meshctl"
                throw .usage("\(place) has no option \(name.quoted())" + hint(near), see: see)
            }
            guard values[option.name] == nil || option.name == "help" else {
                throw .usage("--\(option.name) is given twice", see: see)
            }
            guard option.value != nil else {
                guard attached == nil else { throw .usage("--\(option.name) takes no value", see: see) }
                values[option.name] = ""
                return
            }
            guard let value = attached ?? rest.popFirst() else {
                throw .usage("--\(option.name) needs a value: \(option.value ?? "")", see: see)
            }
            if option.name == "output", case .choices(let choices) = option.completion, !choices.contains(value) {
                throw .usage(
                    "--output is \(choices.joined(separator: " or ")), not \(value.quoted())"
                        + hint(NearestName.suggest(value, from: choices)), see: see)
            }
            values[option.name] = value
        }

        /// Whether the command has what it needs, and nothing that it does not know.
        func check(_ command: Command) throws(Failure) {
            let required = command.operands.filter { $0.count == .one }
            guard operands.count >= required.count else {
                let missing = required[operands.count]
                guard case .choices(let choices) = missing.completion else {
                    throw .usage("\(command.name) needs a \(missing.name)", see: command.name)
                }
                throw .usage("\(command.name) needs one of: \(choices.joined(separator: ", "))", see: command.name)
            }
            if !command.operands.contains(where: { $0.count == .any }), operands.count > command.operands.count {
                throw .usage("\(operands[command.operands.count].quoted()) is one word too many", see: command.name)
            }
            for (operand, word) in zip(command.operands, operands) {
                if case .choices(let choices) = operand.completion, !choices.contains(word) {
                    throw .usage(
                        "\(operand.name) is one of \(choices.joined(separator: ", ")), not \(word.quoted())"
                            + hint(NearestName.suggest(word, from: choices)), see: command.name)
                }
                guard !word.isEmpty else { throw .usage("\(operand.name) is empty", see: command.name) }
            }
            for option in command.options where option.isRequired && values[option.name] == nil {
                throw .usage(
                    "\(command.name) needs --\(option.name) \(option.value ?? "")", see: command.name)
            }
        }

        private var see: String { path.joined(separator: " ") }

        private func hint(_ near: String?) -> String { near.map { ": did you mean \($0.quoted())?" } ?? "" }
    }
}
