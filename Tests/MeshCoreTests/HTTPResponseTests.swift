// The response encoder, content negotiation and the router.
import Testing

@testable import MeshCore

@Suite struct HTTPResponseTests {
    private func head(
        _ response: HTTPResponse, _ framing: HTTPResponse.Framing = .length, keepAlive: Bool = true,
        minorVersion: Int = 1
    ) -> String {
        let bytes = response.encodedHead(
            framing: framing, keepAlive: keepAlive, minorVersion: minorVersion, date: 784_111_777)
        return String(decoding: bytes, as: UTF8.self)
    }
    private let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"

    @Test func encodesAWholeResponse() {
        let response = HTTPResponse.text("no", status: 404)
        let common =
            "HTTP/1.1 404 Not Found\r\n\(date)Content-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n"
        #expect(head(response) == common + "\r\n")
        #expect(response.body == Array("no\n".utf8))
        #expect(head(response, keepAlive: false) == common + "Connection: close\r\n\r\n")
        #expect(head(response, minorVersion: 0) == common + "Connection: keep-alive\r\n\r\n")
        #expect(head(response, keepAlive: false, minorVersion: 0) == common + "Connection: close\r\n\r\n")
    }

    @Test func framesStreamsAndEmptyResponses() {
        let response = HTTPResponse(headers: [("A", "b")])
        let common = "HTTP/1.1 200 OK\r\n\(date)A: b\r\n"
        #expect(head(response) == common + "Content-Length: 0\r\n\r\n")
        #expect(head(response, .chunked) == common + "Transfer-Encoding: chunked\r\n\r\n")
        #expect(head(response, .untilClose) == common + "Connection: close\r\n\r\n")
        #expect(head(HTTPResponse(status: 204)) == "HTTP/1.1 204 No Content\r\n\(date)\r\n")
    }

    @Test func noHeaderValueBeginsALine() {
        let response = HTTPResponse(headers: [("A", "b\r\nC: d\u{0}\u{7f}é"), ("X\r\n\r\n", "y")])
        #expect(head(response).contains("\r\nA: b  C: d  é\r\nX    : y\r\nContent-Length: 0\r\n\r\n"))
    }

    @Test func encodesChunks() {
        #expect(HTTPResponse.chunk([]) == [])
        #expect(HTTPResponse.chunk(Array("hello".utf8)) == Array("5\r\nhello\r\n".utf8))
        let long = [UInt8](repeating: 7, count: 300)
        #expect(HTTPResponse.chunk(long) == Array("12c\r\n".utf8) + long + Array("\r\n".utf8))
        #expect(HTTPResponse.lastChunk == Array("0\r\n\r\n".utf8))
    }

    @Test(arguments: [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"), (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"), (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
        (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"), (1_735_689_600, "Wed, 01 Jan 2025 00:00:00 GMT"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
    ])
    func formatsDates(seconds: Int64, text: String) {
        #expect(httpDate(seconds) == text)
    }

    @Test(arguments: [
        (nil, MetricsFormat.text), ("", .text), ("*/*", .text), ("text/html", .text), ("nonsense", .text),
        ("application/openmetrics-text", .openMetrics),
        ("application/openmetrics-text; version=1.0.0", .openMetrics),
        ("Application/OpenMetrics-Text;Version=\"1.0.0\"", .openMetrics),
        ("application/openmetrics-text;version=0.0.1", .text),
        ("application/openmetrics-text;q=0", .text), ("application/openmetrics-text;q=2, */*", .text),
        ("application/*", .text), ("text/plain;q=0.5, application/openmetrics-text;q=0.4", .text),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.5", .openMetrics),
        ("text/plain;q=0.999, application/openmetrics-text;q=1.000", .openMetrics),
        ("text/plain;version=1.0.0, application/openmetrics-text;q=0.1", .openMetrics),
        // What Prometheus 2 and 3 send.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
                + "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", .openMetrics
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
                + "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;"
                + "escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", .openMetrics
        ),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", .text),
        ("text/plain;x=\",application/openmetrics-text\"", .text),
    ])
    func choosesTheMetricsFormat(accept: String?, format: MetricsFormat) {
        #expect(MetricsFormat(accept: accept) == format)
    }

    @Test(arguments: [
        (nil, false), ("", false), ("gzip", true), ("GZIP", true), ("x-gzip", true),
        ("deflate, gzip;q=1.0", true),
        ("gzip;q=0", false), ("gzip;q=0.000", false), ("gzip; q=0.001", true), ("*", true), ("*;q=0", false),
        ("gzip;q=0, *", false), ("identity, gzip;q=0.5", false), ("identity;q=0.5, gzip;q=0.5", true),
        ("gzip;q=1.5", false), ("gzip;q=abc", false), ("br", false), ("gzip;q=0.0001", false),
        ("gzip;q=.5", false),
    ])
    func decidesOnGzip(acceptEncoding: String?, gzip: Bool) {
        #expect(httpAcceptsGzip(acceptEncoding) == gzip)
    }

    @Test(arguments: [
        ("GET", ["metrics"], "metrics []"), ("HEAD", ["metrics"], "metrics []"),
        ("POST", ["metrics"], "405 GET, HEAD"), ("get", ["metrics"], "405 GET, HEAD"),
        ("GET", [""], "404"), ("GET", ["metrics", ""], "404"), ("GET", [], "404"),
        ("GET", ["b", "a/b"], "show [\"a/b\"]"), ("GET", ["b", ""], "404"),
        ("POST", ["b", "x", "open"], "open [\"x\"]"), ("GET", ["b", "x", "open"], "405 POST"),
        ("PUT", ["t", "1"], "bind [\"1\"]"), ("DELETE", ["t", "1"], "unbind [\"1\"]"),
        ("HEAD", ["t", "1"], "405 PUT, DELETE"),
    ])
    func routes(method: String, segments: [String], expected: String) {
        var router = HTTPRouter<String>()
        router.add("GET", "/metrics", "metrics")
        router.add("GET", "/b/{name}", "show")
        router.add("POST", "/b/{name}/open", "open")
        router.add("PUT", "/t/{pid}", "bind")
        router.add("DELETE", "/t/{pid}", "unbind")
        let actual =
            switch router.match(method: method, segments: segments) {
            case .found(let name, let parameters): "\(name) \(parameters)"
            case .methodNotAllowed(let allow): "405 \(allow)"
            case .notFound: "404"
            }
        #expect(actual == expected)
    }
}
