// The breaker's sliding window: exact counts against a plain list of what was recorded.
@testable import MeshCore
import Testing

struct WindowSlidingTests {
    @Test func countsWhatWasRecorded() {
        var window = SlidingWindow(length: 20_000)
        window.record(failure: false, slow: false, at: 5)
        window.record(failure: true, slow: false, at: 6)
        window.record(failure: true, slow: true, at: 7)
        window.record(failure: false, slow: true, at: 7)
        #expect(window.counts == SlidingWindow.Counts(requests: 4, failures: 2, slow: 2))
        #expect(window.counts.failureRatio == 0.5)
        #expect(window.counts.slowRatio == 0.5)
        window.clear()
        #expect(window.counts == SlidingWindow.Counts())
        #expect(window.counts.failureRatio == 0)
    }

    /// A window of 20 slots of 1,000: a record of slot 0 is in it as long as slot 19 runs.
    @Test(
        arguments: [
            (0, 19_999, 1), (0, 20_000, 0), (999, 19_999, 1), (999, 20_000, 0), (1_000, 20_999, 1),
            (1_000, 21_000, 0), (500, 1_000_000, 0), (7_123, 26_999, 1), (7_123, 27_000, 0),
        ] as [(UInt64, UInt64, UInt64)])
    func forgetsBySlots(at: UInt64, then: UInt64, remaining: UInt64) {
        var window = SlidingWindow(length: 20_000)
        window.record(failure: true, slow: true, at: at)
        window.advance(to: then)
        #expect(window.counts == .init(requests: remaining, failures: remaining, slow: remaining))
    }

    @Test func aTimeBeforeTheNewestCountsAsTheNewest() {
        var window = SlidingWindow(length: 20_000)
        window.record(failure: false, slow: false, at: 50_000)
        window.record(failure: true, slow: false, at: 10_000)
        #expect(window.counts == .init(requests: 2, failures: 1, slow: 0))
        window.advance(to: 69_999)
        #expect(window.counts == .init(requests: 2, failures: 1, slow: 0))
        window.advance(to: 70_000)
        #expect(window.counts == .init())
    }

    @Test func survivesTheEndsOfTime() {
        for length: UInt64 in [0, 1, 19, 20, 21, 10_000_000_000, .max] {
            var window = SlidingWindow(length: length)
            for time: UInt64 in [0, .max - 1, .max, .max, 0] {
                window.record(failure: true, slow: true, at: time)
            }
            #expect(window.counts.requests >= 2)
        }
    }

    @Test func agreesWithAPlainListAtRandom() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<50 {
            let length = 20 * UInt64.random(in: 1...500, using: &random)
            let width = length / 20
            var window = SlidingWindow(length: length)
            var list: [(slot: UInt64, failure: Bool, slow: Bool)] = []
            var now: UInt64 = .random(in: 0...100_000, using: &random)
            for _ in 0..<400 {
                let leap = UInt64.random(in: 0..<50, using: &random) == 0 ? length * 2 : width * 2
                now += .random(in: 0...leap, using: &random)
                let entry = (now / width, Bool.random(using: &random), Bool.random(using: &random))
                list.append(entry)
                window.record(failure: entry.1, slow: entry.2, at: now)
                let held = list.filter { $0.slot + 20 > now / width }
                let expected = SlidingWindow.Counts(
                    requests: UInt64(held.count), failures: UInt64(held.count { $0.failure }),
                    slow: UInt64(held.count { $0.slow }))
                #expect(window.counts == expected)
            }
        }
    }
}
