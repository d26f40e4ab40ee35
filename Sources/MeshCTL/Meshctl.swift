// The command-line tool: understands the arguments, asks the agent, shows the answer, and says by
// its exit code how it went.

import BPFRuntime
import Glibc
import MeshCore
import MeshSystem

/// Runs meshctl.
/// - Parameter arguments: The command line without the program's name.
/// - Returns: The exit code: 0 done, 1 the agent says no, 2 wrong usage, 3 no agent there.
public func runMeshctl(arguments: [String]) -> Int32 {
    // A closed pipe is an error number on write, not the end of the process.
    signal(SIGPIPE, SIG_IGN)
    return Meshctl(console: .process()).run(arguments)
}

/// One run of meshctl on a console.
struct Meshctl: Sendable {
    let console: Console

    /// Carries the command line out, and gives the exit code.
    func run(_ arguments: [String]) -> Int32 {
        do {
            return try perform(arguments)
        } catch {
            report(error, json: Self.wantsJSON(arguments))
            return error.exitCode
        }
    }

    private func perform(_ arguments: [String]) throws(Failure) -> Int32 {
        if arguments.first == "__complete" {
            try Run(console: console, arguments: parse(Array(arguments.dropFirst()), Catalog.completer))
                .complete()
            return ExitCode.done
        }
        let parsed = try parse(arguments, Catalog.program)
        switch parsed.request {
        case .version: try console.print(["meshctl \(meshVersion)"])
        case .help: try help(parsed.command)
        case .run where parsed.command == ["help"]:
            // Parsed again as a command, so that a typo is told and not passed over.
            let wanted = try parse(parsed.operands + ["--help"], Catalog.program)
            try help(wanted.command)
        case .run: return try Run(console: console, arguments: parsed).perform()
        }
        return ExitCode.done
    }

    private func help(_ path: [String]) throws(Failure) {
        try console.write(Catalog.program.help(path) + (path.isEmpty ? Catalog.exitCodes : ""))
    }

    private func parse(_ arguments: [String], _ program: ArgumentProgram) throws(Failure) -> Arguments {
        do {
            return try program.parse(arguments)
        } catch {
            throw .usage(error.description, see: Catalog.commandPath(in: arguments).joined(separator: " "))
        }
    }

    /// Whether JSON is asked for, also on a command line that is wrong further on.
    private static func wantsJSON(_ arguments: [String]) -> Bool {
        let line = arguments.prefix { $0 != "--" }
        if line.contains(where: { ["-ojson", "-o=json", "--output=json"].contains($0) }) { return true }
        return zip(line, line.dropFirst()).contains { ["-o", "--output"].contains($0) && $1 == "json" }
    }

    /// Says on standard error what went wrong: in words, or as JSON for programs.
    private func report(_ failure: Failure, json: Bool) {
        let message: String
        var suggestion: String?
        var see: String?
        switch failure {
        case .refused(let text, let near): (message, suggestion) = (text, near)
        case .usage(let text, let command): (message, see) = (text, command)
        case .noAgent(let text), .noAgentRuns(let text), .output(let text): message = text
        case .outputClosed: return
        }
        if json {
            let value: JSONValue = [
                "error": .string(message), "suggestion": suggestion.map(JSONValue.string) ?? .null,
            ]
            console.complain(value.serialized())
            return
        }
        console.complain("meshctl: " + message.harmless)
        if let suggestion { console.complain("did you mean \(suggestion.quoted())?") }
        if let see { console.complain("see 'meshctl \(see.isEmpty ? "" : see + " ")--help'") }
    }
}

/// One command being carried out.
struct Run: Sendable {
    let console: Console
    let arguments: Arguments
    let client: ControlClient

    init(console: Console, arguments: Arguments) {
        self.console = console
        self.arguments = arguments
        client = ControlClient(path: arguments["control"] ?? Catalog.defaultControl)
    }

    var json: Bool { arguments["output"] == "json" }

    private var command: String { arguments.command.joined(separator: " ") }

    func perform() throws(Failure) -> Int32 {
        switch command {
        case "status": return try status()
        case "services":
            try show(try client.call("GET", "/v1/services")) { answer, page throws(Failure) in
                let rows = try answer.list("services") { row throws(Failure) in try ServiceRow(row) }
                return Views.services(rows, on: page)
            }
        case "breaker list":
            try show(try ask(.breakers)) { answer, page throws(Failure) in
                let breakers = try answer.list("breakers") { row throws(Failure) in try Breaker(row) }
                return Views.breakers(breakers, on: page, now: Timestamp.now())
            }
        case "breaker show":
            try show(try ask(.breaker(service()))) { answer, page throws(Failure) in
                Views.breaker(try Breaker(answer), on: page, now: Timestamp.now())
            }
        case "breaker open": try override(.open)
        case "breaker close": try override(.close)
        case "breaker auto":
            try show(try ask(.auto(service()))) { answer, page throws(Failure) in
                Views.overrideDone(try Breaker(answer), on: page, now: Timestamp.now())
            }
        case "flows": try flows()
        case "events": try events()
        case "trace list":
            try show(try client.call("GET", "/v1/traces")) { answer, page throws(Failure) in
                let bindings = try answer.list("bindings") { row throws(Failure) in try Binding(row) }
                return Views.bindings(bindings, on: page, now: Timestamp.now())
            }
        case "trace bind": try bind()
        case "trace unbind": try unbind()
        case "top": try Top(run: self, options: try topOptions()).perform()
        case "cleanup": try cleanup()
        case "doctor": return try doctor()
        case "completion": try console.write(CompletionScript.text(for: arguments.operands[0]))
        default: preconditionFailure("the catalog has a command that nothing carries out: \(command)")
        }
        return ExitCode.done
    }

    // MARK: asking

    /// Asks the agent; where none runs, what it has left.
    private func ask(_ question: Question) throws(Failure) -> JSONValue {
        let (method, target, body) = question.call
        do {
            return try client.call(method, target, body: body)
        } catch {
            guard case .noAgentRuns(let why) = error else { throw error }
            return try askRemains(question, why)
        }
    }

    private func askRemains(_ question: Question, _ why: String) throws(Failure) -> JSONValue {
        let instance = Instance(control: client.path, pins: arguments["pins"])
        guard var remains = try Remains.open(instance) else {
            let hint = ". What one may have left is hidden from this user: to see that, run meshctl as root"
            throw .noAgentRuns(PinDirectory(instance).isHidden ? why + hint : why)
        }
        let answer = try remains.answer(question)
        let warning = remains.warning(question)
        // Nobody waits for its locks while somebody does not read this.
        _ = consume remains
        if question != .status { warn(warning) }
        return answer
    }

    /// The agent's own answer to whether it is well; where none runs, what goes on without it.
    private func status() throws(Failure) -> Int32 {
        let value = try ask(.status)
        guard value["agent"] == .some(.null) else {
            try show(value) { answer, page throws(Failure) in StatusView.lines(try Status(answer), on: page) }
            return ExitCode.done
        }
        try show(value) { answer, page throws(Failure) in
            try RemainsView.lines(answer, on: page, now: Timestamp.now())
        }
        return ExitCode.noAgent
    }

    // MARK: showing

    /// Shows an answer as it came, or as a view of it.
    private func show(
        _ value: JSONValue, _ view: (Answer, Page) throws(Failure) -> [String]
    ) throws(Failure) {
        if json {
            try console.print([value.serialized(pretty: true)])
        } else {
            try console.print(try view(Answer(value), console.page()))
        }
    }

    /// Shows a stream, each element as one line.
    private func follow(
        _ target: String, _ view: (Answer, Page) throws(Failure) -> String
    ) throws(Failure) -> Never {
        try client.follow(target) { value throws(Failure) in
            try console.print([json ? value.serialized() : try view(Answer(value), console.page())])
        }
    }

    private func warn(_ text: String) {
        let value: JSONValue = ["warning": .string(text)]
        console.complain(json ? value.serialized() : "meshctl: warning: " + text.harmless)
    }

    // MARK: breakers

    /// The service that is named.
    private func service() throws(Failure) -> String {
        guard !arguments.operands[0].isEmpty else { throw usage("SERVICE is empty") }
        return arguments.operands[0]
    }

    private func override(_ forced: BreakerOverride.Forced) throws(Failure) {
        let reason = arguments["reason"] ?? ""
        guard reason.contains(where: { !$0.isWhitespace }) else {
            let state = forced == .open ? "open" : "closed"
            throw usage("--reason is empty: say why, for those who find the breaker \(state)")
        }
        let seconds = try duration("for") ?? OverrideWish.usualSeconds
        let answer = try ask(.force(service(), forced, reason: reason, seconds: seconds))
        try show(answer) { answer, page throws(Failure) in
            Views.overrideDone(try Breaker(answer), on: page, now: Timestamp.now())
        }
        let breaker = try Breaker(Answer(answer))
        if breaker.mode == "observe" {
            warn("\(breaker.service) is in mode observe: nothing will be rejected, whatever its state")
        }
    }

    // MARK: flows and events

    private func flows() throws(Failure) {
        var query: [String] = []
        if let service = arguments["service"] { query.append("service=" + percentEncoded(service)) }
        if let trace = try traceID() { query.append("trace=" + trace) }
        guard !arguments.has("follow") else {
            let table = Views.flowTable
            if !json {
                let page = console.page()
                try console.print([table.heading(table.layout(on: page), on: page)])
            }
            try follow("/v1/flows?" + (["follow=1"] + query).joined(separator: "&")) {
                answer, page throws(Failure) in
                table.line(Views.flow(try FlowEvent(answer), page: page), table.layout(on: page), on: page)
            }
        }
        let target = "/v1/flows" + (query.isEmpty ? "" : "?" + query.joined(separator: "&"))
        try show(try client.call("GET", target)) { answer, page throws(Failure) in
            let connections = try answer.list("connections") { row throws(Failure) in try Connection(row) }
            if connections.isEmpty, let service = arguments["service"] { try checkName(service) }
            return Views.connections(connections, filtered: !query.isEmpty, on: page)
        }
    }

    /// Throws when the agent knows no service of that name, with the nearest that it knows.
    private func checkName(_ service: String) throws(Failure) {
        let names = try serviceNames()
        guard !names.contains(service) else { return }
        throw .refused(
            "there is no service \(service.quoted())", suggestion: NearestName.suggest(service, from: names))
    }

    private func events() throws(Failure) {
        guard !arguments.has("follow") else {
            try follow("/v1/events?follow=1") { answer, page throws(Failure) in
                Views.event(try Event(answer), named: true, on: page)
            }
        }
        try show(try client.call("GET", "/v1/events")) { answer, page throws(Failure) in
            let events = try answer.list("events") { row throws(Failure) in try Event(row) }
            return Views.events(events, on: page)
        }
    }

    // MARK: traces

    private func bind() throws(Failure) {
        let pid = try pid()
        let trace = try traceID()
        let answer = try client.call(
            "PUT", "/v1/traces/\(pid)", body: ["trace_id": trace.map(JSONValue.string) ?? .null])
        try show(answer) { answer, page throws(Failure) in
            ["new connections of pid \(pid) carry the trace ID \(try answer.text("trace_id").harmless)"]
        }
    }

    private func unbind() throws(Failure) {
        let pid = try pid()
        try show(try client.call("DELETE", "/v1/traces/\(pid)")) { _, _ throws(Failure) in
            ["each new connection of pid \(pid) gets a fresh trace ID again"]
        }
    }

    // MARK: completion

    /// Names for a shell, one a line; nothing at all when something is wrong.
    func complete() throws(Failure) {
        let list = command
        guard list != "commands" else { return try console.print(Catalog.words(after: [])) }
        var quick = client
        quick.timeout = 1_000_000_000
        let key = list == "services" ? "name" : "service"
        guard let answer = try? quick.call("GET", "/v1/\(list)"),
            let names = try? Answer(answer).list(list, { row throws(Failure) in try row.text(key) })
        else { return }
        // What a terminal would act on, or a shell take for two names, is not offered.
        let offered = Set(names).filter { $0.harmless == $0 && !$0.contains(" ") }
        try console.print(offered.sorted())
    }

    private func serviceNames() throws(Failure) -> [String] {
        let answer = Answer(try client.call("GET", "/v1/services"))
        return try answer.list("services") { row throws(Failure) in try row.text("name") }
    }

    // MARK: values of options

    func usage(_ message: String) -> Failure { .usage(message, see: command) }

    /// An option's duration in seconds.
    private func duration(_ option: String) throws(Failure) -> Double? {
        guard let text = arguments[option] else { return nil }
        let nanoseconds: UInt64
        do {
            nanoseconds = try DurationText.parse(text)
        } catch {
            throw usage("--\(option): \(error)")
        }
        guard nanoseconds > 0 else { throw usage("--\(option) is zero") }
        return Double(nanoseconds) / 1e9
    }

    private func traceID() throws(Failure) -> String? {
        guard let text = arguments["trace"] else { return nil }
        guard let trace = TraceID(text) else {
            throw usage("--trace is 32 hex digits, not all zero, and not \(text.quoted(limit: 40))")
        }
        return trace.description
    }

    private func pid() throws(Failure) -> Int32 {
        let text = arguments["pid"] ?? ""
        guard let pid = Int32(text), pid > 0, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            throw usage("--pid is the number of a process, and not \(text.quoted(limit: 40))")
        }
        return pid
    }

    private func topOptions() throws(Failure) -> Top.Options {
        var options = Top.Options()
        if let seconds = try duration("interval") {
            guard seconds >= 0.1 else { throw usage("--interval is at least 100ms") }
            options.interval = UInt64(seconds * 1e9)
        }
        if let text = arguments["count"] {
            guard let count = Int(text), count > 0 else {
                throw usage("--count is a number of frames, and not \(text.quoted(limit: 40))")
            }
            options.count = count
        }
        if arguments.has("once") {
            guard !arguments.has("count") else { throw usage("--once and --count exclude each other") }
            options.count = 1
            options.once = true
        }
        return options
    }
}

/// A name as part of a path or a query: RFC 3986, everything but the unreserved characters escaped.
func percentEncoded(_ text: String) -> String {
    let hex = Array("0123456789ABCDEF".utf8)
    var bytes: [UInt8] = []
    for byte in text.utf8 {
        switch byte {
        case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x2d, 0x2e, 0x5f, 0x7e: bytes.append(byte)
        default: bytes += [0x25, hex[Int(byte >> 4)], hex[Int(byte & 15)]]
        }
    }
    return String(decoding: bytes, as: UTF8.self)
}
