// Asks the agent over its control socket: one HTTP/1.1 request per connection, each with a deadline.

import Glibc
import MeshCore
import MeshSystem

/// A client of the control API.
struct ControlClient {
    /// What an answer may have at most, in bytes.
    static let answerLimit = 64 << 20
    /// What one line of a stream may have at most, in bytes.
    static let lineLimit = 1 << 20

    /// Where the agent listens.
    let path: String
    /// How long a plain call, or the head of a stream, may take: nanoseconds.
    var timeout: UInt64 = 5_000_000_000

    /// Calls the agent and gives its JSON answer.
    func call(_ method: String, _ target: String, body: JSONValue? = nil) throws(Failure) -> JSONValue {
        var exchange = try exchange(method, target, body)
        var content: [UInt8] = []
        while !exchange.decoder.isComplete {
            try exchange.receive(until: exchange.deadline)
            content += exchange.decoder.takeBody()
            guard content.count <= Self.answerLimit else {
                throw broken("it has more than \(Self.answerLimit >> 20) MiB; narrow down what is asked for")
            }
        }
        return try answer(exchange.decoder, content)
    }

    /// Asks for a stream of JSON lines, and hands each on as it comes, for as long as they come.
    func follow(_ target: String, _ take: (JSONValue) throws(Failure) -> Void) throws(Failure) -> Never {
        var exchange = try exchange("GET", target)
        while !exchange.decoder.hasHead { try exchange.receive(until: exchange.deadline) }
        var pending: [UInt8] = exchange.decoder.takeBody()
        if exchange.decoder.status != 200 || exchange.decoder.mediaType != "application/x-ndjson" {
            while !exchange.decoder.isComplete, pending.count <= Self.lineLimit {
                try exchange.receive(until: exchange.deadline)
                pending += exchange.decoder.takeBody()
            }
            _ = try answer(exchange.decoder, pending)
            throw broken("it is not a stream of lines")
        }
        while true {
            var start = pending.startIndex
            while let end = pending[start...].firstIndex(of: 0x0a) {
                let line = Array(pending[start..<end])
                start = end + 1
                if !line.isEmpty { try take(try parse(line)) }
            }
            pending.removeSubrange(..<start)
            guard pending.count <= Self.lineLimit else { throw broken("a line of the stream does not end") }
            guard !exchange.decoder.isComplete else {
                throw .noAgent("the agent at \(path) ended the stream; it was probably stopped")
            }
            try exchange.receive(until: nil)
            pending += exchange.decoder.takeBody()
        }
    }

    /// Connects and sends a request.
    private func exchange(
        _ method: String, _ target: String, _ body: JSONValue? = nil
    ) throws(Failure) -> Exchange {
        let deadline = MonotonicClock.now() + timeout
        let socket: FileDescriptor
        do {
            socket = try FileDescriptor(connectingTo: path, timeout: timeout)
        } catch {
            throw noConnection(error)
        }
        let content = body?.bytes() ?? []
        var head = "\(method) \(target) HTTP/1.1\r\nHost: mesh-agent\r\nAccept: application/json\r\n"
        head += "Connection: close\r\n"
        if body != nil { head += "Content-Type: application/json\r\nContent-Length: \(content.count)\r\n" }
        let exchange = Exchange(client: self, socket: socket, deadline: deadline)
        try exchange.send(Array((head + "\r\n").utf8) + content)
        return exchange
    }

    /// What is behind a complete response: its JSON, or the agent's refusal.
    private func answer(_ decoder: ResponseDecoder, _ content: [UInt8]) throws(Failure) -> JSONValue {
        let status = decoder.status ?? 0
        guard (200..<300).contains(status) else {
            guard let value = try? JSONValue.parse(content), let message = value["error"]?.string else {
                throw broken("it has status \(status) and no reason")
            }
            throw .refused(message, suggestion: value["suggestion"]?.string)
        }
        return try parse(content)
    }

    private func parse(_ content: [UInt8]) throws(Failure) -> JSONValue {
        do {
            return try JSONValue.parse(content)
        } catch {
            throw broken("its JSON is wrong at \(error)")
        }
    }

    /// One connection with its request sent and its response in the making.
    private struct Exchange: ~Copyable {
        let client: ControlClient
        let socket: FileDescriptor
        let deadline: UInt64
        var decoder = ResponseDecoder()

        func send(_ bytes: [UInt8]) throws(Failure) {
            var rest = bytes[...]
            while !rest.isEmpty {
                let transfer: Transfer
                do {
                    transfer = try rest.withUnsafeBytes { try socket.send($0) }
                } catch {
                    throw client.lost("\(error)")
                }
                switch transfer {
                case .bytes(let count): rest = rest.dropFirst(count)
                case .wouldBlock: throw client.late()
                // It may have answered before it hung up; reading will tell.
                case .closed: return
                }
            }
        }

        /// Waits for more of the response, until a time on the monotonic clock or, with nil, for ever.
        mutating func receive(until deadline: UInt64?) throws(Failure) {
            let bytes = try read(until: deadline)
            do {
                if let bytes { try decoder.push(bytes) } else { try decoder.finish() }
            } catch {
                throw client.broken("\(error)")
            }
        }

        /// The next bytes; nil at the end of the stream.
        private func read(until deadline: UInt64?) throws(Failure) -> [UInt8]? {
            let now = MonotonicClock.now()
            if let deadline, deadline <= now { throw client.late() }
            socket.setTimeouts(receive: deadline.map { $0 - now }, send: nil)
            var bytes = [UInt8](repeating: 0, count: 64 * 1024)
            let transfer: Transfer
            do {
                transfer = try bytes.withUnsafeMutableBytes { try socket.read(into: $0) }
            } catch {
                throw client.lost("\(error)")
            }
            switch transfer {
            case .bytes(let count): return Array(bytes.prefix(count))
            case .wouldBlock: throw client.late()
            case .closed: return nil
            }
        }
    }

    // MARK: what went wrong

    private static let start = "Start one with `mesh-agent run`, as root"

    private func noConnection(_ error: SystemError) -> Failure {
        switch error.errno {
        case ENOENT:
            .noAgentRuns(
                "no agent: there is no socket at \(path). \(Self.start), or name its socket with --control")
        case ECONNREFUSED:
            .noAgentRuns("no agent: nobody listens at \(path), which an agent has left behind. \(Self.start)")
        case EACCES, EPERM:
            .noAgent("permission denied at \(path). Run meshctl as root, for example with sudo")
        case EAGAIN: late()
        default: .noAgent("\(error)")
        }
    }

    private func broken(_ what: String) -> Failure {
        .noAgent("what listens at \(path) does not answer as a mesh-agent does: \(what)")
    }

    private func late() -> Failure {
        .noAgent(
            "the agent at \(path) does not answer within \(Format.age(Double(timeout) / 1e9)): it is stopped, starved "
                + "or wedged. See its log, and `meshctl doctor`")
    }

    private func lost(_ what: String) -> Failure {
        .noAgent("the connection to the agent at \(path) broke: \(what)")
    }
}
