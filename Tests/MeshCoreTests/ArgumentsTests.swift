// Command lines, right and wrong, and the help that is made from the same description.

import Testing

@testable import MeshCore

private let program = ArgumentProgram(
    "meshctl", summary: "Looks at the agent.",
    options: [
        ArgumentOption("control", value: "PATH", values: .file, summary: "the agent's socket"),
        ArgumentOption(
            "output", short: "o", value: "FORMAT", values: .choice(["table", "json"]), summary: "how to print"
        ),
    ],
    commands: [
        ArgumentCommand(["status"], summary: "the agent in a screen"),
        ArgumentCommand(["breaker", "list"], summary: "every breaker"),
        ArgumentCommand(
            ["breaker", "open"], summary: "force a breaker open", details: ["It ends by itself."],
            options: [
                ArgumentOption("reason", value: "TEXT", isRequired: true, summary: "why"),
                ArgumentOption("for", value: "TIME", summary: "how long"),
                ArgumentOption("quietly", short: "q", summary: "say nothing"),
            ],
            operands: [ArgumentOperand("SERVICE")],
            examples: [.init("meshctl breaker open payments --reason INC-1", does: "reject every attempt")]),
        ArgumentCommand(
            ["completion"], summary: "a completion script",
            operands: [ArgumentOperand("SHELL", values: .choice(["bash", "zsh", "fish"]))]),
        ArgumentCommand(
            ["maybe"], summary: "takes one or none", operands: [ArgumentOperand("X", count: .optional)]),
        ArgumentCommand(
            ["many"], summary: "takes any",
            operands: [ArgumentOperand("X"), ArgumentOperand("Y", count: .any)]),
    ])

private func mistake(_ line: [String]) -> String? {
    do throws(ArgumentError) {
        _ = try program.parse(line)
        return nil
    } catch {
        return error.description
    }
}

@Suite struct ArgumentsTests {
    private static let full = ["breaker", "open", "payments", "--reason", "INC 1", "--for", "10m"]

    @Test(arguments: [
        full, ["breaker", "open", "--reason=INC 1", "--for=10m", "payments"],
        ["breaker", "open", "--reason", "INC 1", "--for", "10m", "--", "payments"],
    ])
    func forms(line: [String]) throws {
        let arguments = try program.parse(line)
        #expect(arguments.request == .run)
        #expect(arguments.command == ["breaker", "open"])
        #expect(arguments.operands == ["payments"])
        #expect(arguments["reason"] == "INC 1")
        #expect(arguments["for"] == "10m")
        #expect(arguments["output"] == nil)
        #expect(!arguments.has("quietly"))
    }

    @Test(arguments: [
        ["-o", "json", "status"], ["status", "-o", "json"], ["status", "-ojson"], ["-o=json", "status"],
        ["--output", "json", "status"], ["status", "--output=json"],
    ])
    func globalOptions(line: [String]) throws {
        let arguments = try program.parse(line)
        #expect(arguments.command == ["status"])
        #expect(arguments["output"] == "json")
    }

    @Test func operandsAndValues() throws {
        #expect(
            try program.parse(["many", "a", "-", "--", "-b", "--", "--help"]).operands == [
                "a", "-", "-b", "--", "--help",
            ])
        #expect(try program.parse(["maybe"]).operands == [])
        #expect(try program.parse(["maybe", "status"]).operands == ["status"])
        #expect(try program.parse(["maybe", ""]).operands == [""])
        #expect(try program.parse(["--control=", "status"])["control"] == "")
        #expect(try program.parse(["--control=a=b", "status"])["control"] == "a=b")
        #expect(try program.parse(["--control=--x", "status"])["control"] == "--x")
        #expect(try program.parse(["--control", "-", "status"])["control"] == "-")
        #expect(try program.parse(Self.full + ["-q"]).has("quietly"))
        #expect(try program.parse(["completion", "fish"]).operands == ["fish"])
    }

    @Test func helpAndVersion() throws {
        #expect(try program.parse(["--help"]).request == .help)
        #expect(try program.parse(["-h"]).command == [])
        #expect(try program.parse(["breaker", "--help"]).command == ["breaker"])
        let command = try program.parse(["breaker", "open", "-h", "--wrong"])
        #expect(command.request == .help)
        #expect(command.command == ["breaker", "open"])
        #expect(try program.parse(["--version"]).request == .version)
    }

    private static let wrongLines: [([String], String)] = [
        ([], "a command is missing; the commands are status, breaker, completion, maybe and many"),
        (["breaker"], "breaker needs one of its commands: list and open"),
        (["stauts"], "unknown command stauts; did you mean status?"),
        (["xyz"], "unknown command xyz; the commands are status, breaker, completion, maybe and many"),
        (["breaker", "opne"], "unknown command breaker opne; did you mean breaker open?"),
        (["a\nb"], "unknown command \"a\\nb\"; the commands are status, breaker, completion, maybe and many"),
        (["breaker", "open", "x", "--resaon", "y"], "unknown option --resaon; did you mean --reason?"),
        (["status", "--reason", "x"], "unknown option --reason"),
        (["--reason", "x", "breaker", "open", "s"], "--reason belongs after the command"),
        (["status", "--outptu=json"], "unknown option --outptu; did you mean --output?"),
        (["status", "-x"], "unknown option -x"), (["status", "-oyaml"], "-o is table or json, not \"yaml\""),
        (["status", "--output", "jsno"], "--output is table or json, not \"jsno\"; did you mean json?"),
        (["status", "-o"], "-o needs a value: -o FORMAT"),
        (
            ["breaker", "open", "x", "--reason", "--for", "1m"],
            "--reason needs a value: --reason TEXT; if --for is it, write --reason=TEXT"
        ),
        (["status", "-o", "json", "--output=json"], "--output is given twice"),
        (Self.full + ["--quietly=yes"], "--quietly takes no value"),
        (Self.full + ["-qx"], "-q takes no value"),
        (["breaker", "open", "payments"], "--reason is missing: " + usage),
        (["breaker", "open", "--reason", "x"], "SERVICE is missing: " + usage),
        (Self.full + ["more"], "unexpected argument \"more\": " + usage),
        (["status", "x"], "unexpected argument \"x\": meshctl status"),
        (["completion", "csh"], "SHELL is bash, zsh or fish, not \"csh\"; did you mean zsh?"),
        (["many"], "X is missing: meshctl many X [Y...]"),
        (["maybe", "a", "b"], "unexpected argument \"b\": meshctl maybe [X]"),
    ]
    private static let usage = "meshctl breaker open SERVICE --reason TEXT [--for TIME] [--quietly]"

    @Test(arguments: wrongLines) func mistakes(line: [String], message: String) {
        #expect(mistake(line) == message)
    }

    @Test func commandHelp() {
        let text = """
            meshctl breaker open: force a breaker open

            usage: meshctl breaker open SERVICE --reason TEXT [--for TIME] [--quietly]

            It ends by itself.

            options:
                  --reason TEXT  why
                  --for TIME     how long
              -q, --quietly      say nothing

            options of every command:
                  --control PATH   the agent's socket
              -o, --output FORMAT  how to print
              -h, --help           show help, for a command too
                  --version        show the version

            examples:
              # reject every attempt
              meshctl breaker open payments --reason INC-1

            """
        #expect(program.help(["breaker", "open"]) == text)
        #expect(program.help(["breaker", "open", "wrong"]) == text)
    }

    @Test func groupHelp() {
        let text = """
            usage: meshctl breaker COMMAND ...

            commands:
              breaker list          every breaker
              breaker open SERVICE  force a breaker open

            options:
                  --control PATH   the agent's socket
              -o, --output FORMAT  how to print
              -h, --help           show help, for a command too
                  --version        show the version

            examples:
              # reject every attempt
              meshctl breaker open payments --reason INC-1

            More about a command: meshctl breaker COMMAND --help

            """
        #expect(program.help(["breaker"]) == text)
        #expect(
            program.help().hasPrefix(
                "Looks at the agent.\n\nusage: meshctl COMMAND ...\n\ncommands:\n  status"))
    }
}
