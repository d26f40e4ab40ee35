// A parsed HTTP/1.x request, and the reasons why bytes are refused as one.

/// One HTTP/1.0 or HTTP/1.1 request.
public struct HTTPRequest: Sendable, Equatable {
    /// One header line or one query parameter.
    public struct Field: Sendable, Equatable {
        /// The name; of a header, in lower case.
        public let name: String
        /// The value; of a header, without surrounding blanks.
        public let value: String
    }

    /// The method as sent: names are case-sensitive (RFC 9110 section 9.1).
    public let method: String
    /// The path as sent, still percent-encoded, without the query.
    public let path: String
    /// The path's segments, each percent-decoded: `/v1/breakers/a%2Fb` is `["v1", "breakers", "a/b"]`, and
    /// `/` is `[""]`.
    public let segments: [String]
    /// The query parameters in order, decoded; `+` is a space, as forms send it.
    public let query: [Field]
    /// The digit after `HTTP/1.`.
    public let minorVersion: Int
    /// The header lines in order.
    public let headers: [Field]
    /// The body; empty without a Content-Length.
    public internal(set) var body: [UInt8]
    /// Whether the connection stays open after the response (RFC 9112 section 9.3).
    public let keepsAlive: Bool

    /// The values of the header `name` (in lower case), joined by `, ` as RFC 9110 section 5.3 allows; nil
    /// without one.
    public func header(_ name: String) -> String? {
        var joined: String?
        for field in headers where field.name == name {
            joined = joined.map { $0 + ", " + field.value } ?? field.value
        }
        return joined
    }

    /// The first query parameter called `name`; nil without one.
    public func parameter(_ name: String) -> String? {
        query.first { $0.name == name }?.value
    }
}

/// How large a request may be.
public struct HTTPLimits: Sendable {
    /// Bytes of the request line, with its line end.
    public var requestLine: Int
    /// Bytes of all header lines together, with line ends and the empty line after them.
    public var headers: Int
    /// Number of header lines.
    public var headerCount: Int
    /// Bytes of the body.
    public var body: Int

    /// The defaults: 8 KiB, 16 KiB, 100 lines, 64 KiB.
    public init(
        requestLine: Int = 8 << 10, headers: Int = 16 << 10, headerCount: Int = 100, body: Int = 64 << 10
    ) {
        self.requestLine = requestLine
        self.headers = headers
        self.headerCount = headerCount
        self.body = body
    }
}

/// Why bytes are not a request that this server takes.
public struct HTTPParseError: Error, Equatable, CustomStringConvertible {
    /// The HTTP status to answer with, 400 to 505.
    public let status: Int
    /// A sentence for people. It never quotes what was received.
    public let description: String

    init(_ status: Int, _ description: String) {
        self.status = status
        self.description = description
    }
}
