// IP addresses as the kernel side keeps them: 16 bytes, IPv4 as v4-mapped IPv6. Parsing is strict
// and printing canonical (RFC 5952), because printed addresses are metric labels.

/// What is wrong with the text of an address, a network or an endpoint.
public struct AddressError: Error, Equatable, Sendable, CustomStringConvertible {
    /// A sentence for people.
    public let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// 16 bytes, as a C array of the ABI appears in Swift.
public typealias Bytes16 = (
    UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8,
    UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8, UInt8
)

/// An IPv4 or IPv6 address. An IPv4 address and its v4-mapped IPv6 form are the same value.
public struct IPAddress: Hashable, Sendable, CustomStringConvertible {
    /// The first 8 bytes in network order, as a number.
    public let high: UInt64
    /// The last 8 bytes in network order, as a number.
    public let low: UInt64

    /// An address from its two halves, the first bytes the most significant.
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// An address from the 16 bytes of an ABI record.
    public init(_ bytes: Bytes16) {
        (high, low) = withUnsafeBytes(of: bytes) { raw in
            (
                UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: 0, as: UInt64.self)),
                UInt64(bigEndian: raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            )
        }
    }

    /// An IPv4 address from its 32 bits, the first byte the most significant.
    public init(ipv4: UInt32) {
        self.init(high: 0, low: IPAddress.mappedPrefix | UInt64(ipv4))
    }

    /// Parses an IPv4 address (four decimal numbers) or an IPv6 one (RFC 4291, without a zone).
    ///
    /// - Throws: `AddressError`.
    public init(_ text: String) throws(AddressError) {
        let utf8 = Array(text.utf8)
        guard let address = IPAddress(utf8: utf8[...]) else {
            throw AddressError("\(text.quoted()) is not an IP address")
        }
        self = address
    }

    /// Parses an address; nil if the text is not exactly one.
    init?(utf8 text: ArraySlice<UInt8>) {
        if text.contains(UInt8(ascii: ":")) {
            guard let address = IPAddress.ipv6(text) else { return nil }
            self = address
        } else {
            guard let bits = IPAddress.ipv4Bits(text) else { return nil }
            self.init(ipv4: bits)
        }
    }

    /// The 16 bytes, as an ABI record holds them.
    public var bytes: Bytes16 {
        let halves = (high.bigEndian, low.bigEndian)
        return withUnsafeBytes(of: halves) { $0.loadUnaligned(as: Bytes16.self) }
    }

    /// Whether this is an IPv4 address.
    public var isIPv4: Bool { high == 0 && low >> 32 == IPAddress.mappedPrefix >> 32 }

    /// The 32 bits of an IPv4 address, the first byte the most significant; nil for IPv6.
    public var ipv4: UInt32? { isIPv4 ? UInt32(truncatingIfNeeded: low) : nil }

    /// Whether all bits are zero: `::`, which is not `0.0.0.0`.
    public var isZero: Bool { high == 0 && low == 0 }

    /// The canonical text: dotted for IPv4, RFC 5952 for IPv6.
    public var description: String {
        if let ipv4 {
            return "\(ipv4 >> 24).\(ipv4 >> 16 & 255).\(ipv4 >> 8 & 255).\(ipv4 & 255)"
        }
        var groupStart = 0
        var zeros = 0..<0
        for index in 0...8 {
            if index < 8 && group(index) == 0 { continue }
            if index - groupStart > zeros.count { zeros = groupStart..<index }
            groupStart = index + 1
        }
        if zeros.count < 2 { zeros = 8..<8 }
        var text = ""
        for index in 0..<8 where !zeros.contains(index) {
            if index == zeros.upperBound {
                text += "::"
            } else if index > 0 {
                text += ":"
            }
            text += String(group(index), radix: 16)
        }
        return zeros.upperBound == 8 && !zeros.isEmpty ? text + "::" : text
    }

    /// The address with all bits past the first `bits` of its 128 set to zero.
    func masked(to bits: Int) -> IPAddress {
        IPAddress(
            high: high & ~(UInt64.max >> UInt64(min(bits, 64))),
            low: low & ~(UInt64.max >> UInt64(max(bits - 64, 0))))
    }

    private static let mappedPrefix: UInt64 = 0xffff_0000_0000

    private func group(_ index: Int) -> UInt16 {
        UInt16(truncatingIfNeeded: (index < 4 ? high : low) >> UInt64(48 - index % 4 * 16))
    }

    private static func ipv4Bits(_ text: ArraySlice<UInt8>) -> UInt32? {
        var bits: UInt32 = 0
        var parts = 0
        for part in text.split(separator: UInt8(ascii: "."), maxSplits: 4, omittingEmptySubsequences: false) {
            guard let number = decimal(part, maximum: 255) else { return nil }
            bits = bits << 8 | UInt32(number)
            parts += 1
        }
        return parts == 4 ? bits : nil
    }

    private static func ipv6(_ text: ArraySlice<UInt8>) -> IPAddress? {
        // Eight groups, and the index among them of the "::", which stands for the missing ones.
        var groups: [UInt16] = []
        var gap: Int?
        var rest = text
        if rest.starts(with: [UInt8(ascii: ":"), UInt8(ascii: ":")]) {
            gap = 0
            rest = rest.dropFirst(2)
        }
        while !rest.isEmpty {
            let part = rest.prefix { $0 != UInt8(ascii: ":") }
            if part.endIndex == text.endIndex, part.contains(UInt8(ascii: ".")) {
                guard let bits = ipv4Bits(part) else { return nil }
                groups += [UInt16(bits >> 16), UInt16(truncatingIfNeeded: bits)]
                break
            }
            guard let group = hexGroup(part) else { return nil }
            groups.append(group)
            if groups.count > 8 { return nil }
            rest = rest[part.endIndex...].dropFirst()
            if part.endIndex == text.endIndex { break }
            if rest.first == UInt8(ascii: ":") {
                if gap != nil { return nil }
                gap = groups.count
                rest = rest.dropFirst()
            } else if rest.isEmpty {
                return nil
            }
        }
        if let gap {
            guard groups.count < 8 else { return nil }
            groups.insert(contentsOf: repeatElement(0, count: 8 - groups.count), at: gap)
        }
        guard groups.count == 8 else { return nil }
        let high = groups[..<4].reduce(0) { $0 << 16 | UInt64($1) }
        return IPAddress(high: high, low: groups[4...].reduce(0) { $0 << 16 | UInt64($1) })
    }

    private static func hexGroup(_ text: ArraySlice<UInt8>) -> UInt16? {
        guard (1...4).contains(text.count) else { return nil }
        var group: UInt16 = 0
        for byte in text {
            guard let digit = hexDigit(byte) else { return nil }
            group = group << 4 | UInt16(digit)
        }
        return group
    }
}

/// A decimal number without sign or leading zeros; nil if it is not one or more than `maximum`.
func decimal(_ text: ArraySlice<UInt8>, maximum: Int) -> Int? {
    guard let first = text.first, first != UInt8(ascii: "0") || text.count == 1 else { return nil }
    var number = 0
    for byte in text {
        guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
        number = number * 10 + Int(byte - UInt8(ascii: "0"))
        if number > maximum { return nil }
    }
    return number
}
