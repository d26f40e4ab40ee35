// Whole runs: what is asked of the agent, what is printed where, and the exit code.
import Foundation
import MeshCore
import Testing

@testable import MeshCTL

@Suite struct UsageTests {
    private static let cases: [(arguments: [String], message: String, see: String)] = [
        ([], "a command is missing", "meshctl --help"),
        (["brekaer"], "unknown command brekaer; did you mean breaker?", "meshctl --help"),
        (
            ["breaker"], "breaker needs one of its commands: list, show, open, close and auto",
            "meshctl breaker --help"
        ),
        (
            ["breaker", "opne", "x"], "unknown command breaker opne; did you mean breaker open?",
            "meshctl breaker --help"
        ),
        (["breaker", "show"], "SERVICE is missing", "meshctl breaker show --help"),
        (["breaker", "show", ""], "SERVICE is empty", "meshctl breaker show --help"),
        (["breaker", "open", "payments"], "--reason is missing", "meshctl breaker open --help"),
        (
            ["breaker", "open", "payments", "--reason", " \t"], "--reason is empty",
            "meshctl breaker open --help"
        ),
        (
            ["breaker", "open", "payments", "--reson", "x"], "unknown option --reson; did you mean --reason?",
            "meshctl breaker open --help"
        ),
        (
            ["breaker", "open", "payments", "--reason", "x", "--for", "10"], "--for: \"10\" needs a unit",
            "meshctl breaker open --help"
        ),
        (
            ["breaker", "open", "payments", "--reason", "x", "--for", "0s"], "--for is zero",
            "meshctl breaker open --help"
        ),
        (
            ["-o", "jsn", "status"], "-o is table or json, not \"jsn\"; did you mean json?",
            "meshctl status --help"
        ),
        (["status", "now"], "unexpected argument \"now\"", "meshctl status --help"),
        (
            ["flows", "--trace", "12"], "--trace is 32 hex digits, not all zero, and not \"12\"",
            "meshctl flows --help"
        ),
        (
            ["flows", "--trace", String(repeating: "0", count: 32)], "--trace is 32 hex digits",
            "meshctl flows --help"
        ),
        (["trace", "bind"], "--pid is missing", "meshctl trace bind --help"),
        (
            ["trace", "bind", "--pid", "0"], "--pid is the number of a process, and not \"0\"",
            "meshctl trace bind --help"
        ),
        (
            ["trace", "unbind", "--pid", "+5"], "--pid is the number of a process, and not \"+5\"",
            "meshctl trace unbind --help"
        ),
        (["top", "--interval", "1ms"], "--interval is at least 100ms", "meshctl top --help"),
        (["top", "--count", "0"], "--count is a number of frames, and not \"0\"", "meshctl top --help"),
        (["top", "--once", "--count", "2"], "--once and --count exclude each other", "meshctl top --help"),
        (["completion", "tcsh"], "SHELL is bash, zsh or fish, not \"tcsh\"", "meshctl completion --help"),
        (["help", "brekaer"], "unknown command brekaer; did you mean breaker?", "meshctl --help"),
    ]

    @Test("Wrong usage: exit code 2, what is wrong, and where help is", arguments: cases)
    func wrongUsage(arguments: [String], message: String, see: String) {
        let outcome = meshctl(arguments)
        #expect(outcome.code == 2 && outcome.output == "")
        let lines = outcome.errors.split(separator: "\n")
        #expect(lines.count == 2)
        #expect(lines.first?.hasPrefix("meshctl: " + message) == true, "\(outcome.errors)")
        #expect(lines.last == "see '\(see)'")
    }

    @Test(
        "With -o json errors are JSON, on standard error",
        arguments: [
            ["-o", "json", "brekaer"], ["brekaer", "-ojson"], ["status", "--output=json", "now"],
            ["--control", "/nonexistent/x", "status", "--output", "json"],
        ])
    func jsonErrors(arguments: [String]) throws {
        let outcome = meshctl(arguments)
        #expect(outcome.code == (arguments.contains("--control") ? 3 : 2) && outcome.output == "")
        let value = try JSONValue.parse(Array(outcome.errors.utf8))
        #expect(value["error"]?.string?.isEmpty == false)
        #expect(value["suggestion"] == .some(.null))
    }

    @Test("Help and version go to standard output, and need no agent")
    func help() {
        #expect(meshctl(["--version"]) == Outcome(code: 0, output: "meshctl 0.1.0\n", errors: ""))
        let overview = meshctl(["--help"])
        #expect(overview.code == 0 && overview.errors == "")
        for command in Catalog.commands {
            #expect(overview.output.contains("  " + command.path.joined(separator: " ")))
            let help = meshctl(command.path + ["--help"])
            #expect(help.code == 0 && help.output.contains("\nexamples:\n  # "), "\(command.path)")
            #expect(meshctl(["help"] + command.path) == help)
        }
        #expect(
            overview.output.hasSuffix(
                "Exit codes: 0 done, 1 the agent says no, 2 wrong usage, 3 no agent there.\n"))
        #expect(meshctl(["help"]) == overview)
        #expect(meshctl(["breaker", "--help"]).output.contains("meshctl breaker COMMAND"))
    }

    @Test("Every example in the help is a command line that is understood")
    func examples() throws {
        for command in Catalog.commands {
            for example in command.examples {
                let words = example.line.split(separator: " ").map(String.init)
                let start = try #require(
                    words.firstIndex { $0.hasSuffix("meshctl") || $0.hasSuffix("(meshctl") })
                let line = words[(start + 1)...].prefix { !["|", ">"].contains($0) }
                // A quoted reason of several words counts as one.
                let quoted = line.joined(separator: " ").split(
                    separator: "'", omittingEmptySubsequences: false)
                var arguments: [String] = []
                for (index, part) in quoted.enumerated() {
                    let part = part.replacingOccurrences(of: "bash)", with: "bash")
                    arguments += index % 2 == 1 ? [part] : part.split(separator: " ").map(String.init)
                }
                #expect(try Catalog.program.parse(arguments).command == command.path, "\(example.line)")
            }
        }
    }
}

@Suite struct CommandTests {
    private static let calls: [(arguments: [String], asked: Asked, answer: String, says: String)] = [
        (["status"], Asked(method: "GET", target: "/v1/status", body: ""), Fixture.status, "no problems"),
        (["services"], Asked(method: "GET", target: "/v1/services", body: ""), Fixture.services, "payments"),
        (
            ["breaker", "list"], Asked(method: "GET", target: "/v1/breakers", body: ""), Fixture.breakers,
            "failure_rate"
        ),
        (
            ["breaker", "show", "[fd00::1]:80"],
            Asked(method: "GET", target: "/v1/breakers/%5Bfd00%3A%3A1%5D%3A80", body: ""),
            Fixture.shown, "HISTORY"
        ),
        (
            ["breaker", "close", "search", "--reason", "false \"alarm\"", "--for", "1m30s"],
            Asked(
                method: "POST", target: "/v1/breakers/search/close",
                body: "{\"reason\":\"false \\\"alarm\\\"\",\"for_seconds\":90}"),
            Fixture.overridden, "search is forced closed, until 2026-01-02 03:13:15Z"
        ),
        (
            ["breaker", "open", "search", "--reason", "why"],
            Asked(
                method: "POST", target: "/v1/breakers/search/open",
                body: "{\"reason\":\"why\",\"for_seconds\":900}"),
            Fixture.overridden, "to end it: meshctl breaker auto search"
        ),
        (
            ["breaker", "auto", "payments"],
            Asked(method: "POST", target: "/v1/breakers/payments/auto", body: "{}"),
            Fixture.payments, "payments is back to automatic: open"
        ),
        (["flows"], Asked(method: "GET", target: "/v1/flows", body: ""), Fixture.flows, "10.0.0.5:8443"),
        (
            ["flows", "--service", "a b", "--trace", "4BF92F3577B34DA6A3CE929D0E0E4736"],
            Asked(
                method: "GET", target: "/v1/flows?service=a%20b&trace=4bf92f3577b34da6a3ce929d0e0e4736",
                body: ""),
            Fixture.flows, "10.0.0.5:8443"
        ),
        (
            ["events"], Asked(method: "GET", target: "/v1/events", body: ""), Fixture.events,
            "override expired"
        ),
        (["trace", "list"], Asked(method: "GET", target: "/v1/traces", body: ""), Fixture.traces, "4321"),
        (
            ["trace", "bind", "--pid", "42"],
            Asked(method: "PUT", target: "/v1/traces/42", body: "{\"trace_id\":null}"),
            "{\"pid\":42,\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}",
            "new connections of pid 42 carry the trace ID 4bf92f3577b34da6a3ce929d0e0e4736"
        ),
        (
            ["trace", "bind", "--pid", "42", "--trace", "4BF92f3577b34da6a3ce929d0e0e4736"],
            Asked(
                method: "PUT", target: "/v1/traces/42",
                body: "{\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}"),
            "{\"pid\":42,\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}", "new connections of pid 42"
        ),
        (
            ["trace", "unbind", "--pid", "42"], Asked(method: "DELETE", target: "/v1/traces/42", body: ""),
            "{\"pid\":42}", "each new connection of pid 42 gets a fresh trace ID again"
        ),
    ]

    @Test(
        "Each command asks what it should, shows the answer, and as JSON nothing but the answer",
        arguments: calls)
    func asks(arguments: [String], asked: Asked, answer: String, says: String) throws {
        let table = meshctl(arguments) { _ in .json(answer) }
        #expect(table.asked == [asked])
        #expect(table.outcome.code == 0 && table.outcome.errors == "")
        #expect(table.outcome.output.contains(says), "\(table.outcome.output)")
        let json = meshctl(arguments + ["-o", "json"]) { _ in .json(answer) }
        #expect(json.asked == [asked] && json.outcome.code == 0 && json.outcome.errors == "")
        let value = try JSONValue.parse(Array(answer.utf8))
        #expect(json.outcome.output == value.serialized(pretty: true) + "\n")
    }

    @Test("The agent says no: exit code 1, its reason and its suggestion")
    func refused() {
        let reply = Reply.json(
            "{\"error\":\"there is no service \\\"paymets\\\"\",\"suggestion\":\"payments\"}",
            status: "404 Not Found")
        let (table, _) = meshctl(["breaker", "show", "paymets"]) { _ in reply }
        #expect(
            table
                == Outcome(
                    code: 1, output: "",
                    errors: "meshctl: there is no service \"paymets\"\ndid you mean \"payments\"?\n"))
        let (json, _) = meshctl(["breaker", "show", "paymets", "-o", "json"]) { _ in reply }
        #expect(
            json
                == Outcome(
                    code: 1, output: "",
                    errors:
                        "{\"error\":\"there is no service \\\"paymets\\\"\",\"suggestion\":\"payments\"}\n"))
    }

    @Test("Forcing a breaker that only observes warns, on standard error")
    func observeWarning() {
        let arguments = ["breaker", "open", "inventory", "--reason", "x"]
        let (table, _) = meshctl(arguments) { _ in .json(Fixture.observed) }
        #expect(table.code == 0)
        #expect(
            table.errors
                == "meshctl: warning: inventory is in mode observe: nothing will be rejected, whatever its state\n"
        )
        let (json, _) = meshctl(arguments + ["-o", "json"]) { _ in .json(Fixture.observed) }
        #expect(
            json.errors
                == "{\"warning\":\"inventory is in mode observe: nothing will be rejected, whatever its state\"}\n"
        )
    }

    @Test("An answer that lacks something is no agent's that we know")
    func foreignAnswer() {
        let (outcome, _) = meshctl(["services"]) { _ in .json("{\"services\":[{\"name\":7}]}") }
        #expect(outcome.code == 3)
        #expect(
            outcome.errors
                == "meshctl: the agent's answer is not understood: answer.services[0].name is not a string; "
                + "are meshctl and the agent of the same version?\n")
    }

    @Test("A service that is not known is told from one without connections")
    func unknownService() {
        let (unknown, asked) = meshctl(["flows", "--service", "paymnets"]) { asked in
            .json(asked.target == "/v1/services" ? Fixture.services : "{\"connections\":[]}")
        }
        #expect(asked.map(\.target) == ["/v1/flows?service=paymnets", "/v1/services"])
        #expect(
            unknown
                == Outcome(
                    code: 1, output: "",
                    errors: "meshctl: there is no service \"paymnets\"\ndid you mean \"payments\"?\n"))
        let (known, _) = meshctl(["flows", "--service", "payments"]) { asked in
            .json(asked.target == "/v1/services" ? Fixture.services : "{\"connections\":[]}")
        }
        #expect(known.code == 0 && known.output.hasPrefix("no open connection fits: "))
    }

    @Test("Streams: one line each, as a table or as JSON; the agent's end is exit code 3")
    func follow() {
        let (table, asked) = meshctl(["flows", "--follow", "--service", "payments"]) { _ in
            .lines(Fixture.flowEvents)
        }
        #expect(asked == [Asked(method: "GET", target: "/v1/flows?follow=1&service=payments", body: "")])
        #expect(table.code == 3)
        let lines = table.output.split(separator: "\n")
        #expect(
            lines.count == 3 && lines[0].hasPrefix("TIME ")
                && lines[1].hasPrefix("03:04:05.123Z  request  client"))
        let (json, _) = meshctl(["flows", "--follow", "-o", "json"]) { _ in .lines(Fixture.flowEvents) }
        #expect(json.output == Fixture.flowEvents.map { $0 + "\n" }.joined())
        #expect(json.errors.hasPrefix("{\"error\":\"the agent at "))
        let (events, _) = meshctl(["events", "--follow"]) { _ in .lines(Fixture.eventList) }
        #expect(events.output.split(separator: "\n").count == Fixture.eventList.count)
        #expect(
            events.output.hasPrefix(
                "2026-01-02 03:00:00Z  payments              closed → open (failure_rate)\n"))
    }

    @Test("Whoever reads the output may go: quietly, exit code 0")
    func closedPipe() {
        let server = TestServer { _ in .lines(Fixture.eventList, ends: false) }
        defer { server.stop() }
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        close(ends[0])
        let scratch = Scratch()
        let errors = open(scratch.path + "/errors", O_RDWR | O_CREAT, 0o600)
        defer {
            close(errors)
            close(ends[1])
        }
        let console = Console(input: -1, output: ends[1], errors: errors, variables: [:])
        for arguments in [["events", "--follow"], ["--help"]] {
            #expect(Meshctl(console: console).run(["--control", server.path] + arguments) == 0)
        }
        #expect(lseek(errors, 0, Int32(SEEK_END)) == 0)
    }

    @Test("Output that cannot be written is told, exit code 1")
    func fullDisk() {
        let full = open("/dev/full", O_WRONLY)
        let scratch = Scratch()
        let errors = open(scratch.path + "/errors", O_RDWR | O_CREAT, 0o600)
        defer {
            close(full)
            close(errors)
        }
        let console = Console(input: -1, output: full, errors: errors, variables: [:])
        #expect(Meshctl(console: console).run(["--help"]) == 1)
        let said = FileManager.default.contents(atPath: scratch.path + "/errors") ?? Data()
        #expect(
            String(decoding: said, as: UTF8.self)
                == "meshctl: cannot write the output: No space left on device\n")
    }

    @Test(
        "Colour only on a terminal, and not when it is not wanted",
        arguments: [
            (["LANG": "C.UTF-8"], true), (["NO_COLOR": "1"], false), (["NO_COLOR": ""], true),
            (["TERM": "dumb"], false),
        ] as [([String: String], Bool)])
    func colour(variables: [String: String], expected: Bool) throws {
        let terminal = try Terminal(columns: 100, rows: 30)
        let console = Console(input: -1, output: terminal.inner, errors: -1, variables: variables)
        #expect(console.page().colour == expected)
        #expect(console.page().width == 100 && console.page().height == 30)
        let file = open("/dev/null", O_WRONLY)
        defer { close(file) }
        let other = Console(input: -1, output: file, errors: -1, variables: variables).page()
        #expect(!other.colour && other.width == nil && other.height == nil)
    }

    @Test(
        "The locale decides what may be printed",
        arguments: [
            ([:], true), (["LANG": "C"], true), (["LANG": "en_US.UTF-8"], false),
            (["LANG": "de_DE.utf8"], false),
            (["LANG": "en_US.UTF-8", "LC_ALL": "C"], true), (["LANG": "C", "LC_CTYPE": "C.UTF-8"], false),
            (["LC_ALL": "", "LANG": "C.UTF-8"], false), (["LANG": "de_DE.UTF-8@euro"], false),
        ] as [([String: String], Bool)])
    func locale(variables: [String: String], ascii: Bool) {
        #expect(Console(input: -1, output: -1, errors: -1, variables: variables).page().ascii == ascii)
    }
}

/// A pseudo-terminal: what runs in it writes to `inner`, and who sits at it uses `outer`.
final class Terminal: Sendable {
    let inner: Int32
    let outer: Int32

    struct NoTerminal: Error {}

    init(columns: UInt16, rows: UInt16) throws {
        outer = open("/dev/ptmx", O_RDWR | O_NOCTTY)
        // TIOCSPTLCK and TIOCGPTN: macros that Swift does not import.
        var (lock, number): (Int32, UInt32) = (0, 0)
        guard outer >= 0, ioctl(outer, 0x4004_5431, &lock) == 0, ioctl(outer, 0x8004_5430, &number) == 0
        else {
            throw NoTerminal()
        }
        inner = open("/dev/pts/\(number)", O_RDWR | O_NOCTTY)
        var size = winsize(ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0)
        guard inner >= 0, ioctl(inner, UInt(TIOCSWINSZ), &size) == 0 else { throw NoTerminal() }
    }

    deinit {
        close(inner)
        close(outer)
    }

    /// Reads what was written until it contains a text; what came is given in full.
    func read(until text: String) -> String {
        var all = ""
        var bytes = [UInt8](repeating: 0, count: 4096)
        while !all.contains(text) {
            let count = Glibc.read(outer, &bytes, bytes.count)
            guard count > 0 else { break }
            all += String(decoding: bytes[..<count], as: UTF8.self)
        }
        return all
    }

    func type(_ text: String) {
        _ = text.withCString { write(outer, $0, strlen($0)) }
    }

    /// Whether the terminal collects lines and shows what is typed, as a shell expects it.
    var isAsBefore: Bool {
        var settings = termios()
        tcgetattr(inner, &settings)
        return settings.c_lflag & tcflag_t(ICANON | ECHO) == tcflag_t(ICANON | ECHO)
    }
}
