// Addresses, networks and endpoints, against the C library's own parser and printer too.

import Foundation
import Testing

@testable import MeshCore

/// What the C library makes of an IPv6 address.
private func systemIPv6(_ text: String) -> IPAddress? {
    var bytes = in6_addr()
    guard inet_pton(AF_INET6, text, &bytes) == 1 else { return nil }
    return withUnsafeBytes(of: bytes) { IPAddress($0.loadUnaligned(as: Bytes16.self)) }
}

private func error<Value>(_ body: () throws(AddressError) -> Value) -> String? {
    do throws(AddressError) {
        _ = try body()
        return nil
    } catch {
        return error.description
    }
}

@Suite struct IPAddressTests {
    @Test(arguments: [
        ("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("255.255.255.255", "255.255.255.255"),
        ("::ffff:10.0.0.1", "10.0.0.1"), ("::FFFF:a00:1", "10.0.0.1"), ("::", "::"), ("::1", "::1"),
        ("1::", "1::"), ("FD00::00A1", "fd00::a1"), ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"), ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"), ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"), ("::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"),
        ("1:0:0:4:5:6:0:0", "1::4:5:6:0:0"), ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
        ("1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:102:304"), ("1:2:3:4:5::1.2.3.4", "1:2:3:4:5:0:102:304"),
        ("0:0:0:0:0:0:0:0", "::"), ("fe80:0:0:0:0:0:0:0", "fe80::"), ("::1.2.3.4", "::102:304"),
    ])
    func canonicalText(text: String, canonical: String) throws {
        let address = try IPAddress(text)
        #expect(address.description == canonical)
        #expect(try IPAddress(canonical) == address)
        #expect(IPAddress(address.bytes) == address)
    }

    @Test(arguments: [
        "", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.", ".1.2.3", "1..2.3", " 1.2.3.4",
        "1.2.3.4 ",
        "1.2.3.-4", "1.2.3.4/8", "localhost", ":", ":::", "1:", ":1", "1:2", "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        "1::2::3", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1:2:3:4::5:6:7:8", "12345::", "g::", "::1%eth0",
        "[::1]",
        "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "1.2.3.4::", "::1.2.3.4:5", "1:2:3:4:5:6:7:", "::1:", "::-1",
        "1::2:",
        "1.2.3.4\0", "١.2.3.4",
    ])
    func notAddresses(text: String) {
        #expect(
            error { () throws(AddressError) in try IPAddress(text) }
                == "\(text.quoted()) is not an IP address")
    }

    @Test func bytes() throws {
        let v6 = try IPAddress("102:304:506:708:90a:b0c:d0e:f10").bytes
        #expect(withUnsafeBytes(of: v6) { Array($0) } == Array(1...16))
        let v4 = try IPAddress("10.1.2.3")
        #expect(
            withUnsafeBytes(of: v4.bytes) { Array($0) }
                == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3])
        #expect(v4.ipv4 == 0x0a01_0203)
        #expect(IPAddress(ipv4: 0x0a01_0203) == v4)
        #expect(v4.isIPv4)
        #expect(try !IPAddress("::1.2.3.4").isIPv4)
        #expect(try IPAddress("::").isZero)
        #expect(try !IPAddress("0.0.0.0").isZero)
    }

    @Test func agreesWithTheSystem() {
        var random = SplitMix64(seed: 2)
        for _ in 0..<5000 {
            // Runs of zeros and small groups are where the rules are.
            let groups = (0..<8).map { _ in
                Bool.random(using: &random)
                    ? 0 : UInt16(truncatingIfNeeded: random.next() >> random.next() % 60)
            }
            let address = IPAddress(
                high: groups[..<4].reduce(0) { $0 << 16 | UInt64($1) },
                low: groups[4...].reduce(0) { $0 << 16 | UInt64($1) })
            var raw = withUnsafeBytes(of: address.bytes) { $0.loadUnaligned(as: in6_addr.self) }
            var text = [CChar](repeating: 0, count: 64)
            inet_ntop(AF_INET6, &raw, &text, 64)
            let printed = String(
                decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
            // The system prints ::1.2.3.4 (deprecated IPv4-compatible addresses) dotted, and mapped ones with
            // their prefix.
            if !printed.contains(".") { #expect(address.description == printed) }
            #expect((try? IPAddress(printed)) == address)
        }
    }
}

@Suite struct NetworkTests {
    @Test(arguments: [
        ("10.0.0.0/8", "10.0.0.0/8", 104), ("10.96.0.1/32", "10.96.0.1", 128),
        ("10.96.0.1", "10.96.0.1", 128),
        ("0.0.0.0/0", "0.0.0.0/0", 96), ("::/0", "::/0", 0), ("fc00::/7", "fc00::/7", 7),
        ("::1/128", "::1", 128),
        ("fd00:0:0:1::/64", "fd00:0:0:1::/64", 64), ("::ffff:10.0.0.0/104", "10.0.0.0/8", 104),
        ("::ffff:0:0/96", "0.0.0.0/0", 96), ("128.0.0.0/1", "128.0.0.0/1", 97), ("8000::/1", "8000::/1", 1),
        ("fd00:0:0:0:8000::/65", "fd00::8000:0:0:0/65", 65),
    ])
    func canonicalText(text: String, canonical: String, bits: Int) throws {
        let network = try Network(text)
        #expect(network.description == canonical)
        #expect(network.bits == bits)
        #expect(try Network(canonical) == network)
    }

    @Test(arguments: [
        ("10.0.0.1/8", "\"10.0.0.1/8\" has bits set past the first 8; did you mean 10.0.0.0/8?"),
        ("fd00::1/64", "\"fd00::1/64\" has bits set past the first 64; did you mean fd00::/64?"),
        (
            "::ffff:10.0.0.1/104",
            "\"::ffff:10.0.0.1/104\" has bits set past the first 104; did you mean 10.0.0.0/8?"
        ),
        ("1.1.1.1/0", "\"1.1.1.1/0\" has bits set past the first 0; did you mean 0.0.0.0/0?"),
        ("10.0.0.0/33", "\"10.0.0.0/33\" needs a number of bits from 0 to 32 after the \"/\""),
        ("10.0.0.0/", "\"10.0.0.0/\" needs a number of bits from 0 to 32 after the \"/\""),
        ("10.0.0.0/08", "\"10.0.0.0/08\" needs a number of bits from 0 to 32 after the \"/\""),
        ("10.0.0.0/8/8", "\"10.0.0.0/8/8\" needs a number of bits from 0 to 32 after the \"/\""),
        ("fd00::/129", "\"fd00::/129\" needs a number of bits from 0 to 128 after the \"/\""),
        (
            "fd00::/99999999999999999999",
            "\"fd00::/99999999999999999999\" needs a number of bits from 0 to 128 after the \"/\""
        ),
        ("/8", "\"/8\" has no valid IP address before the \"/\""), ("x", "\"x\" has no valid IP address"),
    ])
    func mistakes(text: String, message: String) {
        #expect(error { () throws(AddressError) in try Network(text) } == message)
    }

    @Test(arguments: [
        ("10.0.0.0/8", "10.255.0.1", true), ("10.0.0.0/8", "11.0.0.0", false), ("::/0", "1.2.3.4", true),
        ("0.0.0.0/0", "1.2.3.4", true), ("0.0.0.0/0", "fd00::1", false), ("fc00::/7", "fd12::1", true),
        ("fc00::/7", "fe80::1", false), ("::1", "::1", true), ("::1", "::2", false),
        ("fd00::/65", "fd00::1", true),
        ("fd00::/65", "fd00::8000:0:0:0", false),
    ])
    func contains(network: String, address: String, expected: Bool) throws {
        #expect(try Network(network).contains(IPAddress(address)) == expected)
    }
}

@Suite struct EndpointTests {
    @Test(arguments: [
        ("10.0.0.0/24:8443", "10.0.0.0/24:8443", 120, 8443), ("127.0.0.1:9001", "127.0.0.1:9001", 128, 9001),
        ("[fd00::1]:8443", "[fd00::1]:8443", 128, 8443), ("[fd00::/64]:1", "[fd00::/64]:1", 64, 1),
        ("[fd00::]/64:9001", "[fd00::/64]:9001", 64, 9001),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", 128, 80), ("10.0.0.1/32:65535", "10.0.0.1:65535", 128, 65535),
        ("[::/0]:80", "[::/0]:80", 0, 80),
    ])
    func canonicalText(text: String, canonical: String, bits: Int, port: UInt16) throws {
        let endpoint = try Endpoint(text)
        #expect(endpoint.description == canonical)
        #expect(endpoint.network.bits == bits)
        #expect(endpoint.port == port)
        #expect(try Endpoint(canonical) == endpoint)
    }

    @Test(arguments: [
        ("10.0.0.1", "\"10.0.0.1\" has no port; write ADDRESS:PORT, such as 10.0.0.1:8443"),
        ("[fd00::1]", "\"[fd00::1]\" has no port; write ADDRESS:PORT, such as 10.0.0.1:8443"),
        ("", "\"\" has no port; write ADDRESS:PORT, such as 10.0.0.1:8443"),
        ("fd00::1:80", "\"fd00::1:80\" needs brackets around its IPv6 address, such as [fd00::1]:8443"),
        ("fd00::/64:80", "\"fd00::/64:80\" needs brackets around its IPv6 address, such as [fd00::1]:8443"),
        ("[10.0.0.1]:80", "\"[10.0.0.1]:80\" has brackets, which are for IPv6 addresses only"),
        ("10.0.0.1:0", "\"10.0.0.1:0\" needs a port from 1 to 65535"),
        ("10.0.0.1:65536", "\"10.0.0.1:65536\" needs a port from 1 to 65535"),
        ("10.0.0.1:", "\"10.0.0.1:\" needs a port from 1 to 65535"),
        ("10.0.0.1:http", "\"10.0.0.1:http\" needs a port from 1 to 65535"),
        ("10.0.0.1:080", "\"10.0.0.1:080\" needs a port from 1 to 65535"),
        ("localhost:80", "\"localhost:80\" has no valid IP address"),
        (":80", "\":80\" has no valid IP address"), ("*:80", "\"*:80\" has no valid IP address"),
        ("10.0.0.5/24:80", "\"10.0.0.5/24:80\" has bits set past the first 24; did you mean 10.0.0.0/24?"),
        ("[fd00::1/64]:80", "\"[fd00::1/64]:80\" has bits set past the first 64; did you mean fd00::/64?"),
        ("10.0.0.1:80\n", "\"10.0.0.1:80\\n\" needs a port from 1 to 65535"),
    ])
    func mistakes(text: String, message: String) {
        #expect(error { () throws(AddressError) in try Endpoint(text) } == message)
    }

    @Test func addressPort() throws {
        #expect(try AddressPort("127.0.0.1:9464").description == "127.0.0.1:9464")
        #expect(try AddressPort("[::]:9464").description == "[::]:9464")
        #expect(
            try AddressPort("[::ffff:1.2.3.4]:1")
                == AddressPort(address: IPAddress(ipv4: 0x0102_0304), port: 1))
        let messages = ["10.0.0.0/8:1", "localhost:1", "1.2.3.4"].map { text in
            error { () throws(AddressError) in try AddressPort(text) }
        }
        #expect(
            messages == [
                "\"10.0.0.0/8:1\" has no valid IP address before the port",
                "\"localhost:1\" has no valid IP address before the port",
                "\"1.2.3.4\" has no port; write ADDRESS:PORT, such as 127.0.0.1:9464",
            ])
    }
}
