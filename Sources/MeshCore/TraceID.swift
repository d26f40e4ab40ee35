// Trace IDs: the 16 bytes of a W3C trace context that a stamp carries.

/// A trace ID. It is never all zero, which the ABI uses for "unknown".
public struct TraceID: Hashable, Sendable, CustomStringConvertible {
    /// The first 8 bytes in network order, as a number.
    public let high: UInt64
    /// The last 8 bytes in network order, as a number.
    public let low: UInt64

    /// A trace ID from its two halves; nil if all is zero.
    public init?(high: UInt64, low: UInt64) {
        if high == 0 && low == 0 { return nil }
        self.high = high
        self.low = low
    }

    /// The trace ID of an ABI record; nil if it is unknown.
    public init?(_ bytes: Bytes16) {
        let address = IPAddress(bytes)
        self.init(high: address.high, low: address.low)
    }

    /// Parses 32 hexadecimal digits of either case; nil for anything else, and for all zeros.
    public init?(_ text: String) {
        var (high, low, count) = (UInt64(0), UInt64(0), 0)
        for byte in text.utf8 {
            guard count < 32, let digit = hexDigit(byte) else { return nil }
            high = high << 4 | low >> 60
            low = low << 4 | UInt64(digit)
            count += 1
        }
        guard count == 32 else { return nil }
        self.init(high: high, low: low)
    }

    /// The 16 bytes, as an ABI record holds them.
    public var bytes: Bytes16 { IPAddress(high: high, low: low).bytes }

    /// 32 lower-case hexadecimal digits.
    public var description: String {
        func digits(_ half: UInt64) -> String {
            let text = String(half, radix: 16)
            return String(repeating: "0", count: 16 - text.count) + text
        }
        return digits(high) + digits(low)
    }
}
