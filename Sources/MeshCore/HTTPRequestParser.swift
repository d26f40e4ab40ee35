// Turns bytes into HTTP requests, RFC 9112, as they arrive. Strict on purpose: whatever two parsers
// could read in two ways (the seed of request smuggling) is refused rather than repaired.

/// An incremental parser of the requests on one connection, pipelined ones included.
///
/// What it answers depends on the bytes alone, never on how they were split. It holds no more than the
/// limits allow plus what one `append` brought. After an error it must not be used again.
public struct HTTPRequestParser {
    /// What the parser waits for.
    public enum Phase: Sendable, Equatable {
        /// The first byte of a request.
        case idle
        /// The rest of the request line and headers.
        case head
        /// The rest of the body.
        case body
    }

    private let limits: HTTPLimits
    private var buffer: [UInt8] = []
    /// Where the current line or body begins in `buffer`.
    private var start = 0
    /// Up to where the current line was searched for its end.
    private var scanned = 0
    private var skippedEmptyLine = false
    private var requestLine: RequestLine?
    private var fields: [HTTPRequest.Field] = []
    private var headerBytes = 0
    private var awaitingBody: (request: HTTPRequest, length: Int)?
    private var owesContinue = false

    /// A parser for a new connection.
    public init(limits: HTTPLimits = HTTPLimits()) {
        self.limits = limits
    }

    /// What the parser waits for.
    public var phase: Phase {
        if awaitingBody != nil { return .body }
        return requestLine == nil && start == buffer.count ? .idle : .head
    }

    /// Bytes held for requests that are not complete.
    public var bufferedBytes: Int { buffer.count - start }

    /// Takes bytes that were received.
    public mutating func append(_ bytes: some Collection<UInt8>) {
        buffer.append(contentsOf: bytes)
    }

    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 section 10.1.1).
    /// True once per request.
    public mutating func takeContinue() -> Bool {
        defer { owesContinue = false }
        return owesContinue && awaitingBody != nil
    }

    /// The next complete request; nil while bytes are missing.
    public mutating func next() throws(HTTPParseError) -> HTTPRequest? {
        while awaitingBody == nil {
            guard let line = try nextLine() else {
                compact()
                return nil
            }
            try take(line: line)
        }
        guard let (head, length) = awaitingBody, buffer.count - start >= length else {
            compact()
            return nil
        }
        var request = head
        request.body = Array(buffer[start..<start + length])
        start += length
        awaitingBody = nil
        owesContinue = false
        compact()
        return request
    }

    /// Drops what was parsed, so that an idle connection holds no memory.
    private mutating func compact() {
        if start == buffer.count {
            buffer = []
        } else {
            buffer.removeSubrange(..<start)
        }
        scanned = max(scanned - start, 0)
        start = 0
    }

    // MARK: Lines

    /// The next line's range in `buffer`, without its CR LF. A bare CR or LF ends nothing: RFC 9112
    /// section 2.2 lets a recipient take a bare LF, and smuggling lives off those that do.
    private mutating func nextLine() throws(HTTPParseError) -> Range<Int>? {
        while scanned < buffer.count {
            let byte = buffer[scanned]
            if requestLine == nil {
                if scanned - start >= limits.requestLine {
                    throw HTTPParseError(414, "The request line is longer than \(limits.requestLine) bytes.")
                }
            } else if headerBytes + scanned - start >= limits.headers {
                throw HTTPParseError(431, "The headers are larger than \(limits.headers) bytes.")
            }
            if scanned > start, buffer[scanned - 1] == UInt8(ascii: "\r") {
                guard byte == UInt8(ascii: "\n") else {
                    throw HTTPParseError(400, "A carriage return is not followed by a line feed.")
                }
                let line = start..<scanned - 1
                scanned += 1
                start = scanned
                return line
            }
            if byte == UInt8(ascii: "\n") {
                throw HTTPParseError(400, "A line ends without a carriage return.")
            }
            if byte < 0x20 && byte != UInt8(ascii: "\t") && byte != UInt8(ascii: "\r") || byte == 0x7f {
                throw HTTPParseError(400, "There is a control character in the request.")
            }
            scanned += 1
        }
        return nil
    }

    private mutating func take(line: Range<Int>) throws(HTTPParseError) {
        guard requestLine != nil else {
            if line.isEmpty && !skippedEmptyLine {
                // One empty line before a request is let pass (RFC 9112 section 2.2).
                skippedEmptyLine = true
            } else {
                requestLine = try RequestLine(buffer[line])
            }
            return
        }
        if line.isEmpty {
            return try finishHead()
        }
        headerBytes += line.count + 2
        guard fields.count < limits.headerCount else {
            throw HTTPParseError(431, "There are more than \(limits.headerCount) headers.")
        }
        fields.append(try field(buffer[line]))
    }

    /// RFC 9112 section 5.1: no blank before the colon; section 5.2: no folded lines, which begin with a
    /// blank.
    private func field(_ line: ArraySlice<UInt8>) throws(HTTPParseError) -> HTTPRequest.Field {
        guard let colon = line.firstIndex(of: UInt8(ascii: ":")), colon > line.startIndex,
            line[..<colon].allSatisfy(isTokenByte)
        else {
            throw HTTPParseError(400, "A header is not of the form \"Name: value\".")
        }
        let name = line[..<colon].map { (0x41...0x5a).contains($0) ? $0 | 0x20 : $0 }
        return HTTPRequest.Field(
            name: String(decoding: name, as: UTF8.self),
            value: String(decoding: trimBlanks(line[(colon + 1)...]), as: UTF8.self))
    }

    // MARK: The head as a whole

    private mutating func finishHead() throws(HTTPParseError) {
        guard let line = requestLine else { return }
        let length = try bodyLength(minorVersion: line.minorVersion)
        try checkHost(minorVersion: line.minorVersion)
        try checkExpectation(minorVersion: line.minorVersion)
        let options = fields.filter { $0.name == "connection" }
            .flatMap { httpList($0.value).map { $0.lowercased() } }
        let request = HTTPRequest(
            method: line.method, path: line.path, segments: line.segments, query: line.query,
            minorVersion: line.minorVersion, headers: fields, body: [],
            keepsAlive: !options.contains("close")
                && (line.minorVersion >= 1 || options.contains("keep-alive")))
        awaitingBody = (request, length)
        requestLine = nil
        fields = []
        headerBytes = 0
        skippedEmptyLine = false
    }

    /// RFC 9112 section 6.3. Two lengths, even two equal ones, are refused.
    private func bodyLength(minorVersion: Int) throws(HTTPParseError) -> Int {
        let lengths = fields.filter { $0.name == "content-length" }
        if fields.contains(where: { $0.name == "transfer-encoding" }) {
            guard lengths.isEmpty && minorVersion >= 1 else {
                throw HTTPParseError(400, "Transfer-Encoding goes with neither Content-Length nor HTTP/1.0.")
            }
            throw HTTPParseError(501, "Transfer-Encoding is not supported: send a Content-Length.")
        }
        guard let text = lengths.first?.value else { return 0 }
        guard lengths.count == 1, !text.isEmpty, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            throw HTTPParseError(400, "Content-Length must be given once, as a decimal number.")
        }
        // A number too large for an Int is too large for a body, too.
        guard let length = Int(text), length <= limits.body else {
            throw HTTPParseError(413, "The body is larger than \(limits.body) bytes.")
        }
        return length
    }

    /// RFC 9112 section 3.2: exactly one Host in HTTP/1.1, and a plausible one.
    private func checkHost(minorVersion: Int) throws(HTTPParseError) {
        let hosts = fields.filter { $0.name == "host" }
        guard hosts.count == 1 || hosts.isEmpty && minorVersion == 0 else {
            throw HTTPParseError(400, "There must be exactly one Host header.")
        }
        guard hosts.allSatisfy({ $0.value.utf8.allSatisfy(isHostByte) }) else {
            throw HTTPParseError(400, "The Host header is not a host name or address.")
        }
    }

    private mutating func checkExpectation(minorVersion: Int) throws(HTTPParseError) {
        let expectations = fields.filter { $0.name == "expect" }
        guard expectations.allSatisfy({ $0.value.lowercased() == "100-continue" }) else {
            throw HTTPParseError(417, "The only expectation supported is 100-continue.")
        }
        owesContinue = !expectations.isEmpty && minorVersion >= 1
    }
}

/// The first line of a request (RFC 9112 section 3).
private struct RequestLine {
    let method: String
    let path: String
    let segments: [String]
    let query: [HTTPRequest.Field]
    let minorVersion: Int

    init(_ line: ArraySlice<UInt8>) throws(HTTPParseError) {
        let words = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
        guard words.count == 3, !words[0].isEmpty, words[0].allSatisfy(isTokenByte) else {
            throw HTTPParseError(400, "The request line is not of the form \"METHOD /path HTTP/1.1\".")
        }
        let version = Array(words[2])
        guard version.count == 8, version.starts(with: "HTTP/".utf8), version[6] == UInt8(ascii: "."),
            (0x30...0x39).contains(version[5]), (0x30...0x39).contains(version[7])
        else {
            throw HTTPParseError(400, "The request line does not end with an HTTP version.")
        }
        guard version[5] == UInt8(ascii: "1") else {
            throw HTTPParseError(505, "Only HTTP/1.0 and HTTP/1.1 are supported.")
        }
        method = String(decoding: words[0], as: UTF8.self)
        minorVersion = Int(version[7] - 0x30)

        guard words[1].allSatisfy({ (0x21...0x7e).contains($0) && $0 != UInt8(ascii: "#") }) else {
            throw HTTPParseError(400, "The request target has characters that must be percent-encoded.")
        }
        let target = try originForm(words[1], method: method)
        let mark = target.firstIndex(of: UInt8(ascii: "?")) ?? target.endIndex
        path = String(decoding: target[..<mark], as: UTF8.self)
        var segments: [String] = []
        let parts = target[..<mark].split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        for raw in parts.dropFirst() {
            segments.append(try percentDecoded(raw))
        }
        self.segments = segments
        var query: [HTTPRequest.Field] = []
        for raw in target[mark...].dropFirst().split(separator: UInt8(ascii: "&")) {
            let pair = raw.map { $0 == UInt8(ascii: "+") ? UInt8(ascii: " ") : $0 }
                .split(separator: UInt8(ascii: "="), maxSplits: 1, omittingEmptySubsequences: false)
            let value = try percentDecoded(pair.count > 1 ? pair[1] : [])
            query.append(HTTPRequest.Field(name: try percentDecoded(pair[0]), value: value))
        }
        self.query = query
    }
}

/// The path and query of a request target (RFC 9112 section 3.2): origin form as it is, absolute form without
/// scheme and authority, `*` for OPTIONS. CONNECT's authority form is for proxies.
private func originForm(
    _ target: ArraySlice<UInt8>, method: String
) throws(HTTPParseError) -> ArraySlice<UInt8> {
    if target.first == UInt8(ascii: "/") { return target }
    if method == "OPTIONS", target.elementsEqual("*".utf8) { return target }
    for scheme in ["http://", "https://"]
    where target.prefix(scheme.utf8.count).elementsEqual(scheme.utf8, by: { $0 | 0x20 == $1 | 0x20 }) {
        let rest = target.dropFirst(scheme.utf8.count)
        let end = rest.firstIndex { $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: "?") } ?? rest.endIndex
        guard end > rest.startIndex, rest[..<end].allSatisfy(isHostByte) else { break }
        let path = rest[end...]
        return path.first == UInt8(ascii: "/") ? path : [UInt8(ascii: "/")] + path
    }
    throw HTTPParseError(400, "The request target is not a path.")
}

/// Decodes `%XX` once. Control characters are refused even so: nothing here needs them, and a log line or a
/// metric could carry them on.
private func percentDecoded(_ bytes: some Collection<UInt8>) throws(HTTPParseError) -> String {
    var decoded: [UInt8] = []
    decoded.reserveCapacity(bytes.count)
    var rest = bytes.makeIterator()
    while let byte = rest.next() {
        guard byte == UInt8(ascii: "%") else {
            decoded.append(byte)
            continue
        }
        guard let high = rest.next().flatMap(hexValue), let low = rest.next().flatMap(hexValue) else {
            throw HTTPParseError(400, "The request target has a % that two hexadecimal digits do not follow.")
        }
        decoded.append(high << 4 | low)
    }
    guard let text = String(validating: decoded, as: UTF8.self),
        !decoded.contains(where: { $0 < 0x20 || $0 == 0x7f })
    else {
        throw HTTPParseError(400, "The request target does not decode to printable UTF-8 text.")
    }
    return text
}

private func hexValue(_ byte: UInt8) -> UInt8? {
    switch byte {
    case 0x30...0x39: byte - 0x30
    case 0x41...0x46, 0x61...0x66: (byte | 0x20) - 0x61 + 10
    default: nil
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
private func isTokenByte(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5a, 0x61...0x7a: true
    case UInt8(ascii: "!"), 0x23...0x27, UInt8(ascii: "*"), UInt8(ascii: "+"), UInt8(ascii: "-"),
        UInt8(ascii: "."), UInt8(ascii: "^"), UInt8(ascii: "_"), UInt8(ascii: "`"), UInt8(ascii: "|"),
        UInt8(ascii: "~"):
        true
    default: false
    }
}

/// What RFC 3986 section 3.2 lets a host and port consist of. No user name: none belongs in a request.
private func isHostByte(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x41...0x5a, 0x61...0x7a: true
    case UInt8(ascii: "!"), UInt8(ascii: "$"), 0x25...0x2e, UInt8(ascii: ":"), UInt8(ascii: ";"),
        UInt8(ascii: "="), UInt8(ascii: "["), UInt8(ascii: "]"), UInt8(ascii: "_"), UInt8(ascii: "~"):
        true
    default: false
    }
}

private func trimBlanks(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
    func isBlank(_ byte: UInt8) -> Bool { byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }
    guard let last = bytes.lastIndex(where: { !isBlank($0) }) else { return [] }
    return bytes[...last].drop(while: isBlank)
}
