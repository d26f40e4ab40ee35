// One client's connection: what was received, what is to be sent, what is waited for.
import MeshCore
import MeshSystem

/// The state of a connection. Only the server's thread touches it.
final class HTTPServerConnection {
    /// What has to happen next for the connection to get on; each has its timeout.
    enum Wait {
        /// The client is to begin a request.
        case idle
        /// The client is to send the rest of the headers, or of the body.
        case head, body
        /// A handler is to reply.
        case handler
        /// A handler is to send more on its stream; that may take for ever.
        case stream
        /// The client is to take what is sent.
        case write
        /// The client is to close.
        case linger
    }

    /// A request in the works.
    struct Exchange {
        let id: UInt64
        let isHead: Bool
        let minorVersion: Int
        let keepsAlive: Bool
        let acceptsGzip: Bool
        /// Set once a stream has begun.
        var stream: (framing: HTTPResponse.Framing, dropped: [UInt8])?
    }

    let id: UInt64
    let file: FileDescriptor
    let service: Int
    let peer: PeerCredentials?
    var parser: HTTPRequestParser
    var output = HTTPOutput()
    var exchange: Exchange?
    /// Nothing more is read as a request; the connection ends when the output is sent.
    var isClosing = false
    /// This side has said that nothing more will come. What still arrives is thrown away until the client
    /// closes, too: closing with unread input would reset the connection, and the client might lose the
    /// response that explains why (RFC 9112 section 9.6).
    var isLingering = false
    var isClosed = false

    private(set) var wait: Wait?
    /// When the wait began.
    private(set) var since: UInt64 = 0
    var interest: Poller.Interest = .readable
    /// Bytes that waited to be sent at the last count.
    private(set) var countedOutputBytes = 0

    init(
        id: UInt64, file: consuming FileDescriptor, service: Int, peer: PeerCredentials?, limits: HTTPLimits
    ) {
        self.id = id
        self.file = file
        self.service = service
        self.peer = peer
        parser = HTTPRequestParser(limits: limits)
    }

    /// Whether input is wanted. While a response is made or sent none is read, so that a client that
    /// pipelines without reading fills its own buffers and not ours.
    var isReading: Bool { exchange == nil && output.isEmpty }

    /// Finds out what is waited for now. A request that goes on, head to body, is one wait.
    func updateWait(now: UInt64) {
        let next: Wait =
            if isLingering {
                .linger
            } else if !output.isEmpty {
                .write
            } else if let exchange {
                exchange.stream == nil ? .handler : .stream
            } else {
                switch parser.phase {
                case .idle: .idle
                case .head: .head
                case .body: .body
                }
            }
        if next != wait && !(wait == .head && next == .body) { since = now }
        wait = next
    }

    /// Counts what waits to be sent.
    /// - Returns: how many bytes more there are than at the last count.
    func updateOutputBytes() -> Int {
        defer { countedOutputBytes = output.count }
        return output.count - countedOutputBytes
    }

    /// Forgets the wait because it was answered, so that the next one, even of the same kind, begins anew.
    func resetWait() { wait = nil }
}

/// Bytes to be sent. Large arrays are kept as they are and not copied; small ones are joined.
struct HTTPOutput {
    private static let joinedSize = 16 << 10
    private var segments: [[UInt8]] = []
    /// How much of the first segment is sent.
    private var offset = 0
    /// Bytes that are not sent yet.
    private(set) var count = 0

    var isEmpty: Bool { count == 0 }

    mutating func append(_ bytes: [UInt8]) {
        if bytes.isEmpty { return }
        count += bytes.count
        if let last = segments.indices.last, segments[last].count + bytes.count <= Self.joinedSize {
            segments[last] += bytes
        } else {
            segments.append(bytes)
        }
    }

    /// Sends what the socket takes.
    /// - Returns: false when the client is gone.
    mutating func flush(to file: borrowing FileDescriptor) -> Bool {
        while let first = segments.first {
            let result = first.withUnsafeBytes { bytes in
                try? file.send(UnsafeRawBufferPointer(rebasing: bytes[offset...]))
            }
            switch result {
            case .bytes(let sent):
                count -= sent
                offset += sent
                if offset == first.count {
                    segments.removeFirst()
                    offset = 0
                }
            case .wouldBlock: return true
            case .closed, nil: return false
            }
        }
        return true
    }
}
