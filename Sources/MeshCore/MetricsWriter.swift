// Writes metric lines as bytes: names, escaped labels, exact numbers, without strings in between.

/// What a metric is.
enum MetricsType: String {
    case counter, gauge, histogram
}

/// The bytes of a metrics page as it grows.
struct MetricsWriter {
    let format: MetricsFormat
    var bytes: [UInt8] = []

    /// Begins a metric family. `name` is without `_total`; if it ends with a unit, that is its unit. `help`
    /// has neither quotes nor line breaks.
    mutating func family(_ name: String, _ type: MetricsType, _ help: String) {
        // The text format knows a counter by its sample's name, OpenMetrics by its family's.
        let title = type == .counter && format == .text ? name + "_total" : name
        append("# HELP ", title, " ")
        append(help, "\n# TYPE ", title, " ", type.rawValue, "\n")
        guard format == .openMetrics else { return }
        for unit in ["seconds", "bytes"] where name.hasSuffix("_" + unit) {
            append("# UNIT ", title, " ", unit, "\n")
        }
    }

    /// One sample with an integer; `labels` as `Labels.bytes` has them.
    mutating func sample(
        _ name: String, _ labels: some Collection<UInt8>, _ value: UInt64
    ) {
        append(name)
        appendBraced(labels)
        appendInteger(value)
        append("\n")
    }

    /// One sample with a number of nanoseconds, written in seconds.
    mutating func sample(
        _ name: String, _ labels: some Collection<UInt8>, nanoseconds: UInt64
    ) {
        append(name)
        appendBraced(labels)
        appendSeconds(nanoseconds)
        append("\n")
    }

    /// The samples of a histogram. `bucket` gives the count of each bucket, not cumulative, the sum is in
    /// nanoseconds, `edges` are the rendered values of `le`, `+Inf` the last.
    mutating func histogram(
        _ name: String, _ labels: some Collection<UInt8>, edges: [[UInt8]], sum: UInt64,
        bucket: (Int) -> UInt64, exemplar: (Int) -> SeriesExemplar? = { _ in nil }
    ) {
        var total: UInt64 = 0
        for (index, edge) in edges.enumerated() {
            total &+= bucket(index)
            append(name)
            append("_bucket{")
            bytes.append(contentsOf: labels)
            append(labels.isEmpty ? "le=\"" : ",le=\"")
            bytes.append(contentsOf: edge)
            append("\"} ")
            appendInteger(total)
            if format == .openMetrics, let exemplar = exemplar(index) {
                append(" # {trace_id=\"")
                appendHex(exemplar.traceID.high)
                appendHex(exemplar.traceID.low)
                append("\"} ")
                appendSeconds(exemplar.duration)
                append(" ")
                appendSeconds(exemplar.wallTime)
            }
            append("\n")
        }
        append(name, "_sum")
        appendBraced(labels)
        appendSeconds(sum)
        append("\n", name, "_count")
        appendBraced(labels)
        appendInteger(total)
        append("\n")
    }

    /// The last line that OpenMetrics wants.
    mutating func end() {
        if format == .openMetrics { append("# EOF\n") }
    }

    /// The values of `le`, rendered: canonical floats, so `1.0` and never `1`.
    static func edges(of bounds: [UInt64]) -> [[UInt8]] {
        bounds.map { Array((Double($0) / 1e9).description.utf8) } + [Array("+Inf".utf8)]
    }

    /// Labels without their braces: `a="1",b="2"`; `after` others, with a comma before.
    static func labels(_ pairs: KeyValuePairs<String, String>, after: Bool = false) -> [UInt8] {
        var writer = MetricsWriter(format: .text)
        for (index, pair) in pairs.enumerated() {
            writer.append(index == 0 && !after ? "" : ",", pair.key, "=\"")
            writer.appendEscaped(pair.value)
            writer.append("\"")
        }
        return writer.bytes
    }

    private mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }

    private mutating func append(_ texts: String...) {
        for text in texts { append(text) }
    }

    private mutating func appendBraced(_ labels: some Collection<UInt8>) {
        if !labels.isEmpty {
            append("{")
            bytes.append(contentsOf: labels)
            append("}")
        }
        append(" ")
    }

    /// Whatever the text is, it stays on its line and in its quotes; a control character becomes U+FFFD.
    private mutating func appendEscaped(_ text: String) {
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\\"): append("\\\\")
            case UInt8(ascii: "\""): append("\\\"")
            case UInt8(ascii: "\n"): append("\\n")
            case 0..<0x20, 0x7f: append("\u{fffd}")
            default: bytes.append(byte)
            }
        }
    }

    private mutating func appendInteger(_ value: UInt64) {
        var rest = value
        let start = bytes.count
        repeat {
            bytes.append(0x30 + UInt8(rest % 10))
            rest /= 10
        } while rest > 0
        bytes[start...].reverse()
    }

    /// Seconds to the nanosecond, without trailing zeros: exact, where a double is not.
    private mutating func appendSeconds(_ nanoseconds: UInt64) {
        appendInteger(nanoseconds / 1_000_000_000)
        var fraction = nanoseconds % 1_000_000_000
        guard fraction > 0 else { return }
        append(".")
        var place: UInt64 = 100_000_000
        while fraction > 0 {
            bytes.append(0x30 + UInt8(fraction / place))
            fraction %= place
            place /= 10
        }
    }

    private mutating func appendHex(_ value: UInt64) {
        for shift in stride(from: UInt64(60), through: 0, by: -4) {
            let digit = UInt8(truncatingIfNeeded: value >> shift) & 15
            bytes.append(digit < 10 ? 0x30 + digit : 0x61 + digit - 10)
        }
    }
}
