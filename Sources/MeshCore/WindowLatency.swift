// Rate, errors and percentiles of the last ten seconds, for `meshctl services`.

/// What a service did in about the last ten seconds: how many requests, how many failed, and how long
/// they took, each percentile within 3 % of the duration that has its rank (nearest-rank method), if that
/// is between 8.192 µs and 137 s.
///
/// Five slots of two seconds, of which the running one is part, so it looks back 8 to 10 seconds. Each slot
/// has a log-linear histogram: 24 octaves from 8.192 µs to 137 s with 24 buckets each, one for all below
/// and the last also for all above. Buckets are 16 bits wide; when one is full the slot from then on keeps
/// one of 2 (4, ...) requests, so that it never loses its shape. Counts of requests and errors are exact.
///
/// Only octaves that are in use have memory, because a service's latencies are in few of them: about 1 kB
/// from the first request on, 6 kB if they were in all. So recording allocates only for the first request,
/// and when more octaves are in use than ever before.
public struct LatencyWindow: Sendable {
    /// How many slots there are.
    public static let slotCount = 5
    /// How long a slot runs, in nanoseconds.
    public static let slotLength: UInt64 = 2_000_000_000

    /// What a window says at a moment.
    public struct Summary: Equatable, Sendable {
        /// Requests in the window.
        public var requests: UInt64
        /// Those that failed.
        public var errors: UInt64
        /// Requests per second.
        public var rate: Double
        /// Errors by requests, 0 to 1; 0 when there were none.
        public var errorRatio: Double
        /// The 50th percentile in seconds; nil when there were no requests.
        public var p50: Double?
        /// The 90th percentile in seconds; nil when there were no requests.
        public var p90: Double?
        /// The 99th percentile in seconds; nil when there were no requests.
        public var p99: Double?
    }

    private struct Slot {
        /// The slot's number since time 0, plus one; 0: never used.
        var number: UInt64 = 0
        var requests: UInt64 = 0
        var errors: UInt64 = 0
        /// One of 2^shift requests is in the histogram.
        var shift: UInt8 = 0
        /// How many of them took less than the first octave.
        var below: UInt16 = 0

        /// Whether the request of this number, counted from 1, is in the histogram. Chosen by a hash, because
        /// traffic may have a rhythm of its own.
        func keeps(_ number: UInt64) -> Bool {
            shift == 0 || (number &* 0x9E37_79B9_7F4A_7C15) >> (64 - UInt64(shift)) == 0
        }
    }

    private static let octaves = 24
    private static let perOctave = 24
    private static let lowestBit = 13
    private static let bucketCount = octaves * perOctave + 1
    /// How many requests are noted before they are counted.
    private static let batch = 32
    /// Octaves that have memory from the first request on: two in each slot.
    private static let firstChunks = 10

    // What each request needs comes first, so that it is in a cache line.
    /// When the running slot ends; 0 before the first request.
    private var slotEnd: UInt64 = 0
    private var newest: UInt64 = 0
    /// The running slot; its copy among the others is stale.
    private var running = Slot()
    /// The buckets of the latest requests, 16 bits each, which are only noted: to count them many at a time waits
    /// less for memory.
    private var notes: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (
        0, 0, 0, 0, 0, 0, 0, 0
    )
    /// First, for each slot's octaves, the number of its chunk plus one (0: it has none); then the chunks,
    /// each the buckets of one octave.
    private var storage: [UInt16] = []
    /// The running slot's place among all.
    private var place = 0
    private var slots: [Slot] = []
    /// The chunks in use: bit n of the first or, from 64 on, of the second.
    private var used: (UInt64, UInt64) = (0, 0)
    private var firstRecord: UInt64 = 0

    /// An empty window; it has no memory of its own yet.
    public init() {}

    /// Records a request that ended at `now` (monotonic nanoseconds) after `duration` nanoseconds. A time
    /// before the newest one seen counts as the newest.
    public mutating func record(duration: UInt64, error: Bool, at now: UInt64) {
        if now >= slotEnd { enterSlot(at: now) }
        newest = max(newest, now)
        if error { running.errors += 1 }
        let note = Int(truncatingIfNeeded: running.requests) & (LatencyWindow.batch - 1)
        let bucket = UInt16(truncatingIfNeeded: LatencyWindow.bucket(of: duration))
        withUnsafeMutableBytes(of: &notes) {
            $0.storeBytes(of: bucket, toByteOffset: note &* 2, as: UInt16.self)
        }
        running.requests &+= 1
        if note == LatencyWindow.batch - 1 { countNotes(LatencyWindow.batch) }
    }

    /// Counts the last so many requests of the running slot, which were only noted.
    @inline(never)
    private mutating func countNotes(_ count: Int) {
        var next = 0
        while let octave = countNotes(&next, of: count) {
            storage[entry(of: octave, in: place)] = UInt16(takeChunk() + 1)
        }
    }

    /// Counts them from `next` on, up to one whose octave has no memory yet.
    /// - Returns: That octave; nil if all are counted.
    private mutating func countNotes(_ next: inout Int, of count: Int) -> Int? {
        let first = entry(of: 0, in: place)
        let numbers = running.requests &- UInt64(count)
        return withUnsafeBytes(of: notes) { notes in
            storage.withUnsafeMutableBufferPointer { storage in
                while next < count {
                    let bucket = Int(notes.load(fromByteOffset: next &* 2, as: UInt16.self))
                    next &+= 1
                    guard running.keeps(numbers &+ UInt64(next)) else { continue }
                    if bucket == 0 {
                        if running.below == .max { LatencyWindow.thin(&running, first, storage) }
                        running.below += 1
                        continue
                    }
                    let octave = (bucket &- 1) / LatencyWindow.perOctave
                    let chunk = Int(storage[first &+ octave])
                    if chunk == 0 {
                        next &-= 1
                        return octave
                    }
                    let start = LatencyWindow.start(ofChunk: chunk &- 1)
                    let counted = start &+ bucket &- 1 &- octave &* LatencyWindow.perOctave
                    if storage[counted] == .max { LatencyWindow.thin(&running, first, storage) }
                    storage[counted] &+= 1
                }
                return nil
            }
        }
    }

    /// Makes the slot of a time that is past the running one's end the running slot.
    private mutating func enterSlot(at now: UInt64) {
        if slots.isEmpty {
            slots = [Slot](repeating: Slot(), count: LatencyWindow.slotCount)
            storage.reserveCapacity(LatencyWindow.start(ofChunk: LatencyWindow.firstChunks))
            storage.append(
                contentsOf: repeatElement(0, count: LatencyWindow.start(ofChunk: LatencyWindow.firstChunks)))
            firstRecord = now
        }
        countNotes()
        slots[place] = running
        let number = now / LatencyWindow.slotLength + 1
        let (end, overflow) = number.multipliedReportingOverflow(by: LatencyWindow.slotLength)
        slotEnd = overflow ? .max : end
        place = Int(number % UInt64(LatencyWindow.slotCount))
        running = Slot(number: number)
        for octave in entry(of: 0, in: place)..<entry(of: 0, in: place + 1) where storage[octave] != 0 {
            let chunk = Int(storage[octave]) - 1
            if chunk < 64 { used.0 &= ~(1 << UInt64(chunk)) } else { used.1 &= ~(1 << UInt64(chunk - 64)) }
            storage[octave] = 0
        }
    }

    /// Counts what of the running slot was only noted so far.
    private mutating func countNotes() {
        let count = Int(truncatingIfNeeded: running.requests) & (LatencyWindow.batch - 1)
        if count > 0 { countNotes(count) }
    }

    /// Where in `storage` the chunk of a slot's octave is named.
    private func entry(of octave: Int, in place: Int) -> Int {
        place * LatencyWindow.octaves + octave
    }

    /// A chunk that was free, all zero.
    private mutating func takeChunk() -> Int {
        let first = (~used.0).trailingZeroBitCount
        let chunk = first < 64 ? first : 64 + (~used.1).trailingZeroBitCount
        if chunk < 64 { used.0 |= 1 << UInt64(chunk) } else { used.1 |= 1 << UInt64(chunk - 64) }
        let range = LatencyWindow.start(ofChunk: chunk)..<LatencyWindow.start(ofChunk: chunk + 1)
        if range.upperBound > storage.count {
            // By a few at a time: an array by itself would grow to twice its size.
            storage.reserveCapacity(storage.count + 4 * LatencyWindow.perOctave)
            storage.append(contentsOf: repeatElement(0, count: range.upperBound - storage.count))
        }
        for index in range { storage[index] = 0 }
        return chunk
    }

    /// From now on the slot, whose octaves begin at `first`, keeps half as many.
    private static func thin(_ slot: inout Slot, _ first: Int, _ storage: UnsafeMutableBufferPointer<UInt16>)
    {
        slot.shift += 1
        slot.below /= 2
        for octave in first..<first + octaves where storage[octave] != 0 {
            let start = start(ofChunk: Int(storage[octave]) - 1)
            for index in start..<start + perOctave { storage[index] /= 2 }
        }
    }

    /// Where in `storage` a chunk begins.
    private static func start(ofChunk chunk: Int) -> Int {
        slotCount * octaves + chunk * perOctave
    }

    /// What one bucket of a slot holds.
    private func count(_ slot: Slot, _ place: Int, _ bucket: Int) -> UInt64 {
        guard bucket > 0 else { return UInt64(slot.below) }
        let (octave, step) = (bucket - 1).quotientAndRemainder(dividingBy: LatencyWindow.perOctave)
        let chunk = Int(storage[entry(of: octave, in: place)]) - 1
        return chunk < 0 ? 0 : UInt64(storage[LatencyWindow.start(ofChunk: chunk) + step])
    }

    /// What the window says at `now`, in monotonic nanoseconds.
    public func summary(at now: UInt64) -> Summary {
        var counted = self
        counted.countNotes()
        return counted.summaryOfCounted(at: now)
    }

    private func summaryOfCounted(at now: UInt64) -> Summary {
        let now = max(now, newest)
        let number = now / LatencyWindow.slotLength + 1
        let oldest =
            number > UInt64(LatencyWindow.slotCount) ? number - UInt64(LatencyWindow.slotCount) + 1 : 1
        var slots = slots
        if !slots.isEmpty { slots[place] = running }
        let live = slots.indices.filter { slots[$0].number >= oldest }
        let requests = live.reduce(0) { $0 + slots[$1].requests }
        let errors = live.reduce(0) { $0 + slots[$1].errors }
        // From the first slot's start, or the very first request; at least a second, lest one request
        // right now look like thousands per second.
        let start = max((oldest - 1) * LatencyWindow.slotLength, firstRecord)
        let seconds = max(Double(now - start) / 1e9, 1)
        let percentiles = percentiles(of: live, slots)
        return Summary(
            requests: requests, errors: errors, rate: Double(requests) / seconds,
            errorRatio: requests == 0 ? 0 : Double(errors) / Double(requests), p50: percentiles?[0],
            p90: percentiles?[1], p99: percentiles?[2])
    }

    private func percentiles(of live: [Int], _ slots: [Slot]) -> [Double]? {
        let totals = (0..<LatencyWindow.bucketCount).map { bucket in
            live.reduce(0) { sum, slot in
                sum + count(slots[slot], slot, bucket) << UInt64(slots[slot].shift)
            }
        }
        let total = totals.reduce(0, +)
        guard total > 0 else { return nil }
        return [0.5, 0.9, 0.99].map { quantile in
            // The request of this rank, counted from 1, as the nearest-rank method has it.
            let rank = max(1, (quantile * Double(total)).rounded(.up))
            var below: UInt64 = 0
            var bucket = 0
            while Double(below + totals[bucket]) < rank {
                below += totals[bucket]
                bucket += 1
            }
            let part = (rank - Double(below) - 0.5) / Double(totals[bucket])
            return LatencyWindow.estimate(bucket, part) / 1e9
        }
    }

    /// The bucket of a duration: 0 below 2^13 ns, then 24 for each octave.
    static func bucket(of duration: UInt64) -> Int {
        guard duration >> UInt64(lowestBit) > 0 else { return 0 }
        let octave = 63 - duration.leadingZeroBitCount
        guard octave < lowestBit + octaves else { return bucketCount - 1 }
        // The bits after the first, as a fraction of 2^13 that the octave's size does not change.
        let fraction = (duration >> UInt64(octave - lowestBit)) & (1 << UInt64(lowestBit) - 1)
        return 1 + (octave - lowestBit) * perOctave + (Int(fraction) * perOctave) >> lowestBit
    }

    /// The duration in nanoseconds at a part (0 to 1) of a bucket. It interpolates within that middle of
    /// the bucket from which nothing in the bucket is further than 3 %.
    private static func estimate(_ bucket: Int, _ part: Double) -> Double {
        let lowest = Double(1 << lowestBit)
        guard bucket > 0 else { return part * lowest }
        let octave = (bucket - 1) / perOctave
        let step = (bucket - 1) % perOctave
        let size = lowest * Double(1 << octave)
        let low = size * (1 + Double(step) / Double(perOctave))
        let high = size * (1 + Double(step + 1) / Double(perOctave))
        return high * 0.9705 + part * (low * 1.0295 - high * 0.9705)
    }
}
