// Times against the C library's calendar, and trace IDs.

import Foundation
import Testing

@testable import MeshCore

@Suite struct RFC3339Tests {
    @Test(
        arguments: [
            (0, 0, 3, "1970-01-01T00:00:00.000Z"), (0, 0, 0, "1970-01-01T00:00:00Z"),
            (1_784_065_194, 12_345_678, 3, "2026-07-14T21:39:54.012Z"),
            (1_784_065_194, 12_345_678, 9, "2026-07-14T21:39:54.012345678Z"),
            (-1, 999_999_999, 3, "1969-12-31T23:59:59.999Z"), (951_782_400, 0, 0, "2000-02-29T00:00:00Z"),
            (4_107_542_399, 0, 0, "2100-02-28T23:59:59Z"), (4_107_542_400, 0, 0, "2100-03-01T00:00:00Z"),
            (253_402_300_799, 0, 0, "9999-12-31T23:59:59Z"), (Int64.max, 0, 0, "9999-12-31T23:59:59Z"),
            (Int64.min, 0, 0, "0000-01-01T00:00:00Z"), (0, UInt32.max, 3, "1970-01-01T00:00:00.999Z"),
        ] as [(Int64, UInt32, Int, String)])
    func format(seconds: Int64, nanoseconds: UInt32, digits: Int, text: String) {
        #expect(RFC3339.format(seconds: seconds, nanoseconds: nanoseconds, digits: digits) == text)
    }

    @Test func agreesWithTheSystem() {
        var random = SplitMix64(seed: 5)
        for _ in 0..<5000 {
            let seconds = Int64.random(in: -62_167_219_200...253_402_300_799, using: &random)
            var time = time_t(seconds)
            var date = tm()
            gmtime_r(&time, &date)
            let parts = [date.tm_mon + 1, date.tm_mday].map { ($0 < 10 ? "0" : "") + String($0) }
            let clock = [date.tm_hour, date.tm_min, date.tm_sec].map { ($0 < 10 ? "0" : "") + String($0) }
            let year = String(date.tm_year + 1900)
            let expected =
                String(repeating: "0", count: 4 - year.count) + year + "-" + parts.joined(separator: "-")
                + "T"
                + clock.joined(separator: ":") + "Z"
            #expect(RFC3339.format(seconds: seconds, digits: 0) == expected)
        }
    }
}

@Suite struct TraceIDTests {
    @Test func roundTrip() throws {
        let text = "4bf92f3577b34da6a3ce929d0e0e4736"
        let trace = try #require(TraceID(text))
        #expect(trace.high == 0x4bf9_2f35_77b3_4da6)
        #expect(trace.low == 0xa3ce_929d_0e0e_4736)
        #expect(trace.description == text)
        #expect(TraceID(text.uppercased()) == trace)
        #expect(TraceID(trace.bytes) == trace)
        #expect(withUnsafeBytes(of: trace.bytes) { Array($0.prefix(4)) } == [0x4b, 0xf9, 0x2f, 0x35])
        let small = "00000000000000000000000000000001"
        #expect(TraceID(small)?.description == small)
        #expect(TraceID(high: 0, low: 0) == nil)
    }

    @Test(arguments: [
        "", "0", "00000000000000000000000000000000", "4bf92f3577b34da6a3ce929d0e0e473",
        "4bf92f3577b34da6a3ce929d0e0e47366", "4bf92f3577b34da6a3ce929d0e0e473g",
        "0x4bf92f3577b34da6a3ce929d0e0e47",
        " bf92f3577b34da6a3ce929d0e0e4736", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
    ])
    func notTraceIDs(text: String) {
        #expect(TraceID(text) == nil)
    }
}
