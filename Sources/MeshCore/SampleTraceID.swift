// The 16-byte W3C trace ID as a value that fits in two registers, so that the record path can
// carry, compare and store it without memory of its own.

/// A W3C trace ID. All zero means: unknown.
public struct TraceID: Hashable, Sendable, CustomStringConvertible {
    /// The first eight bytes on the wire, as a big-endian number.
    public var high: UInt64
    /// The last eight bytes on the wire, as a big-endian number.
    public var low: UInt64

    /// The all-zero ID: unknown.
    public static let none = TraceID(high: 0, low: 0)

    /// A trace ID from its two halves, each a big-endian number.
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// Reads 32 hexadecimal digits of either case; nil for anything else.
    public init?(hex: String) {
        var halves: (UInt64, UInt64) = (0, 0)
        var digits = 0
        for byte in hex.utf8 {
            let digit: UInt8
            switch byte {
            case 0x30...0x39: digit = byte - 0x30
            case 0x41...0x46: digit = byte - 0x41 + 10
            case 0x61...0x66: digit = byte - 0x61 + 10
            default: return nil
            }
            if digits < 16 {
                halves.0 = halves.0 << 4 | UInt64(digit)
            } else {
                halves.1 = halves.1 << 4 | UInt64(digit)
            }
            digits += 1
            if digits > 32 { return nil }
        }
        guard digits == 32 else { return nil }
        self.init(high: halves.0, low: halves.1)
    }

    /// Whether the ID is known: at least one bit is set.
    @inlinable public var isKnown: Bool { high | low != 0 }

    /// 32 lower-case hexadecimal digits.
    public var description: String {
        String(unsafeUninitializedCapacity: 32) { buffer in
            for index in 0..<32 {
                let half = index < 16 ? high : low
                let nibble = UInt8(truncatingIfNeeded: half >> UInt64(60 - 4 * (index % 16))) & 15
                buffer[index] = nibble < 10 ? 0x30 + nibble : 0x61 + nibble - 10
            }
            return 32
        }
    }
}
