// A plain blocking HTTP client over a raw socket, and the server that the tests talk to.
import CMeshSystem
import Foundation
import MeshCore
import MeshSystem
import Synchronization

@testable import MeshAgent

/// A connection that gives up waiting after five seconds, so that a broken server fails a test rather than hang it.
final class HTTPTestClient {
    let socket: Int32
    private var received: [UInt8] = []

    struct Response: Equatable {
        var status: Int
        var headers: [String: String]
        var body: [UInt8]
        var text: String { String(decoding: body, as: UTF8.self) }
    }
    struct Failure: Error { let errno: Int32 }

    /// - Parameter receiveBuffer: a small one makes a reader slow at once.
    init(port: UInt16, receiveBuffer: Int32? = nil) throws {
        socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard socket >= 0 else { throw Failure(errno: errno) }
        setTimeout()
        if var size = receiveBuffer {
            setsockopt(socket, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
        }
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_port = port.bigEndian
        name.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        try connect(&name)
    }

    init(path: String) throws {
        socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard socket >= 0 else { throw Failure(errno: errno) }
        setTimeout()
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        try connect(&name)
    }

    deinit { close(socket) }

    private func setTimeout() {
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    private func connect<Name>(_ name: inout Name) throws {
        let result = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(socket, $0, socklen_t(MemoryLayout<Name>.size))
            }
        }
        guard result == 0 else { throw Failure(errno: errno) }
    }

    @discardableResult
    func send(_ text: String) -> Int { send(Array(text.utf8)) }

    /// Sends all bytes, or as many as the other side takes before it closes.
    /// - Returns: how many.
    @discardableResult
    func send(_ bytes: [UInt8]) -> Int {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = rest.withUnsafeBytes {
                Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if sent <= 0 { break }
            rest = rest.dropFirst(sent)
        }
        return bytes.count - rest.count
    }

    func get(_ path: String, method: String = "GET", headers: String = "", body: String = "") throws
        -> Response
    {
        let length = body.isEmpty ? "" : "Content-Length: \(body.utf8.count)\r\n"
        send("\(method) \(path) HTTP/1.1\r\nHost: test\r\n\(headers)\(length)\r\n\(body)")
        return try response(to: method)
    }

    /// Ends this side's half of the connection.
    func endInput() { shutdown(socket, Int32(SHUT_WR)) }

    /// Closes with a reset instead of an orderly end.
    func reset() {
        var now = linger(l_onoff: 1, l_linger: 0)
        setsockopt(socket, SOL_SOCKET, SO_LINGER, &now, socklen_t(MemoryLayout<linger>.size))
        dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), socket)
    }

    /// Reads some more. False at the end; throws on a reset and after five seconds.
    private func fill() throws -> Bool {
        var chunk = [UInt8](repeating: 0, count: 65536)
        let count = recv(socket, &chunk, chunk.count, 0)
        guard count >= 0 else { throw Failure(errno: errno) }
        received += chunk[..<count]
        return count > 0
    }

    /// Everything up to and including `end`, which is awaited.
    func read(through end: String) throws -> String {
        let pattern = Array(end.utf8)
        while true {
            if let range = received.firstRange(of: pattern) {
                defer { received.removeSubrange(..<range.upperBound) }
                return String(decoding: received[..<range.upperBound], as: UTF8.self)
            }
            guard try fill() else { throw Failure(errno: ECONNRESET) }
        }
    }

    func read(count: Int) throws -> [UInt8] {
        while received.count < count {
            guard try fill() else { throw Failure(errno: ECONNRESET) }
        }
        defer { received.removeSubrange(..<count) }
        return Array(received[..<count])
    }

    /// Everything until the server closes.
    func readToEnd() throws -> [UInt8] {
        while try fill() {}
        defer { received = [] }
        return received
    }

    /// Whether the server closed in order, with nothing left to read.
    func isAtEnd() throws -> Bool { try readToEnd().isEmpty }

    /// The head of the next response, as status and headers in lower case.
    func head() throws -> Response {
        let lines = try read(through: "\r\n\r\n").components(separatedBy: "\r\n").filter { !$0.isEmpty }
        guard lines[0].hasPrefix("HTTP/1.1 "), let status = Int(lines[0].dropFirst(9).prefix(3)) else {
            throw Failure(errno: EBADMSG)
        }
        let headers = lines.dropFirst().map { line in
            let colon = line.range(of: ": ")!
            return (line[..<colon.lowerBound].lowercased(), String(line[colon.upperBound...]))
        }
        return Response(status: status, headers: Dictionary(uniqueKeysWithValues: headers), body: [])
    }

    func response(to method: String = "GET") throws -> Response {
        var response = try head()
        if method != "HEAD", let length = response.headers["content-length"].flatMap(Int.init) {
            response.body = try read(count: length)
        }
        return response
    }

    /// The next chunk of a chunked body; nil at its end.
    func chunk() throws -> String? {
        let size = Int(try read(through: "\r\n").dropLast(), radix: 16)!
        let bytes = try read(count: size + 2)
        return size == 0 ? nil : String(decoding: bytes.dropLast(2), as: UTF8.self)
    }
}

/// Unpacks one gzip member.
func gunzip(_ bytes: [UInt8], capacity: Int) -> [UInt8]? {
    var stream = z_stream()
    guard inflateInit2_(&stream, 31, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
        return nil
    }
    defer { inflateEnd(&stream) }
    var input = bytes
    var output = [UInt8](repeating: 0, count: capacity)
    let status = input.withUnsafeMutableBufferPointer { input in
        output.withUnsafeMutableBufferPointer { output in
            stream.next_in = input.baseAddress
            stream.avail_in = UInt32(input.count)
            stream.next_out = output.baseAddress
            stream.avail_out = UInt32(output.count)
            return inflate(&stream, Z_FINISH)
        }
    }
    return status == Z_STREAM_END ? Array(output.dropLast(Int(stream.avail_out))) : nil
}

/// A server on a free TCP port and on a UNIX socket in a directory of its own, with every kind of handler.
final class HTTPTestServer: Sendable {
    static let large = [UInt8](repeating: UInt8(ascii: "x"), count: 16 << 20)

    let server: HTTPServer
    let port: UInt16
    let path: String
    private let directory: String
    /// The exchanges of `/deferred` and `/stream`, in the order in which they came.
    let exchanges = Inbox<HTTPExchange>()
    let reports: Inbox<String>

    init(
        maxConnections: Int = 1024, limits: HTTPLimits = HTTPLimits(), streamLimit: Int = 1 << 20,
        outputLimit: Int = 64 << 20, timeouts: HTTPTimeouts = HTTPTimeouts()
    ) throws {
        var router = HTTPRouter<HTTPHandler>()
        let exchanges = exchanges
        router.add("GET", "/hello") { _ in .respond(.text("hello")) }
        router.add("GET", "/large") { _ in .respond(HTTPResponse(body: Self.large)) }
        router.add("GET", "/repetitive") { _ in
            .respond(
                HTTPResponse(
                    contentType: "text/plain", body: [UInt8](repeating: 120, count: 8 << 20),
                    compressible: true))
        }
        router.add("GET", "/compressible") { _ in
            .respond(
                HTTPResponse(contentType: "text/plain", body: Array(Self.large[..<10000]), compressible: true)
            )
        }
        router.add("GET", "/who/{name}") { exchange in
            let peer = exchange.peer.map { "\($0.pid) \($0.uid) \($0.gid)" } ?? "nobody"
            return .respond(.text("\(exchange.parameters[0]) \(peer)"))
        }
        router.add("PUT", "/echo") { .respond(HTTPResponse(body: $0.request.body)) }
        router.add("GET", "/deferred") {
            exchanges.put($0)
            return .deferred
        }
        router.add("GET", "/stream") {
            exchanges.put($0)
            return .stream(
                HTTPResponse(contentType: "application/x-ndjson", body: Array("first\n".utf8)),
                dropped: Array("dropped\n".utf8))
        }
        router.add("GET", "/contradiction") { exchange in
            exchange.reply(.respond(.text("whole")))
            exchange.send(Array("line\n".utf8))
            exchange.finish()
            return .stream(HTTPResponse(), dropped: [])
        }
        directory = NSTemporaryDirectory() + "mesh-http-\(UUID().uuidString.prefix(8))"
        path = directory + "/s"
        let tcp = try Listener.tcp(address: "127.0.0.1", port: 0, backlog: 4096)
        port = tcp.port
        let unix = try Listener.unix(path: path)
        let reports = Inbox<String>()
        self.reports = reports
        server = try HTTPServer(
            services: [
                HTTPService(listener: tcp, router: router, limits: limits, maxConnections: maxConnections),
                HTTPService(listener: unix, router: router, limits: limits, maxConnections: maxConnections),
            ], timeouts: timeouts, streamLimit: streamLimit, outputLimit: outputLimit, report: reports.put)
    }

    deinit {
        server.stop()
        try? FileManager.default.removeItem(atPath: directory)
    }

    func client(receiveBuffer: Int32? = nil) throws -> HTTPTestClient {
        try HTTPTestClient(port: port, receiveBuffer: receiveBuffer)
    }
}

/// Hands values from one thread to another.
final class Inbox<Value: Sendable>: Sendable {
    private let values = Mutex<[Value]>([])
    private let available = DispatchSemaphore(value: 0)

    func put(_ value: Value) {
        values.withLock { $0.append(value) }
        available.signal()
    }

    /// Waits so many seconds for the next value.
    func take(within seconds: Double = 5) -> Value? {
        guard available.wait(timeout: .now() + seconds) == .success else { return nil }
        return values.withLock { $0.removeFirst() }
    }
}
