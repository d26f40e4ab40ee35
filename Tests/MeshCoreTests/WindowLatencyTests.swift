// The ten-second view of a service: exact counts, percentiles against a sorted list.
import Testing

@testable import MeshCore

private let second: UInt64 = 1_000_000_000

struct WindowLatencyTests {
    @Test func emptySaysNothing() {
        #expect(
            LatencyWindow().summary(at: 5 * second)
                == .init(requests: 0, errors: 0, rate: 0, errorRatio: 0, p50: nil, p90: nil, p99: nil))
    }

    @Test func countsAreExact() {
        var window = LatencyWindow()
        for number: UInt64 in 0..<1_000 {
            window.record(
                duration: 1_000_000, error: number % 4 == 0, at: 100 * second + number * second / 100)
        }
        // Ten seconds of a hundred per second: slots 50 to 54, all of them live at 109.99.
        let summary = window.summary(at: 110 * second - 1)
        #expect(summary.requests == 1_000 && summary.errors == 250 && summary.errorRatio == 0.25)
        #expect(abs(summary.rate - 100) < 0.001)
        // Two seconds later the first slot is gone; the rate is that of what is left.
        let later = window.summary(at: 111 * second)
        #expect(later.requests == 800 && later.errors == 200)
        #expect(abs(later.rate - 800 / 9.0) < 0.001)
        #expect(window.summary(at: 117 * second).requests == 200)
        let gone = window.summary(at: 118 * second)
        #expect(gone.requests == 0 && gone.p50 == nil && gone.rate == 0)
    }

    @Test func aYoungWindowRatesByItsAge() {
        var window = LatencyWindow()
        for number: UInt64 in 0..<30 { window.record(duration: 1, error: false, at: 7 * second + number) }
        #expect(window.summary(at: 7 * second + 30).rate == 30, "at least a second")
        #expect(abs(window.summary(at: 10 * second).rate - 10) < 0.001)
    }

    @Test func slotsAreUsedAgainCleanly() {
        var window = LatencyWindow()
        window.record(duration: 5 * second, error: true, at: 0)
        window.record(duration: 1_000_000, error: false, at: 10 * second)
        let summary = window.summary(at: 10 * second)
        #expect(summary.requests == 1 && summary.errors == 0)
        #expect((summary.p99 ?? 0) < 0.0011)
    }

    /// Memory of octaves that a slot had is another slot's later, and must be clean by then.
    @Test func octavesAreUsedAgainCleanly() throws {
        var window = LatencyWindow()
        for slot: UInt64 in 0..<200 {
            for octave: UInt64 in 0..<24 where (octave + slot) % 3 == 0 {
                for _ in 0..<10 {
                    window.record(duration: 9_000 << octave, error: false, at: slot * 2 * second)
                }
            }
            let summary = window.summary(at: slot * 2 * second)
            var durations: [Double] = []
            for seen in (slot < 4 ? 0 : slot - 4)...slot {
                for octave: UInt64 in 0..<24 where (octave + seen) % 3 == 0 {
                    durations += repeatElement(Double(9_000 << octave), count: 10)
                }
            }
            durations.sort()
            #expect(summary.requests == UInt64(durations.count))
            for (quantile, value) in [(0.5, summary.p50), (0.9, summary.p90), (0.99, summary.p99)] {
                let exact = durations[Int((quantile * Double(durations.count)).rounded(.up)) - 1]
                #expect(abs(try #require(value) * 1e9 - exact) / exact <= 0.03, "slot \(slot), \(quantile)")
            }
        }
    }

    @Test func timeMayGoBackALittle() {
        var window = LatencyWindow()
        window.record(duration: 1, error: false, at: 20 * second)
        window.record(duration: 1, error: true, at: 3 * second)
        let summary = window.summary(at: 0)
        #expect(summary.requests == 2 && summary.errors == 1)
    }

    @Test func bucketsCoverEverythingInOrder() {
        #expect(LatencyWindow.bucket(of: 0) == 0)
        #expect(LatencyWindow.bucket(of: 8_191) == 0)
        #expect(LatencyWindow.bucket(of: 8_192) == 1)
        #expect(LatencyWindow.bucket(of: 16_383) == 24)
        #expect(LatencyWindow.bucket(of: 16_384) == 25)
        #expect(LatencyWindow.bucket(of: 1 << 37 - 1) == 576)
        #expect(LatencyWindow.bucket(of: .max) == 576)
        var last = 0
        var duration: UInt64 = 1
        while duration < 1 << 40 {
            let bucket = LatencyWindow.bucket(of: duration)
            #expect(bucket == last || bucket == last + 1)
            last = bucket
            duration += max(1, duration / 200)
        }
    }

    /// One duration, whatever it is, is every percentile within 3 %.
    @Test func aSingleDurationIsWithinThreePercent() {
        var random = SplitMix64(seed: 1)
        for _ in 0..<2_000 {
            let shift = UInt64.random(in: 13...36, using: &random)
            let duration = 1 << shift + UInt64.random(in: 0..<(1 << shift), using: &random)
            var window = LatencyWindow()
            let count = Int.random(in: 1...30, using: &random)
            for _ in 0..<count { window.record(duration: duration, error: false, at: 1) }
            let summary = window.summary(at: 1)
            for value in [summary.p50, summary.p90, summary.p99] {
                let error = abs((value ?? 0) * 1e9 - Double(duration)) / Double(duration)
                #expect(error <= 0.03, "\(duration)")
            }
        }
    }

    @Test(arguments: [10, 100, 1_000, 50_000])
    func percentilesAreThoseOfTheSortedList(count: Int) {
        var random = SplitMix64(seed: UInt64(count))
        for spread in [1.0, 4.0] {
            var window = LatencyWindow()
            var durations: [UInt64] = []
            for index in 0..<count {
                // Many short ones and a long tail.
                let power = Double.random(in: 0...1, using: &random) * spread
                var duration = 20_000.0
                for _ in 0..<Int(power * 3) { duration *= 2.1 }
                let nanoseconds = UInt64(duration * Double.random(in: 1...2.1, using: &random))
                durations.append(nanoseconds)
                window.record(
                    duration: nanoseconds, error: false, at: UInt64(index) * 9 * second / UInt64(count))
            }
            durations.sort()
            let summary = window.summary(at: 9 * second)
            for (quantile, value) in [(0.5, summary.p50), (0.9, summary.p90), (0.99, summary.p99)] {
                let exact = Double(durations[max(0, Int((quantile * Double(count)).rounded(.up)) - 1)])
                #expect(abs((value ?? 0) * 1e9 - exact) / exact <= 0.03, "\(count) \(quantile)")
            }
        }
    }

    /// More in one bucket than 16 bits hold, and the shape stays.
    @Test func fullBucketsKeepTheShape() throws {
        var window = LatencyWindow()
        for number in 0..<400_000 {
            window.record(duration: number % 20 == 0 ? 100_000_000 : 1_000_000, error: false, at: second)
        }
        var summary = window.summary(at: second)
        #expect(summary.requests == 400_000)
        #expect(abs(try #require(summary.p50) - 0.001) <= 0.00003)
        #expect(abs(try #require(summary.p90) - 0.001) <= 0.00003)
        #expect(abs(try #require(summary.p99) - 0.1) <= 0.003)

        // A slot that keeps every request and one that keeps some weigh what they counted.
        var mixed = LatencyWindow()
        for _ in 0..<400_000 { mixed.record(duration: 1_000_000, error: false, at: second) }
        for _ in 0..<60_000 { mixed.record(duration: 100_000_000, error: false, at: 3 * second) }
        summary = mixed.summary(at: 3 * second)
        #expect(abs(try #require(summary.p50) - 0.001) <= 0.00003)
        #expect(abs(try #require(summary.p90) - 0.1) <= 0.003)
    }
}
