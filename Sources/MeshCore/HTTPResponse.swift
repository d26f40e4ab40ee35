// An HTTP response and its encoding, RFC 9112, whole or as a chunked stream.

/// A response, or with an empty body the head of a stream.
public struct HTTPResponse: Sendable, Equatable {
    /// The status, 200 to 599.
    public var status: Int
    /// The headers, without those that the encoder writes: Content-Length, Transfer-Encoding, Connection
    /// and Date.
    public var headers: [(name: String, value: String)]
    /// The body.
    public var body: [UInt8]
    /// Whether the server may compress the body for a client that takes gzip.
    public var compressible: Bool

    /// A response of any kind.
    public init(
        status: Int = 200, contentType: String? = nil, headers: [(name: String, value: String)] = [],
        body: [UInt8] = [], compressible: Bool = false
    ) {
        self.status = status
        self.headers = (contentType.map { [("Content-Type", $0)] } ?? []) + headers
        self.body = body
        self.compressible = compressible
    }

    /// A plain-text response; a line end is added to `text`.
    public static func text(_ text: String, status: Int = 200) -> HTTPResponse {
        HTTPResponse(
            status: status, contentType: "text/plain; charset=utf-8", body: Array("\(text)\n".utf8))
    }

    /// Compares everything; header names exactly as written.
    public static func == (a: HTTPResponse, b: HTTPResponse) -> Bool {
        a.status == b.status && a.body == b.body && a.compressible == b.compressible
            && a.headers.elementsEqual(b.headers) { $0 == $1 }
    }

    /// How the end of the body is told.
    public enum Framing: Sendable, Equatable {
        /// By Content-Length: the body is at hand.
        case length
        /// By chunks (RFC 9112 section 7.1).
        case chunked
        /// By closing the connection, all that HTTP/1.0 has for a stream.
        case untilClose
    }

    /// The status line and headers.
    ///
    /// A control character in a header becomes a space, so that no value can begin another line.
    /// - Parameters:
    ///   - framing: how the body follows; 204 and 304 have none.
    ///   - keepAlive: false announces that the server closes the connection.
    ///   - minorVersion: the client's. HTTP/1.0 has to be told of a connection that stays open.
    ///   - date: seconds since 1970, UTC.
    public func encodedHead(
        framing: Framing = .length, keepAlive: Bool, minorVersion: Int = 1, date: Int64
    ) -> [UInt8] {
        var text = "HTTP/1.1 \(status) \(httpReasonPhrase(status))\r\nDate: \(httpDate(date))\r\n"
        for (name, value) in headers {
            text += "\(printable(name)): \(printable(value))\r\n"
        }
        switch framing {
        case .length where status == 204 || status == 304: break
        case .length: text += "Content-Length: \(body.count)\r\n"
        case .chunked: text += "Transfer-Encoding: chunked\r\n"
        case .untilClose: break
        }
        if !keepAlive || framing == .untilClose {
            text += "Connection: close\r\n"
        } else if minorVersion == 0 {
            text += "Connection: keep-alive\r\n"
        }
        return Array((text + "\r\n").utf8)
    }

    /// One chunk of a stream; of no bytes, nothing (an empty chunk would end the stream).
    public static func chunk(_ bytes: [UInt8]) -> [UInt8] {
        if bytes.isEmpty { return [] }
        return Array("\(String(bytes.count, radix: 16))\r\n".utf8) + bytes + [0x0d, 0x0a]
    }

    /// The end of a chunked stream.
    public static let lastChunk = Array("0\r\n\r\n".utf8)

    /// The interim response to `Expect: 100-continue`.
    public static let `continue` = Array("HTTP/1.1 100 Continue\r\n\r\n".utf8)
}

private func printable(_ text: String) -> String {
    String(decoding: text.utf8.map { $0 < 0x20 || $0 == 0x7f ? 0x20 : $0 }, as: UTF8.self)
}

/// The reason phrase of a status, for people who read along; empty for one that this server does not use.
func httpReasonPhrase(_ status: Int) -> String {
    switch status {
    case 200: "OK"
    case 204: "No Content"
    case 304: "Not Modified"
    case 400: "Bad Request"
    case 403: "Forbidden"
    case 404: "Not Found"
    case 405: "Method Not Allowed"
    case 406: "Not Acceptable"
    case 408: "Request Timeout"
    case 409: "Conflict"
    case 413: "Content Too Large"
    case 414: "URI Too Long"
    case 417: "Expectation Failed"
    case 422: "Unprocessable Content"
    case 431: "Request Header Fields Too Large"
    case 500: "Internal Server Error"
    case 501: "Not Implemented"
    case 503: "Service Unavailable"
    case 504: "Gateway Timeout"
    case 505: "HTTP Version Not Supported"
    default: ""
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7) for seconds since 1970.
func httpDate(_ seconds: Int64) -> String {
    func two(_ number: Int64) -> String { number < 10 ? "0\(number)" : "\(number)" }
    let days = seconds / 86_400
    let second = seconds % 86_400
    // Civil date from a day count, in years that begin on March 1: a leap day is the last of its year.
    let shifted = days + 719_468
    let era = shifted / 146_097
    let dayOfEra = shifted % 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let marchMonth = (5 * dayOfYear + 2) / 153
    let day = dayOfYear - (153 * marchMonth + 2) / 5 + 1
    let month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
    let year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0)
    let weekdays = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    return "\(weekdays[Int(days % 7)]), \(two(day)) \(months[Int(month - 1)]) \(year) "
        + "\(two(second / 3600)):\(two(second / 60 % 60)):\(two(second % 60)) GMT"
}
