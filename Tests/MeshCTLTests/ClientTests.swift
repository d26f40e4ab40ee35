// The HTTP client: whole answers however they arrive, and a clear word about all others.
import Foundation
import MeshCore
import Testing

@testable import MeshCTL

@Suite struct ResponseTests {
    private static let responses: [(raw: String, status: Int, type: String?, body: String)] = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, nil, "hello"),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-LENGTH:  2 \r\nContent-Type: Application/JSON; x=y\r\n\r\n{}",
            404, "application/json", "{}"
        ),
        ("HTTP/1.0 200\nContent-Length: 0\n\n", 200, nil, ""),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, nil, ""),
        ("HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, nil, "x"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0A;a=b\r\n, world!!!\r\n0\r\nX: y\r\n\r\n",
            200, nil, "hello, world!!!"
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 200, nil, "abc"),
    ]

    @Test("A response is the same wherever the stream is cut", arguments: responses.indices)
    func splits(index: Int) throws {
        let (raw, status, type, body) = Self.responses[index]
        let bytes = Array(raw.utf8)
        for split in 0...bytes.count {
            var decoder = ResponseDecoder()
            try decoder.push(bytes[..<split])
            var content = decoder.takeBody()
            try decoder.push(bytes[split...])
            content += decoder.takeBody()
            #expect(decoder.isComplete && decoder.status == status && decoder.mediaType == type)
            #expect(String(decoding: content, as: UTF8.self) == body, "cut at \(split)")
        }
        var decoder = ResponseDecoder()
        for byte in bytes { try decoder.push([byte]) }
        #expect(decoder.isComplete && String(decoding: decoder.takeBody(), as: UTF8.self) == body)
    }

    @Test("A response that stops early is never whole", arguments: responses.indices)
    func truncated(index: Int) throws {
        let bytes = Array(Self.responses[index].raw.utf8)
        for end in 0..<bytes.count {
            var decoder = ResponseDecoder()
            try decoder.push(bytes[..<end])
            #expect(!decoder.isComplete, "at \(end)")
            #expect(throws: ResponseError.self, "at \(end)") { try decoder.finish() }
        }
    }

    @Test("Without a length the body goes on until the end")
    func untilEnd() throws {
        var decoder = ResponseDecoder()
        try decoder.push(Array("HTTP/1.1 200 OK\r\n\r\nto the ".utf8))
        #expect(!decoder.isComplete)
        try decoder.push(Array("end".utf8))
        try decoder.finish()
        #expect(decoder.isComplete && String(decoding: decoder.takeBody(), as: UTF8.self) == "to the end")
    }

    private static let malformedCases: [(raw: String, expected: ResponseError)] = [
        ("SSH-2.0-OpenSSH\r\n", .malformed("it does not start with HTTP/")),
        ("HTTP/2 200\r\n", .malformed("its status line is not one of HTTP/1.1")),
        ("HTTP/1.1 2000 OK\r\n", .malformed("its status line is not one of HTTP/1.1")),
        ("HTTP/1.1 0x1 OK\r\n", .malformed("its status line is not one of HTTP/1.1")),
        ("HTTP/1.1 999 OK\r\n", .malformed("its status is 999")),
        ("HTTP/1.1 200 OK\r\nno colon\r\n", .malformed("a header line has no name")),
        ("HTTP/1.1 200 OK\r\n: x\r\n", .malformed("a header line has no name")),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", .malformed("its Content-Length is not a number")),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n",
            .malformed("its Content-Length is not a number")
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            .malformed("its Content-Length is not a number")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
            .malformed("its Transfer-Encoding is not chunked")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            .malformed("it has both a Content-Length and a Transfer-Encoding")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
            .malformed("a chunk size is not a number")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
            .malformed("a chunk size is not a number")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            .malformed("a chunk is longer than its size says")
        ),
        ("HTTP/1.1 200 OK\r\nX: " + String(repeating: "x", count: 40_000), .tooLarge("its head")),
        ("HTTP/1.1 200 OK\r\n" + String(repeating: "X: y\r\n", count: 8000), .tooLarge("its head")),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + String(repeating: "1", count: 2000),
            .tooLarge("a chunk size line")
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
                + String(repeating: "X: y\r\n", count: 8000),
            .tooLarge("its trailers")
        ),
    ]

    @Test("What breaks the rules is refused", arguments: malformedCases)
    func malformed(raw: String, expected: ResponseError) {
        var decoder = ResponseDecoder()
        #expect(throws: expected) { try decoder.push(Array(raw.utf8)) }
    }

    @Test("Random damage never traps, and never makes the decoder hold more than it was given")
    func fuzz() {
        var random = SplitMix(state: 42)
        let seeds = Self.responses.map { Array($0.raw.utf8) }
        for _ in 0..<20_000 {
            var bytes = seeds[Int.random(in: seeds.indices, using: &random)]
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let at = Int.random(in: bytes.indices, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[at] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.insert(UInt8.random(in: 0...255, using: &random), at: at)
                default: if bytes.count > 1 { bytes.remove(at: at) }
                }
            }
            var decoder = ResponseDecoder()
            var content = 0
            do {
                var rest = bytes[...]
                while !rest.isEmpty {
                    let part = rest.prefix(Int.random(in: 1...9, using: &random))
                    try decoder.push(part)
                    content += decoder.takeBody().count
                    rest = rest.dropFirst(part.count)
                }
                try decoder.finish()
                #expect(decoder.isComplete)
            } catch {
                _ = error as ResponseError
            }
            #expect(content <= bytes.count)
        }
    }
}

@Suite struct ClientTests {
    private func failure(_ client: ControlClient) -> String {
        do throws(Failure) {
            let value = try client.call("GET", "/v1/status")
            return "no failure but \(value)"
        } catch {
            switch error {
            case .noAgent(let text), .noAgentRuns(let text): return text
            default: return "\(error)"
            }
        }
    }

    @Test("An answer in two parts, wherever it is cut")
    func splits() throws {
        let whole =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n6\r\n\": 42}\r\n0\r\n\r\n"
        let next = Counter(0)
        let server = TestServer { _ in Reply(raw: whole, split: next.increment()) }
        defer { server.stop() }
        for _ in 1..<whole.utf8.count {
            #expect(try ControlClient(path: server.path).call("GET", "/") == ["a": 42])
        }
    }

    @Test("Nobody there: which way, and what to do")
    func nobody() {
        let scratch = Scratch()
        #expect(
            failure(ControlClient(path: scratch.path + "/none"))
                == "no agent: there is no socket at \(scratch.path)/none. Start one with `mesh-agent run`, as root, "
                + "or name its socket with --control")
        let server = TestServer { _ in Reply(raw: "") }
        server.stop()
        #expect(
            failure(ControlClient(path: server.path))
                == "no agent: nobody listens at \(server.path), which an agent has left behind. Start one with "
                + "`mesh-agent run`, as root")
    }

    @Test("Not allowed: run it as root", .enabled(if: geteuid() == 0))
    func notAllowed() {
        let server = TestServer { _ in .json("{}") }
        defer { server.stop() }
        // Of this thread alone, and with it the right to pass over permissions.
        typealias SetUser = @convention(c) (UInt32) -> Int32
        let setUser = unsafeBitCast(dlsym(nil, "setfsuid"), to: SetUser.self)
        _ = setUser(65534)
        let failure = failure(ControlClient(path: server.path))
        _ = setUser(0)
        #expect(failure == "permission denied at \(server.path). Run meshctl as root, for example with sudo")
    }

    @Test("An agent that hangs is told from one that is not there")
    func hangs() {
        let server = TestServer { _ in Reply(raw: "HTTP/1.1 200 OK\r\n", staysOpen: true) }
        defer { server.stop() }
        let text = failure(ControlClient(path: server.path, timeout: 100_000_000))
        #expect(text.hasPrefix("the agent at \(server.path) does not answer within 0.1s: "))
    }

    @Test(
        "What is no agent's answer is told as such",
        arguments: [
            ("", "the connection ended in the middle of nothing: it sent no answer"),
            ("HTTP/1.1 200 OK\r\nContent-Le", "the connection ended in the middle of the head"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
                "the connection ended in the middle of the body, 7 bytes short"
            ),
            ("220 smtp.example.com ESMTP\r\n", "the answer is not HTTP: it does not start with HTTP/"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "its JSON is wrong at line 1: "),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "its JSON is wrong at line 1: "),
            ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "it has status 502 and no reason"),
            ("HTTP/1.1 301 Moved\r\nContent-Length: 2\r\n\r\n{}", "it has status 301 and no reason"),
        ])
    func noAgent(raw: String, expected: String) {
        let server = TestServer { _ in Reply(raw: raw) }
        defer { server.stop() }
        let text = failure(ControlClient(path: server.path))
        #expect(
            text.hasPrefix(
                "what listens at \(server.path) does not answer as a mesh-agent does: \(expected)"),
            "\(text)")
    }

    @Test("An answer without end is given up")
    func endless() {
        let chunk = "100000\r\n" + String(repeating: " ", count: 1 << 20) + "\r\n"
        let server = TestServer { _ in
            Reply(
                raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + String(repeating: chunk, count: 66))
        }
        defer { server.stop() }
        #expect(
            failure(ControlClient(path: server.path)).hasSuffix(
                "it has more than 64 MiB; narrow down what is asked for"))
    }

    @Test("A stream's lines arrive one by one, wherever the stream is cut")
    func stream() throws {
        let whole = Reply.lines(["{\"a\":1}", "", "{\"b\":2}"])
        let next = Counter(0)
        let server = TestServer { _ in
            var reply = whole
            reply.split = next.increment()
            return reply
        }
        defer { server.stop() }
        for _ in 1..<whole.bytes.count {
            var lines: [JSONValue] = []
            #expect(
                throws: Failure.noAgent(
                    "the agent at \(server.path) ended the stream; it was probably stopped")
            ) {
                try ControlClient(path: server.path).follow("/") { lines.append($0) }
            }
            #expect(lines == [["a": 1], ["b": 2]])
        }
    }

    @Test("A stream that is none, is cut off, or has a line without end")
    func brokenStreams() {
        func failure(_ raw: String) -> Failure? {
            let server = TestServer { _ in Reply(raw: raw) }
            defer { server.stop() }
            do throws(Failure) {
                try ControlClient(path: server.path).follow("/") { _ in }
            } catch {
                guard case .noAgent(let text) = error else { return error }
                return .noAgent(text.replacingOccurrences(of: server.path, with: "PATH"))
            }
        }
        let prefix = "what listens at PATH does not answer as a mesh-agent does: "
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
        #expect(
            failure("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                == .noAgent(prefix + "it is not a stream of lines"))
        #expect(
            failure(
                "HTTP/1.1 404 Not Found\r\nContent-Length: 38\r\n\r\n{\"error\":\"no such\",\"suggestion\":\"one\"}"
            )
                == .refused("no such", suggestion: "one"))
        #expect(
            failure(head + "Content-Length: 100\r\n\r\n{}\n")
                == .noAgent(prefix + "the connection ended in the middle of the body, 97 bytes short"))
        let endless = String(repeating: "x", count: 1_100_000)
        #expect(failure(head + "\r\n" + endless) == .noAgent(prefix + "a line of the stream does not end"))
    }
}

/// A counter for the server's thread.
final class Counter: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Int
    init(_ value: Int) { self.value = value }
    func increment() -> Int {
        lock.withLock {
            value += 1
            return value
        }
    }
}

/// Random numbers that are the same in each run.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
