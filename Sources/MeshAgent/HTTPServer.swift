// The agent's HTTP server as its users see it: services to listen on, handlers, and exchanges that any
// thread may answer. The engine behind it is in HTTPServerEngine.swift.
import MeshCore
import MeshSystem
import Synchronization

/// What a handler makes of a request.
public enum HTTPReply: Sendable {
    /// The whole response.
    case respond(HTTPResponse)
    /// The response comes later, through `HTTPExchange.reply`.
    case deferred
    /// The response's head and first bytes now, the rest through `HTTPExchange.send`. A client that cannot
    /// keep up is sent `dropped` as the last bytes.
    case stream(HTTPResponse, dropped: [UInt8])
}

/// Answers a request. It runs on the server's thread and must not block: what takes time is deferred.
public typealias HTTPHandler = @Sendable (HTTPExchange) -> HTTPReply

/// One request and the way back to its client. Copies stand for the same exchange; any thread may use them.
public struct HTTPExchange: Sendable {
    /// The request.
    public let request: HTTPRequest
    /// The decoded path segments that matched the route's braces, in order.
    public let parameters: [String]
    /// Who asks, over a UNIX socket; nil over TCP.
    public let peer: PeerCredentials?
    let id: UInt64
    let mailbox: HTTPMailbox

    /// Answers a deferred request; `.deferred` changes nothing. Only the first answer counts.
    /// - Returns: false when the client is gone, was told 504 in the meantime, or has an answer already.
    @discardableResult
    public func reply(_ reply: HTTPReply) -> Bool {
        if case .deferred = reply { return isOpen }
        return mailbox.update(id) { slot in
            if slot.hasReply { return false }
            slot.hasReply = true
            slot.reply = reply
            return true
        }
    }

    /// Sends bytes on a stream, in the order of the calls. Before the `.stream` reply there is no stream.
    /// - Returns: false when the stream has ended: the client is gone, or was dropped for being too slow.
    @discardableResult
    public func send(_ bytes: [UInt8]) -> Bool {
        var fits = false
        mailbox.update(id) { slot in
            guard !slot.finished, !slot.overflowed else { return false }
            fits = slot.pending.count + slot.unsent + bytes.count <= mailbox.streamLimit
            if fits { slot.pending += bytes } else { slot.overflowed = true }
            return true
        }
        return fits
    }

    /// Ends a stream after what was sent.
    public func finish() {
        mailbox.update(id) { slot in
            slot.finished = true
            return true
        }
    }

    /// Whether the client still waits for something on this exchange.
    public var isOpen: Bool { mailbox.isOpen(id) }
}

/// One listening socket and what is served on it.
public final class HTTPService: Sendable {
    let listener: Listener
    let router: HTTPRouter<HTTPHandler>
    let limits: HTTPLimits
    let maxConnections: Int
    let errorResponse: @Sendable (Int, String) -> HTTPResponse

    /// Where it listens: an address and port, or a path.
    public var address: String { listener.address }
    /// The TCP port; 0 for a UNIX socket.
    public var port: UInt16 { listener.port }
    /// Whether clients that go by the path of its UNIX socket come here.
    public var isInPlace: Bool { listener.isInPlace }

    /// Describes a service.
    /// - Parameters:
    ///   - listener: The socket, listening already.
    ///   - router: The handlers. GET routes take HEAD, too.
    ///   - limits: How large requests may be.
    ///   - maxConnections: How many connections are held. One more takes the place of the one that has
    ///     waited longest for its client, or is answered 503 if every client waits for an answer.
    ///   - errorResponse: Makes the server's own error responses of a status and a sentence.
    public init(
        listener: consuming Listener, router: HTTPRouter<HTTPHandler>, limits: HTTPLimits = HTTPLimits(),
        maxConnections: Int,
        errorResponse: @escaping @Sendable (Int, String) -> HTTPResponse = { .text($1, status: $0) }
    ) {
        self.listener = listener
        self.router = router
        self.limits = limits
        self.maxConnections = maxConnections
        self.errorResponse = errorResponse
    }
}

/// How long the server waits, in nanoseconds.
public struct HTTPTimeouts: Sendable {
    /// For a request to begin, and from its first byte for the end of its headers.
    public var idle: UInt64 = 10_000_000_000
    /// From a request's first byte for the end of its body.
    public var request: UInt64 = 30_000_000_000
    /// For the reply to a deferred request; then the client is told 504.
    public var handler: UInt64 = 30_000_000_000
    /// For the client to take what is to be sent.
    public var write: UInt64 = 30_000_000_000
    /// For the client to close a connection on which everything was said.
    public var linger: UInt64 = 1_000_000_000
    /// Between attempts to accept when descriptors have run out.
    public var acceptPause: UInt64 = 100_000_000

    /// The defaults: 10 s, 30 s, 30 s, 30 s, 1 s, 0.1 s.
    public init() {}
}

/// An HTTP/1.1 server: one thread that serves any number of services.
public final class HTTPServer: Sendable {
    private let mailbox: HTTPMailbox
    private let thread: Mutex<MeshSystem.Thread?>

    /// Starts serving.
    /// - Parameters:
    ///   - services: What is served where.
    ///   - timeouts: How long clients and handlers may take.
    ///   - streamLimit: Bytes that may wait to be sent on one stream before its client is dropped.
    ///   - outputLimit: Bytes that may wait to be sent on all connections together; past it, the slowest
    ///     readers are cut off.
    ///   - isFavoured: Whether its thread runs before others (`Thread.favour`); for clients that may be trusted.
    ///   - report: Told on the server's thread, in a sentence, of trouble that no client can be told of.
    /// - Throws: what making an epoll instance, an eventfd or a thread says.
    public init(
        services: [HTTPService], timeouts: HTTPTimeouts = HTTPTimeouts(), streamLimit: Int = 1 << 20,
        outputLimit: Int = 64 << 20, isFavoured: Bool = false,
        report: @escaping @Sendable (String) -> Void = { _ in }
    ) throws(SystemError) {
        let mailbox = try HTTPMailbox(streamLimit: streamLimit)
        let engine = try HTTPServerEngine(
            services: services, timeouts: timeouts, mailbox: mailbox, outputLimit: outputLimit,
            report: report)
        self.mailbox = mailbox
        thread = Mutex(
            try MeshSystem.Thread.spawn(name: "http") {
                if isFavoured { _ = MeshSystem.Thread.favour(realTime: true) }
                engine.run()
            })
    }

    deinit { stop() }

    /// Closes every connection and waits for the thread to end; the listeners close with their services.
    /// Not to be called by a handler.
    public func stop() {
        let running = thread.withLock { $0.take() }
        guard let running else { return }
        mailbox.stop()
        running.join()
    }
}

/// What other threads leave for the server's thread. Its size is bounded: there is one slot for each open
/// exchange, with at most one reply and `streamLimit` bytes.
final class HTTPMailbox: Sendable {
    struct Slot {
        let connection: UInt64
        var hasReply = false
        var reply: HTTPReply?
        /// Bytes to stream that the server has not taken yet.
        var pending: [UInt8] = []
        /// Bytes that the server has taken and its client has not.
        var unsent = 0
        var finished = false
        var overflowed = false
        var isChanged = false
    }
    private struct State {
        var slots: [UInt64: Slot] = [:]
        var changed: [UInt64] = []
        var nextID: UInt64 = 1
        var isStopping = false
    }

    let streamLimit: Int
    private let wake: EventCounter
    private let state = Mutex(State())

    init(streamLimit: Int) throws(SystemError) {
        wake = try EventCounter()
        self.streamLimit = streamLimit
    }

    /// Readable when there is something to take.
    var descriptor: Int32 { wake.descriptor }
    var isStopping: Bool { state.withLock { $0.isStopping } }

    // MARK: For any thread

    func isOpen(_ id: UInt64) -> Bool {
        state.withLock { $0.slots[id] != nil }
    }

    /// Changes a slot and wakes the server if `body` says so; false when it does not or there is no slot.
    @discardableResult
    func update(_ id: UInt64, _ body: (inout Slot) -> Bool) -> Bool {
        var isFirst = false
        let isDone = state.withLock { state in
            guard state.slots[id] != nil, body(&state.slots[id]!) else { return false }
            if !state.slots[id]!.isChanged {
                isFirst = state.changed.isEmpty
                state.slots[id]!.isChanged = true
                state.changed.append(id)
            }
            return true
        }
        if isFirst { wake.signal() }
        return isDone
    }

    func stop() {
        state.withLock { $0.isStopping = true }
        wake.signal()
    }

    // MARK: For the server's thread

    func open(connection: UInt64) -> UInt64 {
        state.withLock { state in
            defer { state.nextID += 1 }
            state.slots[state.nextID] = Slot(connection: connection)
            return state.nextID
        }
    }

    func close(_ id: UInt64) {
        state.withLock { $0.slots[id] = nil }
    }

    /// From now on there is no other reply to give.
    func setReplied(_ id: UInt64) {
        state.withLock { $0.slots[id]?.hasReply = true }
    }

    func setUnsent(_ id: UInt64, _ count: Int) {
        state.withLock { $0.slots[id]?.unsent = count }
    }

    /// The changed slots; their replies and bytes are the caller's now.
    func take() -> [(id: UInt64, slot: Slot)] {
        wake.drain()
        return state.withLock { state in
            let changed = state.changed
            state.changed = []
            return changed.compactMap { id in
                guard let slot = state.slots[id] else { return nil }
                state.slots[id]!.isChanged = false
                state.slots[id]!.reply = nil
                state.slots[id]!.unsent += slot.pending.count
                state.slots[id]!.pending = []
                return (id, slot)
            }
        }
    }
}
