// Parsers get tens of thousands of broken inputs, the same ones in every run. None may crash, and what
// they accept must hold what they promise.

import Testing

@testable import MeshCore

@Suite struct HostileBytesTests {
    private static let words = [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\\ud83d", "null", "true", "1e999", "-", "0", "1.5",
        "//",
        "\u{0}", "é", "\n", "\"name\":", "10s", "/24", "::", "255", "99999999999999999999", "--", "=",
    ]

    @Test func json() throws {
        var random = SplitMix64(seed: 10)
        let seed = Array(
            #"{"a": [1, -2.5e3, true, null, "x\u00e9\ud83d\ude00\n"], "b": {"c": {}, "d": []}, "é": "\"\\"}"#
                .utf8)
        var valid = 0
        for _ in 0..<20_000 {
            let bytes = random.mutated(seed, words: Self.words)
            guard let value = try? JSONValue.parse(bytes) else { continue }
            valid += 1
            // What is accepted reads back the same, however it is written.
            #expect(try JSONValue.parse(value.bytes()) == value)
            #expect(try JSONValue.parse(value.bytes(pretty: true)) == value)
        }
        #expect(valid > 500)
    }

    @Test func noise() {
        var random = SplitMix64(seed: 11)
        let alphabet = Array("{}[]\",:\\utrfn0123456789-+.eE \n\u{0}é".utf8)
        for _ in 0..<20_000 {
            let bytes = (0..<Int.random(in: 0...40, using: &random)).map { _ in
                alphabet.randomElement(using: &random)!
            }
            _ = try? JSONNode.parse(bytes)
        }
    }

    @Test func everyPrefix() {
        let bytes = Array(ConfigurationTests.example.utf8)
        for count in 0..<bytes.count {
            #expect(throws: ConfigurationErrors.self) {
                try Configuration.parse(bytes: Array(bytes.prefix(count)), file: "f")
            }
        }
    }

    @Test func configuration() {
        var random = SplitMix64(seed: 12)
        let seed = Array(ConfigurationTests.example.utf8)
        var valid = 0
        for _ in 0..<5000 {
            do throws(ConfigurationErrors) {
                let configuration = try Configuration.parse(
                    bytes: random.mutated(seed, words: Self.words), file: "f")
                valid += 1
                check(configuration)
            } catch {
                #expect(!error.errors.isEmpty)
                #expect(error.description.utf8.allSatisfy { $0 >= 0x20 || $0 == 0x0a })
                #expect(error.description.split(separator: "\n").count == error.errors.count)
            }
        }
        #expect(valid > 50)
    }

    private func check(_ configuration: Configuration) {
        #expect(configuration.listen.port > 0)
        #expect(zip(configuration.buckets, configuration.buckets.dropFirst()).allSatisfy(<))
        #expect((100...1_000_000).contains(configuration.limits.maxSeries))
        #expect((0...1).contains(configuration.breakers.maxOpenShare))
        for service in configuration.services {
            #expect((1...200).contains(service.name.utf8.count))
            #expect(!service.endpoints.isEmpty)
            guard let breaker = service.breaker else { continue }
            #expect(breaker.failureRate > 0 && breaker.failureRate <= 1)
            #expect(breaker.openFor <= breaker.maxOpenFor)
            #expect(breaker.minimumRequests > 0)
        }
    }

    @Test func endpoints() throws {
        var random = SplitMix64(seed: 13)
        let seeds = ["10.0.0.0/24:8443", "[fd00::1]:8443", "[fd00::/64]:80", "[::ffff:10.0.0.1]:1"].map {
            Array($0.utf8)
        }
        var valid = 0
        for _ in 0..<20_000 {
            let text = String(
                decoding: random.mutated(seeds.randomElement(using: &random)!, words: Self.words),
                as: UTF8.self)
            _ = try? AddressPort(text)
            _ = try? Network(text)
            guard let endpoint = try? Endpoint(text) else { continue }
            valid += 1
            #expect(try Endpoint(endpoint.description) == endpoint)
            #expect(endpoint.network.contains(endpoint.network.address))
        }
        #expect(valid > 500)
    }

    @Test func durations() throws {
        var random = SplitMix64(seed: 14)
        let seeds = ["1h2m3.5s", "250ms", "18446744073709551615ns", "1m30s"].map { Array($0.utf8) }
        var valid = 0
        for _ in 0..<20_000 {
            let bytes = random.mutated(
                seeds.randomElement(using: &random)!, words: Self.words + ["h", "m", "s", "ms"])
            guard let nanoseconds = try? DurationText.parse(String(decoding: bytes, as: UTF8.self)) else {
                continue
            }
            valid += 1
            #expect(try DurationText.parse(DurationText.format(nanoseconds)) == nanoseconds)
            _ = DurationText.brief(nanoseconds)
        }
        #expect(valid > 500)
    }

    @Test func arguments() {
        var random = SplitMix64(seed: 15)
        let option = ArgumentOption("reason", short: "r", value: "TEXT", summary: "why")
        let program = ArgumentProgram(
            "p", summary: "p", options: [option],
            commands: [
                ArgumentCommand(["a", "b"], summary: "x", operands: [ArgumentOperand("X", count: .any)]),
                ArgumentCommand(["c"], summary: "y", operands: [ArgumentOperand("Y")]),
            ])
        let words = [
            "a", "b", "c", "--reason", "--reason=x", "-r", "-rx", "--", "-", "--=", "=", "", "--help",
            "-\u{301}",
        ]
        var valid = 0
        for _ in 0..<20_000 {
            let line = (0..<Int.random(in: 0...6, using: &random)).map { _ -> String in
                let word = words.randomElement(using: &random)!
                if Int.random(in: 0..<4, using: &random) > 0 { return word }
                return String(decoding: random.mutated(Array(word.utf8), words: Self.words), as: UTF8.self)
            }
            do throws(ArgumentError) {
                let arguments = try program.parse(line)
                valid += 1
                #expect(!program.help(arguments.command).isEmpty)
            } catch {
                #expect(!error.description.contains { $0.isNewline })
            }
        }
        #expect(valid > 1000)
    }
}
