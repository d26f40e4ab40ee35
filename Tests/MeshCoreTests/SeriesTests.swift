// The series tables: exact counts, bounds on their size, and no allocation per record.
import Glibc
import Testing

@testable import MeshCore

struct SeriesKeyTests {
    @Test func packsAndUnpacks() {
        for role in Sample.Role.allCases {
            for wireProtocol in Sample.WireProtocol.allCases {
                for code: UInt16 in [0, 5, 100, 999] {
                    let key = SeriesKey(
                        service: 0xf_fffe, workload: 0xfff_fffd, role: role, wireProtocol: wireProtocol,
                        code: code)
                    #expect(key.service == 0xf_fffe && key.workload == 0xfff_fffd && key.role == role)
                    #expect(key.wireProtocol == wireProtocol && key.code == code && key.rawValue != 0)
                }
            }
        }
        let key = SeriesKey(service: 7, workload: 9, role: .server, wireProtocol: .tls, code: 404)
        #expect(
            key.withOtherWorkload
                == SeriesKey(service: 7, workload: 0, role: .server, wireProtocol: .tls, code: 404))
        #expect(
            key.withOtherService
                == SeriesKey(service: 0, workload: 0, role: .server, wireProtocol: .tls, code: 404))
        #expect(
            key.withOtherRole
                == SeriesKey(service: 7, workload: 9, role: .client, wireProtocol: .tls, code: 404))
    }

    @Test func whatDoesNotFitIsOther() {
        let key = SeriesKey(service: .max, workload: .max, role: .client, code: .max)
        #expect(key.service == 0 && key.workload == 0 && key.role == .client && key.code == 4095)
    }
}

struct SeriesTableTests {
    private static func key(_ service: UInt32, _ workload: UInt32, code: UInt16 = 200) -> SeriesKey {
        SeriesKey(service: service, workload: workload, role: .client, wireProtocol: .http, code: code)
    }

    private static func counts(_ table: SeriesTable, _ key: SeriesKey) -> [UInt64]? {
        guard let row = (0..<table.count).first(where: { table.key($0) == key }) else { return nil }
        return (0...table.bounds.count).map { table.bucket(row, $0) } + [table.sum(row)]
    }

    @Test func bucketsAreUpToAndIncludingTheirBound() {
        var table = SeriesTable(bounds: [10, 20, 30], maxSeries: 10)
        let key = SeriesTableTests.key(1, 1)
        for duration: UInt64 in [0, 10, 11, 20, 21, 30, 31, 1_000] {
            table.record(key, duration: duration, traceID: nil, wallTime: 0)
        }
        #expect(SeriesTableTests.counts(table, key) == [2, 2, 2, 2, 1_123])
        #expect(table.dropped == 0)
    }

    @Test func boundsComeFromSeconds() {
        let seconds = Configuration().buckets
        #expect(
            SeriesTable.bounds(seconds: seconds) == [
                500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 100_000_000,
                250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000,
            ])
    }

    @Test func remembersTheLastExemplarOfABucket() throws {
        var table = SeriesTable(bounds: [10, 20], maxSeries: 10)
        let key = SeriesTableTests.key(1, 1)
        let (one, two) = (try #require(TraceID(high: 1, low: 2)), try #require(TraceID(high: 0, low: 3)))
        table.record(key, duration: 5, traceID: one, wallTime: 100)
        table.record(key, duration: 6, traceID: two, wallTime: 101)
        table.record(key, duration: 7, traceID: nil, wallTime: 102)
        table.record(key, duration: 99, traceID: one, wallTime: 103)
        #expect(table.exemplar(0, 0) == SeriesExemplar(traceID: two, duration: 6, wallTime: 101))
        #expect(table.exemplar(0, 1) == nil)
        #expect(table.exemplar(0, 2) == SeriesExemplar(traceID: one, duration: 99, wallTime: 103))
    }

    @Test func aCopyIsASnapshot() {
        var table = SeriesTable(bounds: [10], maxSeries: 10)
        let key = SeriesTableTests.key(1, 1)
        table.record(key, duration: 1, traceID: nil, wallTime: 0)
        let snapshot = table
        table.record(key, duration: 2, traceID: nil, wallTime: 0)
        table.record(SeriesTableTests.key(2, 1), duration: 2, traceID: nil, wallTime: 0)
        #expect(snapshot.count == 1 && SeriesTableTests.counts(snapshot, key) == [1, 0, 1])
        #expect(table.count == 2 && SeriesTableTests.counts(table, key) == [2, 0, 3])
    }

    @Test func recordsOnlyRequests() {
        var table = SeriesTable(bounds: [10], maxSeries: 10)
        for kind in Sample.Kind.allCases {
            let sample = Sample(
                kind: kind, role: .server, wireProtocol: .tls, outcome: .reset, service: 3, duration: 11)
            table.record(sample, workload: 8, wallTime: 0)
        }
        #expect(table.count == 1)
        let key = SeriesKey(service: 3, workload: 8, role: .server, wireProtocol: .tls, code: 4)
        #expect(SeriesTableTests.counts(table, key) == [0, 1, 11])
    }

    @Test func foldsInTwoStepsAndLosesNothing() {
        var table = SeriesTable(bounds: [10], maxSeries: 4)
        func see(_ key: SeriesKey) { table.record(key, duration: 1, traceID: nil, wallTime: 0) }
        for workload: UInt32 in 1...4 { see(SeriesTableTests.key(1, workload)) }
        #expect(table.count == 4 && table.dropped == 0)
        // Past maxSeries: known rows stay, new ones go to `other` of their service.
        see(SeriesTableTests.key(1, 4))
        #expect(table.dropped == 0)
        see(SeriesTableTests.key(1, 5))
        see(SeriesTableTests.key(1, 6))
        #expect(SeriesTableTests.counts(table, SeriesTableTests.key(1, 0)) == [2, 0, 2])
        #expect(table.count == 5 && table.dropped == 2)
        // A series whose workload is `other` already is not folded, only bounded.
        see(SeriesTableTests.key(2, 0))
        #expect(table.count == 6 && table.dropped == 2)
        see(SeriesTableTests.key(3, 1))
        see(SeriesTableTests.key(4, 1))
        #expect(table.count == 8 && table.dropped == 4)
        // Past 2 × maxSeries: the service is `other` too.
        see(SeriesTableTests.key(5, 1))
        see(SeriesTableTests.key(6, 0))
        #expect(SeriesTableTests.counts(table, SeriesTableTests.key(0, 0)) == [2, 0, 2])
        #expect(table.count == 9 && table.dropped == 6)
        // Rows that exist go on.
        see(SeriesTableTests.key(4, 77))
        #expect(SeriesTableTests.counts(table, SeriesTableTests.key(4, 0)) == [2, 0, 2])
        #expect(table.dropped == 7)
        let all = (0..<table.count).reduce(0) { $0 + table.bucket($1, 0) }
        #expect(all == 13)
    }

    @Test func noPeerCanGrowItPastItsBounds() {
        var table = SeriesTable(bounds: [10], maxSeries: 50)
        var random = SplitMix64(seed: 1)
        let samples: UInt64 = 30_000
        for _ in 0..<samples {
            let key = SeriesKey(
                service: .random(in: 0...40_000, using: &random),
                workload: .random(in: 0...100_000, using: &random),
                role: .random(using: &random) ? .client : .server, wireProtocol: .http,
                code: .random(in: 100...103, using: &random))
            table.record(key, duration: 1, traceID: nil, wallTime: 0)
        }
        #expect(table.count <= 100 + 2 * 4)
        #expect((0..<table.count).reduce(0) { $0 + table.bucket($1, 0) } == samples)
        #expect(table.dropped > samples / 2)
    }

    @Test func manySeriesAreAllFound() {
        var table = SeriesTable(bounds: [], maxSeries: 20_000)
        for round: UInt64 in 1...2 {
            for service: UInt32 in 0..<100 {
                for workload: UInt32 in 0..<200 {
                    table.record(
                        SeriesTableTests.key(service, workload), duration: round, traceID: nil, wallTime: 0)
                }
            }
        }
        #expect(table.count == 20_000 && table.dropped == 0)
        #expect((0..<table.count).allSatisfy { table.bucket($0, 0) == 2 && table.sum($0) == 3 })
    }

    @Test func forgetsWhatIsGone() throws {
        var table = SeriesTable(bounds: [10], maxSeries: 4)
        let trace = try #require(TraceID(high: 9, low: 9))
        for workload: UInt32 in 1...4 {
            table.record(
                SeriesTableTests.key(1, workload), duration: UInt64(workload), traceID: trace, wallTime: 0)
        }
        table.removeAll { $0.workload % 2 == 1 }
        #expect((0..<table.count).map { table.key($0).workload } == [2, 4])
        #expect((0..<table.count).map { table.sum($0) } == [2, 4])
        #expect(table.exemplar(1, 0)?.duration == 4)
        table.record(SeriesTableTests.key(1, 4), duration: 5, traceID: nil, wallTime: 0)
        table.record(SeriesTableTests.key(1, 9), duration: 6, traceID: nil, wallTime: 0)
        #expect((0..<table.count).map { table.sum($0) } == [2, 9, 6])
        #expect(table.dropped == 0)
    }
}

struct ConnectionTableTests {
    private static func sample(
        _ kind: Sample.Kind, _ outcome: Sample.Outcome = .ok, role: Sample.Role = .client,
        service: UInt32 = 1,
        duration: UInt64 = 0, sent: Int32 = 0, received: Int32 = 0, retransmits: Int32 = 0
    ) -> Sample {
        Sample(
            kind: kind, role: role, outcome: outcome, service: service, retransmits: retransmits,
            duration: duration, sentBytes: sent, receivedBytes: received)
    }

    private static func values(_ table: ConnectionTable, _ row: Int) -> [UInt64] {
        ConnectionTable.Counter.allCases.map { table.value(row, $0) }
    }

    @Test func countsWhatConnectionsDo() {
        var table = ConnectionTable(bounds: [10, 20], maxSeries: 10)
        for sample in [
            ConnectionTableTests.sample(.connect, duration: 10),
            ConnectionTableTests.sample(.connect, duration: 21),
            ConnectionTableTests.sample(.connect, .refused, duration: 5),
            ConnectionTableTests.sample(.connect, .timeout, duration: 5, retransmits: 6),
            ConnectionTableTests.sample(.connect, .timeout),
            ConnectionTableTests.sample(.connect, .unreachable),
            ConnectionTableTests.sample(.connect, .reset),
            ConnectionTableTests.sample(.connect, .aborted), ConnectionTableTests.sample(.adopt),
            ConnectionTableTests.sample(.request, .reset, duration: 5, sent: 100, received: 1000),
            ConnectionTableTests.sample(.bytes, sent: 1, received: -40, retransmits: 2),
            ConnectionTableTests.sample(.close, sent: 2),
        ] {
            table.record(sample, workload: 4)
        }
        #expect(table.count == 1)
        //                                              opened, active, sent, received, retransmits, then failed
        #expect(ConnectionTableTests.values(table, 0) == [2, 2, 103, 960, 8, 1, 2, 1, 1, 1])
        #expect((0...2).map { table.bucket(0, $0) } == [1, 0, 1])
        #expect(table.sum(0) == 31)
        #expect(table.active == 2)
        #expect(table.row(of: SeriesKey(service: 1, workload: 4, role: .client)) == 0)
    }

    @Test func rolesHaveRowsOfTheirOwn() {
        var table = ConnectionTable(bounds: [], maxSeries: 10)
        table.record(ConnectionTableTests.sample(.connect), workload: 1)
        table.record(ConnectionTableTests.sample(.accept, role: .server), workload: 1)
        table.record(ConnectionTableTests.sample(.close, role: .server), workload: 1)
        #expect(table.count == 2)
        #expect(table.value(0, .active) == 1 && table.value(1, .active) == 0 && table.value(1, .opened) == 1)
    }

    @Test func aCloseGoesWhereItsOpenWent() {
        var table = ConnectionTable(bounds: [], maxSeries: 2)
        for workload: UInt32 in 1...3 {
            table.record(ConnectionTableTests.sample(.connect), workload: workload)
        }
        #expect(table.value(2, .active) == 1 && table.key(2).workload == 0 && table.dropped == 1)
        for workload: UInt32 in 1...2 {
            table.record(ConnectionTableTests.sample(.close), workload: workload)
        }
        table.removeAll { (1...2).contains($0.workload) }
        #expect(table.count == 1, "room again")
        table.record(ConnectionTableTests.sample(.close), workload: 3)
        #expect(table.count == 1 && table.value(0, .active) == 0 && table.dropped == 2)
    }

    @Test func aRowWithOpenConnectionsStays() {
        var table = ConnectionTable(bounds: [], maxSeries: 10)
        table.record(ConnectionTableTests.sample(.connect), workload: 1)
        table.record(ConnectionTableTests.sample(.connect), workload: 2)
        table.record(ConnectionTableTests.sample(.close), workload: 2)
        table.removeAll { _ in true }
        #expect(table.count == 1 && table.key(0).workload == 1)
        table.record(ConnectionTableTests.sample(.close), workload: 1)
        table.record(ConnectionTableTests.sample(.close), workload: 1)
        #expect(table.value(0, .active) == 0, "never below zero")
    }
}

/// Counts how often a thread calls malloc, by way of the place where the Swift runtime keeps the address of
/// malloc: every array, box, string and closure context is allocated through it.
private enum AllocationCounter {
    typealias Malloc = @convention(c) (Int) -> UnsafeMutableRawPointer?
    nonisolated(unsafe) private static var watched: pthread_t = 0
    nonisolated(unsafe) private static var count = 0

    static func allocations(_ work: () -> Void) throws -> Int {
        let slot = try #require(try mallocSlot())
        let original = slot.pointee
        (count, watched) = (0, pthread_self())
        slot.pointee = { size in
            if pthread_equal(pthread_self(), AllocationCounter.watched) != 0 { AllocationCounter.count += 1 }
            return malloc(size)
        }
        work()
        slot.pointee = original
        return count
    }

    /// Finds the relocation of malloc in the runtime's ELF image (the handle that dlopen returns is glibc's
    /// struct link_map) and makes the place that it filled writable.
    private static func mallocSlot() throws -> UnsafeMutablePointer<Malloc>? {
        let map = UnsafeRawPointer(try #require(dlopen("libswiftCore.so", RTLD_NOW | RTLD_NOLOAD)))
        let base = map.load(as: UInt.self)
        let dynamic = try #require(map.load(fromByteOffset: 16, as: UnsafePointer<(Int, UInt)>?.self))
        var entries: [Int: UInt] = [:]
        var index = 0
        while dynamic[index].0 != 0 {
            entries[dynamic[index].0] = dynamic[index].1
            index += 1
        }
        func pointer(_ tag: Int) -> UnsafeRawPointer? {
            entries[tag].flatMap { UnsafeRawPointer(bitPattern: $0) }
        }
        let (strings, symbols) = (try #require(pointer(5)), try #require(pointer(6)))
        // The relocations of procedure calls (DT_JMPREL, DT_PLTRELSZ) and the others (DT_RELA, DT_RELASZ).
        for (table, size) in [(pointer(23), entries[2]), (pointer(7), entries[8])] {
            guard let table, let size else { continue }
            for offset in stride(from: 0, to: Int(size), by: 24) {
                let place = table.load(fromByteOffset: offset, as: UInt.self)
                let symbol = Int(table.load(fromByteOffset: offset + 8, as: UInt64.self) >> 32)
                let name = strings + Int(symbols.load(fromByteOffset: symbol * 24, as: UInt32.self))
                guard symbol != 0, strcmp(name.assumingMemoryBound(to: CChar.self), "malloc") == 0 else {
                    continue
                }
                let page = UnsafeMutableRawPointer(bitPattern: (base + place) & ~4095)
                guard mprotect(page, 4096, PROT_READ | PROT_WRITE) == 0 else { return nil }
                return UnsafeMutablePointer(bitPattern: base + place)
            }
        }
        return nil
    }
}

/// One test, because there is one counter.
struct SeriesAllocationTests {
    @Test func recordingAllocatesNothing() throws {
        var table = SeriesTable(
            bounds: SeriesTable.bounds(seconds: Configuration().buckets), maxSeries: 5_000)
        var connections = ConnectionTable(bounds: table.bounds, maxSeries: 1_000)
        var latencies = LatencyWindow()
        var breaker = Breaker(policy: BreakerPolicy(), seed: 1, at: 0)
        var quiet = breaker
        var quietly = 0
        let trace = TraceID(high: 1, low: 1)
        var record = SampleTests.flow.sample
        var transitions = 0
        func see(_ count: Int) {
            for number in 0..<count {
                record.role = 1
                record.kind = number % 10 == 0 ? 2 : 1
                record.outcome = number % 10 == 0 ? 0 : UInt8(number % 7 == 0 ? 4 : 0)
                record.service = UInt32(number % 20)
                record.time_ns = UInt64(number) * 100_000
                record.duration_ns = UInt64(number % 1_000) * 1_000
                record.status = number % 3 == 0 ? 0 : 200
                guard var sample = withUnsafeBytes(of: &record, { Sample(record: $0) }) else { continue }
                sample.traceID = number % 2 == 0 ? trace : nil
                table.record(sample, workload: UInt32(number % 50), wallTime: 0)
                connections.record(sample, workload: UInt32(number % 50))
                latencies.record(duration: sample.duration, error: false, at: sample.time)
                var good = sample
                good.flags = []
                if quiet.recordQuietly(good) { quietly += 1 }
                if let outcome = sample.breakerOutcome(breaker.policy) {
                    transitions += breaker.record(outcome, at: sample.time, mayOpen: true).count
                }
            }
        }
        // Twelve seconds of samples: the window of latencies goes round once, with all its octaves in use.
        see(120_000)
        let (rows, connectionRows) = (table.count, connections.count)
        let count = try AllocationCounter.allocations { see(1_000_000) }
        #expect(count == 0)
        #expect(table.count == rows && connections.count == connectionRows)
        #expect(transitions == 0 && quietly > 500_000)
        #expect(rows > 50 && connectionRows > 50)

        // The counter does see allocations: a new series, and the first record after a copy.
        let new = Sample(kind: .request, role: .client, service: 777)
        #expect(try AllocationCounter.allocations { table.record(new, workload: 3, wallTime: 0) } > 0)
        let snapshot = table
        #expect(try AllocationCounter.allocations { table.record(new, workload: 3, wallTime: 0) } > 0)
        #expect(snapshot.count == table.count)
    }
}
