// The loop behind HTTPServer: accepts, reads, dispatches, writes and times out on one thread. No client
// can make it wait: every socket is non-blocking, and what is held for a connection is bounded.
import Glibc
import MeshCore
import MeshSystem

/// Made on one thread, then used by the one that calls `run` alone.
final class HTTPServerEngine: @unchecked Sendable {
    private static let wakeToken: UInt64 = 0
    /// Bodies smaller than this do not get smaller by compression.
    private static let compressionThreshold = 1024
    /// Timeouts are looked at no more often than this, in nanoseconds.
    private static let tick: UInt64 = 10_000_000
    /// The same trouble is reported no more often than this, in nanoseconds.
    private static let reportInterval: UInt64 = 60_000_000_000

    private let services: [HTTPService]
    private let timeouts: HTTPTimeouts
    private let mailbox: HTTPMailbox
    private let outputLimit: Int
    private let report: @Sendable (String) -> Void
    private var poller: Poller
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 16 << 10, alignment: 16)
    private var connections: [UInt64: HTTPServerConnection] = [:]
    private var connectionCounts: [Int]
    /// Bytes that wait to be sent, on all connections.
    private var outputBytes = 0
    private var nextID: UInt64
    private var now = MonotonicClock.now()
    /// No timeout passes before this.
    private var nextSweep = UInt64.max
    /// When accepting goes on after descriptors had run out.
    private var acceptResumes: UInt64?
    private var nextReport: UInt64 = 0

    init(
        services: [HTTPService], timeouts: HTTPTimeouts, mailbox: HTTPMailbox, outputLimit: Int,
        report: @escaping @Sendable (String) -> Void
    ) throws(SystemError) {
        self.services = services
        self.timeouts = timeouts
        self.mailbox = mailbox
        self.outputLimit = outputLimit
        self.report = report
        connectionCounts = Array(repeating: 0, count: services.count)
        nextID = UInt64(services.count) + 1
        poller = try Poller()
        try poller.add(mailbox.descriptor, token: Self.wakeToken, .readable)
        for (index, service) in services.enumerated() {
            try poller.add(service.listener.descriptor, token: UInt64(index) + 1, .readable)
        }
    }

    deinit { buffer.deallocate() }

    func run() {
        while !mailbox.isStopping {
            let timeout = nextSweep == .max ? nil : max(nextSweep, now + Self.tick) - now
            let count: Int
            do {
                count = try poller.wait(timeout: timeout)
            } catch {
                return report("The HTTP server stopped: \(error)")
            }
            now = MonotonicClock.now()
            for index in 0..<count {
                let event = poller[index]
                if event.token == Self.wakeToken {
                    deliver()
                } else if event.token <= UInt64(services.count) {
                    accept(Int(event.token) - 1)
                } else if let connection = connections[event.token] {
                    handle(event, on: connection)
                }
            }
            if now >= nextSweep { sweep() }
        }
        for connection in Array(connections.values) { close(connection) }
    }

    // MARK: Accepting

    private func accept(_ index: Int) {
        let service = services[index]
        // Not more at a time, lest a storm of connections keeps those that are there waiting.
        for _ in 0..<64 {
            do throws(SystemError) {
                guard let file = try service.listener.accept() else { return }
                try admit(file, index)
            } catch {
                return pauseAccepting(error)
            }
        }
    }

    private func admit(_ file: consuming FileDescriptor, _ index: Int) throws(SystemError) {
        let service = services[index]
        if connectionCounts[index] >= service.maxConnections {
            guard let idlest = waiting(where: { $0.service == index && $0.isReading }) else {
                return refuse(file, service)
            }
            close(idlest)
        }
        var peer: PeerCredentials?
        if service.port == 0 {
            peer = try file.peerCredentials()
        } else {
            setOption(file.descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, Int32(1))
        }
        let connection = HTTPServerConnection(
            id: nextID, file: file, service: index, peer: peer, limits: service.limits)
        nextID += 1
        try poller.add(connection.file.descriptor, token: connection.id, connection.interest)
        connections[connection.id] = connection
        connectionCounts[index] += 1
        settle(connection)
    }

    private func refuse(_ file: consuming FileDescriptor, _ service: HTTPService) {
        let response = service.errorResponse(503, "The server has too many connections: try again later.")
        var output = HTTPOutput()
        output.append(response.encodedHead(keepAlive: false, date: WallTime.now().seconds))
        output.append(response.body)
        _ = output.flush(to: file)
        shutdown(file.descriptor, Int32(SHUT_WR))
        _ = try? file.read(into: buffer)
    }

    /// Out of descriptors or memory: the waiting connections would be reported over and over.
    private func pauseAccepting(_ error: SystemError) {
        if now >= nextReport {
            report("The HTTP server cannot take connections for now: \(error)")
            nextReport = now + Self.reportInterval
        }
        acceptResumes = now + timeouts.acceptPause
        nextSweep = min(nextSweep, now + timeouts.acceptPause)
        setAccepting([])
    }

    private func setAccepting(_ interest: Poller.Interest) {
        for (index, service) in services.enumerated() {
            try? poller.modify(service.listener.descriptor, token: UInt64(index) + 1, interest)
        }
    }

    // MARK: Reading and writing

    private func handle(_ event: Poller.Event, on connection: HTTPServerConnection) {
        guard connection.isReading else {
            // The client closed both directions or reset: nobody waits for the response any more.
            return event.isHangUp ? close(connection) : advance(connection)
        }
        switch try? connection.file.read(into: buffer) {
        case .bytes(let count):
            if connection.isLingering { return }
            connection.parser.append(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            advance(connection)
        case .wouldBlock: break
        case .closed, nil: close(connection)
        }
    }

    /// Sends and serves as far as it goes without waiting.
    private func advance(_ connection: HTTPServerConnection) {
        flush(connection)
        while connection.isReading && !connection.isClosing && !connection.isClosed {
            do throws(HTTPParseError) {
                guard let request = try connection.parser.next() else { break }
                dispatch(request, on: connection)
            } catch {
                fail(connection, error.status, error.description)
            }
            flush(connection)
        }
        if connection.parser.takeContinue() {
            connection.output.append(HTTPResponse.continue)
            flush(connection)
        }
        settle(connection)
    }

    private func flush(_ connection: HTTPServerConnection) {
        if connection.isClosed || connection.output.isEmpty { return }
        guard connection.output.flush(to: connection.file) else { return close(connection) }
        if connection.output.isEmpty { connection.resetWait() }
        if let exchange = connection.exchange, exchange.stream != nil {
            mailbox.setUnsent(exchange.id, connection.output.count)
        }
    }

    /// Brings interest and timeout in line with the state, after every change of it.
    private func settle(_ connection: HTTPServerConnection) {
        if connection.isClosed { return }
        if connection.isClosing && connection.isReading && !connection.isLingering {
            connection.isLingering = true
            shutdown(connection.file.descriptor, Int32(SHUT_WR))
        }
        outputBytes += connection.updateOutputBytes()
        connection.updateWait(now: now)
        if let deadline = deadline(of: connection) { nextSweep = min(nextSweep, deadline) }
        let interest: Poller.Interest =
            connection.isReading ? .readable : connection.output.isEmpty ? [] : .writable
        if interest != connection.interest {
            connection.interest = interest
            try? poller.modify(connection.file.descriptor, token: connection.id, interest)
        }
        while outputBytes > outputLimit, let slowest = waiting(where: { $0.wait == .write }) {
            drop(slowest)
        }
    }

    /// The connection among some that has waited longest.
    private func waiting(where condition: (HTTPServerConnection) -> Bool) -> HTTPServerConnection? {
        connections.values.filter(condition).min { $0.since < $1.since }
    }

    /// Closes a connection whose client does not read; the kernel is not to go on holding what it did not.
    private func drop(_ connection: HTTPServerConnection) {
        setOption(connection.file.descriptor, SOL_SOCKET, SO_LINGER, linger(l_onoff: 1, l_linger: 0))
        close(connection)
    }

    private func close(_ connection: HTTPServerConnection) {
        if connection.isClosed { return }
        connection.isClosed = true
        connections[connection.id] = nil
        connectionCounts[connection.service] -= 1
        outputBytes -= connection.countedOutputBytes
        if let exchange = connection.exchange { mailbox.close(exchange.id) }
        // The descriptor closes with the last reference, which a caller may hold for a moment.
        try? poller.remove(connection.file.descriptor)
    }

    // MARK: Requests and replies

    private func dispatch(_ request: HTTPRequest, on connection: HTTPServerConnection) {
        let service = services[connection.service]
        let id = mailbox.open(connection: connection.id)
        connection.exchange = HTTPServerConnection.Exchange(
            id: id, isHead: request.method == "HEAD", minorVersion: request.minorVersion,
            keepsAlive: request.keepsAlive, acceptsGzip: httpAcceptsGzip(request.header("accept-encoding")))
        switch service.router.match(method: request.method, segments: request.segments) {
        case .found(let handler, let parameters):
            let exchange = HTTPExchange(
                request: request, parameters: parameters, peer: connection.peer, id: id, mailbox: mailbox)
            apply(handler(exchange), to: connection)
        case .methodNotAllowed(let allow):
            var response = service.errorResponse(405, "This path takes only \(allow).")
            response.headers.append(("Allow", allow))
            respond(response, on: connection)
        case .notFound:
            respond(service.errorResponse(404, "There is nothing at this path."), on: connection)
        }
    }

    /// Takes what other threads left.
    private func deliver() {
        for (id, slot) in mailbox.take() {
            guard let connection = connections[slot.connection], connection.exchange?.id == id else {
                continue
            }
            if let reply = slot.reply { apply(reply, to: connection) }
            if let stream = connection.exchange?.stream {
                appendChunk(slot.pending, to: connection, stream.framing)
                if slot.overflowed {
                    appendChunk(stream.dropped, to: connection, stream.framing)
                    connection.isClosing = true
                }
                if slot.overflowed || slot.finished { endStream(on: connection) }
            }
            advance(connection)
        }
    }

    private func apply(_ reply: HTTPReply, to connection: HTTPServerConnection) {
        // Another thread may have replied while the handler was still to return its stream.
        if connection.exchange?.stream != nil { return }
        switch reply {
        case .deferred: break
        case .respond(let response): respond(response, on: connection)
        case .stream(let response, let dropped): beginStream(response, dropped, on: connection)
        }
    }

    private func respond(_ response: HTTPResponse, on connection: HTTPServerConnection) {
        guard let exchange = connection.exchange else { return }
        var response = response
        if response.compressible {
            response.headers.append(("Vary", "Accept-Encoding"))
            if exchange.acceptsGzip, response.body.count >= Self.compressionThreshold,
                let compressed = try? response.body.withUnsafeBytes({ try gzip($0) })
            {
                response.body = compressed
                response.headers.append(("Content-Encoding", "gzip"))
            }
        }
        if response.body.count > outputLimit {
            // It would be cut off at once, by itself.
            let text =
                "The answer has \(response.body.count >> 20) MiB, and the server sends \(outputLimit >> 20) MiB at "
                + "most" + (response.compressible ? ": ask for it with `Accept-Encoding: gzip`." : ".")
            response = services[connection.service].errorResponse(response.compressible ? 406 : 500, text)
        }
        connection.output.append(
            response.encodedHead(
                keepAlive: exchange.keepsAlive && !connection.isClosing, minorVersion: exchange.minorVersion,
                date: WallTime.now().seconds))
        if !exchange.isHead { connection.output.append(response.body) }
        endExchange(on: connection)
    }

    private func beginStream(
        _ response: HTTPResponse, _ dropped: [UInt8], on connection: HTTPServerConnection
    ) {
        guard let exchange = connection.exchange else { return }
        let framing: HTTPResponse.Framing = exchange.minorVersion >= 1 ? .chunked : .untilClose
        connection.output.append(
            response.encodedHead(
                framing: framing, keepAlive: exchange.keepsAlive, minorVersion: exchange.minorVersion,
                date: WallTime.now().seconds))
        if framing == .untilClose { connection.isClosing = true }
        if exchange.isHead { return endExchange(on: connection) }
        connection.exchange?.stream = (framing, dropped)
        mailbox.setReplied(exchange.id)
        appendChunk(response.body, to: connection, framing)
    }

    private func appendChunk(
        _ bytes: [UInt8], to connection: HTTPServerConnection, _ framing: HTTPResponse.Framing
    ) {
        connection.output.append(framing == .chunked ? HTTPResponse.chunk(bytes) : bytes)
    }

    private func endStream(on connection: HTTPServerConnection) {
        if connection.exchange?.stream?.framing == .chunked {
            connection.output.append(HTTPResponse.lastChunk)
        }
        endExchange(on: connection)
    }

    private func endExchange(on connection: HTTPServerConnection) {
        guard let exchange = connection.exchange else { return }
        mailbox.close(exchange.id)
        connection.exchange = nil
        if !exchange.keepsAlive { connection.isClosing = true }
    }

    /// Answers with an error of the server's own and ends the connection.
    private func fail(_ connection: HTTPServerConnection, _ status: Int, _ sentence: String) {
        connection.isClosing = true
        let response = services[connection.service].errorResponse(status, sentence)
        if connection.exchange != nil { return respond(response, on: connection) }
        connection.output.append(response.encodedHead(keepAlive: false, date: WallTime.now().seconds))
        connection.output.append(response.body)
    }

    // MARK: Timeouts

    private func deadline(of connection: HTTPServerConnection) -> UInt64? {
        switch connection.wait {
        case .idle, .head: connection.since + timeouts.idle
        case .body: connection.since + timeouts.request
        case .handler: connection.since + timeouts.handler
        case .write: connection.since + timeouts.write
        case .linger: connection.since + timeouts.linger
        case .stream, nil: nil
        }
    }

    private func sweep() {
        nextSweep = .max
        if let resumes = acceptResumes {
            if resumes <= now {
                acceptResumes = nil
                setAccepting(.readable)
            } else {
                nextSweep = resumes
            }
        }
        for connection in Array(connections.values) {
            guard !connection.isClosed, let deadline = deadline(of: connection) else { continue }
            if deadline <= now {
                expire(connection)
            } else {
                nextSweep = min(nextSweep, deadline)
            }
        }
    }

    private func expire(_ connection: HTTPServerConnection) {
        switch connection.wait {
        case .head, .body: fail(connection, 408, "The rest of the request did not arrive in time.")
        case .handler: fail(connection, 504, "The agent did not answer in time.")
        case .write: return drop(connection)
        default: return close(connection)
        }
        advance(connection)
    }
}

private func setOption<Value: BitwiseCopyable>(
    _ socket: Int32, _ level: Int32, _ option: Int32, _ value: Value
) {
    withUnsafePointer(to: value) { pointer in
        _ = setsockopt(socket, level, option, pointer, socklen_t(MemoryLayout<Value>.size))
    }
}
