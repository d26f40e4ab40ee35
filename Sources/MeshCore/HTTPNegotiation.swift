// What a client asked for by Accept and Accept-Encoding (RFC 9110 sections 12.4 and 12.5).

/// The formats in which metrics are exported.
public enum MetricsFormat: Sendable, Equatable {
    /// Prometheus text format 0.0.4.
    case text
    /// OpenMetrics 1.0.0.
    case openMetrics

    /// The Content-Type of the format.
    public var contentType: String {
        switch self {
        case .text: "text/plain; version=0.0.4; charset=utf-8"
        case .openMetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
    }

    /// The format that the value of an Accept header prefers. Text when it prefers neither or takes
    /// neither: a scraper does more with a format that it did not ask for than with 406.
    public init(accept: String?) {
        let ranges = (accept.map { httpList($0) } ?? []).compactMap(MediaRange.init)
        let text = quality(of: ("text", "plain", "0.0.4"), in: ranges)
        let openMetrics = quality(of: ("application", "openmetrics-text", "1.0.0"), in: ranges)
        // A tie between wildcards is no wish for OpenMetrics; a tie between two named types is decided for
        // the one that carries more, exemplars.
        self = openMetrics.named && openMetrics.q > 0 && openMetrics.q >= text.q ? .openMetrics : .text
    }
}

/// Whether the value of an Accept-Encoding header prefers gzip to no encoding.
public func httpAcceptsGzip(_ acceptEncoding: String?) -> Bool {
    var gzip: Int?
    var any = 0
    var identity = 0
    for element in httpList(acceptEncoding ?? "") {
        let (coding, parameters) = splitParameters(element)
        guard let q = quality(parameters) else { continue }
        switch coding {
        case "gzip", "x-gzip": gzip = max(gzip ?? 0, q)
        case "identity": identity = q
        case "*": any = q
        default: break
        }
    }
    let q = gzip ?? any
    return q > 0 && q >= identity
}

/// The elements of a comma-separated header value, trimmed, without empty ones. A comma in a quoted
/// string separates nothing.
func httpList(_ value: String) -> [String] {
    splitOutsideQuotes(value, at: UInt8(ascii: ","))
}

private func splitOutsideQuotes(_ value: String, at separator: UInt8) -> [String] {
    var quoted = false
    var escaped = false
    let parts = value.utf8.split(omittingEmptySubsequences: true) { byte in
        if escaped {
            escaped = false
        } else if quoted && byte == UInt8(ascii: "\\") {
            escaped = true
        } else if byte == UInt8(ascii: "\"") {
            quoted.toggle()
        }
        return byte == separator && !quoted
    }
    return parts.map { part in
        let blank: (UInt8) -> Bool = { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") }
        let end = part.lastIndex { !blank($0) }.map { part.index(after: $0) } ?? part.startIndex
        return String(Substring(part[..<end].drop(while: blank)))
    }.filter { !$0.isEmpty }
}

/// `text/html; level=1; q=0.5` as `text/html` and its parameters, all in lower case; quotes are taken off.
private func splitParameters(_ element: String) -> (String, [(name: String, value: String)]) {
    var parts = splitOutsideQuotes(element.lowercased(), at: UInt8(ascii: ";"))[...]
    let first = parts.popFirst() ?? ""
    return (
        first,
        parts.map { part in
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            return (String(pair[0]), pair.count > 1 ? String(pair[1].filter { $0 != "\"" }) : "")
        }
    )
}

/// The weight in thousandths (RFC 9110 section 12.4.2), 1000 when absent, nil when malformed.
private func quality(_ parameters: [(name: String, value: String)]) -> Int? {
    guard let text = parameters.first(where: { $0.name == "q" })?.value else { return 1000 }
    let bytes = Array(text.utf8)
    guard let whole = bytes.first, whole == 0x30 || whole == 0x31, bytes.count <= 5,
        bytes.count < 2 || bytes[1] == UInt8(ascii: "."),
        bytes.dropFirst(2).allSatisfy({ (0x30...0x39).contains($0) })
    else { return nil }
    let digits = bytes.dropFirst(2) + Array(repeating: 0x30, count: 5 - max(bytes.count, 2))
    let q = digits.reduce(Int(whole - 0x30)) { $0 * 10 + Int($1 - 0x30) }
    return q <= 1000 ? q : nil
}

/// One element of an Accept header. Of its parameters only `version` tells our formats apart.
private struct MediaRange {
    let type: String
    let subtype: String
    let version: String?
    let q: Int

    init?(_ element: String) {
        let (name, parameters) = splitParameters(element)
        let parts = name.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, let q = quality(parameters) else { return nil }
        type = String(parts[0])
        subtype = String(parts[1])
        version = parameters.first { $0.name == "version" }?.value
        self.q = q
    }
}

/// The weight that the most specific matching range gives to a format, and whether that range names it.
private func quality(
    of format: (type: String, subtype: String, version: String), in ranges: [MediaRange]
) -> (q: Int, named: Bool) {
    var best = (specificity: 0, q: 0)
    for range in ranges {
        let specificity: Int
        switch (range.type, range.subtype, range.version) {
        case (format.type, format.subtype, format.version): specificity = 4
        case (format.type, format.subtype, nil): specificity = 3
        case (format.type, "*", nil): specificity = 2
        case ("*", "*", nil): specificity = 1
        default: continue
        }
        if specificity > best.specificity { best = (specificity, range.q) }
    }
    return (best.q, best.specificity >= 3)
}
