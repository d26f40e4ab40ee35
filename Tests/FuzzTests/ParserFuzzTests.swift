// Everything that parses bytes of others: requests to the agent, answers to meshctl, configurations,
// command lines, names. None may crash, hang or grow, and what is accepted must hold what it promises.
import Glibc
import MeshCore
import Testing

@testable import MeshAgent
@testable import MeshCTL
@testable import MeshCore

/// Input from a generator, cut into pieces at random places.
private func pieces(_ bytes: [UInt8], _ random: inout SplitMix64) -> [ArraySlice<UInt8>] {
    let cuts = (0..<Int.random(in: 1...4, using: &random)).map { _ in
        Int.random(in: 0...bytes.count, using: &random)
    }
    return zip([0] + cuts.sorted(), cuts.sorted() + [bytes.count]).map { bytes[$0..<$1] }
}

private func systemIPv6(_ text: String) -> IPAddress? {
    var bytes = [UInt8](repeating: 0, count: 16)
    guard inet_pton(AF_INET6, text, &bytes) == 1 else { return nil }
    let halves = [bytes[..<8], bytes[8...]].map { $0.reduce(0) { UInt64($0) << 8 | UInt64($1) } }
    return IPAddress(high: halves[0], low: halves[1])
}

/// Whether a name could do harm where it is shown.
private func isPrintable(_ text: String) -> Bool { text.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7f } }

@Suite(.serialized) struct ParserFuzzTests {
    static let jsonWords = [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\\ud83d", "null", "true", "1e999", "-", "0", "1.5",
        "//", "\u{0}", "é", "\n", "\"name\":", "10s", "/24", "::", "255", "99999999999999999999", "--", "=",
    ]

    // MARK: HTTP

    private struct Requests: Equatable {
        var requests: [HTTPRequest] = []
        var error: HTTPParseError?
    }

    private func requests(_ parts: [ArraySlice<UInt8>], _ limits: HTTPLimits) throws -> Requests {
        var parser = HTTPRequestParser(limits: limits)
        var found = Requests()
        for part in parts {
            parser.append(part)
            do throws(HTTPParseError) {
                while let request = try parser.next() { found.requests.append(request) }
            } catch {
                found.error = error
                return found
            }
            try holds(
                parser.bufferedBytes <= limits.requestLine + limits.headers + limits.body + part.count,
                "it holds \(parser.bufferedBytes) bytes")
            _ = parser.takeContinue()
        }
        return found
    }

    @Test func httpRequests() throws {
        let words = [
            "\r\n", "\r", "\n", " ", "\t", ":", "%", "%00", "%zz", "%2f", "Content-Length: 3\r\n",
            "Host: x\r\n", "\u{0}", "HTTP/1.1", "HTTP/2.0", "Transfer-Encoding: chunked\r\n", " folded\r\n",
            "999999999999999999999", "GET /", "?a=b&", "\r\n\r\n", "Expect: 100-continue\r\n",
            "Accept-Encoding: gzip;q=0.001, *;q=0\r\n", "Accept: application/openmetrics-text;q=1,\"\r\n",
        ]
        let limits = [
            HTTPLimits(), HTTPLimits(body: 0), HTTPLimits(requestLine: 40, headers: 60, headerCount: 3),
        ]
        try Fuzzer("http-request", short: 10_000, words: words).run { input, random in
            let limit = limits[Int.random(in: 0..<limits.count, using: &random)]
            let whole = try requests([input[...]], limit)
            let split = try requests(pieces(input, &random), limit)
            try holds(whole == split, "it depends on where the input was split: \(whole), \(split)")
            if let error = whole.error {
                try holds(
                    [400, 413, 414, 417, 431, 501, 505].contains(error.status), "status \(error.status)")
            }
            for request in whole.requests {
                try holds(request.body.count <= limit.body, "a body of \(request.body.count) bytes")
                try holds(request.headers.count <= limit.headerCount, "\(request.headers.count) headers")
                try holds(isPrintable(request.method + request.path), "a control character in the target")
                try holds(request.segments.allSatisfy(isPrintable), "a control character in a segment")
                try holds(
                    request.query.allSatisfy { isPrintable($0.name) && isPrintable($0.value) },
                    "a control character in the query")
                _ = httpAcceptsGzip(request.header("accept-encoding"))
                _ = MetricsFormat(accept: request.header("accept"))
            }
            return !whole.requests.isEmpty
        }
    }

    private struct Response: Equatable {
        var status: Int?
        var mediaType: String?
        var body: [UInt8] = []
        var error: ResponseError?
    }

    private func response(_ parts: [ArraySlice<UInt8>]) throws -> Response {
        var decoder = ResponseDecoder()
        var found = Response()
        do throws(ResponseError) {
            for part in parts {
                try decoder.push(part)
                found.body += decoder.takeBody()
            }
            try decoder.finish()
        } catch {
            return Response(error: error)
        }
        (found.status, found.mediaType) = (decoder.status, decoder.mediaType)
        return found
    }

    @Test func httpResponses() throws {
        let words = [
            "\r\n", "\n", "HTTP/1.1 ", "HTTP/1.0 200 OK\r\n", "100", "204", "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "ffffffff\r\n", "5;x=y\r\n", "-1", "+5", ":", " ",
            "Content-Type: application/x-ndjson; charset=utf-8\r\n", "99999999999999999999",
        ]
        try Fuzzer("http-response", short: 10_000, words: words).run { input, random in
            let whole = try response([input[...]])
            let split = try response(pieces(input, &random))
            try holds(whole == split, "it depends on where the input was split: \(whole), \(split)")
            guard whole.error == nil else { return false }
            try holds(whole.body.count <= input.count, "a body of \(whole.body.count) bytes")
            try holds((200...599).contains(whole.status ?? 0), "status \(whole.status ?? 0)")
            return true
        }
    }

    // MARK: JSON

    @Test func json() throws {
        try Fuzzer("json", short: 10_000, words: Self.jsonWords).run { input, _ in
            guard let value = try? JSONValue.parse(input) else { return false }
            // What is accepted reads back the same, however it is written.
            try holds(try JSONValue.parse(value.bytes()) == value, "it reads back another value")
            try holds(
                try JSONValue.parse(value.bytes(pretty: true)) == value, "indented, it is another value")
            return true
        }
    }

    @Test func configurations() throws {
        let words =
            Self.jsonWords + [
                "\"services\":", "\"endpoints\":", "\"breaker\":", "{}", "[]", "\"enforce\"", "0.5", "1e-9",
                "18446744073709551615ns", "\"[::]:1\"", "\"0.0.0.0/0:1\"", "\"auto\"",
            ]
        try Fuzzer("configuration", short: 3000, words: words).run { input, _ in
            do throws(ConfigurationErrors) {
                try check(Configuration.parse(bytes: input, file: "f"))
                return true
            } catch {
                try holds(!error.errors.isEmpty, "refused, and not said why")
                try holds(
                    error.description.utf8.allSatisfy { $0 >= 0x20 || $0 == 0x0a }
                        && error.description.split(separator: "\n").count == error.errors.count,
                    "an error of more than one line: \(error.description.debugDescription)")
                return false
            }
        }
    }

    private func check(_ configuration: Configuration) throws(ConfigurationErrors) {
        #expect(configuration.listen.port > 0)
        #expect(zip(configuration.buckets, configuration.buckets.dropFirst()).allSatisfy(<))
        #expect((100...1_000_000).contains(configuration.limits.maxSeries))
        #expect((0...1).contains(configuration.breakers.maxOpenShare))
        for service in configuration.services {
            #expect((1...200).contains(service.name.utf8.count))
            #expect(isPrintable(service.name))
            #expect(!service.endpoints.isEmpty)
            guard let breaker = service.breaker else { continue }
            #expect(breaker.failureRate > 0 && breaker.failureRate <= 1)
            #expect(breaker.openFor <= breaker.maxOpenFor)
            #expect(breaker.minimumRequests > 0)
        }
    }

    /// Answers of something at the control socket that is no agent, as meshctl shows them.
    @Test func answers() throws {
        let page = Page(width: 80, height: nil, colour: true, ascii: false)
        try Fuzzer(
            "answer", short: 3000, words: Self.jsonWords + ["1e308", "-1e308", "\\u001b[2J", "\\u202e"]
        ).run {
            input, _ in
            guard let value = try? JSONValue.parse(input) else { return false }
            let answer = Answer(value)
            var shown: [[String]] = []
            func show(_ lines: () throws(Failure) -> [String]) {
                if let lines = try? lines() { shown.append(lines) }
            }
            show { () throws(Failure) in StatusView.lines(try Status(answer), on: page) }
            show { () throws(Failure) in
                Views.services(
                    try answer.list("services") { row throws(Failure) in try ServiceRow(row) }, on: page)
            }
            show { () throws(Failure) in
                Views.breakers(
                    try answer.list("breakers") { row throws(Failure) in try Breaker(row) }, on: page, now: 0)
            }
            show { () throws(Failure) in Views.breaker(try Breaker(answer), on: page, now: 1.7e9) }
            show { () throws(Failure) in Views.overrideDone(try Breaker(answer), on: page, now: 1.7e9) }
            show { () throws(Failure) in
                Views.events(try answer.list("events") { row throws(Failure) in try Event(row) }, on: page)
            }
            show { () throws(Failure) in
                Views.connections(
                    try answer.list("connections") { row throws(Failure) in try Connection(row) },
                    filtered: false, on: page)
            }
            show { () throws(Failure) in
                Views.bindings(
                    try answer.list("bindings") { row throws(Failure) in try Binding(row) }, on: page, now: 0)
            }
            for line in shown.joined() {
                // Our own colours aside, nothing that moves the cursor.
                let plain = line.replacing(/\u{1B}\[[0-9]*m/, with: "")
                try holds(plain == plain.harmless, "it would reach the terminal: \(plain.debugDescription)")
            }
            return !shown.isEmpty
        }
    }

    // MARK: Texts

    @Test func commandLines() throws {
        let programs = [AgentOptions.program, Catalog.program]
        let words = [
            "\n", "run", "check", "--config", "--config=", "--control", "--listen=1:2", "--", "-", "--=", "=",
            "--help", "-h", "-o", "-ojson", "breaker", "open", "--reason", "--for", "\u{301}", "\u{0}", "1h",
            "--version", "trace", "bind", "--pid", "--follow", "completion", "bash",
        ]
        try Fuzzer("command-line", short: 10_000, words: words).run { input, random in
            let line = input.split(separator: 0x0a, omittingEmptySubsequences: false).map {
                String(decoding: $0, as: UTF8.self)
            }
            let program = programs[Int.random(in: 0..<programs.count, using: &random)]
            do throws(ArgumentError) {
                let arguments = try program.parse(line)
                if program.name == "mesh-agent" { _ = try? AgentOptions(arguments) }
                try? holds(!program.help(arguments.command).isEmpty, "no help")
                return true
            } catch {
                try holds(
                    !error.description.contains { $0.isNewline },
                    "an error of more than one line: \(error.description.debugDescription)")
                return false
            }
        }
    }

    /// The small texts of configurations and command lines: each is read by every parser.
    @Test func texts() throws {
        let words = [
            ":", "::", "0", "ffff", ".", "255", "/", "/0", "/128", "[", "]", "h", "m", "s", "ms", "us", "ns",
            "1e3", "18446744073709551615", "-", "+", " ", "\u{0}", "é", "00000000000000000000000000000000",
        ]
        try Fuzzer("text", short: 20_000, words: words).run { input, _ in
            let text = String(decoding: input, as: UTF8.self)
            var isAccepted = false
            if text.contains(":"), text.utf8.allSatisfy({ $0 != 0 && $0 < 0x80 }) {
                try holds((try? IPAddress(text)) == systemIPv6(text), "the C library reads it otherwise")
            }
            if let endpoint = try? Endpoint(text) {
                isAccepted = true
                try holds(try Endpoint(endpoint.description) == endpoint, "it reads back another endpoint")
                try holds(
                    endpoint.network.contains(endpoint.network.address), "a network without its address")
            }
            if let network = try? Network(text) {
                isAccepted = true
                try holds(try Network(network.description) == network, "it reads back another network")
            }
            if let address = try? AddressPort(text) {
                isAccepted = true
                try holds(try AddressPort(address.description) == address, "it reads back another address")
            }
            if let nanoseconds = try? DurationText.parse(text) {
                isAccepted = true
                try holds(
                    try DurationText.parse(DurationText.format(nanoseconds)) == nanoseconds,
                    "it reads back another duration")
                _ = DurationText.brief(nanoseconds)
            }
            if let trace = TraceID(text) {
                isAccepted = true
                try holds(TraceID(trace.description) == trace, "it reads back another trace ID")
            }
            return isAccepted
        }
    }

    /// A cgroup's name is whatever who made it called it. It becomes a label.
    @Test func workloadNames() throws {
        let words = [
            "/", "//", ".scope", ".slice", ".service", "docker-", "cri-containerd-", "kubepods", "pod",
            "\\x2d",
            "\"", "\n", "\\", "{", "}", "\u{0}", "..", "é", "\u{202e}",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "6b8c1b3e_5f7e_4e0c_9b1c_2f6d3a4b5c6d", "user@1000.service", "session-1.scope",
        ]
        try Fuzzer("workload", short: 10_000, words: words, refuses: false).run { input, _ in
            let name = WorkloadName.name(cgroupPath: String(decoding: input, as: UTF8.self))
            try holds(
                (1...WorkloadName.maximumLength).contains(name.utf8.count),
                "a name of \(name.utf8.count) bytes")
            var requests = SeriesTable(bounds: [1000], maxSeries: 100)
            requests.record(Sample(kind: .request, role: .client, status: 200), workload: 1, wallTime: 1)
            var encoder = MetricsEncoder()
            let snapshot = MetricsSnapshot(
                services: ["other"], workloads: ["other", name], namesGeneration: 0, requests: requests,
                connections: ConnectionTable(bounds: [1000], maxSeries: 100), version: "0", kernel: "0")
            let page = encoder.encode(snapshot, as: .text)
            // One series that ends where it should: the name has not broken out of its quotes.
            let lines = page.split(separator: 0x0a).filter {
                $0.starts(with: "mesh_request_duration_seconds_count".utf8)
            }
            try holds(lines.count == 1 && lines[0].suffix(3).elementsEqual("} 1".utf8), "it broke its line")
            try holds(unquoted(lines[0]), "it broke its quotes: \(String(decoding: lines[0], as: UTF8.self))")
            return true
        }
    }

    /// Whether a line of metrics has five labels, all quoted.
    private func unquoted(_ line: ArraySlice<UInt8>) -> Bool {
        var (isQuoted, isEscaped, values) = (false, false, 0)
        for byte in line {
            if isEscaped {
                isEscaped = false
            } else if isQuoted, byte == UInt8(ascii: "\\") {
                isEscaped = true
            } else if byte == UInt8(ascii: "\"") {
                isQuoted.toggle()
                values += isQuoted ? 1 : 0
            }
        }
        return !isQuoted && values == 5
    }
}
