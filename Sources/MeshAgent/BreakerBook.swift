// All breakers of the node: which service has one, what its samples decide, and what the kernel has
// been told of it. Holds no descriptor and reads no clock, so that it can be tested anywhere.
import CMeshABI
import MeshCore

/// The breakers by service.
struct BreakerBook {
    /// One breaker and what surrounds it.
    struct Slot {
        let service: UInt32
        var breaker: Breaker
        /// What the kernel's map holds; nil before the first write.
        var written: BreakerKernelWord? {
            didSet {
                writtenAtEase = written?.isAtEase == true
                writtenAlert = written?.alert == true
            }
        }
        /// Of `written`, for what is asked with each sample.
        private(set) var writtenAtEase = false
        private(set) var writtenAlert = false
        /// The head of the last sample that went well under this policy; `.max`, which no sample has: none did.
        fileprivate var goodHead = UInt64.max
        /// Attempts that were simply admitted. The kernel counts the other decisions itself.
        var admittedConnects: UInt64 = 0
        var admittedRequests: UInt64 = 0
        /// When it was last told that the share holds it closed.
        fileprivate var heldToldAt: UInt64?
        /// Since when there is the override that was saved last; 0: none was.
        fileprivate var savedOverride: UInt64 = 0
        /// Whether a save that has not come to it yet has what it was already.
        fileprivate var isKept = false
        /// Whether it is what an earlier agent's was, by the state.
        fileprivate(set) var isRestored = false

        fileprivate init(service: UInt32, breaker: Breaker) {
            self.service = service
            self.breaker = breaker
        }
    }

    /// What an agent before knew of a breaker.
    private struct Remembered {
        var memory: BreakerMemory
        var override: BreakerOverride?
        var admittedConnects: UInt64
        var admittedRequests: UInt64
    }

    private(set) var slots: [Slot] = []
    private var dirty = DirtyRows()
    /// Those that a save that is under way has still to add; rows of others that have changed since.
    private var unsaved = DirtyRows()
    private var kept: [UInt64] = []
    private var isSaving = false
    /// By service, until `configure` makes a slot of it.
    private var remembered: [UInt32: Remembered] = [:]
    /// Of each slot, the classes of statuses that hold its failures: asked for each sample, so kept together.
    private var failureClasses: [UInt32] = []
    private var slotOfService = [Int32](repeating: -1, count: Int(MESH_MAX_SERVICES))
    private(set) var share: BreakerOpenShare
    /// When each breaker next has something to do by itself.
    private var deadlines = DeadlineQueue()

    /// The earliest time at which some breaker has something to do by itself; `.max` if none has.
    var nextDeadline: UInt64 { deadlines.next }

    init(share: Double) {
        self.share = BreakerOpenShare(breakers: 0, share: share)
    }

    /// The slot of a service, nil if it has no breaker.
    func slot(of service: UInt32) -> Int? {
        guard service < UInt32(slotOfService.count) else { return nil }
        let slot = slotOfService[Int(service)]
        return slot < 0 ? nil : Int(slot)
    }

    /// Follows a configuration: breakers are made, given new policies, or switched off.
    /// - Parameter policies: Every configured service with a breaker, by ID.
    /// - Returns: The slots of breakers that were there before and got another policy, with their
    ///   transitions.
    mutating func configure(
        _ policies: [(service: UInt32, policy: BreakerPolicy)], share newShare: Double, at now: UInt64
    ) -> [(slot: Int, transitions: [BreakerTransition])] {
        var changes: [(slot: Int, transitions: [BreakerTransition])] = []
        var kept = Set<UInt32>()
        for (service, policy) in policies {
            kept.insert(service)
            if let index = slot(of: service) {
                guard slots[index].breaker.policy != policy else { continue }
                changes.append((index, replacePolicy(of: index, policy, at: now)))
            } else {
                add(service, policy, at: now)
            }
        }
        // Those that have none in this configuration: the kernel is told so.
        var none = BreakerPolicy()
        none.mode = .off
        for service in remembered.keys { add(service, none, at: now) }
        for index in slots.indices where !kept.contains(slots[index].service) {
            var off = slots[index].breaker.policy
            guard off.mode != .off else { continue }
            off.mode = .off
            changes.append((index, replacePolicy(of: index, off, at: now)))
        }
        share = BreakerOpenShare(
            breakers: slots.count { $0.breaker.policy.mode != .off }, share: newShare)
        for index in slots.indices { afterChange(of: index, heldOpen: false) }
        return changes
    }

    private mutating func replacePolicy(of index: Int, _ policy: BreakerPolicy, at now: UInt64)
        -> [BreakerTransition]
    {
        willChange(index)
        slots[index].goodHead = .max
        failureClasses[index] = policy.failureStatuses.classMask
        return slots[index].breaker.replacePolicy(policy, at: now)
    }

    /// Goes on with a breaker where an earlier agent ended.
    /// - Parameters:
    ///   - word: What the kernel has been told of it.
    ///   - override: The one that the word tells of.
    mutating func restore(
        _ service: UInt32, _ word: BreakerKernelWord, override: BreakerOverride?, at now: UInt64
    ) {
        guard let index = slot(of: service) else { return }
        willChange(index)
        let before = slots[index].breaker.holdsOpen
        slots[index].breaker.restore(word, override: override, at: now)
        slots[index].written = word
        afterChange(of: index, heldOpen: before)
    }

    /// Notes what the kernel has been told of a breaker that the state knew.
    mutating func note(_ word: BreakerKernelWord, of index: Int) {
        slots[index].written = word
        slots[index].breaker.catchUp(to: word)
    }

    private mutating func add(_ service: UInt32, _ policy: BreakerPolicy, at now: UInt64) {
        slotOfService[Int(service)] = Int32(slots.count)
        failureClasses.append(policy.failureStatuses.classMask)
        dirty.append()
        unsaved.append(isMarked: false)
        deadlines.append()
        guard let known = remembered.removeValue(forKey: service) else {
            slots.append(
                Slot(service: service, breaker: Breaker(policy: policy, seed: UInt64(service), at: now)))
            return
        }
        var slot = Slot(
            service: service,
            breaker: Breaker(policy: policy, known.memory, override: known.override, at: now))
        slot.admittedConnects = known.admittedConnects
        slot.admittedRequests = known.admittedRequests
        slot.isRestored = true
        slots.append(slot)
    }

    // MARK: - What outlives the agent

    /// Begins to save: every breaker that has changed since the last time, or all of them, as it is now.
    mutating func beginSave(_ scope: StateScope) {
        if isSaving {
            // One that could not be written to its end; everything is saved now.
            var all = Int.max
            unsaved.take(&all) { slots[$0].isKept = false }
            kept = []
        }
        if scope == .everything {
            dirty.markAll()
            for index in slots.indices { slots[index].savedOverride = 0 }
        }
        swap(&dirty, &unsaved)
        isSaving = true
    }

    /// Adds breakers as they were at `beginSave`.
    /// - Parameter limit: How many at most; so many less afterwards.
    mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        guard isSaving else { return }
        slots.withUnsafeMutableBufferPointer { slots in
            unsaved.take(&limit) { index in
                // What was kept from changing is among `kept`.
                if slots[index].isKept {
                    slots[index].isKept = false
                } else {
                    BreakerBook.save(slots.baseAddress! + index, to: &writer)
                }
            }
        }
        guard limit > 0 else { return }
        writer.append(made: kept)
        kept = []
        isSaving = false
    }

    private static func save(_ slot: UnsafeMutablePointer<Slot>, to writer: inout StateWriter) {
        writer.breaker(
            service: slot.pointee.service, slot.pointee.breaker.memory,
            admittedConnects: slot.pointee.admittedConnects,
            admittedRequests: slot.pointee.admittedRequests)
        let since = slot.pointee.breaker.override?.since ?? 0
        if since != slot.pointee.savedOverride {
            writer.append(.override(service: slot.pointee.service, slot.pointee.breaker.override))
        }
        slot.pointee.savedOverride = since
    }

    /// To be called before a breaker changes: notes that it does, and where a save that is under way has not come
    /// to it yet, keeps what it was for that.
    @inline(__always)
    private mutating func willChange(_ index: Int) {
        if isSaving { keep(index) }
        dirty.mark(index)
    }

    @inline(never)
    private mutating func keep(_ index: Int) {
        if unsaved.contains(index) && !slots[index].isKept {
            var writer = StateWriter(capacity: 128)
            slots.withUnsafeMutableBufferPointer { BreakerBook.save($0.baseAddress! + index, to: &writer) }
            kept += writer.flush().bytes.bindMemory(to: UInt64.self)
            slots[index].isKept = true
        }
    }

    /// Takes over a row of an agent before; false if it makes no sense. What is restored takes effect with
    /// `configure`, for services that have no breaker yet.
    mutating func restore(_ row: StateRow) -> Bool {
        switch row {
        case .breaker(let service, let memory, let connects, let requests):
            guard service < UInt32(slotOfService.count) else { return false }
            remembered[service] = Remembered(
                memory: memory, override: remembered[service]?.override, admittedConnects: connects,
                admittedRequests: requests)
        case .override(let service, let override):
            guard remembered[service] != nil else { return false }
            remembered[service]?.override = override
        default: return false
        }
        return true
    }

    // MARK: - What happens to them

    /// What a sample did to a breaker.
    struct Change {
        let slot: Int
        /// Oldest first; almost always none.
        let transitions: [BreakerTransition]
        /// There is nothing to write to the kernel or to tell of.
        let isSettled: Bool
        /// The kernel wakes the reader for such a sample: a failure, a slow call, or any while the breaker is
        /// on the alert.
        let isUrgent: Bool
    }

    /// Feeds a sample to its service's breaker.
    /// - Returns: Nil if it left nothing to do: it was none of a breaker's, or all went well.
    mutating func record(_ sample: Sample) -> Change? {
        guard sample.role == .client, sample.kind == .request || sample.kind == .connect,
            let slot = slot(of: sample.service)
        else { return nil }
        return recordQuietly(sample, slot: slot) ? nil : record(sample, slot: slot)
    }

    private mutating func record(_ sample: Sample, slot index: Int) -> Change {
        let mayOpen = share.mayOpen
        willChange(index)
        // Reached through a pointer, because Swift would copy so large a value, and write it back.
        let (change, holds, next) = slots.withUnsafeMutableBufferPointer { slots in
            let slot = slots.baseAddress! + index
            let held = slot.pointee.breaker.holdsOpen
            if sample.flags.isDisjoint(with: [.probe, .wouldReject]) {
                if sample.kind == .connect {
                    slot.pointee.admittedConnects += 1
                } else {
                    slot.pointee.admittedRequests += 1
                }
            }
            guard let outcome = sample.breakerOutcome(slot.pointee.breaker.policy) else {
                let none = Change(slot: index, transitions: [], isSettled: true, isUrgent: false)
                return (none, (held, held), slot.pointee.breaker.nextDeadline)
            }
            let transitions = slot.pointee.breaker.record(outcome, at: sample.time, mayOpen: mayOpen)
            let alert = slot.pointee.breaker.alert
            let isSettled =
                transitions.isEmpty && slot.pointee.breaker.isAtEase && slot.pointee.writtenAtEase
                && slot.pointee.writtenAlert == alert
            return (
                Change(
                    slot: index, transitions: transitions, isSettled: isSettled,
                    isUrgent: outcome.failure || outcome.slow || alert),
                (held, slot.pointee.breaker.holdsOpen), slot.pointee.breaker.nextDeadline
            )
        }
        share.update(from: holds.0, to: holds.1)
        deadlines.set(index, next ?? .max)
        return change
    }

    /// Feeds a sample to a breaker if that leaves nothing to settle; false if it is to be fed with `record`.
    private mutating func recordQuietly(_ sample: Sample, slot index: Int) -> Bool {
        recordQuietly(slot: index) { slot in
            guard slot.breaker.recordQuietly(sample) else { return false }
            slot.goodHead = sample.head
            return true
        }
    }

    /// Feeds a sample to the breaker of a slot if it is, but for its figures, one that went well before, and if
    /// that leaves nothing to settle.
    /// - Returns: False if it is to be decoded, and fed with `record`.
    @inline(__always)
    mutating func recordAgain(_ record: SampleRecord, slot index: Int) -> Bool {
        let isAgain = slots.withUnsafeBufferPointer { $0[index].goodHead == record.head }
        return isAgain
            && recordQuietly(slot: index) { slot in
                slot.breaker.recordQuietly(duration: record.duration, at: record.time)
            }
    }

    @inline(__always)
    private mutating func recordQuietly(slot index: Int, _ feed: (inout Slot) -> Bool) -> Bool {
        willChange(index)
        return slots.withUnsafeMutableBufferPointer { slots in
            let slot = slots.baseAddress.unsafelyUnwrapped + index
            // An alert that the kernel has may have to be taken back.
            guard !slot.pointee.writtenAlert, feed(&slot.pointee) else { return false }
            slot.pointee.admittedRequests &+= 1
            return true
        }
    }

    /// Whether a sample is a failure: to its service's breaker if there is one, else by its status, 5xx.
    @inline(__always)
    func isFailure(_ sample: Sample) -> Bool {
        guard let slot = slot(of: sample.service) else { return sample.isFailure(.serverErrors) }
        if sample.outcome == .ok && failureClasses[slot] >> UInt32(sample.status / 100) & 1 == 0 {
            return false
        }
        return slots.withUnsafeBufferPointer { sample.isFailure($0[slot].breaker.policy.failureStatuses) }
    }

    /// Makes the moves whose time has come, the earliest breaker first.
    /// - Parameter limit: Of how many breakers at most.
    mutating func tick(_ now: UInt64, limit: Int = .max) -> [(slot: Int, transitions: [BreakerTransition])] {
        var changes: [(slot: Int, transitions: [BreakerTransition])] = []
        while changes.count < limit, let index = deadlines.due(at: now) {
            changes.append((index, refresh(index, at: now)))
        }
        return changes
    }

    /// Lets a breaker's window slide, for those who look at it.
    mutating func refresh(_ index: Int, at now: UInt64) -> [BreakerTransition] {
        willChange(index)
        let before = slots[index].breaker.holdsOpen
        let transitions = slots[index].breaker.tick(now)
        afterChange(of: index, heldOpen: before)
        return transitions
    }

    /// Forces a state; nil if the breaker takes no overrides.
    mutating func force(_ index: Int, _ override: BreakerOverride, at now: UInt64) -> [BreakerTransition]? {
        willChange(index)
        let before = slots[index].breaker.holdsOpen
        let transitions = slots[index].breaker.setOverride(override, at: now)
        afterChange(of: index, heldOpen: before)
        return transitions
    }

    /// Ends an override, if there is one.
    mutating func release(_ index: Int, at now: UInt64) -> [BreakerTransition] {
        willChange(index)
        let before = slots[index].breaker.holdsOpen
        let transitions = slots[index].breaker.endOverride(at: now)
        afterChange(of: index, heldOpen: before)
        return transitions
    }

    /// What has to be written to the kernel for a slot; nil if it holds that already.
    mutating func wordToWrite(_ index: Int) -> (old: BreakerKernelWord?, new: BreakerKernelWord)? {
        let word = slots[index].breaker.kernelWord
        let old = slots[index].written
        guard word != old else { return nil }
        slots[index].written = word
        return (old, word)
    }

    /// Whether it is to be told that the share holds a breaker closed: once, and again only after a whole
    /// window, because a rule that is met with one sample may not be with the next.
    mutating func noteHeldClosed(_ index: Int, at now: UInt64) -> Bool {
        let breaker = slots[index].breaker
        guard breaker.heldClosed else { return false }
        if let told = slots[index].heldToldAt, now < told + breaker.policy.window { return false }
        slots[index].heldToldAt = now
        return true
    }

    private mutating func afterChange(of index: Int, heldOpen before: Bool) {
        share.update(from: before, to: slots[index].breaker.holdsOpen)
        deadlines.set(index, slots[index].breaker.nextDeadline ?? .max)
    }
}
