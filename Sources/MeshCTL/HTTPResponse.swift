// Decodes one HTTP/1.1 response as its bytes arrive. It knows no sockets, holds a bounded amount,
// and trusts nothing: whatever listens on the control socket need not be an agent.

/// Why bytes are not a response that can be trusted.
enum ResponseError: Error, Equatable, CustomStringConvertible {
    /// The bytes are not HTTP/1.1; the text says what is wrong with them.
    case malformed(String)
    /// A part is larger than what is ever held; the text says which.
    case tooLarge(String)
    /// The connection ended in the middle; the text says of what.
    case truncated(String)

    var description: String {
        switch self {
        case .malformed(let what): "the answer is not HTTP: \(what)"
        case .tooLarge(let what): "the answer is too large: \(what)"
        case .truncated(let what): "the connection ended in the middle of \(what)"
        }
    }
}

/// The decoder's state between two reads. Feed it with ``push(_:)``, take what is there with
/// ``takeBody()``, and tell it about the end of the stream with ``finish()``.
struct ResponseDecoder {
    /// The bytes of all header lines (or trailer lines) together, at most.
    static let headLimit = 32 * 1024
    /// The bytes of a chunk's size line, at most.
    static let sizeLineLimit = 1024

    private enum State: Equatable {
        case statusLine, headers, trailers
        case fixed(remaining: Int), untilEnd
        case chunkSize, chunk(remaining: Int), chunkEnd
        case done
    }

    private var state = State.statusLine
    private var line: [UInt8] = []
    private var headBytes = 0
    private var contentLength: Int?
    private var chunked = false
    private var body: [UInt8] = []

    /// The final status, once the status line was read; interim 1xx responses are passed over.
    private(set) var status: Int?
    /// The media type in lower case without parameters, if the response names one.
    private(set) var mediaType: String?

    /// Whether the head is complete: ``status`` and ``mediaType`` are final.
    var hasHead: Bool {
        switch state {
        case .statusLine, .headers: false
        default: true
        }
    }

    /// Whether the whole response was read. What is pushed after it is ignored.
    var isComplete: Bool { state == .done }

    /// Takes the body bytes that were decoded since the last call.
    mutating func takeBody() -> [UInt8] {
        defer { body = [] }
        return body
    }

    /// Decodes the next bytes of the stream.
    mutating func push(_ bytes: some Collection<UInt8>) throws(ResponseError) {
        var rest = bytes[...]
        while let byte = rest.first, state != .done {
            switch state {
            case .fixed(let remaining):
                let part = rest.prefix(remaining)
                body.append(contentsOf: part)
                rest = rest.dropFirst(part.count)
                state = part.count == remaining ? .done : .fixed(remaining: remaining - part.count)
            case .untilEnd:
                body.append(contentsOf: rest)
                return
            case .chunk(let remaining):
                let part = rest.prefix(remaining)
                body.append(contentsOf: part)
                rest = rest.dropFirst(part.count)
                state = part.count == remaining ? .chunkEnd : .chunk(remaining: remaining - part.count)
            default:
                rest = rest.dropFirst()
                if byte != 0x0a {
                    line.append(byte)
                    try checkLineLength()
                } else {
                    if line.last == 0x0d { line.removeLast() }
                    let complete = line
                    line = []
                    try take(line: complete)
                }
            }
        }
    }

    /// Says that the stream has ended. Throws when the response had not.
    mutating func finish() throws(ResponseError) {
        switch state {
        case .done: break
        case .untilEnd: state = .done
        case .statusLine where line.isEmpty && headBytes == 0: throw .truncated("nothing: it sent no answer")
        case .statusLine, .headers: throw .truncated("the head")
        case .fixed(let remaining): throw .truncated("the body, \(remaining) bytes short")
        case .chunkSize, .chunk, .chunkEnd, .trailers: throw .truncated("a chunked body")
        }
    }

    private func checkLineLength() throws(ResponseError) {
        switch state {
        case .statusLine where line.count >= 5 && !line.starts(with: "HTTP/".utf8):
            throw .malformed("it does not start with HTTP/")
        case .chunkSize, .chunkEnd:
            if line.count > Self.sizeLineLimit { throw .tooLarge("a chunk size line") }
        default:
            guard headBytes + line.count > Self.headLimit else { return }
            throw .tooLarge(state == .trailers ? "its trailers" : "its head")
        }
    }

    private mutating func take(line: [UInt8]) throws(ResponseError) {
        headBytes += line.count + 1
        switch state {
        case .statusLine:
            status = try Self.status(of: line)
            state = .headers
        case .headers:
            if line.isEmpty { try endHead() } else { try header(line) }
        case .trailers:
            if line.isEmpty { state = .done }
        case .chunkSize:
            headBytes = 0
            let size = try Self.chunkSize(of: line)
            state = size == 0 ? .trailers : .chunk(remaining: size)
        case .chunkEnd:
            guard line.isEmpty else { throw .malformed("a chunk is longer than its size says") }
            state = .chunkSize
        case .fixed, .untilEnd, .chunk, .done:
            break
        }
    }

    private mutating func header(_ line: [UInt8]) throws(ResponseError) {
        guard let colon = line.firstIndex(of: 0x3a), colon > 0, line[0] > 0x20 else {
            throw .malformed("a header line has no name")
        }
        let name = Self.lowercased(line[..<colon])
        let value = Self.lowercased(line[(colon + 1)...])
        switch name {
        case "content-length":
            guard !value.isEmpty, value.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
                let length = Int(value), contentLength == nil || contentLength == length
            else { throw .malformed("its Content-Length is not a number") }
            contentLength = length
        case "transfer-encoding":
            guard value == "chunked" else { throw .malformed("its Transfer-Encoding is not chunked") }
            chunked = true
        case "content-type":
            mediaType = String(value.prefix { $0 != ";" && $0 != " " })
        default:
            break
        }
    }

    private mutating func endHead() throws(ResponseError) {
        guard let status else { throw .malformed("it has no status") }
        headBytes = 0
        if status / 100 == 1 {
            (self.status, contentLength, chunked, mediaType) = (nil, nil, false, nil)
            state = .statusLine
        } else if status == 204 || status == 304 {
            state = .done
        } else if chunked {
            guard contentLength == nil else {
                throw .malformed("it has both a Content-Length and a Transfer-Encoding")
            }
            state = .chunkSize
        } else if let contentLength {
            state = contentLength == 0 ? .done : .fixed(remaining: contentLength)
        } else {
            state = .untilEnd
        }
    }

    /// `HTTP/1.1 200 OK` → 200.
    private static func status(of line: [UInt8]) throws(ResponseError) -> Int {
        let digits = line.dropFirst(9).prefix(3)
        guard line.starts(with: "HTTP/1.".utf8), line.count >= 12, line[8] == 0x20,
            line[7] == 0x30 || line[7] == 0x31, line.count == 12 || line[12] == 0x20,
            digits.allSatisfy({ (0x30...0x39).contains($0) })
        else { throw .malformed("its status line is not one of HTTP/1.1") }
        let status = digits.reduce(0) { $0 * 10 + Int($1 - 0x30) }
        guard (100...599).contains(status) else { throw .malformed("its status is \(status)") }
        return status
    }

    /// `1a;name=value` → 26.
    private static func chunkSize(of line: [UInt8]) throws(ResponseError) -> Int {
        let digits = line.prefix { $0 != 0x3b && $0 != 0x20 && $0 != 0x09 }
        guard !digits.isEmpty, digits.count <= 8,
            digits.allSatisfy({ $0 != 0x2b && $0 != 0x2d }),
            let size = Int(String(decoding: digits, as: UTF8.self), radix: 16)
        else { throw .malformed("a chunk size is not a number") }
        return size
    }

    /// ASCII lower case, without blanks at the ends.
    private static func lowercased(_ bytes: ArraySlice<UInt8>) -> String {
        let isBlank: (UInt8) -> Bool = { $0 == 0x20 || $0 == 0x09 }
        var trimmed = bytes.drop(while: isBlank)
        while let last = trimmed.last, isBlank(last) { trimmed.removeLast() }
        return String(
            decoding: trimmed.map { (0x41...0x5a).contains($0) ? $0 | 0x20 : $0 }, as: UTF8.self)
    }
}
