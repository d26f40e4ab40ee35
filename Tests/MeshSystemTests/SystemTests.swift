// The handles on the real system: event sources, threads, files, figures, compression.
import CMeshSystem
import Foundation
import Testing

@testable import MeshSystem

@Suite struct SystemTests {
    @Test func pollerTellsWhatIsReady() throws {
        var poller = try Poller(capacity: 4)
        let counter = try EventCounter()
        let timer = try TimerDescriptor()
        try poller.add(counter.descriptor, token: .max, .readable)
        try poller.add(timer.descriptor, token: 5, .readable)
        #expect(try poller.wait(timeout: 0) == 0)

        counter.signal()
        counter.signal()
        #expect(try poller.wait(timeout: nil) == 1)
        #expect(poller[0].token == .max)
        #expect(poller[0].isReadable && !poller[0].isWritable && !poller[0].isHangUp)
        #expect(counter.drain() == 2)
        #expect(counter.drain() == 0)
        #expect(try poller.wait(timeout: 0) == 0)

        try poller.modify(counter.descriptor, token: 6, [.readable, .writable])
        #expect(try poller.wait(timeout: nil) == 1)
        #expect(poller[0].token == 6 && poller[0].isWritable && !poller[0].isReadable)
        try poller.remove(counter.descriptor)
        #expect(try poller.wait(timeout: 0) == 0)
        #expect(throws: SystemError.self) { try poller.remove(counter.descriptor) }
    }

    @Test func pollerTimeout() throws {
        var poller = try Poller()
        let start = MonotonicClock.now()
        #expect(try poller.wait(timeout: milliseconds(20)) == 0)
        let took = MonotonicClock.now() - start
        #expect(took >= milliseconds(20) && took < milliseconds(500))
    }

    @Test func timerFiresAtItsTime() throws {
        var poller = try Poller()
        let timer = try TimerDescriptor()
        try poller.add(timer.descriptor, token: 1, .readable)
        let due = MonotonicClock.now() + milliseconds(30)
        timer.set(at: due)
        #expect(try poller.wait(timeout: milliseconds(5000)) == 1)
        #expect(MonotonicClock.now() >= due)
        #expect(timer.drain() == 1)
        // Long past: at once; then every millisecond.
        timer.set(at: 0, every: milliseconds(1))
        #expect(try poller.wait(timeout: milliseconds(5000)) == 1)
        #expect(timer.drain() >= 1)
        timer.cancel()
        #expect(try poller.wait(timeout: milliseconds(5)) == 0)
        #expect(timer.drain() == 0)
    }

    @Test func signalsBecomeEvents() throws {
        let seen = try onThread {
            let signals = try SignalDescriptor()
            var poller = try Poller()
            try poller.add(signals.descriptor, token: 1, .readable)
            let before = signals.next()
            // To this thread, so that only it can take them.
            pthread_kill(pthread_self(), SIGHUP)
            pthread_kill(pthread_self(), SIGTERM)
            let ready = try poller.wait(timeout: milliseconds(5000))
            return (
                before, ready, [signals.next(), signals.next()].compactMap { $0 }.sorted(), signals.next()
            )
        }
        #expect(seen.0 == nil)
        #expect(seen.1 == 1)
        #expect(seen.2 == [SIGHUP, SIGTERM].sorted())
        #expect(seen.3 == nil)
    }

    @Test func processHandleTellsExit() throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/cat")
        let input = Pipe()
        process.standardInput = input
        process.standardOutput = FileHandle.nullDevice
        try process.run()
        let handle = try ProcessHandle(pid: process.processIdentifier)
        #expect(handle.pid == process.processIdentifier)
        #expect(handle.hasExited == false)
        try input.fileHandleForWriting.close()
        var poller = try Poller()
        try poller.add(handle.descriptor, token: 1, .readable)
        #expect(try poller.wait(timeout: milliseconds(10_000)) == 1)
        #expect(handle.hasExited == true)
        process.waitUntilExit()
        let pid = process.processIdentifier
        #expect(throws: SystemError("watch", "process \(pid)", errno: ESRCH)) {
            _ = try ProcessHandle(pid: pid)
        }
    }

    @Test(arguments: [("short", "short"), ("mesh-agent reader", "mesh-agent read"), ("ééééééééé", "ééééééé")])
    func threadsHaveNames(name: String, kept: String) throws {
        let found = try onThread(name: name) { try readText("/proc/thread-self/comm") }
        #expect(found == kept + "\n")
    }

    @Test func descriptorsCloseAndAreReleased() throws {
        let number: Int32
        do {
            let file = try FileDescriptor(opening: "/dev/null")
            number = file.descriptor
            #expect(fcntl(number, F_GETFD) == FD_CLOEXEC)
        }
        let kept = try FileDescriptor(opening: "/dev/null").release()
        #expect(fcntl(kept, F_GETFD) == FD_CLOEXEC)
        close(kept)
        #expect(throws: SystemError("open", "/nowhere/x", errno: ENOENT)) {
            _ = try FileDescriptor(opening: "/nowhere/x")
        }
    }

    @Test func transfers() throws {
        var pair: [Int32] = [0, 0]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0)
        let here = FileDescriptor(owning: pair[0])
        try here.setNonBlocking(true)
        do {
            let there = FileDescriptor(owning: pair[1])
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 16, alignment: 1)
            defer { room.deallocate() }
            #expect(try here.read(into: room) == .wouldBlock)
            #expect(try [1, 2, 3].withUnsafeBytes { try there.send($0) } == .bytes(3 * 8))
            #expect(try here.read(into: room) == .bytes(16))
            #expect(try here.read(into: room) == .bytes(8))
            var sent = 0
            var outcome = Transfer.bytes(0)
            while case .bytes(let count) = outcome {
                sent += count
                outcome = try [UInt8](repeating: 0, count: 65536).withUnsafeBytes { try here.send($0) }
            }
            #expect(outcome == .wouldBlock && sent > 65536)
        }
        // The other side is closed now; no signal comes of it.
        #expect(try [UInt8(1)].withUnsafeBytes { try here.send($0) } == .closed)
    }

    @Test func wholeFiles() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/file"
        let content = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        try Data(content).write(to: URL(fileURLWithPath: path))
        #expect(try readFile(path, limit: 100_000) == content)
        #expect(throws: SystemError.self) { try readFile(path, limit: 99_999) }
        do {
            _ = try readFile(path, limit: 10)
        } catch {
            #expect(error.errno == EFBIG)
            #expect(
                error.description
                    == "cannot read \(path): it is longer than 10 bytes; check that it is the right file")
        }
        #expect(throws: SystemError("read", "/tmp", errno: EISDIR)) { try readFile("/tmp", limit: 10) }
        #expect(try readFile("/dev/null", limit: 0) == [])
        try Data([0x61, 0xff]).write(to: URL(fileURLWithPath: path))
        #expect(try readText(path) == "a\u{fffd}")
    }

    @Test func figuresOfThisProcess() throws {
        let now = Date().timeIntervalSince1970
        let first = try ProcessStatistics.read()
        #expect(first.residentBytes > 1 << 20 && first.residentBytes < first.virtualBytes)
        #expect(first.startTimeSeconds > now - 3600 && first.startTimeSeconds <= now + 1)
        #expect(first.cpuSeconds > 0)
        let second = try ProcessStatistics.read()
        #expect(second.cpuSeconds >= first.cpuSeconds)
        #expect(first.maxDescriptors >= UInt64(first.openDescriptors))
        #expect(try ResourceLimits.raiseOpenFiles(to: 0) == first.maxDescriptors)
        #expect(try ResourceLimits.raiseOpenFiles(to: first.maxDescriptors) == first.maxDescriptors)
    }

    @Test func descriptorCountIsExact() throws {
        // Other tests open and close descriptors meanwhile, so count in a process of its own view: /proc.
        let before = try ProcessStatistics.read().openDescriptors
        let held = try (0..<500).map { _ in try FileDescriptor(opening: "/dev/null").release() }
        let after = try ProcessStatistics.read().openDescriptors
        for number in held { close(number) }
        #expect(abs(after - before - 500) < 100)
    }

    @Test func clocks() {
        let before = clock_gettime_nsec(CLOCK_MONOTONIC)
        let now = MonotonicClock.now()
        #expect(now >= before && now <= clock_gettime_nsec(CLOCK_MONOTONIC))
        let wall = WallTime.now()
        #expect(abs(Double(wall.seconds) + Double(wall.nanoseconds) / 1e9 - Date().timeIntervalSince1970) < 1)
        #expect(wall.nanoseconds < 1_000_000_000)
    }

    private func clock_gettime_nsec(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    @Test func users() {
        #expect(userName(ofUID: 0) == "root")
        #expect(userName(ofUID: 4_000_000_000) == nil)
    }

    @Test(arguments: [0, 1, 100_000]) func gzipRoundTrip(count: Int) throws {
        // Half repeats, half random, so that it neither vanishes nor grows.
        let original = (0..<count).map { $0 % 2 == 0 ? UInt8(7) : UInt8.random(in: 0...255) }
        let compressed = try original.withUnsafeBytes { bytes throws(SystemError) in try gzip(bytes) }
        #expect(compressed.starts(with: [0x1f, 0x8b, 8]))
        #expect(try inflated(compressed, room: count + 1) == original)
    }

    private func inflated(_ bytes: [UInt8], room: Int) throws -> [UInt8] {
        var stream = z_stream()
        try #require(inflateInit2_(&stream, 31, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK)
        defer { inflateEnd(&stream) }
        var input = bytes
        return try input.withUnsafeMutableBufferPointer { input in
            try [UInt8](unsafeUninitializedCapacity: room) { output, count in
                stream.next_in = input.baseAddress
                stream.avail_in = UInt32(input.count)
                stream.next_out = output.baseAddress
                stream.avail_out = UInt32(room)
                try #require(inflate(&stream, Z_FINISH) == Z_STREAM_END)
                count = room - Int(stream.avail_out)
            }
        }
    }

    @Test func atomics() {
        withUnsafeTemporaryAllocation(byteCount: 16, alignment: 8) { room in
            let place = room.baseAddress!
            mesh_store_release_u64(place, 0x1122_3344_5566_7788)
            #expect(mesh_load_acquire_u64(place) == 0x1122_3344_5566_7788)
            mesh_store_seq_cst_u32(place, 0xaabb_ccdd)
            #expect(mesh_load_seq_cst_u32(place) == 0xaabb_ccdd)
            mesh_store_relaxed_u8(place + 8, 0xee)
            #expect(mesh_load_relaxed_u8(place + 8) == 0xee)
            #expect(mesh_load_relaxed_u64(place) & 0xffff_ffff == 0xaabb_ccdd)
        }
    }
}
