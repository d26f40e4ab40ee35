// The breaker's state machine: each rule at its threshold, each deadline to the nanosecond.
@testable import MeshCore
import Testing

/// A breaker with its clock, so that a test reads as a story.
private struct Story {
    var breaker: Breaker
    var now: UInt64 = 1_000_000_000_000
    var mayOpen = true
    var told: [BreakerTransition] = []

    static let second: UInt64 = 1_000_000_000

    init(seed: UInt64 = 1, _ adjust: (inout BreakerPolicy) -> Void = { _ in }) {
        // Round numbers, and each trip rule off until a test wants it.
        var policy = BreakerPolicy()
        policy.window = 10 * Story.second
        policy.minimumRequests = 1
        policy.failureRate = 0
        policy.consecutiveFailures = 0
        policy.slowCallRate = 0
        policy.openFor = 4 * Story.second
        policy.maxOpenFor = 60 * Story.second
        policy.probeSuccesses = 3
        policy.ramp = 10 * Story.second
        adjust(&policy)
        breaker = Breaker(policy: policy, seed: seed, at: now)
    }

    /// Records outcomes: `.` good, `F` failed, `S` slow, `X` failed and slow, `p` good probe, `P` failed
    /// probe, `s` slow probe, `c` connect, `C` failed connect, `q` good probe connect, `Q` failed probe
    /// connect.
    mutating func see(_ outcomes: String, duration: UInt64 = 0) {
        for letter in outcomes {
            let outcome = BreakerOutcome(
                failure: "FXPCQ".contains(letter), slow: "SXs".contains(letter),
                probe: "pPsqQ".contains(letter),
                connect: "cCqQ".contains(letter), duration: duration)
            told += breaker.record(outcome, at: now, mayOpen: mayOpen)
        }
    }

    mutating func wait(_ nanoseconds: UInt64) {
        now += nanoseconds
        told += breaker.tick(now)
    }

    /// Waits until exactly the open deadline.
    mutating func waitForDeadline() {
        if let deadline = breaker.nextDeadline { wait(deadline - now) }
    }

    /// Trips by one failure (needs `consecutiveFailures` 1) and waits until it is half-open.
    mutating func tripAndWait() {
        see("F")
        waitForDeadline()
    }

    var words: [String] { told.map { "\($0.from.label)>\($0.to.label) \($0.reason.rawValue)" } }
}

private let second = Story.second

struct BreakerTripTests {
    struct Trip: Sendable, CustomTestStringConvertible {
        var adjust: @Sendable (inout BreakerPolicy) -> Void
        var before: String
        var last: String
        var reason: BreakerReason?
        var testDescription: String { "\(before) then \(last): \(reason?.rawValue ?? "closed")" }

        init(
            _ before: String, _ last: String, _ reason: BreakerReason?,
            _ adjust: @escaping @Sendable (inout BreakerPolicy) -> Void
        ) {
            (self.before, self.last, self.reason, self.adjust) = (before, last, reason, adjust)
        }
    }

    static let rate: @Sendable (inout BreakerPolicy) -> Void = {
        $0.failureRate = 0.5
        $0.minimumRequests = 10
    }
    static let row: @Sendable (inout BreakerPolicy) -> Void = { $0.consecutiveFailures = 5 }
    static let slow: @Sendable (inout BreakerPolicy) -> Void = {
        $0.slowCallDuration = 1
        $0.slowCallRate = 0.25
        $0.minimumRequests = 4
    }

    /// Nothing may happen before the last outcome; then what is expected.
    @Test(arguments: [
        // The failure rate: exactly at the threshold, just below it, and the minimum of requests.
        Trip("FFFFF....", ".", .failureRate, rate),
        Trip("FFFFFFFFF", "F", .failureRate, rate),
        Trip("FFFFFFFFF", ".", .failureRate, rate),
        Trip("FFFF.....", ".", nil, rate),
        Trip("FFFF......", "F", nil, rate),
        Trip("FFFF......F", "F", .failureRate, rate),
        Trip("FFFFFFFF", "F", nil, rate),
        // A rate that has no exact double: 3 of 30.
        Trip("FF...........................", "F", .failureRate) {
            $0.failureRate = 0.1
            $0.minimumRequests = 30
        },
        Trip("FF............................", "F", nil) {
            $0.failureRate = 0.1
            $0.minimumRequests = 30
        },
        // A rate of 1: all or nothing.
        Trip("FFFFFFFFF", "F", .failureRate) {
            $0.failureRate = 1
            $0.minimumRequests = 10
        },
        Trip("FFFFFFFFFFFFFFFFFFFFFFFFFFFFFF", ".", nil) {
            $0.failureRate = 1
            $0.minimumRequests = 31
        },
        // Failures in a row: no minimum of requests, and any success starts over.
        Trip("FFFF", "F", .consecutiveFailures, row),
        Trip("FFF", "F", nil, row),
        Trip("FFFF.FFF", "F", nil, row),
        Trip("FFFF.FFFF", "F", .consecutiveFailures, row),
        Trip("FFFFS", "F", nil, row),
        Trip("XXXX", "X", .consecutiveFailures, row),
        Trip("", "F", .consecutiveFailures) { $0.consecutiveFailures = 1 },
        // Both rules at once: the row is named.
        Trip("FFFF", "F", .consecutiveFailures) {
            $0.consecutiveFailures = 5
            $0.failureRate = 0.5
            $0.minimumRequests = 5
        },
        // Slow calls: good and failed ones alike, past the minimum.
        Trip("...", "S", .slowCalls, slow),
        Trip("...", "X", .slowCalls, slow),
        Trip("S..", ".", .slowCalls, slow),
        Trip("....", "S", nil, slow),
        Trip("SS", "S", nil, slow),
        Trip("SSSSS", "S", nil) { $0.slowCallRate = 0.25 },  // no duration: nothing is watched
        Trip("SSSSS", "S", nil) { $0.slowCallDuration = 1 },  // no rate
        // All rules off.
        Trip("FFFFFFFFFFFFFFFFFFFFXXXXXXXXXXXXXXXX", "F", nil) { _ in },
        // Connects: failed ones count, successful ones only end a streak of failed ones.
        Trip("CCCC", "C", .consecutiveFailures, row),
        Trip("CCCCc", "C", nil, row),
        Trip("FcFcFcFc", "F", .consecutiveFailures, row),
        Trip("CFcCcF", "C", .consecutiveFailures, row),
        Trip("CCCC.", "C", nil, row),
        Trip("FFFFFccccccccc", "c", nil, rate),
        Trip("CCCCC....", ".", .failureRate, rate),
    ])
    func trips(_ trip: Trip) {
        var story = Story(trip.adjust)
        story.see(trip.before)
        #expect(story.told == [])
        #expect(story.breaker.state == .closed)
        story.see(trip.last)
        if let reason = trip.reason {
            #expect(story.told == [.init(from: .closed, to: .open, reason: reason, time: story.now)])
            #expect(story.breaker.state == .open)
            #expect(story.breaker.reason == reason)
            #expect(story.breaker.since == story.now)
        } else {
            #expect(story.told == [])
            #expect(story.breaker.state == .closed)
        }
    }

    @Test func theWindowForgets() {
        var story = Story {
            $0.failureRate = 0.5
            $0.minimumRequests = 10
        }
        story.now = 1_000 * second
        story.see("FFFFFFFFF")
        story.wait(10 * second)
        story.see("F")
        #expect(story.told == [])
        #expect(story.breaker.counts == .init(requests: 1, failures: 1, slow: 0))
        story.see("FFFFFFFF")
        #expect(story.told == [])
        // One slot short of the whole length, everything is still there.
        story.wait(19 * second / 2)
        story.see("F")
        #expect(story.words == ["closed>open failure_rate"])
    }

    @Test func offComputesNothing() {
        var story = Story {
            $0.mode = .off
            $0.consecutiveFailures = 1
        }
        story.see("FFFF")
        #expect(story.told == [])
        #expect(story.breaker.counts == .init())
        #expect(story.breaker.nextDeadline == nil)
        #expect(!story.breaker.alert)
        #expect(story.breaker.kernelWord.mode == .off)
    }

    @Test func observeComputesEverything() {
        var story = Story {
            $0.mode = .observe
            $0.consecutiveFailures = 1
        }
        story.see("F")
        #expect(story.words == ["closed>open consecutive_failures"])
        #expect(story.breaker.kernelWord.mode == .observe)
        #expect(story.breaker.kernelWord.state == .open)
    }
}

struct BreakerHeldClosedTests {
    @Test func opensWithTheNextOutcomeForWhichItMay() {
        var story = Story { $0.consecutiveFailures = 3 }
        story.mayOpen = false
        story.see("FF")
        #expect(!story.breaker.heldClosed)
        story.see("F")
        #expect(story.breaker.heldClosed)
        #expect(story.breaker.heldReason == .consecutiveFailures)
        #expect(story.breaker.state == .closed)
        story.see("FF")
        #expect(story.told == [])
        #expect(story.breaker.heldClosed)
        story.mayOpen = true
        story.wait(second)
        #expect(story.told == [], "only an outcome opens it")
        story.see("F")
        #expect(story.words == ["closed>open consecutive_failures"])
        #expect(!story.breaker.heldClosed)
    }

    @Test func aWindowThatRecoveredReleasesIt() {
        var story = Story { $0.consecutiveFailures = 3 }
        story.mayOpen = false
        story.see("FFF")
        #expect(story.breaker.heldClosed)
        story.see(".")
        #expect(!story.breaker.heldClosed)
        story.mayOpen = true
        story.see("FF")
        #expect(story.told == [])
    }

    @Test func aWindowThatSlidAwayReleasesIt() {
        var story = Story {
            $0.failureRate = 0.5
            $0.minimumRequests = 4
        }
        story.mayOpen = false
        story.see("FFFF")
        #expect(story.breaker.heldClosed)
        story.wait(5 * second)
        #expect(story.breaker.heldClosed)
        story.wait(6 * second)
        #expect(!story.breaker.heldClosed)
        story.mayOpen = true
        story.see("F")
        #expect(story.told == [])
    }

    @Test(
        arguments: [
            (0, 0.5, 1), (1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (5, 0.5, 2), (10, 0, 1),
            (10, 1, 10),
            (10, 0.3, 3), (100, 0.29, 29), (7, 0.99, 6),
        ] as [(Int, Double, Int)])
    func theLimitIsTheShareButAtLeastOne(breakers: Int, share: Double, limit: Int) {
        #expect(BreakerOpenShare(breakers: breakers, share: share).limit == limit)
    }

    @Test func theShareCountsWhatAutomationHolds() {
        var share = BreakerOpenShare(breakers: 4, share: 0.5)
        var stories = (0..<4).map { Story(seed: $0) { $0.consecutiveFailures = 1 } }
        func see(_ index: Int, _ act: (inout Story) -> Void) {
            let before = stories[index].breaker.holdsOpen
            stories[index].mayOpen = share.mayOpen
            act(&stories[index])
            share.update(from: before, to: stories[index].breaker.holdsOpen)
        }
        see(0) { $0.see("F") }
        #expect(share.open == 1 && share.mayOpen)
        see(1) { $0.see("F") }
        #expect(share.open == 2 && !share.mayOpen)
        see(2) { $0.see("F") }
        #expect(stories[2].breaker.heldClosed && share.open == 2)
        // Half-open counts, and reopening needs no leave.
        see(0) { $0.waitForDeadline() }
        #expect(stories[0].breaker.state == .halfOpen && share.open == 2)
        see(0) { $0.see("P") }
        #expect(stories[0].breaker.state == .open && share.open == 2)
        // Recovery makes room.
        see(1) {
            $0.waitForDeadline()
            $0.see("ppp")
            $0.wait(20 * second)
        }
        #expect(stories[1].breaker.state == .closed && share.open == 1)
        see(2) { $0.see("F") }
        #expect(stories[2].breaker.state == .open && share.open == 2)
    }
}

struct BreakerOpenTests {
    @Test func stragglersNeitherRetripNorProbe() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let word = story.breaker.kernelWord
        let counts = story.breaker.counts
        for outcome in "FFFPPPppp...SXcCqQ" {
            story.wait(1000)
            story.see(String(outcome))
        }
        #expect(story.told.count == 1)
        #expect(story.breaker.kernelWord == word)
        #expect(story.breaker.counts == counts)
    }

    @Test func becomesHalfOpenAtItsDeadlineAndNotBefore() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let deadline = try #require(story.breaker.nextDeadline)
        #expect(story.breaker.openDeadline == deadline)
        #expect(story.breaker.kernelWord.openUntil == deadline)
        // 0 to 10 % of jitter.
        #expect((4 * second...4 * second + 4 * second / 10).contains(deadline - story.now))
        #expect(story.breaker.tick(deadline - 1) == [])
        #expect(story.breaker.state == .open)
        // A late tick tells the deadline's time, which is when the kernel moved.
        let transitions = story.breaker.tick(deadline + 123)
        #expect(transitions == [.init(from: .open, to: .halfOpen, reason: .deadline, time: deadline)])
        #expect(story.breaker.since == deadline)
        #expect(story.breaker.openDeadline == nil)
        #expect(story.breaker.nextDeadline == nil)
        #expect(story.breaker.kernelWord.openUntil == 0)
    }

    /// A probe may arrive before anyone called tick: the kernel is ahead.
    @Test func aProbePastTheDeadlineBringsTheDeadlineAlong() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let deadline = try #require(story.breaker.nextDeadline)
        story.now = deadline + 5
        story.see("P", duration: 5)
        #expect(
            story.words == [
                "closed>open consecutive_failures", "open>half_open deadline", "half_open>open probe_failed",
            ])
        #expect(story.told[1].time == deadline)
        #expect(story.told[2].time == deadline + 5)
    }

    @Test func eachFailedProbeDoublesUpToTheMaximum() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        for (round, base) in [4, 8, 16, 32, 60, 60, 60].enumerated() as EnumeratedSequence<[UInt64]> {
            let open = try #require(story.breaker.openDeadline) - story.now
            let most = min(base * second + base * second / 10, 60 * second)
            #expect((base * second...most).contains(open), "round \(round)")
            story.waitForDeadline()
            story.see("P")
        }
    }

    @Test func backoffIsForgottenWhenItCloses() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        for _ in 0..<3 {
            story.see("P")
            story.waitForDeadline()
        }
        story.see("ppp")
        story.wait(10 * second)
        #expect(story.breaker.state == .closed)
        story.see("F")
        let open = try #require(story.breaker.openDeadline) - story.now
        #expect((4 * second...4 * second + 4 * second / 10).contains(open))
    }

    /// Outcomes of several CPUs may come a little out of order.
    @Test func historyDoesNotGoBack() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let deadline = try #require(story.breaker.openDeadline)
        story.now = deadline + 100
        story.see("ppp")
        story.wait(10 * second)
        let closed = story.breaker.since
        story.now = closed - 50
        story.see("F")
        #expect(
            story.told.last == .init(from: .closed, to: .open, reason: .consecutiveFailures, time: closed))
        #expect(story.breaker.since == closed)
    }

    @Test func jitterComesFromTheSeed() {
        func deadlines(_ seed: UInt64) -> [UInt64] {
            var story = Story(seed: seed) { $0.consecutiveFailures = 1 }
            story.see("F")
            var all: [UInt64] = []
            for _ in 0..<3 {
                all.append(story.breaker.openDeadline ?? 0)
                story.waitForDeadline()
                story.see("P")
            }
            return all
        }
        #expect(deadlines(1) == deadlines(1))
        #expect(Set((0..<50).map { deadlines($0)[0] }).count > 45)
    }

    @Test func hugeDurationsDoNotOverflow() {
        var story = Story {
            $0.consecutiveFailures = 1
            $0.openFor = .max
            $0.maxOpenFor = .max
            $0.ramp = .max
        }
        story.see("F")
        #expect(story.breaker.openDeadline == .max)
        #expect(story.breaker.tick(.max - 1) == [])
        var other = Story {
            $0.consecutiveFailures = 1
            $0.openFor = 1
            $0.maxOpenFor = 3
            $0.ramp = .max
        }
        for _ in 0..<200 {
            other.see("FP")
            other.waitForDeadline()
        }
        #expect(other.breaker.state == .halfOpen)
        other.see("ppp")
        #expect(other.breaker.isRamping)
        #expect(other.breaker.nextDeadline != nil)
    }
}

struct BreakerHalfOpenTests {
    @Test(
        arguments: [
            // Outcomes, the state after, probes that succeeded, whether the ramp runs.
            ("p", .halfOpen, 1, false), ("pp", .halfOpen, 2, false), ("ppp", .halfOpen, 3, true),
            ("ppP", .open, 2, false), ("P", .open, 0, false), ("Q", .open, 0, false),
            // What is no probe decides nothing.
            ("FFFFFFFFF", .halfOpen, 0, false), ("..........", .halfOpen, 0, false),
            ("CCCcSX", .halfOpen, 0, false),
            ("p.F.F.p", .halfOpen, 2, false),
            // Requests were seen (the one that tripped it): a connect that succeeds is no probe success.
            ("qqqqqq", .halfOpen, 0, false), ("qpqpqp", .halfOpen, 3, true),
            // Slow probes are good where slow calls are not watched.
            ("sss", .halfOpen, 3, true),
        ] as [(String, BreakerState, UInt32, Bool)])
    func probesDecide(outcomes: String, state: BreakerState, successes: UInt32, ramping: Bool) {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        story.see(outcomes)
        #expect(story.breaker.state == state)
        #expect(story.breaker.probeSuccesses == successes)
        #expect(story.breaker.isRamping == ramping)
    }

    @Test func aSlowProbeFailsWhereSlowCallsAreWatched() {
        var story = Story {
            $0.consecutiveFailures = 1
            $0.slowCallDuration = 1
            $0.slowCallRate = 0.5
        }
        story.tripAndWait()
        story.see("s")
        #expect(story.words.last == "half_open>open probe_failed")
    }

    @Test func whereNoRequestEverEndedConnectsAreTheProbes() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("C")
        story.waitForDeadline()
        story.see("qqq")
        #expect(story.breaker.isRamping)
    }

    /// A probe of an earlier half-open period that times out only now tells about then.
    @Test func attemptsThatBeganBeforeItWasHalfOpenDecideNothing() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        let halfOpen = story.now
        story.now += 100
        story.see("P", duration: 101)
        story.see("p", duration: 101)
        #expect(story.breaker.state == .halfOpen)
        #expect(story.breaker.probeSuccesses == 0)
        story.see("p", duration: 100)
        #expect(story.breaker.probeSuccesses == 1)
        story.see("P", duration: 100)
        #expect(story.breaker.state == .open)
        #expect(story.breaker.since == halfOpen + 100)
        // Also after it closed again: a timeout of minutes ago is no news.
        story.waitForDeadline()
        let again = story.now
        story.see("ppp")
        story.wait(10 * second)
        #expect(story.breaker.state == .closed)
        story.see("F", duration: story.now - again + 1)
        #expect(story.breaker.state == .closed)
        #expect(story.breaker.counts.failures == 0)
        story.see("F", duration: story.now - again)
        #expect(story.breaker.state == .open)
    }

    @Test func theShareIsThatOfTheProbesFromTheMomentItOpens() {
        var story = Story {
            $0.consecutiveFailures = 1
            $0.probeRatio = 0.25
            $0.probeInterval = 77
        }
        #expect(story.breaker.kernelWord.probeShare == 0)
        story.see("F")
        #expect(story.breaker.kernelWord.probeShare == 1 << 30)
        #expect(story.breaker.kernelWord.probeInterval == 77)
        story.waitForDeadline()
        #expect(story.breaker.kernelWord.probeShare == 1 << 30)
        #expect(story.breaker.kernelWord.state == .halfOpen)
    }

    @Test func successesAreCountedAnewEachTime() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        story.see("ppP")
        story.waitForDeadline()
        #expect(story.breaker.probeSuccesses == 0)
        story.see("pp")
        #expect(!story.breaker.isRamping)
        story.see("p")
        #expect(story.breaker.isRamping)
    }

    @Test func staysHalfOpenWithoutProbes() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        story.wait(1_000_000 * second)
        #expect(story.breaker.state == .halfOpen)
        #expect(story.breaker.nextDeadline == nil)
        story.see("ppp")
        #expect(story.breaker.isRamping)
    }
}

struct BreakerRampTests {
    private static func ramping(_ adjust: (inout BreakerPolicy) -> Void = { _ in }) -> Story {
        var story = Story {
            $0.consecutiveFailures = 2
            adjust(&$0)
        }
        story.see("FF")
        story.waitForDeadline()
        story.see("ppp")
        return story
    }

    @Test func goesUpInTwoStepsAndCloses() {
        var story = BreakerRampTests.ramping()
        let start = story.now
        #expect(story.breaker.state == .halfOpen)
        #expect(story.breaker.probeShare == 0.1)
        #expect(story.breaker.kernelWord.probeShare == 429_496_729)
        #expect(story.breaker.nextDeadline == start + 5 * second)
        story.wait(5 * second - 1)
        #expect(story.breaker.probeShare == 0.1)
        story.wait(1)
        #expect(story.breaker.probeShare == 0.5)
        #expect(story.breaker.kernelWord.probeShare == 1 << 31)
        #expect(story.breaker.state == .halfOpen)
        #expect(story.breaker.nextDeadline == start + 10 * second)
        story.wait(5 * second - 1)
        #expect(story.breaker.state == .halfOpen)
        story.wait(1)
        #expect(
            story.words == [
                "closed>open consecutive_failures", "open>half_open deadline", "half_open>closed recovered",
            ])
        #expect(story.told[2].time == start + 10 * second)
        #expect(story.breaker.probeShare == 0)
        #expect(story.breaker.kernelWord.probeShare == 0)
        #expect(story.breaker.nextDeadline == nil)
        #expect(story.breaker.probeSuccesses == 0)
        #expect(!story.breaker.alert)
    }

    @Test func oneLateTickMakesAllSteps() {
        var story = BreakerRampTests.ramping()
        let start = story.now
        story.wait(3600 * second)
        #expect(
            story.told.last
                == .init(from: .halfOpen, to: .closed, reason: .recovered, time: start + 10 * second))
        #expect(story.breaker.since == start + 10 * second)
    }

    @Test func neverAdmitsLessThanTheProbes() {
        var story = BreakerRampTests.ramping { $0.probeRatio = 0.3 }
        #expect(story.breaker.probeShare == 0.3)
        story.wait(5 * second)
        #expect(story.breaker.probeShare == 0.5)
        var all = BreakerRampTests.ramping { $0.probeRatio = 1 }
        all.wait(5 * second)
        #expect(all.breaker.kernelWord.probeShare == .max)
    }

    @Test func aRampOfNoLengthClosesAtOnce() {
        let story = BreakerRampTests.ramping { $0.ramp = 0 }
        #expect(story.words.last == "half_open>closed recovered")
        #expect(story.breaker.state == .closed)
    }

    @Test func theRulesOfTheClosedStateEndItOnAFreshWindow() throws {
        var story = BreakerRampTests.ramping()
        // One failure is below two in a row; the streak that tripped it is forgotten.
        story.see("P")
        #expect(story.breaker.isRamping)
        story.see("pPFF")
        #expect(story.breaker.isRamping, "what is no probe does not count")
        story.see("P")
        #expect(story.words.last == "half_open>open ramp_failed")
        #expect(story.breaker.state == .open)
        // The second time it is open for twice as long.
        let open = try #require(story.breaker.openDeadline) - story.now
        #expect((8 * second...8 * second + 8 * second / 10).contains(open))
    }

    @Test func theRateNeedsItsMinimumInTheRampToo() {
        var story = BreakerRampTests.ramping {
            $0.consecutiveFailures = 2
            $0.failureRate = 0.5
            $0.minimumRequests = 6
        }
        story.see("PpPpP")
        #expect(story.breaker.isRamping)
        story.see("p")
        #expect(story.words.last == "half_open>open ramp_failed")
    }

    @Test func failsInTheSecondStepToo() {
        var story = BreakerRampTests.ramping()
        story.wait(7 * second)
        story.see("PP")
        #expect(story.words.last == "half_open>open ramp_failed")
        story.waitForDeadline()
        #expect(story.breaker.probeShare == 0.01, "probes start over")
        story.see("ppp")
        #expect(story.breaker.probeShare == 0.1, "and so does the ramp")
    }

    @Test func whatItSawInTheRampStillCountsWhenItIsClosed() {
        var story = BreakerRampTests.ramping()
        story.wait(10 * second - 1)
        story.see("P")
        story.wait(1)
        #expect(story.breaker.state == .closed)
        story.see("F")
        #expect(story.words.last == "closed>open consecutive_failures")
    }

    /// An outcome that ended past the ramp's end finds the breaker closed.
    @Test func anOutcomePastTheEndBringsTheEndAlong() {
        var story = BreakerRampTests.ramping()
        story.now += 10 * second
        story.see("F")
        #expect(story.words.last == "half_open>closed recovered")
        #expect(story.breaker.counts == .init(requests: 1, failures: 1, slow: 0))
    }
}

struct BreakerOverrideTests {
    private static func override(
        _ forced: BreakerOverride.Forced, at now: UInt64, lasting: UInt64 = 900 * second
    ) -> BreakerOverride {
        BreakerOverride(
            forced: forced, actor: "root (pid 1)", reason: "drill", since: now, expiresAt: now + lasting)
    }

    @Test func forcesAndEnds() {
        var story = Story { $0.consecutiveFailures = 1 }
        let open = BreakerOverrideTests.override(.open, at: story.now)
        let forced = story.breaker.setOverride(open, at: story.now)
        #expect(forced == [.init(from: .closed, to: .open, reason: .override, time: story.now)])
        #expect(story.breaker.state == .open)
        #expect(story.breaker.automaticState == .closed)
        #expect(!story.breaker.holdsOpen)
        #expect(story.breaker.kernelWord.state == .closed)
        #expect(story.breaker.kernelWord.forced == .open)
        #expect(story.breaker.kernelWord.overrideUntil == open.expiresAt)
        #expect(story.breaker.nextDeadline == open.expiresAt)
        story.now += 7
        let ended = story.breaker.endOverride(at: story.now)
        #expect(ended == [.init(from: .open, to: .closed, reason: .override, time: story.now)])
        #expect(story.breaker.kernelWord.forced == nil)
        #expect(story.breaker.kernelWord.overrideUntil == 0)
        #expect(story.breaker.endOverride(at: story.now) == [])
    }

    @Test func expiresToTheNanosecond() {
        var story = Story()
        let override = BreakerOverrideTests.override(.open, at: story.now, lasting: 100)
        _ = story.breaker.setOverride(override, at: story.now)
        story.wait(99)
        #expect(story.breaker.state == .open && story.told == [])
        story.wait(50)
        #expect(story.breaker.state == .closed)
        #expect(
            story.told == [
                .init(from: .open, to: .closed, reason: .overrideExpired, time: override.expiresAt)
            ])
        #expect(story.breaker.override == nil)
    }

    @Test func replacesAnother() {
        var story = Story()
        _ = story.breaker.setOverride(BreakerOverrideTests.override(.open, at: story.now), at: story.now)
        let close = BreakerOverrideTests.override(.close, at: story.now)
        let told = story.breaker.setOverride(close, at: story.now)
        #expect(told == [.init(from: .open, to: .closed, reason: .override, time: story.now)])
        #expect(story.breaker.override == close)
    }

    @Test func isRefusedWhereTheBreakerIsOff() {
        var story = Story { $0.mode = .off }
        #expect(!story.breaker.acceptsOverrides)
        #expect(
            story.breaker.setOverride(BreakerOverrideTests.override(.open, at: story.now), at: story.now)
                == nil)
        #expect(story.breaker.override == nil)
    }

    @Test func automationGoesOnUnderneathAndIsWhatRemains() {
        var story = Story { $0.consecutiveFailures = 2 }
        _ = story.breaker.setOverride(BreakerOverrideTests.override(.close, at: story.now), at: story.now)
        story.see("FF")
        #expect(story.told == [], "nothing changed for anyone")
        #expect(story.breaker.state == .closed)
        #expect(story.breaker.automaticState == .open)
        #expect(story.breaker.holdsOpen)
        #expect(story.breaker.kernelWord.state == .open)
        let told = story.breaker.endOverride(at: story.now)
        #expect(told == [.init(from: .closed, to: .open, reason: .override, time: story.now)])
    }

    /// Nothing is flagged as a probe while everything is admitted.
    @Test func underAForcedCloseEveryOutcomeIsAProbe() {
        var story = Story { $0.consecutiveFailures = 2 }
        _ = story.breaker.setOverride(BreakerOverrideTests.override(.close, at: story.now), at: story.now)
        story.see("FF")
        story.wait(5 * second)
        #expect(story.breaker.automaticState == .halfOpen)
        story.see("...")
        #expect(story.breaker.isRamping)
        story.wait(10 * second)
        #expect(story.breaker.automaticState == .closed)
        #expect(story.breaker.endOverride(at: story.now) == [])
        #expect(story.told == [])
    }

    @Test func aDeadlineUnderAnOverrideIsNotTold() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        _ = story.breaker.setOverride(BreakerOverrideTests.override(.open, at: story.now), at: story.now)
        story.wait(10 * second)
        #expect(story.words == ["closed>open consecutive_failures"])
        #expect(story.breaker.automaticState == .halfOpen)
        #expect(story.breaker.state == .open)
        story.wait(900 * second)
        #expect(story.words.last == "open>half_open override_expired")
    }

    @Test func aDeadlineBeforeTheExpiryStaysUntold() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let close = BreakerOverrideTests.override(.close, at: story.now, lasting: 50 * second)
        _ = story.breaker.setOverride(close, at: story.now)
        story.told = []
        story.wait(100 * second)
        #expect(
            story.told == [
                .init(from: .closed, to: .halfOpen, reason: .overrideExpired, time: close.expiresAt)
            ])
    }

    @Test func twoDeadlinesPassInTheirOrder() throws {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let deadline = try #require(story.breaker.openDeadline)
        _ = story.breaker.setOverride(
            BreakerOverrideTests.override(.close, at: story.now, lasting: 2 * second), at: story.now)
        story.told = []
        story.wait(100 * second)
        #expect(story.words == ["closed>open override_expired", "open>half_open deadline"])
        #expect(story.told[1].time == deadline)
    }
}

struct BreakerReloadTests {
    @Test func stateStreakAndWindowStay() {
        var story = Story { $0.consecutiveFailures = 5 }
        story.see("FFFF")
        var policy = story.breaker.policy
        policy.failureRate = 0.9
        policy.minimumRequests = 100
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.counts.failures == 4)
        story.see("F")
        #expect(story.words == ["closed>open consecutive_failures"])
    }

    @Test func anotherWindowLengthStartsAnEmptyWindow() {
        var story = Story { $0.consecutiveFailures = 5 }
        story.see("FFFF")
        var policy = story.breaker.policy
        policy.window *= 2
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.counts == .init())
        #expect(story.breaker.consecutiveFailures == 4)
    }

    @Test func anOpenBreakerStaysOpenNoLongerThanItMayNow() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        let before = story.breaker.openDeadline
        var policy = story.breaker.policy
        policy.maxOpenFor = 30 * second
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.openDeadline == before)
        policy.maxOpenFor = second
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.openDeadline == story.now + second)
        #expect(story.breaker.state == .open)
    }

    @Test func aShorterRampMayBeOverAlready() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.tripAndWait()
        story.see("ppp")
        story.wait(4 * second)
        var policy = story.breaker.policy
        policy.ramp = 2 * second
        let told = story.breaker.replacePolicy(policy, at: story.now)
        #expect(told.map(\.reason) == [.recovered])
    }

    @Test func offEndsEverything() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        _ = story.breaker.setOverride(
            BreakerOverride(forced: .open, actor: "a", reason: "b", since: story.now, expiresAt: .max),
            at: story.now)
        var policy = story.breaker.policy
        policy.mode = .off
        let told = story.breaker.replacePolicy(policy, at: story.now)
        #expect(told == [.init(from: .open, to: .closed, reason: .reload, time: story.now)])
        #expect(story.breaker.override == nil)
        #expect(story.breaker.nextDeadline == nil)
        #expect(!story.breaker.holdsOpen && !story.breaker.alert)
        policy.mode = .enforce
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.counts == .init())
    }

    @Test func enforceAndObserveKeepTheState() {
        var story = Story { $0.consecutiveFailures = 1 }
        story.see("F")
        var policy = story.breaker.policy
        policy.mode = .observe
        #expect(story.breaker.replacePolicy(policy, at: story.now) == [])
        #expect(story.breaker.state == .open)
        #expect(story.breaker.kernelWord.mode == .observe)
    }
}

struct BreakerWordTests {
    /// The kernel wakes the reader for failures and slow calls anyway.
    @Test func alertMeansThatAnOutcomeThatIsFineMayMatter() {
        var story = Story {
            $0.consecutiveFailures = 3
            $0.minimumRequests = 5
        }
        story.now = 1_000 * second
        story.see(".")
        #expect(!story.breaker.alert)
        story.see("F")
        #expect(story.breaker.alert && story.breaker.kernelWord.alert, "the fifth request may trip it")
        story.see("..")
        #expect(story.breaker.alert)
        story.see(".")
        #expect(!story.breaker.alert, "from here on a request that is fine only makes the rate smaller")
        story.wait(10 * second)
        #expect(!story.breaker.alert)
        story.see("S")
        #expect(story.breaker.alert)
        story.wait(10 * second)
        #expect(!story.breaker.alert)
        story.see("FFF")
        story.wait(1000 * second)
        #expect(story.breaker.state == .halfOpen && story.breaker.alert)
    }

    @Test func aFineOutcomeThatReachesTheMinimumTrips() {
        var story = Story {
            $0.consecutiveFailures = 0
            $0.minimumRequests = 4
            $0.failureRate = 0.5
        }
        story.now = 1_000 * second
        story.see("FF.")
        #expect(story.breaker.state == .closed && story.breaker.alert)
        story.see(".")
        #expect(story.breaker.state == .open)
    }

    @Test func tellsTheKernelTheWholePolicy() {
        var statuses = Configuration.StatusSet()
        statuses.insert(429)
        statuses.insert(class: 5)
        let story = Story {
            $0.mode = .observe
            $0.drain = true
            $0.slowCallDuration = 250_000_000
            $0.failureStatuses = statuses
            $0.probeInterval = 3
        }
        let word = story.breaker.kernelWord
        #expect(
            word
                == BreakerKernelWord(
                    state: .closed, mode: .observe, forced: nil, drain: true, alert: false, probeShare: 0,
                    openUntil: 0, probeInterval: 3, overrideUntil: 0, slow: 250_000_000,
                    urgentClasses: 1 << 4 | 1 << 5))
    }

    @Test func policyFollowsTheConfiguration() {
        #expect(BreakerPolicy(nil).mode == .off)
        #expect(BreakerPolicy(Configuration.Breaker()) == BreakerPolicy())
        var configuration = Configuration.Breaker()
        configuration.mode = .observe
        configuration.window = 1
        configuration.minimumRequests = 2
        configuration.failureRate = 0.3
        configuration.consecutiveFailures = 4
        configuration.failureStatuses.insert(404)
        configuration.slowCallDuration = 5
        configuration.slowCallRate = 0.6
        configuration.openFor = 7
        configuration.maxOpenFor = 8
        configuration.probe.ratio = 0.9
        configuration.probe.interval = 10
        configuration.probe.successes = 11
        configuration.probe.ramp = 12
        configuration.established = .drain
        let policy = BreakerPolicy(configuration)
        #expect(policy.mode == .observe && policy.window == 1 && policy.minimumRequests == 2)
        #expect(policy.failureRate == 0.3 && policy.consecutiveFailures == 4)
        #expect(policy.failureStatuses.contains(404) && policy.slowCallDuration == 5)
        #expect(policy.slowCallRate == 0.6 && policy.openFor == 7 && policy.maxOpenFor == 8)
        #expect(policy.probeRatio == 0.9 && policy.probeInterval == 10 && policy.probeSuccesses == 11)
        #expect(policy.ramp == 12 && policy.drain)
        #expect(policy.watchesSlowCalls)
    }
}

struct BreakerPropertyTests {
    /// Whatever happens in whatever order, some things never do.
    @Test func randomSequencesKeepTheInvariants() {
        var random = SplitMix64(seed: 42)
        var seen: Set<String> = []
        for round in 0..<300 {
            var policy = BreakerPolicy()
            policy.minimumRequests = .random(in: 1...10, using: &random)
            policy.failureRate = .random(in: 0...1, using: &random)
            policy.consecutiveFailures = .random(in: 0...4, using: &random)
            policy.slowCallDuration = .random(in: 0...1, using: &random)
            policy.openFor = .random(in: 1...5, using: &random) * second
            policy.maxOpenFor = policy.openFor * .random(in: 1...8, using: &random)
            policy.probeRatio = .random(in: 0...1, using: &random)
            policy.probeSuccesses = .random(in: 1...3, using: &random)
            policy.ramp = .random(in: 0...5, using: &random) * second
            var breaker = Breaker(policy: policy, seed: UInt64(round), at: 0)
            var now: UInt64 = 0
            var state = BreakerState.closed
            var lastTime: UInt64 = 0

            for _ in 0..<400 {
                now += .random(in: 0...second, using: &random)
                let overriddenBefore = breaker.override != nil
                var told: [BreakerTransition] = []
                var mayOpen = true
                switch Int.random(in: 0..<40, using: &random) {
                case 0:
                    let override = BreakerOverride(
                        forced: .random(using: &random) ? .open : .close, actor: "a", reason: "r", since: now,
                        expiresAt: now + .random(in: 0...10 * second, using: &random))
                    told = breaker.setOverride(override, at: now) ?? []
                case 1: told = breaker.endOverride(at: now)
                case 2...8: told = breaker.tick(now)
                default:
                    mayOpen = Int.random(in: 0..<5, using: &random) > 0
                    let outcome = BreakerOutcome(
                        failure: Int.random(in: 0..<3, using: &random) == 0,
                        slow: Int.random(in: 0..<5, using: &random) == 0, probe: Bool.random(using: &random),
                        connect: Int.random(in: 0..<4, using: &random) == 0,
                        duration: .random(in: 0...2 * second, using: &random))
                    told = breaker.record(outcome, at: now, mayOpen: mayOpen)
                }
                for transition in told {
                    #expect(transition.from == state)
                    #expect(transition.to != transition.from)
                    #expect(transition.time >= lastTime && transition.time <= now)
                    let byPerson = [.override, .overrideExpired].contains(transition.reason)
                    if !byPerson {
                        let arrow = "\(transition.from.label)>\(transition.to.label)"
                        #expect(
                            ["closed>open", "open>half_open", "half_open>open", "half_open>closed"].contains(
                                arrow))
                        if arrow == "closed>open" { #expect(mayOpen) }
                        seen.insert(arrow + " " + transition.reason.rawValue)
                    } else {
                        #expect(overriddenBefore || breaker.override != nil)
                    }
                    state = transition.to
                    lastTime = transition.time
                }
                #expect(breaker.state == state)
                #expect(breaker.since == lastTime)
                #expect((0...1).contains(breaker.probeShare))
                if let deadline = breaker.openDeadline {
                    #expect(deadline - min(now, deadline) <= policy.maxOpenFor)
                }
                if let deadline = breaker.nextDeadline { #expect(deadline > now) }
                #expect(!breaker.heldClosed || breaker.automaticState == .closed)
                #expect(!breaker.isRamping || breaker.automaticState == .halfOpen)
                #expect(breaker.kernelWord.state == breaker.automaticState)
                #expect(breaker.counts.failures <= breaker.counts.requests)
            }
        }
        #expect(
            seen == [
                "closed>open failure_rate", "closed>open consecutive_failures", "closed>open slow_calls",
                "open>half_open deadline", "half_open>open probe_failed", "half_open>open ramp_failed",
                "half_open>closed recovered",
            ])
    }
}

struct BreakerQuietTests {
    /// The short way for requests that go well does what the long one does, whatever comes in between.
    @Test func quietlyIsTheSame() {
        var random = SplitMix64(seed: 7)
        var policy = BreakerPolicy()
        policy.window = 2 * second
        policy.slowCallDuration = 900_000
        policy.openFor = second
        policy.ramp = second
        var long = Breaker(policy: policy, seed: 1, at: second)
        var short = long
        var now = 10 * second
        var quietly = 0
        var transitions = 0
        var wasBad = false
        for number in 0..<200_000 {
            now += UInt64.random(in: 0...400_000, using: &random)
            // After a failure now and then longer than the window: it is forgotten, but for its being one in a row.
            if wasBad && Int.random(in: 0..<2, using: &random) == 0 { now += 3 * second }
            // Mostly good ones, with bad times in between.
            let isBad =
                number / 5_000 % 4 == 1
                ? Int.random(in: 0..<3, using: &random) > 0 : Int.random(in: 0..<2_000, using: &random) == 0
            wasBad = isBad && number / 5_000 % 4 != 1
            let sample = Sample(
                kind: Int.random(in: 0..<50, using: &random) == 0 ? .connect : .request, role: .client,
                status: isBad ? 503 : 200, flags: long.automaticState == .halfOpen ? .probe : [], time: now,
                duration: UInt64.random(
                    in: 0...(number / 10_000 % 5 == 2 ? 1_000_000 : 800_000), using: &random))
            guard let outcome = sample.breakerOutcome(policy) else { continue }
            let told = long.record(outcome, at: now, mayOpen: true)
            if short.recordQuietly(sample) {
                quietly += 1
                #expect(told.isEmpty)
            } else {
                #expect(short.record(outcome, at: now, mayOpen: true) == told)
            }
            transitions += told.count
            #expect(short.kernelWord == long.kernelWord && short.counts == long.counts)
            #expect(short.consecutiveFailures == long.consecutiveFailures && short.reason == long.reason)
        }
        #expect(quietly > 20_000 && transitions > 10)
    }
}
