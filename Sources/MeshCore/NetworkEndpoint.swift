// Networks in CIDR form, endpoints (an address or network with a port), and plain address:port.

/// A range of addresses: an address and how many of its leading bits count.
public struct Network: Hashable, Sendable, CustomStringConvertible {
    /// The first address; the bits past `bits` are zero.
    public let address: IPAddress
    /// How many bits count, from 0 to 128, in the 128-bit space: 96 + n for an IPv4 network of n bits.
    public let bits: Int

    private init(address: IPAddress, bits: Int) {
        self.address = address
        self.bits = bits
    }

    /// The network of a single address.
    public init(_ address: IPAddress) {
        self.init(address: address, bits: 128)
    }

    /// A network from its address and how many bits count, from 0 to 128; nil if there are others set.
    public init?(_ address: IPAddress, bits: Int) {
        guard (0...128).contains(bits), address.masked(to: bits) == address else { return nil }
        self.init(address: address, bits: bits)
    }

    /// Parses `10.0.0.0/8`, `fd00::/64`, or a single address, which is a network of all its bits.
    ///
    /// - Throws: `AddressError`, also if bits past the prefix are set; it then names the network that
    ///   was probably meant.
    public init(_ text: String) throws(AddressError) {
        try self.init(utf8: Array(text.utf8)[...], in: text)
    }

    /// Parses the network at a slice of `whole`, which error messages quote.
    init(utf8 text: ArraySlice<UInt8>, in whole: String) throws(AddressError) {
        guard let slash = text.firstIndex(of: UInt8(ascii: "/")) else {
            guard let address = IPAddress(utf8: text) else {
                throw AddressError("\(whole.quoted()) has no valid IP address")
            }
            self.init(address)
            return
        }
        guard let address = IPAddress(utf8: text[..<slash]) else {
            throw AddressError("\(whole.quoted()) has no valid IP address before the \"/\"")
        }
        // How many bits the text may give is a matter of how it is written: a v4-mapped IPv6 address
        // counts all 128.
        let width = text[..<slash].contains(UInt8(ascii: ":")) ? 128 : 32
        guard let length = decimal(text[(slash + 1)...], maximum: width) else {
            throw AddressError(
                "\(whole.quoted()) needs a number of bits from 0 to \(width) after the \"/\"")
        }
        let bits = 128 - width + length
        self.init(address: address.masked(to: bits), bits: bits)
        if self.address != address {
            throw AddressError(
                "\(whole.quoted()) has bits set past the first \(length); did you mean \(self)?")
        }
    }

    /// Whether an address is in the network.
    public func contains(_ other: IPAddress) -> Bool {
        other.masked(to: bits) == address
    }

    /// Whether this is a single address.
    public var isSingleAddress: Bool { bits == 128 }

    /// The canonical text; a single address is written without its length.
    public var description: String {
        if isSingleAddress { return address.description }
        return "\(address)/\(address.isIPv4 && bits >= 96 ? bits - 96 : bits)"
    }
}

/// Where a service listens: an address or a network, and a port.
public struct Endpoint: Hashable, Sendable, CustomStringConvertible {
    /// The addresses.
    public let network: Network
    /// The port, from 1 to 65535.
    public let port: UInt16

    /// An endpoint from its parts.
    public init(network: Network, port: UInt16) {
        self.network = network
        self.port = port
    }

    /// Parses `10.0.0.0/24:8443`, `127.0.0.1:9001`, `[fd00::1]:8443` or `[fd00::/64]:8443`, the last also
    /// as `[fd00::]/64:8443`.
    ///
    /// - Throws: `AddressError`.
    public init(_ text: String) throws(AddressError) {
        let (host, port) = try splitPort(Array(text.utf8), of: text, example: "10.0.0.1:8443")
        self.init(network: try Network(utf8: host, in: text), port: port)
    }

    /// The canonical text, as the parser reads it.
    public var description: String {
        network.address.isIPv4 && network.bits >= 96 ? "\(network):\(port)" : "[\(network)]:\(port)"
    }
}

/// One address with a port: where to listen, one end of a connection, a discovered service.
public struct AddressPort: Hashable, Sendable, CustomStringConvertible {
    /// The address.
    public let address: IPAddress
    /// The port.
    public let port: UInt16

    /// An address and a port.
    public init(address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }

    /// Parses `127.0.0.1:9464` or `[::1]:9464`; the port is from 1 to 65535.
    ///
    /// - Throws: `AddressError`.
    public init(_ text: String) throws(AddressError) {
        let (host, port) = try splitPort(Array(text.utf8), of: text, example: "127.0.0.1:9464")
        guard let address = IPAddress(utf8: host) else {
            throw AddressError("\(text.quoted()) has no valid IP address before the port")
        }
        self.init(address: address, port: port)
    }

    /// The canonical text: `10.0.0.5:8080`, `[fd00::1]:8080`.
    public var description: String {
        address.isIPv4 ? "\(address):\(port)" : "[\(address)]:\(port)"
    }
}

/// Splits `HOST:PORT` or `[HOST]:PORT`; a host with colons needs its brackets, any other must not have
/// them.
private func splitPort(
    _ text: [UInt8], of whole: String, example: String
) throws(AddressError) -> (host: ArraySlice<UInt8>, port: UInt16) {
    guard let colon = text.lastIndex(of: UInt8(ascii: ":")), text.last != UInt8(ascii: "]") else {
        throw AddressError("\(whole.quoted()) has no port; write ADDRESS:PORT, such as \(example)")
    }
    var host = text[..<colon]
    // [fd00::]/64 means what [fd00::/64] does.
    if host.first == UInt8(ascii: "["), host.last != UInt8(ascii: "]"),
        let close = host.lastIndex(of: UInt8(ascii: "]")), host[(close + 1)...].first == UInt8(ascii: "/")
    {
        host.remove(at: close)
        host.append(UInt8(ascii: "]"))
    }
    let bracketed = host.first == UInt8(ascii: "[") && host.last == UInt8(ascii: "]") && host.count > 1
    if bracketed { host = host.dropFirst().dropLast() }
    if host.contains(UInt8(ascii: ":")) != bracketed {
        throw AddressError(
            bracketed
                ? "\(whole.quoted()) has brackets, which are for IPv6 addresses only"
                : "\(whole.quoted()) needs brackets around its IPv6 address, such as [fd00::1]:8443")
    }
    guard let port = decimal(text[(colon + 1)...], maximum: 65535), port > 0 else {
        throw AddressError("\(whole.quoted()) needs a port from 1 to 65535")
    }
    return (host, UInt16(port))
}
