// What the tests stand on: an agent made of canned responses, a console that is captured, and the
// answers of a node on which something goes on.
import Foundation
import MeshCore
import Testing

@testable import MeshCTL

/// A directory that goes away with its owner.
final class Scratch: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/meshctl-test-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// What a client asked.
struct Asked: Equatable, Sendable {
    let method: String
    let target: String
    let body: String
}

/// What the server does with a connection.
struct Reply: Sendable {
    var bytes: [UInt8]
    /// Sent in two parts, with the first received before the second is sent.
    var split: Int?
    /// The connection stays open after the bytes until the client is gone.
    var staysOpen = false

    init(raw: String, split: Int? = nil, staysOpen: Bool = false) {
        bytes = Array(raw.utf8)
        self.split = split
        self.staysOpen = staysOpen
    }

    static func json(_ body: String, status: String = "200 OK") -> Reply {
        Reply(
            raw: "HTTP/1.1 \(status)\r\nContent-Type: application/json\r\n"
                + "Content-Length: \(body.utf8.count)\r\n\r\n\(body)")
    }

    static func lines(_ lines: [String], ends: Bool = true) -> Reply {
        var raw =
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        for line in lines { raw += String(line.utf8.count + 1, radix: 16) + "\r\n\(line)\n\r\n" }
        return Reply(raw: raw + (ends ? "0\r\n\r\n" : ""), staysOpen: !ends)
    }
}

/// An HTTP server on a UNIX socket that answers every request by a function, one connection at a time.
final class TestServer: @unchecked Sendable {
    private let scratch = Scratch()
    private let listener: Int32
    private let lock = NSLock()
    private var requests: [Asked] = []
    private let done = DispatchSemaphore(value: 0)

    var path: String { scratch.path + "/control.sock" }

    init(_ answer: @escaping @Sendable (Asked) -> Reply) {
        signal(SIGPIPE, SIG_IGN)
        listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array((scratch.path + "/control.sock").utf8)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let result = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        precondition(result == 0 && listen(listener, 64) == 0)
        Foundation.Thread.detachNewThread { [self] in
            while true {
                let connection = accept(listener, nil, nil)
                if connection < 0 { break }
                serve(connection, answer)
                close(connection)
            }
            done.signal()
        }
    }

    /// What was asked so far.
    var asked: [Asked] { lock.withLock { requests } }

    /// Ends the server's thread; its path stays, as a killed agent's does.
    func stop() {
        shutdown(listener, Int32(SHUT_RDWR))
        done.wait()
        close(listener)
    }

    private func serve(_ connection: Int32, _ answer: (Asked) -> Reply) {
        guard let request = receive(connection) else { return }
        lock.withLock { requests.append(request) }
        let reply = answer(request)
        if let split = reply.split, split > 0, split < reply.bytes.count {
            send(connection, Array(reply.bytes[..<split]))
            // The client has read the first part when nothing of it is queued any more.
            var queued: Int32 = 1
            while queued > 0 {
                guard ioctl(connection, UInt(TIOCOUTQ), &queued) == 0 else { break }
                sched_yield()
            }
            send(connection, Array(reply.bytes[split...]))
        } else {
            send(connection, reply.bytes)
        }
        var byte: UInt8 = 0
        if reply.staysOpen { while read(connection, &byte, 1) > 0 {} }
    }

    private func send(_ connection: Int32, _ bytes: [UInt8]) {
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes { write(connection, $0.baseAddress, $0.count) }
            guard count > 0 else { return }
            sent += count
        }
    }

    private func receive(_ connection: Int32) -> Asked? {
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let text = String(decoding: bytes, as: UTF8.self)
            if let end = text.range(of: "\r\n\r\n") {
                let words = text.prefix { $0 != "\r\n" }.split(separator: " ")
                let length = text[..<end.lowerBound].components(separatedBy: "Content-Length: ").dropFirst()
                    .first
                    .flatMap { Int($0.prefix { $0.isNumber }) }
                let body = String(text[end.upperBound...])
                if body.utf8.count >= length ?? 0 {
                    return Asked(method: String(words[0]), target: String(words[1]), body: body)
                }
            }
            let count = read(connection, &chunk, chunk.count)
            guard count > 0 else { return nil }
            bytes += chunk[..<count]
        }
    }
}

/// What a run of meshctl came to.
struct Outcome: Equatable {
    let code: Int32
    let output: String
    let errors: String
}

/// Runs meshctl with its output captured; the environment is a UTF-8 one unless given.
func meshctl(_ arguments: [String], variables: [String: String] = ["LANG": "C.UTF-8"]) -> Outcome {
    let scratch = Scratch()
    let null = open("/dev/null", O_RDONLY)
    let output = open(scratch.path + "/output", O_RDWR | O_CREAT, 0o600)
    let errors = open(scratch.path + "/errors", O_RDWR | O_CREAT, 0o600)
    defer { for descriptor in [null, output, errors] { close(descriptor) } }
    let console = Console(input: null, output: output, errors: errors, variables: variables)
    let code = Meshctl(console: console).run(arguments)
    func text(_ name: String) -> String {
        String(
            decoding: FileManager.default.contents(atPath: scratch.path + "/" + name) ?? Data(), as: UTF8.self
        )
    }
    return Outcome(code: code, output: text("output"), errors: text("errors"))
}

/// Runs meshctl against an agent that answers by a function.
func meshctl(
    _ arguments: [String], agent answer: @escaping @Sendable (Asked) -> Reply
) -> (outcome: Outcome, asked: [Asked]) {
    let server = TestServer(answer)
    defer { server.stop() }
    return (meshctl(["--control", server.path] + arguments), server.asked)
}

/// A page that tests name by its width alone.
func page(_ width: Int?, height: Int? = nil, colour: Bool = false, ascii: Bool = false) -> Page {
    Page(width: width, height: height, colour: colour, ascii: ascii)
}

func answer(_ json: String) throws -> Answer { Answer(try JSONValue.parse(Array(json.utf8))) }

/// Lines as a golden text: joined, without a newline at the end.
func text(_ lines: [String]) -> String { lines.joined(separator: "\n") }
