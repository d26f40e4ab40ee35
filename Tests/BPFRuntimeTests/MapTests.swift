// Maps and the ring buffer against the real kernel.
import CLibBPF
import CMeshSystem
import Foundation
import MeshSystem
import Testing

@testable import BPFRuntime

@Suite(.enabled(if: mayUseKernel, "needs root")) struct MapTests {
    @Test func hash() throws {
        let map = try BPFMap.create(
            BPF_MAP_TYPE_HASH, name: "test_hash", keySize: 8, valueSize: 4, maxEntries: 3)
        #expect(map.keySize == 8 && map.valueSize == 4 && map.maxEntries == 3)
        #expect(try map.lookup(UInt64(1), as: UInt32.self) == nil)
        try map.update(UInt64(1), UInt32(10))
        try map.update(UInt64(2), UInt32(20), .create)
        try map.update(UInt64(1), UInt32(11), .replace)
        #expect(try map.lookup(UInt64(1)) == UInt32(11))
        #expect(try map.keys(as: UInt64.self).sorted() == [1, 2])
        #expect(errorNumber { try map.update(UInt64(1), UInt32(0), .create) } == EEXIST)
        #expect(errorNumber { try map.update(UInt64(9), UInt32(0), .replace) } == ENOENT)
        #expect(try map.delete(UInt64(1)))
        #expect(try !map.delete(UInt64(1)))
        #expect(try map.keys(as: UInt64.self) == [2])
    }

    @Test func fullMapSaysSo() throws {
        let map = try BPFMap.create(
            BPF_MAP_TYPE_HASH, name: "test_full", keySize: 4, valueSize: 4, maxEntries: 2)
        do {
            for key in UInt32(0)..<3 { try map.update(key, key) }
            Issue.record("three entries in a map of two")
        } catch {
            #expect(
                error.description == "cannot write to the eBPF map test_full: its 2 entries are all in use")
        }
        #expect(
            errorNumber { try map.update(keys: [7, 8, 9] as [UInt32], values: [0, 0, 0] as [UInt32]) }
                == E2BIG)
    }

    /// Key of a trie: bits, then an address.
    struct Prefix: Equatable, Hashable {
        var bits: UInt32
        var address: UInt32
    }

    @Test(arguments: [BPF_MAP_TYPE_HASH.rawValue, BPF_MAP_TYPE_LPM_TRIE.rawValue])
    func batches(type: UInt32) throws {
        let flags = type == BPF_MAP_TYPE_LPM_TRIE.rawValue ? UInt32(BPF_F_NO_PREALLOC) : 0
        let map = try BPFMap.create(
            bpf_map_type(type), name: "test_batch", keySize: 8, valueSize: 8, maxEntries: 5000, flags: flags)
        let keys = (0..<5000).map { Prefix(bits: 32, address: UInt32($0).bigEndian) }
        try map.update(keys: keys, values: (0..<5000).map { UInt64($0) })
        #expect(Set(try map.keys(as: Prefix.self)) == Set(keys))
        #expect(try map.lookup(keys[4711]) == UInt64(4711))
        // Every other one is gone already when all of the first half are deleted.
        for index in stride(from: 0, to: 2500, by: 2) { try map.delete(keys[index]) }
        try map.delete(keys: Array(keys[..<2500]))
        #expect(Set(try map.keys(as: Prefix.self)) == Set(keys[2500...]))
        try map.delete(keys: [Prefix]())
        try map.update(keys: [Prefix](), values: [UInt64]())
        try map.delete(keys: keys)
        #expect(try map.keys(as: Prefix.self) == [])
    }

    @Test func perCPU() throws {
        let map = try BPFMap.create(
            BPF_MAP_TYPE_PERCPU_ARRAY, name: "test_percpu", keySize: 4, valueSize: 8, maxEntries: 2)
        let program = try BPFProgram.load(
            Code.counting(in: map, result: 0), type: BPF_PROG_TYPE_SCHED_CLS, name: "test_count")
        try program.run(packetBytes: 64, times: 1000)
        #expect(try map.sumPerCPU(UInt32(0)) == 1000)
        #expect(try map.sumPerCPU(UInt32(1)) == 0)
        let each = try map.lookupPerCPU(UInt32(0), as: UInt64.self)
        #expect(each.count == Int(libbpf_num_possible_cpus()))
        #expect(each.reduce(0, +) == 1000)
    }

    @Test func mappedArray() throws {
        let map = try BPFMap.create(
            BPF_MAP_TYPE_ARRAY, name: "test_mapped", keySize: 4, valueSize: 12, maxEntries: 1000,
            flags: UInt32(BPF_F_MMAPABLE))
        let array = try map.mapped()
        #expect(array.count == 1000 && array.stride == 16)
        struct Element { var a: UInt32, b: UInt32, c: UInt32 }
        try map.update(UInt32(999), Element(a: 1, b: 2, c: 3))
        #expect(mesh_load_acquire_u32(array[999] + 8) == 3)
        array.element(500, as: Element.self).pointee.b = 77
        #expect(try map.lookup(UInt32(500), as: Element.self)?.b == 77)
        let readOnly = try map.mapped(writable: false)
        #expect(mesh_load_relaxed_u32(readOnly[500] + 4) == 77)
        // The first ones alone; more than there are is all of them.
        let part = try map.mapped(501)
        #expect(part.count == 501 && mesh_load_relaxed_u32(part[500] + 4) == 77)
        #expect(try map.mapped(5000).count == 1000)
    }

    @Test func mappingNeedsItsFlag() throws {
        let map = try BPFMap.counter()
        do {
            _ = try map.mapped()
            Issue.record("mapped what cannot be")
        } catch {
            #expect(error.description.hasPrefix("cannot map into memory the eBPF map test_counter: "))
        }
    }

    private func errorNumber(_ body: () throws -> Void) -> Int32? {
        do {
            try body()
            return nil
        } catch {
            return (error as? SystemError)?.errno
        }
    }
}

@Suite(.enabled(if: mayUseKernel, "needs root")) struct RingBufferTests {
    /// Writes `size` bytes, of which the first 8 are the length of the packet.
    static func writer(to map: borrowing BPFMap, size: Int32) throws(SystemError) -> BPFProgram {
        try BPFProgram.load(
            [
                Code.load32(2, 1, 0) /* skb->len */, Code.store64(10, -24, 2), Code.store64(10, -16, 2),
                Code.store64(10, -8, 2),
            ] + Code.map(1, map) + [
                Code.copy(2, 10), Code.add(2, -24), Code.set(3, size), Code.set(4, 0),
                Code.call(130 /* ringbuf_output */), Code.exit,
            ], type: BPF_PROG_TYPE_SCHED_CLS, name: "test_write")
    }

    static func discarder(to map: borrowing BPFMap) throws(SystemError) -> BPFProgram {
        try BPFProgram.load(
            Code.map(1, map) + [
                Code.set(2, 16), Code.set(3, 0), Code.call(131 /* ringbuf_reserve */), Code.skipIfZero(0, 3),
                Code.copy(1, 0), Code.set(2, 0), Code.call(133 /* ringbuf_discard */), Code.set(0, 0),
                Code.exit,
            ], type: BPF_PROG_TYPE_SCHED_CLS, name: "test_discard")
    }

    static func ring(bytes: Int = 4096) throws(SystemError) -> BPFMap {
        try BPFMap.create(
            BPF_MAP_TYPE_RINGBUF, name: "test_ring", keySize: 0, valueSize: 0, maxEntries: bytes)
    }

    @Test func recordsArriveInOrderAroundTheRing() throws {
        let map = try Self.ring()
        let writers = Pair(try Self.writer(to: map, size: 8), try Self.writer(to: map, size: 20))
        let discarder = try Self.discarder(to: map)
        var ring = try RingBuffer(map)
        var poller = try Poller()
        try poller.add(ring.descriptor, token: 1, .readable)
        #expect(try poller.wait(timeout: 0) == 0)
        #expect(ring.consume { _ in Issue.record("a record from nowhere") } == 0)

        // Many times the ring's size, in portions that do not divide it.
        var next = 14
        for round in 0..<300 {
            let first = next
            for _ in 0..<1 + round % 40 {
                _ = try (next % 3 == 0 ? writers.b.run(packetBytes: next) : writers.a.run(packetBytes: next))
                if next % 7 == 0 { try discarder.run(packetBytes: 64) }
                next = next == 1000 ? 14 : next + 1
            }
            #expect(try poller.wait(timeout: 0) == 1)
            var expected = first
            var wrong = 0
            let count = ring.consume { record in
                let size = expected % 3 == 0 ? 20 : 8
                if record.count != size || record.loadUnaligned(as: UInt64.self) != expected { wrong += 1 }
                expected = expected == 1000 ? 14 : expected + 1
            }
            #expect(count == 1 + round % 40)
            #expect(expected == next && wrong == 0)
            #expect(ring.pendingBytes == 0)
            #expect(try poller.wait(timeout: 0) == 0)
        }
    }

    @Test func limitIsKept() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        var ring = try RingBuffer(map)
        for length in 14..<24 { try writer.run(packetBytes: length) }
        #expect(ring.pendingBytes == 10 * 16)
        var seen: [UInt64] = []
        #expect(ring.consume(limit: 0) { _ in Issue.record("past the limit") } == 0)
        #expect(ring.consume(limit: 4) { seen.append($0.loadUnaligned(as: UInt64.self)) } == 4)
        #expect(ring.pendingBytes == 6 * 16)
        #expect(ring.consume(limit: 100) { seen.append($0.loadUnaligned(as: UInt64.self)) } == 6)
        #expect(seen == Array(14..<24))
    }

    @Test func recordsAreShownOnceAndHandedOutAllTheSame() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        var ring = try RingBuffer(map)
        func look() -> [UInt64] {
            var seen: [UInt64] = []
            let count = ring.peekWhile {
                seen.append($0.loadUnaligned(as: UInt64.self))
                return seen.last != 16
            }
            #expect(count == seen.count)
            return seen
        }
        for length in 14..<18 { try writer.run(packetBytes: length) }
        #expect(look() == [14, 15, 16])
        #expect(look() == [17])
        #expect(look() == [])
        #expect(ring.pendingBytes == 4 * 16)
        try writer.run(packetBytes: 18)
        var taken: [UInt64] = []
        ring.consume { taken.append($0.loadUnaligned(as: UInt64.self)) }
        #expect(taken == Array(14..<19))
        #expect(look() == [], "what was handed out is not shown any more")
    }

    @Test func fullRingRefusesAndRecovers() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        var ring = try RingBuffer(map)
        var written = 0
        while try writer.run(packetBytes: 14) == 0 { written += 1 }
        // The kernel keeps the ring from filling to the last byte.
        #expect(written >= 4096 / 16 - 1)
        #expect(ring.consume { _ in } == written)
        #expect(try writer.run(packetBytes: 14) == 0)
        #expect(ring.consume { _ in } == 1)
    }

    @Test func aSecondReaderGoesOnWhereTheFirstStopped() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        do {
            var first = try RingBuffer(map)
            for length in 14..<20 { try writer.run(packetBytes: length) }
            #expect(first.consume(limit: 2) { _ in } == 2)
        }
        var second = try RingBuffer(map)
        var seen: [UInt64] = []
        second.consume { seen.append($0.loadUnaligned(as: UInt64.self)) }
        #expect(seen == [16, 17, 18, 19])
    }

    @Test func whatIsNotReleasedIsReadAgain() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        do {
            var first = try RingBuffer(map)
            for length in 14..<20 { try writer.run(packetBytes: length) }
            #expect(first.values(limit: 2) == [14, 15])
            #expect(first.heldBytes == 2 * 16 && first.pendingBytes == 4 * 16)
            first.release()
            #expect(first.heldBytes == 0)
            #expect(first.values(limit: 3) == [16, 17, 18])
        }
        var second = try RingBuffer(map)
        #expect(second.values() == [16, 17, 18, 19])
    }

    @Test func onlyWhatIsReleasedMakesRoom() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        var ring = try RingBuffer(map)
        while try writer.run(packetBytes: 14) == 0 {}
        let held = ring.values().count
        #expect(try writer.run(packetBytes: 14) != 0)
        #expect(ring.heldBytes == held * 16)
        ring.release()
        #expect(try writer.run(packetBytes: 15) == 0)
        #expect(ring.values() == [15])
    }

    /// As after a SIGKILL: what was counted comes no more, what breakers saw is not shown to them again.
    @Test func aReaderGoesOnWhereTheCommitSays() throws {
        let map = try Self.ring()
        let writer = try Self.writer(to: map, size: 8)
        let discarder = try Self.discarder(to: map)
        var commit: (position: UInt64, shown: UInt64) = (0, 0)
        do {
            var first = try RingBuffer(map)
            for length in 14..<18 { try writer.run(packetBytes: length) }
            _ = try discarder.run(packetBytes: 64)
            for length in 18..<22 { try writer.run(packetBytes: length) }
            #expect(first.shown(to: 19) == Array(14..<20))
            #expect(first.values(limit: 3) == [14, 15, 16])
            commit = (first.position, first.shownPosition)
            // After the commit, and lost with the process.
            _ = first.values(limit: 1)
            _ = first.shown()
        }
        var second = try RingBuffer(map)
        let found = second.resume(at: commit.position, shown: commit.shown)
        #expect(found?.shown == 3 && found?.unknown == 0)
        #expect(second.shown() == [20, 21])
        #expect(second.values() == [17, 18, 19, 20, 21])
        #expect(second.heldBytes == 5 * 16 + 24)

        // A state that is older than what the kernel was told.
        second.release()
        try writer.run(packetBytes: 30)
        var third = try RingBuffer(map)
        let late = third.resume(at: commit.position, shown: commit.shown)
        #expect(late?.shown == 0 && late?.unknown == 5 * 16 + 24)
        #expect(third.shown() == [30])
        #expect(third.values() == [30])

        // States that cannot be this ring buffer's.
        var fourth = try RingBuffer(map)
        let position = fourth.position
        for (counted, shown) in [
            (position + 32, position + 32), (position, position + 32), (position + 8, position),
        ] {
            let found = fourth.resume(at: counted, shown: shown)
            #expect(found == nil)
        }
        #expect(fourth.values() == [30], "nothing was done")
    }

    /// A writer on another thread, and a reader that sleeps whenever there is nothing: were one wake-up
    /// lost, the reader would wait for ever.
    @Test func noWakeUpIsLost() throws {
        let map = try Self.ring()
        let total = 20_000
        let writer = try Self.writer(to: map, size: 8)
        var ring = try RingBuffer(map)
        var poller = try Poller()
        try poller.add(ring.descriptor, token: 1, .readable)
        let descriptor = try FileDescriptor(duplicating: writer.descriptor).release()
        let thread = try MeshSystem.Thread.spawn(name: "writer") {
            let program = BPFProgram(
                FileDescriptor(owning: descriptor), name: "writer", attachType: bpf_attach_type(0))
            var written = 0
            // A full ring refuses; try again.
            while written < total {
                if (try? program.run(packetBytes: 14 + written % 1000)) == 0 {
                    written += 1
                } else {
                    sched_yield()
                }
            }
        }
        var received = 0
        var wrong = 0
        while received < total {
            guard try poller.wait(timeout: 5_000_000_000) == 1 else { break }
            ring.consume { record in
                if record.loadUnaligned(as: UInt64.self) != 14 + received % 1000 { wrong += 1 }
                received += 1
            }
        }
        #expect(received == total && wrong == 0)
        thread.join()
    }

    @Test func onlyRingBuffers() throws {
        let map = try BPFMap.counter()
        do {
            _ = try RingBuffer(map)
            Issue.record("an array is no ring buffer")
        } catch {
            #expect(error.errno == EINVAL)
        }
    }
}

extension RingBuffer {
    /// Takes the records that wait, up to a limit, and gives their room back.
    @discardableResult
    fileprivate mutating func consume(limit: Int = .max, _ body: (UnsafeRawBufferPointer) -> Void) -> Int {
        defer { release() }
        return consumeWhile(limit: limit) { record in
            body(record)
            return true
        }
    }

    /// What is handed out now, up to a limit; it is not released.
    fileprivate mutating func values(limit: Int = .max) -> [UInt64] {
        var values: [UInt64] = []
        consumeWhile(limit: limit) { record in
            values.append(record.loadUnaligned(as: UInt64.self))
            return true
        }
        return values
    }

    /// What is shown now, up to a value.
    fileprivate mutating func shown(to last: UInt64 = .max) -> [UInt64] {
        var values: [UInt64] = []
        peekWhile { record in
            values.append(record.loadUnaligned(as: UInt64.self))
            return values.last != last
        }
        return values
    }
}
