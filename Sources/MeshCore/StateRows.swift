// What the rows of the agent's state file say (StateLog.swift), and how they are put together: the rows that
// change with every request by words in place, the others with a little more comfort.

/// One row: the value that something has now.
public enum StateRow: Equatable, Sendable {
    /// The bounds of the histograms' buckets in nanoseconds. Comes before any series.
    case bounds([UInt64])
    /// What the agent counted of itself.
    case agent(StateCounts)
    /// A service.
    case service(id: UInt32, name: String, isConfigured: Bool, isActive: Bool)
    /// The name of a workload's index.
    case workload(index: UInt32, name: String)
    /// The workload's index of a cgroup.
    case cgroup(id: UInt64, index: UInt32)
    /// A row of the request histograms: the sum, then the buckets.
    case requests(SeriesKey, StateValues)
    /// A row of the connection table: the counters, the buckets, the sum.
    case connections(SeriesKey, StateValues)
    /// Requests and errors of a service in a role.
    case totals(service: UInt32, Sample.Role, requests: UInt64, errors: UInt64)
    /// A breaker, and how many attempts it simply admitted.
    case breaker(service: UInt32, BreakerMemory, admittedConnects: UInt64, admittedRequests: UInt64)
    /// The override on a service's breaker; nil if there is none any more.
    case override(service: UInt32, BreakerOverride?)
    /// How often a service's breaker made a kind of transition.
    case transitions(service: UInt32, from: BreakerState, to: BreakerState, BreakerReason, count: UInt64)
    /// `mesh_breaker_reaction_seconds`: the sum in nanoseconds, and each bucket.
    case reaction(sum: UInt64, buckets: [UInt64])
    /// A trace ID that is bound to a process, with when that was in monotonic nanoseconds, and when the process
    /// started in clock ticks; nil if it is not bound any more.
    case binding(pid: UInt32, StateBinding?)
    /// An event, with its number among all events.
    case event(number: UInt64, BreakerEvent)
}

/// What the agent counts of itself.
public struct StateCounts: Equatable, Sendable {
    /// Samples that were counted.
    public var received: UInt64
    /// Records that were not understood.
    public var malformed: UInt64
    /// Samples counted under another request series than their own.
    public var foldedRequests: UInt64
    /// Samples counted under another connection series than their own.
    public var foldedConnections: UInt64

    /// The counts by name.
    public init(received: UInt64, malformed: UInt64, foldedRequests: UInt64, foldedConnections: UInt64) {
        self.received = received
        self.malformed = malformed
        self.foldedRequests = foldedRequests
        self.foldedConnections = foldedConnections
    }
}

/// A trace ID that is bound to a process.
public struct StateBinding: Equatable, Sendable {
    /// The trace ID.
    public var trace: TraceID
    /// When it was bound, in monotonic nanoseconds.
    public var since: UInt64
    /// When the process started, in clock ticks since boot: tells it from a later one of the same ID.
    public var started: UInt64

    /// A binding from its parts.
    public init(trace: TraceID, since: UInt64, started: UInt64) {
        self.trace = trace
        self.since = since
        self.started = started
    }
}

/// Numbers most of which are 0, as a row holds them: a bit for each that is not, then those.
public struct StateValues: Equatable, Sendable {
    private let words: [UInt64]

    fileprivate init(_ words: ArraySlice<UInt64>) { self.words = Array(words) }

    /// The numbers, `count` of them; nil if there are more, or if they make no sense.
    public func expanded(to count: Int) -> [UInt64]? {
        let masks = (count + 63) / 64
        guard words.count >= masks else { return nil }
        let set = words[..<masks].reduce(0) { $0 + $1.nonzeroBitCount }
        guard words.count == masks + set, count % 64 == 0 || words[masks - 1] >> UInt64(count % 64) == 0
        else { return nil }
        var next = masks
        return (0..<count).map { place in
            guard words[place / 64] >> UInt64(place % 64) & 1 == 1 else { return 0 }
            defer { next += 1 }
            return words[next]
        }
    }
}

extension StateRow {
    /// What a row's head says that it is.
    fileprivate enum Kind: UInt8 {
        case bounds = 1
        case agent
        case service
        case workload
        case cgroup
        case requests
        case connections
        case totals
        case breaker
        case override
        case transitions
        case reaction
        case binding
        case event
    }

    /// Reads a row; nil if it makes no sense.
    init?(kind: UInt8, _ words: ArraySlice<UInt64>) {
        var reader = StateReader(words)
        guard let kind = Kind(rawValue: kind), let row = StateRow.read(kind, &reader), reader.isAtEnd else {
            return nil
        }
        self = row
    }

    private static func read(_ kind: Kind, _ reader: inout StateReader) -> StateRow? {
        switch kind {
        case .bounds: return .bounds(reader.rest())
        case .agent:
            guard let received = reader.next(), let malformed = reader.next(),
                let foldedRequests = reader.next(), let foldedConnections = reader.next()
            else { return nil }
            return .agent(
                StateCounts(
                    received: received, malformed: malformed, foldedRequests: foldedRequests,
                    foldedConnections: foldedConnections))
        case .service:
            guard let head = reader.next(), let name = reader.string(), head >> 34 == 0 else { return nil }
            return .service(
                id: UInt32(truncatingIfNeeded: head), name: name, isConfigured: head >> 32 & 1 == 1,
                isActive: head >> 33 & 1 == 1)
        case .workload:
            guard let index = reader.number32(), let name = reader.string() else { return nil }
            return .workload(index: index, name: name)
        case .cgroup:
            guard let id = reader.next(), let index = reader.number32() else { return nil }
            return .cgroup(id: id, index: index)
        case .requests, .connections:
            guard let key = reader.next().flatMap(SeriesKey.init(checking:)) else { return nil }
            let values = StateValues(reader.rest()[...])
            return kind == .requests ? .requests(key, values) : .connections(key, values)
        case .totals:
            guard let head = reader.next(), let role = Sample.Role(rawValue: UInt8(clamping: head >> 32)),
                let requests = reader.next(), let errors = reader.next()
            else { return nil }
            return .totals(
                service: UInt32(truncatingIfNeeded: head), role, requests: requests, errors: errors)
        case .breaker:
            guard let service = reader.number32(), let connects = reader.next(), let requests = reader.next(),
                let memory = BreakerMemory(&reader)
            else { return nil }
            return .breaker(
                service: service, memory, admittedConnects: connects, admittedRequests: requests)
        case .override:
            guard let head = reader.next() else { return nil }
            let service = UInt32(truncatingIfNeeded: head)
            if head >> 32 == 0 { return .override(service: service, nil) }
            guard let forced = BreakerOverride.Forced(rawValue: UInt8(clamping: head >> 32)),
                let since = reader.next(), let expiresAt = reader.next(), let actor = reader.string(),
                let reason = reader.string()
            else { return nil }
            return .override(
                service: service,
                BreakerOverride(
                    forced: forced, actor: actor, reason: reason, since: since, expiresAt: expiresAt))
        case .transitions:
            guard let service = reader.number32(), let change = reader.next(), let count = reader.next(),
                let from = StateCode.state(change), let from, let to = StateCode.state(change >> 8), let to,
                let reason = StateCode.reason(change >> 16), let reason, change >> 24 == 0
            else { return nil }
            return .transitions(service: service, from: from, to: to, reason, count: count)
        case .reaction:
            guard let sum = reader.next() else { return nil }
            return .reaction(sum: sum, buckets: reader.rest())
        case .binding:
            guard let pid = reader.number32() else { return nil }
            if reader.isAtEnd { return .binding(pid: pid, nil) }
            guard let high = reader.next(), let low = reader.next(), let since = reader.next(),
                let started = reader.next(), let trace = TraceID(high: high, low: low)
            else { return nil }
            return .binding(pid: pid, StateBinding(trace: trace, since: since, started: started))
        case .event:
            guard let number = reader.next(), let event = BreakerEvent(&reader) else { return nil }
            return .event(number: number, event)
        }
    }
}

/// Puts the rows of a commit together, in memory that it keeps for the next one.
public struct StateWriter: ~Copyable {
    private var words: UnsafeMutablePointer<UInt64>
    private var capacity: Int
    /// The words so far, those of the commit's head among them.
    private var count = StateLog.commitWords
    /// How many words of rows were flushed, and their checksum.
    private var flushedCount = 0
    private var checksum = StateChecksum()

    /// What it keeps between two commits, unless it needs more: 128 KiB.
    public static let kept = 16_384

    /// A writer without rows, and with room for so many words at first.
    public init(capacity: Int = StateWriter.kept) {
        self.capacity = capacity
        words = .allocate(capacity: capacity)
    }

    deinit { words.deallocate() }

    /// Whether there are no rows.
    public var isEmpty: Bool { length == StateLog.commitBytes }

    /// Whether rows were flushed.
    public var hasFlushed: Bool { flushedCount > 0 }

    /// How many bytes the commit has so far, its head among them.
    public var length: Int { (count + flushedCount) * 8 }

    /// Whether there are so many rows that some should be flushed: half of what is kept.
    public var wantsFlush: Bool { count > StateWriter.kept / 2 }

    /// Forgets all rows.
    public mutating func clear() {
        count = StateLog.commitWords
        flushedCount = 0
        checksum = StateChecksum()
        guard capacity > 8 * StateWriter.kept else { return }
        words.deallocate()
        capacity = StateWriter.kept
        words = .allocate(capacity: capacity)
    }

    /// Hands out the rows so far, so that a long commit needs no more memory than a short one.
    /// - Returns: Their bytes, valid until the next call, and where in the commit they belong. There they have to
    ///   be before what `finish` returns is written.
    public mutating func flush() -> (bytes: UnsafeRawBufferPointer, offset: Int) {
        let rows = UnsafeBufferPointer(
            start: words + StateLog.commitWords, count: count - StateLog.commitWords)
        let offset = StateLog.commitBytes + flushedCount * 8
        checksum.add(rows)
        flushedCount += rows.count
        count = StateLog.commitWords
        return (UnsafeRawBufferPointer(rows), offset)
    }

    /// Completes the rows to a commit.
    /// - Returns: The bytes with which it begins, valid until the next call: its head, and its rows, unless
    ///   these were flushed. It is a commit once they are written.
    public mutating func finish(_ commit: StateCommit) -> UnsafeRawBufferPointer {
        let isWhole = flushedCount == 0
        let wordCount = count
        let rows = flush().bytes
        precondition(isWhole || rows.isEmpty, "the last rows were not flushed")
        words[0] = UInt64(flushedCount)
        words[1] = commit.sequence
        words[2] = commit.counted
        words[3] = commit.decided
        words[4] = checksum.value
        words[5] = stateChecksum(UnsafeBufferPointer(start: words, count: 5))
        return UnsafeRawBufferPointer(start: words, count: wordCount * 8)
    }

    /// Adds a row of up to `limit` words, of which `body` gives the number.
    @inline(__always)
    private mutating func add(
        _ kind: StateRow.Kind, _ limit: Int, _ body: (UnsafeMutablePointer<UInt64>) -> Int
    ) {
        if count + 1 + limit > capacity { grow(by: 1 + limit) }
        let length = body(words + count + 1)
        words[count] = UInt64(kind.rawValue) | UInt64(length) << 8
        count += 1 + length
    }

    private mutating func grow(by more: Int) {
        let wanted = max(capacity * 2, count + more)
        let larger = UnsafeMutablePointer<UInt64>.allocate(capacity: wanted)
        larger.update(from: words, count: count)
        words.deallocate()
        (words, capacity) = (larger, wanted)
    }

    /// Adds a row of the request histograms.
    mutating func requests(_ key: SeriesKey, _ values: UnsafeBufferPointer<UInt64>) {
        series(.requests, key, values)
    }

    /// Adds a row of the connection table.
    mutating func connections(_ key: SeriesKey, _ values: UnsafeBufferPointer<UInt64>) {
        series(.connections, key, values)
    }

    private mutating func series(
        _ kind: StateRow.Kind, _ key: SeriesKey, _ values: UnsafeBufferPointer<UInt64>
    ) {
        add(kind, 1 + StateWriter.limit(values.count)) { words in
            words[0] = key.rawValue
            return 1 + StateWriter.write(values, to: words + 1)
        }
    }

    /// How many words so many values take at most.
    fileprivate static func limit(_ count: Int) -> Int { (count + 63) / 64 + count }

    /// Writes values as `StateValues` has them; returns how many words these are.
    private static func write(_ values: UnsafeBufferPointer<UInt64>, to words: UnsafeMutablePointer<UInt64>)
        -> Int
    {
        var place = 0
        var next = (values.count + 63) / 64
        for mask in 0..<next {
            var bits: UInt64 = 0
            for bit in 0..<min(64, values.count - place) {
                let value = values[place + bit]
                // Written whatever it is: the next one overwrites it if it was 0.
                words[next] = value
                let isSet: UInt64 = value == 0 ? 0 : 1
                bits |= isSet << UInt64(bit)
                next += Int(isSet)
            }
            words[mask] = bits
            place += 64
        }
        return next
    }

    /// Adds the requests and errors of a service in a role.
    public mutating func totals(service: UInt32, _ role: Sample.Role, requests: UInt64, errors: UInt64) {
        add(.totals, 3) { words in
            words[0] = UInt64(service) | UInt64(role.rawValue) << 32
            words[1] = requests
            words[2] = errors
            return 3
        }
    }

    /// Adds a row that was made before.
    public mutating func append(made row: [UInt64]) {
        if count + row.count > capacity { grow(by: row.count) }
        (words + count).update(from: row, count: row.count)
        count += row.count
    }

    /// Adds a breaker.
    public mutating func breaker(
        service: UInt32, _ memory: borrowing BreakerMemory, admittedConnects: UInt64, admittedRequests: UInt64
    ) {
        let fixed = 3 + BreakerMemory.words
        add(.breaker, fixed + StateWriter.limit(SlidingWindow.savedWords)) { words in
            words[0] = UInt64(service)
            words[1] = admittedConnects
            words[2] = admittedRequests
            memory.write(to: words + 3)
            return withUnsafeTemporaryAllocation(of: UInt64.self, capacity: SlidingWindow.savedWords) {
                slots in
                memory.window.save(to: slots.baseAddress!)
                return fixed + StateWriter.write(UnsafeBufferPointer(slots), to: words + fixed)
            }
        }
    }

    /// Adds how often a breaker made a kind of transition.
    public mutating func transitions(
        service: UInt32, from: BreakerState, to: BreakerState, _ reason: BreakerReason, count: UInt64
    ) {
        add(.transitions, 3) { words in
            words[0] = UInt64(service)
            words[1] = StateCode.of(from) | StateCode.of(to) << 8 | StateCode.of(reason) << 16
            words[2] = count
            return 3
        }
    }

    /// Adds any other row.
    public mutating func append(_ row: StateRow) {
        switch row {
        case .bounds(let bounds): rare(.bounds, bounds)
        case .agent(let counts):
            rare(
                .agent,
                [counts.received, counts.malformed, counts.foldedRequests, counts.foldedConnections])
        case .service(let id, let name, let isConfigured, let isActive):
            let flags: UInt64 = (isConfigured ? 1 : 0) | (isActive ? 2 : 0)
            rare(.service, [UInt64(id) | flags << 32], name)
        case .workload(let index, let name): rare(.workload, [UInt64(index)], name)
        case .cgroup(let id, let index): rare(.cgroup, [id, UInt64(index)])
        case .requests(let key, let values): rare(.requests, [key.rawValue] + values.packed)
        case .connections(let key, let values): rare(.connections, [key.rawValue] + values.packed)
        case .totals(let service, let role, let requests, let errors):
            totals(service: service, role, requests: requests, errors: errors)
        case .breaker(let service, let memory, let connects, let requests):
            breaker(service: service, memory, admittedConnects: connects, admittedRequests: requests)
        case .override(let service, nil): rare(.override, [UInt64(service)])
        case .override(let service, let override?):
            rare(
                .override,
                [
                    UInt64(service) | UInt64(override.forced.rawValue) << 32, override.since,
                    override.expiresAt,
                ], override.actor, override.reason)
        case .transitions(let service, let from, let to, let reason, let count):
            transitions(service: service, from: from, to: to, reason, count: count)
        case .reaction(let sum, let buckets): rare(.reaction, [sum] + buckets)
        case .binding(let pid, nil): rare(.binding, [UInt64(pid)])
        case .binding(let pid, let binding?):
            rare(
                .binding,
                [UInt64(pid), binding.trace.high, binding.trace.low, binding.since, binding.started])
        case .event(let number, let event):
            let change =
                UInt64(BreakerEvent.Kind.allCases.firstIndex(of: event.kind)!) | StateCode.of(event.from) << 8
                | StateCode.of(event.to) << 16 | StateCode.of(event.reason) << 24
                | (event.text == nil ? 0 : 1) << 32 | (event.expiresAt == nil ? 0 : 1) << 33
                | (event.isUntold ? 1 : 0) << 34
            rare(
                .event, [number, event.time, change, event.expiresAt ?? 0], event.service, event.actor,
                event.text ?? "")
        }
    }

    private mutating func rare(_ kind: StateRow.Kind, _ numbers: [UInt64], _ strings: String...) {
        let length = numbers.count + strings.reduce(0) { $0 + 1 + ($1.utf8.count + 7) / 8 }
        add(kind, length) { words in
            words.update(from: numbers, count: numbers.count)
            var next = words + numbers.count
            for string in strings {
                let size = string.utf8.count
                next[0] = UInt64(size)
                // What is left of the last word is 0.
                if size > 0 { next[(size + 7) / 8] = 0 }
                UnsafeMutableRawBufferPointer(start: next + 1, count: size).copyBytes(from: string.utf8)
                next += 1 + (size + 7) / 8
            }
            return length
        }
    }
}

/// Reads the words of a row; nil where there are none left.
struct StateReader {
    private var words: ArraySlice<UInt64>

    init(_ words: ArraySlice<UInt64>) { self.words = words }

    var isAtEnd: Bool { words.isEmpty }

    mutating func next() -> UInt64? { words.popFirst() }

    mutating func number32() -> UInt32? { next().flatMap(UInt32.init(exactly:)) }

    mutating func rest() -> [UInt64] {
        defer { words = [] }
        return Array(words)
    }

    mutating func string() -> String? {
        guard let size = next(), size <= UInt64(words.count) * 8 else { return nil }
        let taken = words.prefix((Int(size) + 7) / 8)
        words = words.dropFirst(taken.count)
        return taken.withUnsafeBytes { String(decoding: $0.prefix(Int(size)), as: UTF8.self) }
    }

    /// Values as `StateValues` has them.
    mutating func values(_ count: Int) -> [UInt64]? { StateValues(rest()[...]).expanded(to: count) }
}

extension StateValues {
    /// From all the numbers.
    init(_ values: [UInt64]) {
        var masks = [UInt64](repeating: 0, count: (values.count + 63) / 64)
        for (place, value) in values.enumerated() where value != 0 {
            masks[place / 64] |= 1 << UInt64(place % 64)
        }
        self.init((masks + values.filter { $0 != 0 })[...])
    }

    fileprivate var packed: [UInt64] { words }
}

extension SeriesKey {
    /// A packed key, if it can be one.
    fileprivate init?(checking rawValue: UInt64) {
        guard (1...2).contains(rawValue >> 14 & 3), rawValue >> 12 & 3 <= 2 else { return nil }
        self.init(rawValue: rawValue)
    }
}

/// States and reasons as bytes: numbered from 1 in the order of their declarations, 0 for none. What is read
/// back is nil if a byte is no such number, and `.some(nil)` for none.
enum StateCode {
    static func of(_ state: BreakerState?) -> UInt64 { state.map { UInt64($0.rawValue) + 1 } ?? 0 }

    static func of(_ reason: BreakerReason?) -> UInt64 {
        reason.map { UInt64(BreakerReason.allCases.firstIndex(of: $0)!) + 1 } ?? 0
    }

    static func state(_ word: UInt64) -> BreakerState?? {
        let code = UInt8(truncatingIfNeeded: word)
        if code == 0 { return .some(nil) }
        return BreakerState(rawValue: code - 1).map { .some($0) }
    }

    static func reason(_ word: UInt64) -> BreakerReason?? {
        let code = Int(UInt8(truncatingIfNeeded: word))
        if code == 0 { return .some(nil) }
        return code <= BreakerReason.allCases.count ? .some(BreakerReason.allCases[code - 1]) : nil
    }
}

extension BreakerMemory {
    /// How many words it takes, its window's slots aside.
    fileprivate static let words = 10

    /// Writes all but the window's slots.
    fileprivate func write(to words: UnsafeMutablePointer<UInt64>) {
        words[0] = StateCode.of(state) | StateCode.of(reason) << 8 | StateCode.of(heldReason) << 16
        words[0] |= UInt64(ramp.rawValue) << 24 | (streakOfConnects ? 1 : 0) << 32
        words[0] |= (sawRequest ? 1 : 0) << 33
        words[1] = since
        words[2] = openUntil
        words[3] = epoch
        words[4] = rampStart
        words[5] = UInt64(consecutiveFailures) | UInt64(reopened) << 32
        words[6] = UInt64(probeSuccesses)
        words[7] = random
        words[8] = window.length
        words[9] = window.slot
    }

    fileprivate init?(_ reader: inout StateReader) {
        guard let head = reader.next(), let state = StateCode.state(head), let state,
            let reason = StateCode.reason(head >> 8), let heldReason = StateCode.reason(head >> 16),
            let ramp = Ramp(rawValue: UInt8(truncatingIfNeeded: head >> 24)), head >> 34 == 0,
            let since = reader.next(), let openUntil = reader.next(), let epoch = reader.next(),
            let rampStart = reader.next(), let counts = reader.next(),
            let probeSuccesses = reader.number32(), let random = reader.next(), let length = reader.next(),
            let slot = reader.next(), let slots = reader.values(SlidingWindow.savedWords),
            let window = SlidingWindow(length: length, slot: slot, saved: slots)
        else { return nil }
        self.init(
            state: state, reason: reason, since: since,
            consecutiveFailures: UInt32(truncatingIfNeeded: counts), probeSuccesses: probeSuccesses,
            heldReason: heldReason, window: window, openUntil: openUntil, epoch: epoch, ramp: ramp,
            rampStart: rampStart, reopened: UInt32(truncatingIfNeeded: counts >> 32),
            streakOfConnects: head >> 32 & 1 == 1, sawRequest: head >> 33 & 1 == 1, random: random)
    }
}

extension BreakerEvent {
    fileprivate init?(_ reader: inout StateReader) {
        guard let time = reader.next(), let change = reader.next(), let expiresAt = reader.next(),
            let service = reader.string(), let actor = reader.string(), let text = reader.string(),
            change & 0xff < BreakerEvent.Kind.allCases.count, change >> 35 == 0,
            let from = StateCode.state(change >> 8), let to = StateCode.state(change >> 16),
            let reason = StateCode.reason(change >> 24), let reason
        else { return nil }
        self.init(
            time: time, kind: BreakerEvent.Kind.allCases[Int(change & 0xff)], service: service, from: from,
            to: to, reason: reason, actor: actor, text: change >> 32 & 1 == 1 ? text : nil,
            expiresAt: change >> 33 & 1 == 1 ? expiresAt : nil)
        isUntold = change >> 34 & 1 == 1
    }
}
