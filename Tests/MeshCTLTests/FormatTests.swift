// Numbers, times and text as people read them.
import MeshCore
import Testing

@testable import MeshCTL

@Suite struct FormatTests {
    @Test(
        arguments: [
            (nil, "-"), (0, "0s"), (0.000_000_4, "0.4µs"), (0.000_85, "850µs"), (0.000_999_4, "999µs"),
            (0.000_999_6, "1ms"), (0.0012, "1.2ms"), (0.01234, "12.3ms"), (0.0999, "99.9ms"),
            (0.09996, "100ms"),
            (0.1234, "123ms"), (0.9994, "999ms"), (0.9996, "1s"), (1.25, "1.3s"), (65, "65s"),
            (1000, "16m40s"),
            (-1, "-"), (.infinity, "-"), (.nan, "-"), (1e300, "-"),
        ] as [(Double?, String)])
    func latency(seconds: Double?, expected: String) {
        #expect(Format.latency(seconds) == expected)
    }

    @Test(
        arguments: [
            (-3, "0s"), (0.4, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m00s"),
            (192, "3m12s"),
            (3599.6, "1h00m"), (11580, "3h13m"), (86400, "1d0h"), (93784, "1d2h"), (.nan, "-"), (1e300, "-"),
        ] as [(Double, String)])
    func age(seconds: Double, expected: String) {
        #expect(Format.age(seconds) == expected)
    }

    @Test(
        arguments: [
            (0, "0/s"), (0.01, "<0.1/s"), (0.5, "0.5/s"), (99.94, "99.9/s"), (99.96, "100/s"),
            (999.4, "999/s"),
            (999.6, "1k/s"), (1234.5, "1.2k/s"), (3_400_000, "3.4M/s"), (1e30, "-"), (-1, "-"),
        ] as [(Double, String)])
    func rate(value: Double, expected: String) {
        #expect(Format.rate(value) == expected)
    }

    @Test(
        arguments: [
            (0, "0%"), (0.0004, "<0.1%"), (0.0005, "0.1%"), (0.123, "12.3%"), (0.9994, "99.9%"),
            (0.9999, ">99.9%"),
            (1, "100%"), (.nan, "-"),
        ] as [(Double, String)])
    func percent(ratio: Double, expected: String) {
        #expect(Format.percent(ratio) == expected)
    }

    @Test(
        arguments: [
            (0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567"), (-1000, "-1,000"),
            (1e300, "-"),
        ] as [(Double, String)])
    func count(value: Double, expected: String) {
        #expect(Format.count(value) == expected)
    }

    @Test(
        arguments: [(0, "0B"), (1e30, "-"), (999, "999B"), (1234, "1.2kB"), (5_678_901, "5.7MB")]
            as [(Double, String)])
    func bytes(value: Double, expected: String) {
        #expect(Format.bytes(value) == expected)
    }

    @Test(
        arguments: [
            ("1970-01-01T00:00:00Z", 0), ("2026-01-02T03:04:05Z", 1_767_323_045),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-01-02T03:04:05.250Z", 1_767_323_045.25), ("2026-01-02T03:04:05+01:00", nil), ("", nil),
            ("2026-13-02T03:04:05Z", nil), ("2026-01-02T24:04:05Z", nil), ("2026-01-02T03:04:05.Z", nil),
            ("2026-01-02T03:04:05.1234567890Z", nil), ("2026-01-02 03:04:05Z", nil),
            ("2o26-01-02T03:04:05Z", nil),
        ] as [(String, Double?)])
    func timestamp(text: String, expected: Double?) {
        #expect(Timestamp.seconds(text) == expected)
    }

    @Test("A time is shown to the second, and what is no time as it is")
    func time() {
        #expect(Format.time("2026-01-02T03:04:05.678Z") == "2026-01-02 03:04:05Z")
        #expect(Format.time("some day") == "some day")
    }
}

@Suite struct TextTests {
    @Test(arguments: [
        ("payments", 8, "payments"), ("payments", 7, "paymen…"), ("payments", 1, "…"), ("payments", 0, ""),
        ("日本語", 6, "日本語"), ("日本語", 5, "日本…"), ("日本語", 4, "日…"), ("e\u{301}tude", 4, "e\u{301}tu…"),
    ])
    func truncation(text: String, width: Int, expected: String) {
        #expect(text.truncated(to: width) == expected)
        #expect(text.truncated(to: width).columns <= width)
    }

    @Test(arguments: [
        ("one two three", 7, ["one two", "three"]), ("one two three", 3, ["one", "two", "three"]),
        ("", 5, [""]), ("  spaced   out  ", 20, ["spaced out"]),
    ])
    func wrapping(text: String, width: Int, expected: [String]) {
        #expect(text.wrapped(to: width) == expected)
    }

    @Test(arguments: [
        ("plain", "plain"), ("a\u{1B}[31mb", "a\u{FFFD}[31mb"), ("a\nb\tc", "a\u{FFFD}b\u{FFFD}c"),
        ("a\u{202E}b", "a\u{FFFD}b"), ("a\u{9B}b", "a\u{FFFD}b"), ("naïve 日本", "naïve 日本"),
        ("\u{7F}", "\u{FFFD}"),
    ])
    func harmless(text: String, expected: String) {
        #expect(text.harmless == expected)
    }

    @Test("A path segment or a query's value may be any name")
    func percentEncoding() {
        #expect(percentEncoded("[fd00::1]:80/a b?é&") == "%5Bfd00%3A%3A1%5D%3A80%2Fa%20b%3F%C3%A9%26")
        #expect(percentEncoded("pay-ments_1.x~") == "pay-ments_1.x~")
    }
}

@Suite struct TableTests {
    private func table() -> Table {
        var table = Table([
            .left("NAME", cut: 6), .right("COUNT", drop: 1), .left("MORE", cut: 5, drop: 0), .right("LAST"),
        ])
        table.add(["a name of 19 columns".cell, "12".cell, "something".cell, "1".cell])
        table.add(["b".cell, "3".cell, "x".cell, "1000".cell])
        return table
    }

    @Test(
        arguments: [
            (
                nil,
                """
                NAME                  COUNT  MORE       LAST
                a name of 19 columns     12  something     1
                b                         3  x          1000
                """
            ),
            (
                38,
                """
                NAME            COUNT  MORE       LAST
                a name of 19 …     12  something     1
                b                   3  x          1000
                """
            ),
            (
                28,
                """
                NAME     COUNT  MORE    LAST
                a name…     12  somet…     1
                b            3  x       1000
                """
            ),
            (
                24,
                """
                NAME         COUNT  LAST
                a name of …     12     1
                b                3  1000
                """
            ),
            (
                12,
                """
                NAME    LAST
                a nam…     1
                b       1000
                """
            ),
        ] as [(Int?, String)])
    func widths(width: Int?, expected: String) {
        #expect(text(table().lines(on: page(width))) == expected)
    }
}

extension String {
    fileprivate var cell: Cell { Cell(self) }
}
