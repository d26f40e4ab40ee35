// What the request parser takes, what it refuses and with which status, and that neither depends on
// how the bytes were split.
import Testing

@testable import MeshCore

/// Everything that a byte sequence leads to: the requests before the first error, the error, and whether
/// an incomplete request is left.
private struct Outcome: Equatable {
    var requests: [HTTPRequest] = []
    var error: HTTPParseError?
    var phase: HTTPRequestParser.Phase?
}

/// Parses `bytes` handed over in pieces that end at `cuts` (ascending).
private func parse(_ bytes: [UInt8], limits: HTTPLimits = HTTPLimits(), cuts: [Int] = []) -> Outcome {
    var parser = HTTPRequestParser(limits: limits)
    var outcome = Outcome()
    var begin = 0
    do {
        for end in cuts + [bytes.count] {
            parser.append(bytes[begin..<end])
            begin = end
            while let request = try parser.next() {
                outcome.requests.append(request)
            }
        }
        outcome.phase = parser.phase
    } catch {
        outcome.error = error
    }
    return outcome
}

private func parse(_ text: String, limits: HTTPLimits = HTTPLimits()) -> Outcome {
    parse(Array(text.utf8), limits: limits)
}

@Suite struct HTTPRequestParserTests {
    @Test func takesARequestApart() throws {
        let outcome = parse(
            "POST /v1/breakers/a%2Fb%20c/open?service=x%3D1&q=a+b&flag&=e&service=y HTTP/1.1\r\n"
                + "Host: localhost\r\nX-A: \t one \t\r\nx-a:two\r\nEmpty:\r\nContent-Length: 5\r\n\r\nhello")
        let request = try #require(outcome.requests.first)
        #expect(outcome.requests.count == 1 && outcome.error == nil && outcome.phase == .idle)
        #expect(request.method == "POST")
        #expect(request.path == "/v1/breakers/a%2Fb%20c/open")
        #expect(request.segments == ["v1", "breakers", "a/b c", "open"])
        #expect(request.query.map(\.name) == ["service", "q", "flag", "", "service"])
        #expect(request.query.map(\.value) == ["x=1", "a b", "", "e", "y"])
        #expect(request.parameter("service") == "x=1" && request.parameter("none") == nil)
        #expect(request.header("x-a") == "one, two")
        #expect(request.header("empty") == "" && request.header("none") == nil)
        #expect(request.body == Array("hello".utf8))
        #expect(request.minorVersion == 1 && request.keepsAlive)
    }

    @Test(arguments: [
        ("/", [""]), ("/metrics", ["metrics"]), ("/a/", ["a", ""]), ("//", ["", ""]), ("/%41%7e", ["A~"]),
        ("/[fd00::1]:8080", ["[fd00::1]:8080"]), ("/%C3%A9", ["é"]), ("http://h/x", ["x"]),
        ("HTTPS://[::1]:80", [""]), ("http://h?q", [""]), ("/a+b", ["a+b"]), ("/..", [".."]),
    ])
    func splitsPaths(target: String, segments: [String]) {
        #expect(parse("GET \(target) HTTP/1.1\r\nHost: h\r\n\r\n").requests.map(\.segments) == [segments])
    }

    @Test(arguments: [
        ("HTTP/1.1\r\nHost: h", true), ("HTTP/1.1\r\nHost: h\r\nConnection: close", false),
        ("HTTP/1.1\r\nHost: h\r\nConnection: foo, CLOSE", false), ("HTTP/1.0", false),
        ("HTTP/1.1\r\nHost: h\r\nConnection: foo\r\nConnection: close", false), ("HTTP/1.2\r\nHost:", true),
        ("HTTP/1.0\r\nConnection: Keep-Alive", true), ("HTTP/1.0\r\nConnection: keep-alive, close", false),
    ])
    func decidesOnKeepAlive(head: String, keepsAlive: Bool) {
        #expect(parse("GET / \(head)\r\n\r\n").requests.map(\.keepsAlive) == [keepsAlive])
    }

    @Test func pipelinedRequestsComeOneByOne() {
        let outcome = parse(
            "\r\nPUT /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
                + "\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\nGET /3 HTTP/1.1\r\nHost")
        #expect(outcome.requests.map(\.path) == ["/1", "/2"])
        #expect(outcome.requests.map(\.body) == [Array("abc".utf8), []])
        #expect(outcome.phase == .head)
    }

    @Test(arguments: [
        ("", HTTPRequestParser.Phase.idle), ("G", .head), ("GET / HTTP/1.1\r\n", .head),
        ("GET / HTTP/1.1\r\nHost: h\r\n\r", .head),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n", .body),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na", .body),
    ])
    func saysWhatItWaitsFor(text: String, phase: HTTPRequestParser.Phase) {
        #expect(parse(text) == Outcome(phase: phase))
    }

    @Test(arguments: [
        // Request line, RFC 9112 section 3.
        ("GET /\r\n", 400), ("GET  / HTTP/1.1\r\n", 400), (" GET / HTTP/1.1\r\n", 400), ("\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\n", 400), ("GET\t/\tHTTP/1.1\r\n", 400), ("GE(T / HTTP/1.1\r\n", 400),
        ("GET / http/1.1\r\n", 400), ("GET / HTTP/1.10\r\n", 400), ("GET / HTTP/1\r\n", 400),
        ("GET / HTTP/2.0\r\n", 505), ("PRI * HTTP/2.0\r\n", 505), ("GET / HTTP/0.9\r\n", 505),
        // Its target, section 3.2.
        ("GET * HTTP/1.1\r\n", 400), ("GET x HTTP/1.1\r\n", 400), ("CONNECT h:80 HTTP/1.1\r\n", 400),
        ("GET http:///x HTTP/1.1\r\n", 400), ("GET http://u@h/ HTTP/1.1\r\n", 400),
        ("GET ftp://h/ HTTP/1.1\r\n", 400), ("GET /#a HTTP/1.1\r\n", 400), ("GET /é HTTP/1.1\r\n", 400),
        ("GET /% HTTP/1.1\r\n", 400), ("GET /%4 HTTP/1.1\r\n", 400), ("GET /%4g HTTP/1.1\r\n", 400),
        ("GET /%ff HTTP/1.1\r\n", 400), ("GET /%00 HTTP/1.1\r\n", 400), ("GET /%0a HTTP/1.1\r\n", 400),
        ("GET /?a=%0D HTTP/1.1\r\n", 400), ("GET /?%c0%80 HTTP/1.1\r\n", 400), ("GET /%7f HTTP/1.1\r\n", 400),
        // Line ends and control characters, section 2.2: refused at the very byte.
        ("GET / HTTP/1.1\n", 400), ("GET / HTTP/1.1\rH", 400), ("GET /\u{0}", 400), ("\u{16}\u{3}\u{1}", 400),
        ("GET / HTTP/1.1\r\nA: b\u{0}", 400), ("GET / HTTP/1.1\r\nA: b\n", 400), ("GET /\u{7f}", 400),
        ("GET / HTTP/1.1\r\nA: b\rc", 400), ("GET / HTTP/1.1\r\r\n", 400),
        // Header lines, section 5.
        ("GET / HTTP/1.1\r\nA : b\r\n", 400), ("GET / HTTP/1.1\r\nA\t: b\r\n", 400),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n", 400), ("GET / HTTP/1.1\r\n\tA: b\r\n", 400),
        ("GET / HTTP/1.1\r\n: b\r\n", 400), ("GET / HTTP/1.1\r\nA\r\n", 400),
        ("GET / HTTP/1.1\r\nA(: b\r\n", 400), ("GET / HTTP/1.1\r\nÄ: b\r\n", 400),
        // Host, section 3.2.
        ("GET / HTTP/1.1\r\n\r\n", 400), ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", 400), ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400), ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        // Body length, section 6.
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n", 413),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551617\r\n\r\n", 413),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n", 417),
    ])
    func refuses(text: String, status: Int) {
        let outcome = parse(text)
        #expect(outcome.error?.status == status)
        #expect(outcome.requests.isEmpty)
    }

    @Test func limitsAreExact() {
        let limits = HTTPLimits(requestLine: 20, headers: 19, headerCount: 3, body: 4)
        func status(_ line: String, _ headers: [String]) -> Int? {
            let outcome = parse(([line] + headers).joined(separator: "\r\n") + "\r\n\r\n", limits: limits)
            return outcome.error?.status ?? (outcome.requests.count == 1 ? 200 : nil)
        }
        #expect(status("GET /4567 HTTP/1.1", ["Host: h"]) == 200)
        #expect(status("GET /45678 HTTP/1.1", ["Host: h"]) == 414)
        #expect(status("GET / HTTP/1.0", ["A: 456789012345"]) == 200)
        #expect(status("GET / HTTP/1.0", ["A: 4567890123456"]) == 431)
        #expect(status("GET / HTTP/1.0", ["A:", "B:", "C:"]) == 200)
        #expect(status("GET / HTTP/1.0", ["A:", "B:", "C:", "D:"]) == 431)
        #expect(status("GET / HTTP/1.0", ["Content-Length:5"]) == 431)
        // The limits hold while a line has no end, too.
        #expect(parse(String(repeating: "A", count: 20), limits: limits).error == nil)
        #expect(parse(String(repeating: "A", count: 21), limits: limits).error?.status == 414)
        let head = "GET / HTTP/1.1\r\n"
        #expect(parse(head + String(repeating: "A", count: 19), limits: limits).error == nil)
        #expect(parse(head + String(repeating: "A", count: 20), limits: limits).error?.status == 431)
    }

    @Test func defaultLimits() {
        let long = String(repeating: "a", count: 8192 - 16)
        #expect(parse("GET /\(long) HTTP/1.1\r\nHost: h\r\n\r\n").requests.count == 1)
        #expect(parse("GET /\(long)a HTTP/1.1\r\nHost: h\r\n\r\n").error?.status == 414)
        let head = "GET / HTTP/1.1\r\nHost: h\r\n"
        let some = String(repeating: "A: b\r\n", count: 99)
        #expect(parse(head + some + "\r\n").requests.count == 1)
        #expect(parse(head + some + "A: b\r\n\r\n").error?.status == 431)
        let large = "A: " + String(repeating: "b", count: 16384 - 9 - 5 - 2) + "\r\n"
        #expect(parse(head + large + "\r\n").requests.count == 1)
        #expect(parse(head + "A" + large + "\r\n").error?.status == 431)
        let body = String(repeating: "x", count: 65536)
        #expect(parse(head + "Content-Length: 65536\r\n\r\n" + body).requests.map(\.body.count) == [65536])
    }

    @Test func continueIsOwedOnceAndOnlyBeforeTheBody() throws {
        let head = "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
        var parser = HTTPRequestParser()
        var log: [String] = []
        for piece in ["", "\n", "", "a", "b" + head, "cd", head + "ef"] {
            parser.append(
                (piece.isEmpty && log.isEmpty ? String(decoding: head.utf8.dropLast(), as: UTF8.self) : piece)
                    .utf8)
            let body = try parser.next().map { String(decoding: $0.body, as: UTF8.self) }
            let owed = parser.takeContinue()
            log.append((body ?? "-") + (owed ? " continue" : ""))
        }
        #expect(log == ["-", "- continue", "-", "-", "ab", "cd", "ef"])
        #expect(parse(head.replacing("1.1", with: "1.0")).phase == .body)
    }

    @Test func idleParserHoldsNoBytes() throws {
        var parser = HTTPRequestParser()
        for _ in 0..<1000 {
            parser.append("GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HT".utf8)
            #expect(try parser.next()?.path == "/")
            #expect(parser.phase == .idle || parser.phase == .head)
            parser.append("TP/1.1\r\nHost: h\r\n\r\n".utf8)
            #expect(try parser.next()?.path == "/")
            #expect(try parser.next() == nil)
            #expect(parser.phase == .idle && parser.bufferedBytes == 0)
        }
    }
}

// MARK: Hostile bytes

/// SplitMix64: the same inputs on every run.
private struct Generator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

private let seeds: [[UInt8]] = [
    "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "\r\nGET /metrics?a=%20&b=c+d HTTP/1.1\r\nHost: [::1]:9\r\nAccept: text/plain;q=0.5, */*\r\n\r\n",
    "PUT /v1/traces/1 HTTP/1.1\r\nhost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{\"a\": 12}",
    "POST /x HTTP/1.0\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nabHEAD http://h/ HTTP/1.1\r\nHost:\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
].map { Array($0.utf8) }

@Suite struct HTTPRequestParserSplitTests {
    @Test func everySplitOfAGoodExchangeIsTheSame() {
        for bytes in seeds {
            let whole = parse(bytes)
            #expect(parse(bytes, cuts: Array(1..<bytes.count)) == whole)
            for cut in 1..<bytes.count {
                #expect(parse(bytes, cuts: [cut]) == whole)
            }
        }
    }
}
