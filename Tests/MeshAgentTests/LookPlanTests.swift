// When the kernel wakes the engine and when the engine looks by itself, step by step.
import Testing

@testable import MeshAgent

@Suite struct LookPlanTests {
    private let start: UInt64 = 1_000_000_000
    private let interval = LookPlan.interval

    /// A plan whose wake-ups at once are used up, at `start`.
    private func spent() -> LookPlan {
        var plan = LookPlan()
        for _ in 0..<LookPlan.burst { _ = plan.plan(sawUrgent: true, isHeldUp: false, at: start) }
        return plan
    }

    @Test func nothingUrgentLeavesTheWakingToTheKernel() {
        var plan = LookPlan()
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start) == nil)
        #expect(plan.plan(sawUrgent: false, isHeldUp: true, at: start) == nil)
        #expect(plan.next == nil)
    }

    @Test func theFirstUrgentSamplesWakeAtOnce() {
        var plan = LookPlan()
        for _ in 0..<LookPlan.burst {
            #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: start) == nil)
            #expect(plan.next == nil)
        }
        #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: start) == start + interval)
        #expect(plan.next == start + interval)
    }

    @Test func aWakeUpComesBackWithTime() {
        var plan = spent()
        #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: start + LookPlan.refill) == nil)
        #expect(
            plan.plan(sawUrgent: true, isHeldUp: false, at: start + LookPlan.refill)
                == start + LookPlan.refill + interval)
    }

    @Test func noMoreThanABurstComesBack() {
        var plan = spent()
        let later = start + 1_000 * LookPlan.refill
        for _ in 0..<LookPlan.burst { #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: later) == nil) }
        #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: later) == later + interval)
    }

    @Test func itLooksOnWhileUrgentSamplesCome() {
        var plan = spent()
        _ = plan.plan(sawUrgent: true, isHeldUp: false, at: start)
        for step in 1...100 as ClosedRange<UInt64> {
            let now = start + step * interval
            #expect(plan.plan(sawUrgent: true, isHeldUp: false, at: now) == now + interval)
        }
    }

    @Test func itLooksTwiceAfterTheLastAndLeavesTheWakingToTheKernel() {
        var plan = spent()
        _ = plan.plan(sawUrgent: true, isHeldUp: false, at: start)
        // Too early: woken by something else.
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start + interval - 1) == nil)
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start + interval) == 0)
        #expect(plan.next == start + 2 * interval)
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start + 2 * interval) == 0)
        #expect(plan.next == nil)
    }

    @Test func anUrgentSampleAtTheLastLookBeginsAnew() {
        var plan = spent()
        _ = plan.plan(sawUrgent: true, isHeldUp: false, at: start)
        _ = plan.plan(sawUrgent: false, isHeldUp: false, at: start + interval)
        #expect(
            plan.plan(sawUrgent: true, isHeldUp: false, at: start + 2 * interval) == start + 3 * interval)
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start + 3 * interval) == 0)
        #expect(plan.next == start + 4 * interval)
    }

    /// Its wake-up is spent, and the program that writes the record before it gives none.
    @Test func whatIsBehindARecordBeingWrittenIsLookedFor() {
        var plan = LookPlan()
        #expect(plan.plan(sawUrgent: true, isHeldUp: true, at: start) == start + interval)
        #expect(
            plan.plan(sawUrgent: false, isHeldUp: true, at: start + interval) == start + 2 * interval)
        #expect(plan.plan(sawUrgent: false, isHeldUp: false, at: start + 2 * interval) == 0)
    }
}
