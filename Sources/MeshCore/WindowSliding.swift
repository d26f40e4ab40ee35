// Exact counts of what a breaker saw lately, in constant time and memory.

/// Counts of requests, failures and slow calls over the last `length` nanoseconds.
///
/// The window has 20 slots and slides by one slot, a twentieth of its length, at a time: it holds the
/// running slot and the 19 before it, so at least 19/20 of its length and never more than all of it.
/// Within that the counts are exact. A time that lies before the newest one seen counts as the newest,
/// because records of several CPUs may arrive a little out of order.
public struct SlidingWindow: Equatable, Sendable {
    /// How many slots a window has.
    public static let slotCount = 20

    /// What was counted.
    public struct Counts: Equatable, Sendable {
        /// All that was recorded.
        public var requests: UInt64 = 0
        /// Those that failed.
        public var failures: UInt64 = 0
        /// Those that were slow; a slow failure counts in both.
        public var slow: UInt64 = 0

        /// Failures by requests, 0 to 1; 0 when there were none.
        public var failureRatio: Double { requests == 0 ? 0 : Double(failures) / Double(requests) }
        /// Slow calls by requests, 0 to 1; 0 when there were none.
        public var slowRatio: Double { requests == 0 ? 0 : Double(slow) / Double(requests) }

        fileprivate mutating func add(_ slot: Slot) {
            requests += UInt64(slot.requests)
            failures += UInt64(slot.failures)
            slow += UInt64(slot.slow)
        }

        fileprivate mutating func remove(_ slot: Slot) {
            requests -= UInt64(slot.requests)
            failures -= UInt64(slot.failures)
            slow -= UInt64(slot.slow)
        }
    }

    /// The window's length in nanoseconds, as given.
    public let length: UInt64
    /// What the window held when it was last touched: see `advance(to:)`.
    public private(set) var counts = Counts()
    /// What of that was there when the running slot began: the rest is the running slot's.
    private var before = Counts()

    private let width: UInt64
    /// Narrow, because there are as many windows as services: no slot sees 2^32 requests.
    fileprivate struct Slot: Equatable {
        var requests: UInt32 = 0
        var failures: UInt32 = 0
        var slow: UInt32 = 0
    }
    /// Those that have ended. The running one's place is empty.
    private var slots = [Slot](repeating: Slot(), count: SlidingWindow.slotCount)
    /// The running slot's number since time 0; its place is this modulo `slotCount`.
    private(set) var slot: UInt64 = 0
    private var slotEnd: UInt64

    /// An empty window of `length` nanoseconds. This is the only time that it allocates.
    public init(length: UInt64) {
        self.length = length
        // Rounded down, so that the slots together never hold more than the length.
        width = max(1, length / UInt64(SlidingWindow.slotCount))
        slotEnd = width
    }

    /// How many words `save` writes.
    static let savedWords = slotCount * 3 / 2

    /// The running slot.
    private var running: Slot {
        Slot(
            requests: UInt32(truncatingIfNeeded: counts.requests &- before.requests),
            failures: UInt32(truncatingIfNeeded: counts.failures &- before.failures),
            slow: UInt32(truncatingIfNeeded: counts.slow &- before.slow))
    }

    /// The running slot's place.
    private var place: Int { Int(slot % UInt64(SlidingWindow.slotCount)) }

    /// Writes the slots: requests and failures of each in one word, then the slow calls of two in one.
    func save(to words: UnsafeMutablePointer<UInt64>) {
        let (place, running) = (place, running)
        slots.withUnsafeBufferPointer { slots in
            let slot = { $0 == place ? running : slots[$0] }
            for place in 0..<SlidingWindow.slotCount {
                words[place] = UInt64(slot(place).requests) | UInt64(slot(place).failures) << 32
            }
            for pair in 0..<SlidingWindow.slotCount / 2 {
                words[SlidingWindow.slotCount + pair] =
                    UInt64(slot(2 * pair).slow) | UInt64(slot(2 * pair + 1).slow) << 32
            }
        }
    }

    /// A window of `length` nanoseconds as it was in the slot of number `slot`, from what `save` wrote; nil if
    /// that cannot be.
    init?(length: UInt64, slot: UInt64, saved words: [UInt64]) {
        self.init(length: length)
        let (end, overflow) = slot.addingReportingOverflow(1)
        guard words.count == SlidingWindow.savedWords, !overflow else { return nil }
        self.slot = slot
        let (time, isPast) = end.multipliedReportingOverflow(by: width)
        slotEnd = isPast ? .max : time
        for place in slots.indices {
            let slow = words[SlidingWindow.slotCount + place / 2] >> UInt64(place % 2 * 32)
            let saved = Slot(
                requests: UInt32(truncatingIfNeeded: words[place]), failures: UInt32(words[place] >> 32),
                slow: UInt32(truncatingIfNeeded: slow))
            counts.add(saved)
            guard place != self.place else { continue }
            slots[place] = saved
            before.add(saved)
        }
    }

    /// Forgets what is older than the window at `now`.
    @inline(__always)
    public mutating func advance(to now: UInt64) {
        if now >= slotEnd { enterSlot(at: now) }
    }

    @inline(never)
    private mutating func enterSlot(at now: UInt64) {
        let newSlot = now / width
        guard newSlot > slot else { return }
        if newSlot - slot >= UInt64(SlidingWindow.slotCount) {
            clear()
            slot = newSlot
        } else {
            slots[place] = running
            while slot < newSlot {
                slot += 1
                counts.remove(slots[place])
                slots[place] = Slot()
            }
            before = counts
        }
        let (end, overflow) = (now - now % width).addingReportingOverflow(width)
        slotEnd = overflow ? .max : end
    }

    /// Counts one request that ended at `now`.
    @inline(__always)
    public mutating func record(failure: Bool, slow: Bool, at now: UInt64) {
        advance(to: now)
        counts.requests += 1
        if failure { counts.failures += 1 }
        if slow { counts.slow += 1 }
    }

    /// Forgets everything.
    public mutating func clear() {
        for index in slots.indices { slots[index] = Slot() }
        counts = Counts()
        before = Counts()
    }
}
