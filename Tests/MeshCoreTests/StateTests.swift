// The state file: what is written comes back, and of what was broken only whole commits do.
import Testing

@testable import MeshCore

private let owner = StateOwner(
    instance: 0xFEED_F00D_1234_5678, layout: 3,
    boot: StateOwner.Boot("0b1fbd5b-2a0c-4a1b-9f1d-5b6b8a0e7c11\n")!)

/// A file as its writer makes it: a header, and a commit for each list of rows.
private func file(_ commits: [[StateRow]], of owner: StateOwner = owner) -> [UInt8] {
    var bytes = StateLog.header(of: owner)
    var writer = StateWriter()
    for (number, rows) in commits.enumerated() {
        for row in rows { writer.append(row) }
        bytes += writer.finish(commit(number))
        writer.clear()
    }
    return bytes
}

private func commit(_ number: Int) -> StateCommit {
    StateCommit(
        sequence: UInt64(number) + 7, counted: UInt64(number) * 144, decided: UInt64(number) * 144 + 72)
}

private func rows(_ log: StateLog) throws(StateLogError) -> [StateRow] {
    var rows: [StateRow] = []
    try log.replay { row throws(StateLogError) in rows.append(row) }
    return rows
}

private let memory = BreakerMemory(
    state: .halfOpen, reason: .probeFailed, since: 1 << 60, consecutiveFailures: .max, probeSuccesses: 2,
    heldReason: .slowCalls, window: window(), openUntil: .max, epoch: 5, ramp: .second, rampStart: 6,
    reopened: 63, streakOfConnects: true, sawRequest: true, random: 0xABCD)

private func window() -> SlidingWindow {
    var window = SlidingWindow(length: 10_000_000_000)
    for number in 0..<100 {
        window.record(
            failure: number % 3 == 0, slow: number % 7 == 0, at: 77_000_000_000 + UInt64(number) * 90_000_000)
    }
    return window
}

/// One row of each kind at least, with the extremes of what it holds.
private let everyKind: [StateRow] = [
    .bounds([1, 2, .max]), .bounds([]),
    .agent(StateCounts(received: 1, malformed: 2, foldedRequests: 3, foldedConnections: .max)),
    .service(id: 1, name: "payments", isConfigured: true, isActive: false),
    .service(id: .max, name: "[fd00::1]:8443", isConfigured: false, isActive: true),
    .workload(index: 9, name: ""), .workload(index: 10, name: "nginx.service"), .cgroup(id: .max, index: 10),
    .requests(SeriesKey(service: 1, workload: 10, role: .client, wireProtocol: .tls, code: 503), values(17)),
    .requests(SeriesKey(service: 0, workload: 0, role: .server), StateValues([])),
    .connections(SeriesKey(service: 1, workload: 10, role: .server), values(130)),
    .totals(service: 3, .server, requests: .max, errors: 1),
    .totals(service: 4, .client, requests: 0, errors: 0),
    .breaker(service: 1, memory, admittedConnects: 3, admittedRequests: .max),
    .breaker(
        service: 2, Breaker(policy: BreakerPolicy(), seed: 9, at: 1).memory, admittedConnects: 0,
        admittedRequests: 0),
    .override(
        service: 1,
        BreakerOverride(forced: .open, actor: "root (pid 1234)", reason: "höher ↑", since: 1, expiresAt: .max)
    ),
    .override(
        service: 2, BreakerOverride(forced: .close, actor: "", reason: "12345678", since: 0, expiresAt: 0)),
    .override(service: 3, nil),
    .transitions(service: 1, from: .closed, to: .open, .consecutiveFailures, count: 4),
    .transitions(service: .max, from: .open, to: .halfOpen, .reload, count: .max),
    .reaction(sum: 12, buckets: [0, 1, 2]),
    .binding(pid: 17, StateBinding(trace: TraceID(high: 0, low: 1)!, since: 2, started: 3)),
    .binding(pid: .max, nil),
    .event(
        number: 99,
        BreakerEvent(
            time: 1, kind: .override, service: "payments", from: .closed, to: .open, reason: .override,
            actor: "root", text: "", expiresAt: 5)),
    .event(number: .max, BreakerEvent(time: 0, kind: .heldClosed, service: "", reason: .failureRate)),
    .event(number: 7, untold()),
]

private func untold() -> BreakerEvent {
    var event = BreakerEvent(time: 1, kind: .overrideEnd, service: "a", reason: .override)
    event.isUntold = true
    return event
}

private func values(_ count: Int) -> StateValues {
    StateValues((0..<count).map { $0 % 3 == 1 ? 0 : UInt64.max - UInt64($0) })
}

struct StateLogTests {
    @Test func everyRowComesBack() throws {
        let bytes = file([everyKind, [], everyKind.reversed()])
        let log = try StateLog(bytes, of: owner)
        #expect(log.last == commit(2) && log.end == bytes.count && log.layout == 3)
        #expect(try rows(log) == everyKind + everyKind.reversed())
    }

    @Test func reasonsStatesAndEventsKeepTheirNumbers() {
        // The file holds their places in these lists: a change of the order is a new version.
        #expect(StateLog.version == 2)
        #expect(
            BreakerReason.allCases == [
                .failureRate, .consecutiveFailures, .slowCalls, .probeFailed, .rampFailed, .deadline,
                .recovered, .override, .overrideExpired, .reload,
            ])
        #expect(BreakerEvent.Kind.allCases == [.transition, .override, .overrideEnd, .reload, .heldClosed])
        #expect(BreakerState.allCases.map(\.rawValue) == [0, 1, 2])
    }

    @Test func cutOffAtEveryByte() throws {
        let commits = [everyKind, Array(everyKind[..<3]), Array(everyKind[3...])]
        let ends = (1...3).map { file(Array(commits[..<$0])).count }
        let whole = file(commits)
        for length in 0...whole.count {
            let complete = ends.count { $0 <= length }
            do {
                let log = try StateLog(Array(whole[..<length]), of: owner)
                #expect(complete > 0 && log.last == commit(complete - 1) && log.end == ends[complete - 1])
                #expect(try rows(log) == commits[..<complete].flatMap { $0 })
            } catch {
                guard case .damaged = error else {
                    Issue.record("\(length) bytes: \(error)")
                    return
                }
                #expect(complete == 0, "\(length) bytes: \(error)")
            }
        }
    }

    @Test func everyFlippedBitIsSeen() throws {
        let commits = [Array(everyKind[..<12]), Array(everyKind[12...])]
        let whole = file(commits)
        for bit in 0..<whole.count * 8 {
            var broken = whole
            broken[bit / 8] ^= 1 << UInt8(bit % 8)
            do {
                _ = try StateLog(broken, of: owner)
                Issue.record("bit \(bit) of byte \(bit / 8) was not seen")
            } catch {
                guard case .damaged = error else {
                    Issue.record("byte \(bit / 8): \(error)")
                    continue
                }
            }
        }
    }

    @Test func anotherVersionInstanceOrBoot() {
        func error(_ bytes: [UInt8]) -> StateLogError? {
            do {
                _ = try StateLog(bytes, of: owner)
                return nil
            } catch {
                return error
            }
        }
        var other = owner
        other.instance += 1
        #expect(error(file([everyKind], of: other)) == .instance)
        other = StateOwner(
            instance: owner.instance, layout: 3,
            boot: StateOwner.Boot("0b1fbd5b-2a0c-4a1b-9f1d-5b6b8a0e7c12")!)
        #expect(error(file([everyKind], of: other)) == .boot)
        #expect(StateOwner.Boot("0b1fbd5b") == nil && StateOwner.Boot("") == nil)

        var words = StateLog.header(of: owner).withUnsafeBytes { Array($0.bindMemory(to: UInt64.self)) }
        words[1] = 1
        words[6] = stateChecksum(words[..<6])
        let header = words.withUnsafeBytes { Array($0) }
        #expect(error(header + file([everyKind]).dropFirst(header.count)) == .version(1))
    }

    @Test func aCommitThatIsMissingIsSeen() {
        let head = StateLog.header(of: owner)
        let (first, both, all) = (
            file([everyKind]), file([everyKind, everyKind]), file([everyKind, everyKind, everyKind])
        )
        #expect(throws: StateLogError.damaged(at: first.count, what: "a commit is missing")) {
            try StateLog(first + all[both.count...], of: owner)
        }
        #expect(throws: Never.self) { try StateLog(head + all[first.count...], of: owner) }
    }

    @Test func rowsThatMakeNoSense() throws {
        // As an agent with a mistake would write them: the checksums hold.
        func log(_ words: [UInt64]) throws -> StateLog {
            var head: [UInt64] = [UInt64(words.count), 1, 0, 0, stateChecksum(words[...])]
            head.append(stateChecksum(head[...]))
            return try StateLog(
                StateLog.header(of: owner) + (head + words).withUnsafeBytes { Array($0) }, of: owner)
        }
        #expect(
            try rows(log([3 << 8 | 8, 1 | 1 << 32, 5, 2])) == [
                .totals(service: 1, .client, requests: 5, errors: 2)
            ])
        for words: [UInt64] in [
            [0], [99], [8], [3 << 8 | 8, 1, 5, 2], [4 << 8 | 8, 1 | 1 << 32, 5, 2],
            [4 << 8 | 8, 1 | 1 << 32, 5, 2, 0],
            [UInt64.max], [2 << 8 | 4, 1, 8], [2 << 8 | 4, 1, .max], [4 << 8 | 4, 1, 1, 1, 1],
            [1 << 8 | 6, 0], [1 << 8 | 6, 1 << 12 | 1 << 13 | 1 << 14],
        ] {
            #expect(throws: StateLogError.self, "\(words)") { try rows(log(words)) }
        }
    }

    @Test func hostileBytes() {
        var random = SplitMix64(seed: 4)
        let whole = file([Array(everyKind[..<12]), Array(everyKind[12...]), everyKind])
        var readable = 0
        for _ in 0..<3000 {
            var broken = whole
            let place = Int.random(in: 0..<whole.count, using: &random)
            switch Int.random(in: 0..<4, using: &random) {
            case 0: broken[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 1: broken.removeSubrange(place...)
            case 2: broken.removeSubrange(place..<min(whole.count, place + 8))
            default: broken.insert(contentsOf: [UInt8](repeating: 0, count: 8), at: place)
            }
            // The last commits may have been cut off; what is left is what was written.
            guard let log = try? StateLog(broken, of: owner), let found = try? rows(log) else { continue }
            readable += 1
            #expect(found == Array((everyKind + everyKind)[..<found.count]))
        }
        #expect(readable > 0)

        // Words at random that pass the checksums, as no file system makes them.
        for _ in 0..<3000 {
            var words = (0..<Int.random(in: 1...40, using: &random)).map { _ in
                Bool.random(using: &random)
                    ? UInt64.random(
                        in: 0...UInt64.max >> UInt64.random(in: 0...63, using: &random), using: &random)
                    : UInt64.random(in: 0...20, using: &random)
            }
            words[0] = UInt64(words.count - 1) << 8 | UInt64.random(in: 0...15, using: &random)
            var head: [UInt64] = [UInt64(words.count), 1, 0, 0, stateChecksum(words[...])]
            head.append(stateChecksum(head[...]))
            let bytes = StateLog.header(of: owner) + (head + words).withUnsafeBytes { Array($0) }
            guard let log = try? StateLog(bytes, of: owner) else {
                Issue.record("checksums that hold were not believed")
                continue
            }
            _ = try? rows(log)
        }
    }

    @Test func rowsMayBeFlushedBeforeTheirHead() throws {
        for flushes in 1...5 {
            var bytes = file([
                [.agent(StateCounts(received: 1, malformed: 0, foldedRequests: 0, foldedConnections: 0))]
            ])
            let good = bytes.count
            var writer = StateWriter()
            for _ in 0..<flushes {
                for row in everyKind { writer.append(row) }
                let (part, offset) = writer.flush()
                while bytes.count < good + offset { bytes.append(0) }
                bytes += part
                // No commit before its head is there, however little of that is missing.
                #expect(try StateLog(bytes, of: owner).end == good)
            }
            #expect(writer.hasFlushed && writer.length == bytes.count - good)
            let head = Array(writer.finish(commit(1)))
            for count in stride(from: 0, through: head.count, by: 8) {
                bytes.replaceSubrange(good..<good + count, with: head[..<count])
                let log = try StateLog(bytes, of: owner)
                #expect(log.end == (count == head.count ? bytes.count : good), "\(count) of the head")
            }
            let found = try rows(StateLog(bytes, of: owner))
            #expect(Array(found.dropFirst()) == (0..<flushes).flatMap { _ in everyKind })
        }
    }

    @Test func theWriterKeepsNoMoreThanItNeeds() throws {
        var writer = StateWriter()
        #expect(writer.isEmpty == true)
        let name = String(repeating: "n", count: 100)
        for index in 0..<100_000 { writer.append(.workload(index: UInt32(index), name: name)) }
        #expect(writer.isEmpty == false)
        let large = StateLog.header(of: owner) + writer.finish(commit(0))
        #expect(try rows(StateLog(large, of: owner)).count == 100_000)
        writer.clear()
        #expect(writer.isEmpty == true)
        writer.append(.workload(index: 1, name: "a"))
        let small = StateLog.header(of: owner) + writer.finish(commit(0))
        #expect(try rows(StateLog(small, of: owner)) == [.workload(index: 1, name: "a")])
    }
}

struct DirtyRowsTests {
    private func taken(_ dirty: inout DirtyRows, atMost limit: Int = 100) -> [Int] {
        var rows: [Int] = []
        var left = limit
        dirty.take(&left) { rows.append($0) }
        #expect(left == limit - rows.count)
        return rows
    }

    @Test func eachRowComesOnce() {
        var dirty = DirtyRows()
        #expect(taken(&dirty) == [])
        for _ in 0..<4 { dirty.append() }
        #expect(taken(&dirty) == [3, 2, 1, 0])
        for row in [2, 0, 2, 2, 0, 3] { dirty.mark(row) }
        #expect(taken(&dirty) == [3, 0, 2])
        #expect(taken(&dirty) == [])
        dirty.mark(0)
        dirty.markAll()
        #expect(taken(&dirty, atMost: 3) == [3, 2, 1])
        #expect((0...3).map { dirty.contains($0) } == [true, false, false, false])
        dirty.mark(2)
        #expect(taken(&dirty, atMost: 0) == [])
        #expect(taken(&dirty) == [2, 0])
        #expect(taken(&dirty) == [])
        dirty.mark(1)
        dirty.reset(count: 2)
        #expect(taken(&dirty) == [] && dirty.count == 2)
        dirty.mark(1)
        #expect(taken(&dirty) == [1])
        dirty.append(isMarked: false)
        #expect(taken(&dirty) == [] && dirty.count == 3)
    }
}

extension SeriesTable {
    fileprivate mutating func save(to writer: inout StateWriter) {
        var limit = Int.max
        save(to: &writer, rows: &limit)
    }
}

extension WorkloadTable {
    fileprivate mutating func save(to writer: inout StateWriter) {
        // In parts, as few as can be.
        var limit = 0
        while limit <= 0 {
            limit = 1
            save(to: &writer, rows: &limit)
        }
    }
}

extension ConnectionTable {
    fileprivate mutating func save(to writer: inout StateWriter) {
        var limit = Int.max
        save(to: &writer, rows: &limit)
    }
}

/// Tables that are saved by commits of what changed, and restored, are what they were.
struct StateTablesTests {
    /// What the rows of the writer's commits say.
    private struct Saved {
        var bytes = StateLog.header(of: owner)
        var sequence: UInt64 = 0

        mutating func commit(_ fill: (inout StateWriter) -> Void) {
            var writer = StateWriter()
            fill(&writer)
            bytes += writer.finish(StateCommit(sequence: sequence, counted: 0, decided: 0))
            sequence += 1
        }

        func rows() throws -> [StateRow] { try MeshCoreTests.rows(StateLog(bytes, of: owner)) }
    }

    private static func request(_ random: inout SplitMix64, workloads: UInt32 = 6) -> SeriesKey {
        SeriesKey(
            service: UInt32.random(in: 0...5, using: &random),
            workload: UInt32.random(in: 0...workloads, using: &random),
            role: Bool.random(using: &random) ? .client : .server,
            wireProtocol: Sample.WireProtocol.allCases.randomElement(using: &random)!,
            code: [0, 200, 503].randomElement(using: &random)!)
    }

    private static func contents(_ table: SeriesTable) -> [SeriesKey: [UInt64]] {
        Dictionary(
            uniqueKeysWithValues: (0..<table.count).map { row in
                (table.key(row), [table.sum(row)] + (0...table.bounds.count).map { table.bucket(row, $0) })
            })
    }

    private static func contents(_ table: ConnectionTable) -> [SeriesKey: [UInt64]] {
        Dictionary(
            uniqueKeysWithValues: (0..<table.count).map { row in
                (
                    table.key(row),
                    ConnectionTable.Counter.allCases.map { table.value(row, $0) } + [table.sum(row)]
                        + (0...table.bounds.count).map { table.bucket(row, $0) }
                )
            })
    }

    @Test func requestSeries() throws {
        var random = SplitMix64(seed: 1)
        var table = SeriesTable(bounds: [10, 20, 30], maxSeries: 60)
        var saved = Saved()
        for round in 0..<50 {
            for _ in 0..<Int.random(in: 0...20, using: &random) {
                table.record(
                    Self.request(&random), duration: UInt64.random(in: 0...40, using: &random), traceID: nil,
                    wallTime: 0)
            }
            if round == 30 {
                table.removeAll { $0.workload == 3 }
                saved = Saved()
            }
            if round == 30 { table.markAll() }
            saved.commit { writer in
                var limit = 0
                while limit == 0 {
                    limit = 7
                    table.save(to: &writer, rows: &limit)
                }
            }

            var restored = SeriesTable(bounds: [10, 20, 30], maxSeries: 60)
            for case .requests(let key, let values) in try saved.rows() {
                #expect(restored.restore(key, values) == true)
            }
            #expect(Self.contents(restored) == Self.contents(table))
        }
        // What was folded is in no row.
        #expect(table.dropped > 0)
    }

    @Test func onlyWhatChangedIsSaved() throws {
        var table = SeriesTable(bounds: [10], maxSeries: 60)
        let keys = (1...3).map { SeriesKey(service: $0, workload: 1, role: .client) }
        func record(_ key: SeriesKey) { table.record(key, duration: 5, traceID: nil, wallTime: 0) }
        func changes() throws -> [SeriesKey] {
            var saved = Saved()
            saved.commit { table.save(to: &$0) }
            return try saved.rows().compactMap { row in
                if case .requests(let key, _) = row { key } else { nil }
            }
        }
        keys.forEach(record)
        #expect(try Set(changes()) == Set(keys))
        record(keys[1])
        record(keys[1])
        #expect(try changes() == [keys[1]])
        #expect(try changes() == [])
    }

    @Test func connections() throws {
        var random = SplitMix64(seed: 2)
        var table = ConnectionTable(bounds: [10, 20], maxSeries: 40)
        var saved = Saved()
        for _ in 0..<40 {
            for _ in 0..<20 {
                let key = Self.request(&random)
                let sample = Sample(
                    kind: Sample.Kind.allCases.randomElement(using: &random)!, role: key.role,
                    wireProtocol: .tcp, outcome: Sample.Outcome.allCases.randomElement(using: &random)!,
                    status: 0, flags: [], service: key.service, retransmits: 1, workload: 0, time: 0,
                    duration: UInt64.random(in: 0...30, using: &random),
                    sentBytes: Int32.random(in: -5...100, using: &random), receivedBytes: 3, traceID: nil)
                table.record(sample, workload: key.workload)
            }
            saved.commit { table.save(to: &$0) }
            var restored = ConnectionTable(bounds: [10, 20], maxSeries: 40)
            var counters = ConnectionTable(bounds: [10], maxSeries: 40)
            for case .connections(let key, let values) in try saved.rows() {
                #expect(restored.restore(key, values, bounds: [10, 20]) == true)
                #expect(counters.restore(key, values, bounds: [10, 20]) == true)
            }
            #expect(Self.contents(restored) == Self.contents(table))
            // With other bounds, all but the histogram.
            let kept = Self.contents(table).mapValues { Array($0[..<ConnectionTable.Counter.allCases.count]) }
            #expect(
                Self.contents(counters)
                    == kept.mapValues { $0 + [0, 0, 0] })
        }
    }

    @Test func workloads() throws {
        var table = WorkloadTable(limit: 6)
        var saved = Saved()
        table.markAll()
        saved.commit { table.save(to: &$0) }
        let a = table.add(cgroup: 1, path: "/a.service")
        #expect(table.add(cgroup: 2, path: "/a.service") == a)
        let b = table.add(cgroup: 3, path: "/b.service")
        saved.commit { table.save(to: &$0) }
        func restored(at now: UInt64 = 0) throws -> WorkloadTable {
            var restored = WorkloadTable(limit: 6)
            for row in try saved.rows() {
                switch row {
                case .workload(let index, let name):
                    #expect(restored.restore(index: index, name: name) == true)
                case .cgroup(let id, let index): #expect(restored.restore(cgroup: id, index: index) == true)
                default: Issue.record("\(row)")
                }
            }
            restored.restored(at: now)
            return restored
        }
        var again = try restored()
        #expect(again.names == table.names)
        #expect(
            again.index(ofCgroup: 2) == a && again.index(ofCgroup: 3) == b && again.index(ofCgroup: 4) == nil)
        #expect(again.add(cgroup: 4, path: "/b.service") == b)

        // One that is gone is idle from the restart on, and its index is free in the end.
        table.remove(cgroup: 3, at: 5)
        saved = Saved()
        table.markAll()
        saved.commit { table.save(to: &$0) }
        again = try restored(at: 100)
        var (requests, connections) = (
            SeriesTable(bounds: [], maxSeries: 9), ConnectionTable(bounds: [], maxSeries: 9)
        )
        again.sweep(idleSince: 99, requests: &requests, connections: &connections)
        #expect(again.names == table.names)
        again.sweep(idleSince: 100, requests: &requests, connections: &connections)
        #expect(again.names == ["other", "a.service", ""])
        saved = Saved()
        again.markAll()
        saved.commit { again.save(to: &$0) }
        again = try restored()
        #expect(again.names == ["other", "a.service"])
        #expect(again.add(cgroup: 9, path: "/c.service") == b)

        // What cannot be.
        for (index, name) in [(0, "mine"), (6, "late"), (1, "z.service"), (5, "a.service")] {
            #expect(again.restore(index: UInt32(index), name: name) == false)
        }
        #expect(again.restore(cgroup: 1, index: 2) == false)
        #expect(again.restore(cgroup: 8, index: 5) == false)
    }

    /// A breaker that goes through restarts does what one does that lives on, whatever happens.
    @Test func breakersGoOnAsIfNothingHadBeen() throws {
        var random = SplitMix64(seed: 3)
        var policy = BreakerPolicy()
        policy.slowCallDuration = 1_000
        policy.minimumRequests = 5
        policy.consecutiveFailures = 3
        policy.openFor = 2_000_000_000
        policy.ramp = 3_000_000_000
        var states: Set<BreakerState> = []
        var told = 0
        for seed: UInt64 in 0..<30 {
            var now: UInt64 = 1_000_000_000_000
            var steady = Breaker(policy: policy, seed: seed, at: now)
            var reborn = steady
            for _ in 0..<400 {
                now += UInt64.random(in: 0...600_000_000, using: &random)
                var saved = Saved()
                saved.commit {
                    $0.breaker(service: 1, reborn.memory, admittedConnects: 0, admittedRequests: 0)
                    $0.append(.override(service: 1, reborn.override))
                }
                guard case .breaker(1, let memory, 0, 0) = try saved.rows()[0],
                    case .override(1, let override) = try saved.rows()[1]
                else {
                    Issue.record("no breaker came back")
                    return
                }
                reborn = Breaker(policy: policy, memory, override: override, at: now)
                #expect(reborn.kernelWord == steady.kernelWord && reborn.memory == steady.memory)
                let transitions: [[BreakerTransition]]
                switch Int.random(in: 0..<40, using: &random) {
                case 0:
                    let forced = BreakerOverride(
                        forced: Bool.random(using: &random) ? .open : .close, actor: "me", reason: "why",
                        since: now, expiresAt: now + 1_500_000_000)
                    transitions = [
                        steady.setOverride(forced, at: now)!, reborn.setOverride(forced, at: now)!,
                    ]
                case 1: transitions = [steady.endOverride(at: now), reborn.endOverride(at: now)]
                case 2...8: transitions = [steady.tick(now), reborn.tick(now)]
                default:
                    let outcome = BreakerOutcome(
                        failure: Int.random(in: 0..<4, using: &random) == 0,
                        slow: Int.random(in: 0..<6, using: &random) == 0,
                        probe: Bool.random(using: &random),
                        connect: Int.random(in: 0..<3, using: &random) == 0,
                        duration: 100)
                    let mayOpen = Int.random(in: 0..<5, using: &random) > 0
                    transitions = [
                        steady.record(outcome, at: now, mayOpen: mayOpen),
                        reborn.record(outcome, at: now, mayOpen: mayOpen),
                    ]
                }
                #expect(transitions[0] == transitions[1])
                told += transitions[0].count
                states.insert(steady.state)
            }
        }
        #expect(states == Set(BreakerState.allCases) && told > 100)
    }

    @Test func aBreakerComesBackUnderAnotherPolicy() {
        var breaker = Breaker(policy: BreakerPolicy(), seed: 1, at: 0)
        for _ in 0..<5 { _ = breaker.record(BreakerOutcome(failure: true), at: 1_000, mayOpen: true) }
        let override = BreakerOverride(forced: .close, actor: "me", reason: "why", since: 0, expiresAt: 9)
        #expect(breaker.state == .open)
        var policy = BreakerPolicy()
        policy.window /= 2
        policy.maxOpenFor = 1_000_000_000
        let shorter = Breaker(policy: policy, breaker.memory, override: nil, at: 2_000)
        #expect(shorter.openDeadline == 1_000_002_000 && shorter.counts.requests == 0)
        policy.mode = .off
        let off = Breaker(policy: policy, breaker.memory, override: override, at: 2_000)
        #expect(off.state == .closed && off.override == nil && off.isAtEase && off.consecutiveFailures == 0)
    }

    @Test func anExtremeWindow() {
        var words = [UInt64](repeating: .max, count: SlidingWindow.savedWords)
        var window = SlidingWindow(length: 1000, slot: .max - 1, saved: words)
        #expect(window?.counts.requests == 20 * UInt64(UInt32.max))
        window?.advance(to: .max)
        words.removeLast()
        #expect(SlidingWindow(length: 1000, slot: 1, saved: words) == nil)
        words.append(0)
        #expect(SlidingWindow(length: 1000, slot: .max, saved: words) == nil)
    }
}
