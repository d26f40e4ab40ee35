// Durations, read and written.

import Testing

@testable import MeshCore

@Suite struct DurationTests {
    @Test(
        arguments: [
            ("0s", 0), ("250ms", 250_000_000), ("10s", 10_000_000_000), ("1.5s", 1_500_000_000),
            ("10m", 600_000_000_000),
            ("2h", 7_200_000_000_000), ("1m30s", 90_000_000_000), ("500us", 500_000), ("7ns", 7),
            ("0.25ms", 250_000),
            ("1h1m1s1ms1us1ns", 3_661_001_001_001), ("0.5h", 1_800_000_000_000), ("0.000000001s", 1),
            ("0.9ns", 0),
            ("1.123456789999s", 1_123_456_789), ("18446744073709551615ns", UInt64.max),
            ("007s", 7_000_000_000),
            ("0.333333333333h", 1_199_999_999_998), ("1.00000000000000000000000s", 1_000_000_000),
        ] as [(String, UInt64)])
    func parse(text: String, nanoseconds: UInt64) throws {
        #expect(try DurationText.parse(text) == nanoseconds)
    }

    @Test(arguments: [
        ("", "is not a duration"), ("s", "is not a duration"), ("-1s", "is not a duration"),
        (" 1s", "is not a duration"),
        ("10", "needs a unit"), ("1m30", "needs a unit"), ("10 s", "has an unknown unit"),
        ("1d", "has an unknown unit"),
        ("1S", "has an unknown unit"), ("1sec", "has an unknown unit"),
        ("30s1m", "has its units out of order"),
        ("1s1s", "has its units out of order"), ("1..5s", "has no valid number before the unit"),
        (".5s", "has no valid number before the unit"), ("5.s", "has no valid number before the unit"),
        ("1.2.3s", "has no valid number before the unit"), ("1e3s", "has an unknown unit"),
        ("18446744073709551616ns", "has no valid number before the unit"),
        ("99999999999h", "has no valid number before the unit"), ("5124095h59m", "is too long"),
    ])
    func mistakes(text: String, what: String) {
        #expect(
            throws: DurationError(
                description: "\(text.quoted()) \(what); write it like \"250ms\", \"10s\" or \"1m30s\"")
        ) {
            try DurationText.parse(text)
        }
    }

    @Test(
        arguments: [
            (0, "0s"), (1, "1ns"), (1500, "1.5us"), (250_000_000, "250ms"), (1_500_000_000, "1.5s"),
            (600_000_000_000, "10m"),
            (90_000_000_000, "1m30s"), (3_600_000_000_000, "1h"), (3_600_500_000_000, "1h500ms"),
            (5_400_000_000_000, "1h30m"), (59_999_999_999, "59.999999999s"), (1_000_001, "1.000001ms"),
            (60_000_000_001, "1m1ns"),
        ] as [(UInt64, String)])
    func format(nanoseconds: UInt64, text: String) throws {
        #expect(DurationText.format(nanoseconds) == text)
        #expect(try DurationText.parse(text) == nanoseconds)
    }

    @Test func formatsReadBackTheSame() throws {
        var random = SplitMix64(seed: 4)
        for _ in 0..<5000 {
            let nanoseconds = random.next() >> (random.next() % 64)
            #expect(try DurationText.parse(DurationText.format(nanoseconds)) == nanoseconds)
        }
        #expect(try DurationText.parse(DurationText.format(.max)) == .max)
    }

    @Test(
        arguments: [
            (0, "0s"), (999, "999ns"), (1_234_567, "1.23ms"), (12_345_678, "12.3ms"), (123_456_789, "123ms"),
            (999_600_000, "1s"), (1_500_000_000, "1.5s"), (12_340_000_000, "12.3s"), (59_970_000_000, "1m"),
            (90_400_000_000, "1m30s"), (7_500_000_000_000, "2h5m"), (273_600_000_000_000, "3d4h"),
            (86_400_000_000_000, "1d"), (3_599_600_000_000, "1h"), (18_446_744_073_709_551_615, "213503d23h"),
        ] as [(UInt64, String)])
    func brief(nanoseconds: UInt64, text: String) {
        #expect(DurationText.brief(nanoseconds) == text)
    }
}
