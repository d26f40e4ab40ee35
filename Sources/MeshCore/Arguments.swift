// Command lines: a program is described once, as data, and parsing, help and completions are made
// from the description.

/// What a shell may offer where a value is wanted, and what the value must be.
public enum ArgumentValues: Sendable, Equatable {
    /// Anything.
    case any
    /// The name of a file.
    case file
    /// One of these words; others are wrong usage.
    case choice([String])
    /// One of the words that this command line prints, one on a line; others are allowed too.
    case command(String)
}

/// An option: `--name VALUE`, `--name=VALUE`, `-n VALUE`, or a flag without a value.
public struct ArgumentOption: Sendable, Equatable {
    /// The name, without dashes.
    public let name: String
    /// The letter of its short form.
    public let short: Character?
    /// What help calls its value; nil makes it a flag.
    public let value: String?
    /// What values it takes.
    public let values: ArgumentValues
    /// Whether the command line is wrong without it.
    public let isRequired: Bool
    /// What it does, in a phrase.
    public let summary: String

    /// An option; see the properties.
    public init(
        _ name: String, short: Character? = nil, value: String? = nil, values: ArgumentValues = .any,
        isRequired: Bool = false, summary: String
    ) {
        self.name = name
        self.short = short
        self.value = value
        self.values = values
        self.isRequired = isRequired
        self.summary = summary
    }
}

/// An argument known by its place.
public struct ArgumentOperand: Sendable, Equatable {
    /// How many there may be. Only the last operand may be other than `one`.
    public enum Count: Sendable {
        /// Exactly one.
        case one
        /// One or none.
        case optional
        /// Any number, also none.
        case any
    }

    /// What help calls it, in capitals.
    public let name: String
    /// How many there may be.
    public let count: Count
    /// What values it takes.
    public let values: ArgumentValues

    /// An operand; see the properties.
    public init(_ name: String, count: Count = .one, values: ArgumentValues = .any) {
        self.name = name
        self.count = count
        self.values = values
    }
}

/// A command of a program.
public struct ArgumentCommand: Sendable, Equatable {
    /// An example for help.
    public struct Example: Sendable, Equatable {
        /// The command line.
        public let line: String
        /// What it does, in a phrase.
        public let does: String

        /// An example.
        public init(_ line: String, does: String) {
            self.line = line
            self.does = does
        }
    }

    /// The words that call it: `["breaker", "open"]`. Commands that share words form a group.
    public let path: [String]
    /// What it does, in a phrase.
    public let summary: String
    /// More about it: paragraphs for its help.
    public let details: [String]
    /// Its own options.
    public let options: [ArgumentOption]
    /// Its operands.
    public let operands: [ArgumentOperand]
    /// Examples of its use.
    public let examples: [Example]

    /// A command; see the properties.
    public init(
        _ path: [String], summary: String, details: [String] = [], options: [ArgumentOption] = [],
        operands: [ArgumentOperand] = [], examples: [Example] = []
    ) {
        self.path = path
        self.summary = summary
        self.details = details
        self.options = options
        self.operands = operands
        self.examples = examples
    }
}

/// Wrong usage.
public struct ArgumentError: Error, Equatable, Sendable, CustomStringConvertible {
    /// One line: what is wrong and, where it is near, what was probably meant.
    public let description: String

    /// Wrong usage that only the program can see, such as an option's value.
    public init(description: String) { self.description = description }
}

/// A command line that was understood.
public struct Arguments: Sendable, Equatable {
    /// What is asked for.
    public enum Request: Sendable, Equatable {
        /// To run the command.
        case run
        /// Help for the command, the group, or (with an empty path) the program.
        case help
        /// The program's version.
        case version
    }

    /// What is asked for.
    public let request: Request
    /// The path of the command.
    public let command: [String]
    /// The operands in their order.
    public let operands: [String]
    private let values: [String: String]

    fileprivate init(
        _ request: Request, command: [String], operands: [String] = [], values: [String: String] = [:]
    ) {
        self.request = request
        self.command = command
        self.operands = operands
        self.values = values
    }

    /// The value of an option, "" for a flag; nil if it was not given.
    public subscript(option: String) -> String? { values[option] }

    /// Whether an option or flag was given.
    public func has(_ option: String) -> Bool { values[option] != nil }
}

/// A program: its commands and what they have in common.
public struct ArgumentProgram: Sendable, Equatable {
    /// The name that it is called by.
    public let name: String
    /// What it does, in a sentence.
    public let summary: String
    /// The options that all commands take, before or after the command. `--help` (`-h`) and `--version` are
    /// among them without being listed.
    public let options: [ArgumentOption]
    /// The commands, in the order of the help.
    public let commands: [ArgumentCommand]

    /// A program; see the properties.
    public init(
        _ name: String, summary: String, options: [ArgumentOption] = [], commands: [ArgumentCommand]
    ) {
        self.name = name
        self.summary = summary
        self.options =
            options + [
                ArgumentOption("help", short: "h", summary: "show help, for a command too"),
                ArgumentOption("version", summary: "show the version"),
            ]
        self.commands = commands
    }

    /// Understands a command line, given without the program's own name.
    ///
    /// - Throws: `ArgumentError` with the first thing that is wrong.
    public func parse(_ arguments: [String]) throws(ArgumentError) -> Arguments {
        var parser = ArgumentParser(program: self, rest: arguments[...])
        return try parser.parse()
    }

    /// The command of a path; nil for groups and what there is not.
    public func command(_ path: [String]) -> ArgumentCommand? { commands.first { $0.path == path } }

    /// The words that may follow a path, each once.
    func words(after path: [String]) -> [String] {
        var words: [String] = []
        for command in commands where command.path.count > path.count && command.path.starts(with: path) {
            let word = command.path[path.count]
            if !words.contains(word) { words.append(word) }
        }
        return words
    }
}

private struct ArgumentParser {
    let program: ArgumentProgram
    var rest: ArraySlice<String>
    var path: [String] = []
    var operands: [String] = []
    var values: [String: String] = [:]

    init(program: ArgumentProgram, rest: ArraySlice<String>) {
        self.program = program
        self.rest = rest
    }

    mutating func parse() throws(ArgumentError) -> Arguments {
        while let argument = rest.popFirst() {
            if argument == "--" {
                operands += rest
                break
            }
            if argument.hasPrefix("-") && argument.utf8.count > 1 {
                try option(argument)
                if values["help"] != nil { return Arguments(.help, command: path) }
                if values["version"] != nil { return Arguments(.version, command: path) }
            } else {
                try word(argument)
            }
        }
        try checkComplete()
        return Arguments(.run, command: path, operands: operands, values: values)
    }

    private var command: ArgumentCommand? { program.command(path) }

    private mutating func word(_ word: String) throws(ArgumentError) {
        let words = program.words(after: path)
        if words.contains(word) {
            path.append(word)
        } else if words.isEmpty {
            operands.append(word)
        } else {
            let place = path.isEmpty ? "" : path.joined(separator: " ") + " "
            throw ArgumentError(
                description: "unknown command \(place)\(word.plain)"
                    + suggestion(word, from: words, otherwise: "; the commands are " + list(words)) {
                        place + $0
                    })
        }
    }

    private mutating func option(_ argument: String) throws(ArgumentError) {
        let (option, shown, attached) = try find(argument)
        if values[option.name] != nil { throw ArgumentError(description: "\(shown) is given twice") }
        guard let placeholder = option.value else {
            if attached != nil { throw ArgumentError(description: "\(shown) takes no value") }
            values[option.name] = ""
            return
        }
        let value: String
        if let attached {
            value = attached
        } else if let next = rest.first, !next.hasPrefix("-") || next == "-" {
            value = next
            rest = rest.dropFirst()
        } else {
            let hint =
                rest.isEmpty
                ? "" : "; if \(rest[rest.startIndex].plain) is it, write --\(option.name)=\(placeholder)"
            throw ArgumentError(description: "\(shown) needs a value: \(shown) \(placeholder)\(hint)")
        }
        try check(value, option.values, of: shown)
        values[option.name] = value
    }

    /// The option that an argument names, how it was written, and the value that is part of it.
    private func find(_ argument: String) throws(ArgumentError) -> (ArgumentOption, String, String?) {
        let options = (command?.options ?? []) + program.options
        if argument.hasPrefix("--") {
            let parts = argument.dropFirst(2).split(
                separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(parts[0])
            guard let option = options.first(where: { $0.name == name }) else {
                throw unknown(name, among: options)
            }
            return (option, "--" + name, parts.count > 1 ? String(parts[1]) : nil)
        }
        let letter = argument.dropFirst().first
        guard let option = options.first(where: { $0.short != nil && $0.short == letter }) else {
            throw ArgumentError(description: "unknown option \(argument.plain)")
        }
        // -oVALUE and -o=VALUE.
        var attached = argument.dropFirst(2)
        if attached.first == "=" { attached = attached.dropFirst() }
        return (option, String(argument.prefix(2)), argument.count > 2 ? String(attached) : nil)
    }

    private func unknown(_ name: String, among options: [ArgumentOption]) -> ArgumentError {
        if path.isEmpty, program.commands.contains(where: { $0.options.contains { $0.name == name } }) {
            return ArgumentError(description: "--\(name) belongs after the command")
        }
        return ArgumentError(
            description: "unknown option --\(name.plain)"
                + suggestion(name, from: options.map(\.name), otherwise: "") { "--" + $0 })
    }

    private func check(_ value: String, _ values: ArgumentValues, of shown: String) throws(ArgumentError) {
        guard case .choice(let words) = values, !words.contains(value) else { return }
        throw ArgumentError(
            description: "\(shown) is \(list(words, last: "or")), not \(value.quoted())"
                + suggestion(value, from: words, otherwise: "") { $0 })
    }

    private func checkComplete() throws(ArgumentError) {
        guard let command else {
            let words = list(program.words(after: path))
            throw ArgumentError(
                description: path.isEmpty
                    ? "a command is missing; the commands are \(words)"
                    : "\(path.joined(separator: " ")) needs one of its commands: \(words)")
        }
        for (index, operand) in command.operands.enumerated() {
            guard index < operands.count else {
                if operand.count != .one { break }
                throw ArgumentError(description: "\(operand.name) is missing: \(program.usage(command))")
            }
            for value in operand.count == .any ? operands[index...] : operands[index...index] {
                try check(value, operand.values, of: operand.name)
            }
        }
        if command.operands.last?.count != .any, operands.count > command.operands.count {
            throw ArgumentError(
                description: "unexpected argument \(operands[command.operands.count].quoted()): "
                    + program.usage(command))
        }
        for option in command.options + program.options where option.isRequired && values[option.name] == nil
        {
            throw ArgumentError(
                description: "--\(option.name) is missing: \(program.usage(command))")
        }
    }

    private func suggestion(
        _ word: String, from words: [String], otherwise: String, _ render: (String) -> String
    ) -> String {
        NearestName.suggest(word, from: words).map { "; did you mean \(render($0))?" } ?? otherwise
    }

    private func list(_ words: [String], last: String = "and") -> String {
        guard let final = words.last, words.count > 1 else { return words.joined() }
        return words.dropLast().joined(separator: ", ") + " \(last) " + final
    }
}

extension String {
    /// The string as it is if it fits in one line of a message, else quoted and cut.
    fileprivate var plain: String {
        utf8.count <= 80 && utf8.allSatisfy { $0 > 0x20 && $0 < 0x7f } ? self : quoted()
    }
}
