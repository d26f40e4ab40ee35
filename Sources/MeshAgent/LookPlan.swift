// When the kernel is to wake the engine for a sample that may decide, and when the engine looks by itself
// instead. Pure logic: the engine tells it the time, and does what it says.

/// A plan of when to look at the ring buffer.
///
/// A wake-up costs the program that gives it, and whoever is on the CPU. So the first urgent samples wake the
/// engine, each at once; where they keep coming, it looks by itself every `interval` and the kernel wakes it for
/// none, until a look finds no more of them.
struct LookPlan {
    /// How often the engine looks by itself, in nanoseconds.
    static let interval: UInt64 = 250_000
    /// So many wake-ups may come at once: the failures in a row that most breakers wait for, and some.
    static let burst: UInt64 = 16
    /// After so many nanoseconds one more may come. A thousand a second are too few to be felt.
    static let refill: UInt64 = 1_000_000

    /// When to look next; nil while the kernel wakes the engine.
    private(set) var next: UInt64?
    /// It is the second look after the last urgent sample.
    private var isLast = false
    /// When all wake-ups that were taken will have been given back: the theoretical arrival time of the generic
    /// cell rate algorithm (ITU-T I.371).
    private var paidUntil: UInt64 = 0

    /// Says what to do after a look.
    /// - Parameters:
    ///   - sawUrgent: It found samples that breakers may act on.
    ///   - isHeldUp: It ended at a record that is still being written: what is behind it may be urgent, and may
    ///     have had no wake-up.
    ///   - now: Monotonic nanoseconds.
    /// - Returns: Until when the kernel is to wake nobody, 0 for no time at all; nil if that stays as it is.
    mutating func plan(sawUrgent: Bool, isHeldUp: Bool, at now: UInt64) -> UInt64? {
        guard let look = next else {
            if !sawUrgent || !isHeldUp && takeWakeUp(at: now) { return nil }
            return lookAgain(at: now)
        }
        if sawUrgent || isHeldUp { return lookAgain(at: now) }
        guard now >= look else { return nil }
        // Once more: a program may have read the old time, and sent its sample after this look.
        next = isLast ? nil : now + LookPlan.interval
        isLast = true
        return 0
    }

    private mutating func lookAgain(at now: UInt64) -> UInt64 {
        isLast = false
        next = now + LookPlan.interval
        return now + LookPlan.interval
    }

    private mutating func takeWakeUp(at now: UInt64) -> Bool {
        let paid = max(paidUntil, now) + LookPlan.refill
        guard paid <= now + LookPlan.burst * LookPlan.refill else { return false }
        paidUntil = paid
        return true
    }
}
