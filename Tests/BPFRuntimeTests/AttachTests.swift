// Loading and attaching on the real kernel: in cgroups and network namespaces of the tests' own.
import CLibBPF
import CMeshSystem
import Foundation
import MeshSystem
import Testing

@testable import BPFRuntime

@Suite(.enabled(if: mayUseKernel, "needs root")) struct ObjectTests {
    @Test func embeddedObjectLoads() throws {
        let object = try BPFObject.mesh()
        let names = object.programNames
        #expect(!names.isEmpty)
        try object.load()
        for name in names { #expect(try object.program(named: name).id() > 0) }
    }

    @Test func autoload() throws {
        let object = try BPFObject.mesh()
        let name = try #require(object.programNames.first)
        try object.setAutoload(ofProgram: name, false)
        try object.load()
        do {
            _ = try object.program(named: name)
            Issue.record("it was loaded all the same")
        } catch {
            #expect(error.description == "cannot use the eBPF program \(name): it is not loaded")
        }
    }

    @Test func whyLoadingFailedIsQuoted() throws {
        let object = try BPFObject.mesh()
        try object.setMaxEntries(ofMap: "breakers", 0)
        do {
            try object.load()
            Issue.record("loaded an array of nothing")
        } catch {
            #expect(error.errno == EINVAL)
            #expect(
                error.description
                    == "cannot load the eBPF object mesh: invalid argument: "
                    + "map 'breakers': failed to create: Invalid argument(-22); "
                    + "run `meshctl doctor` to see what this kernel lacks")
        }
    }

    @Test func unknownNames() throws {
        let object = try BPFObject.mesh()
        do {
            _ = try object.program(named: "nonesuch")
            Issue.record("found nonesuch")
        } catch {
            #expect(error.errno == ENOENT)
            #expect(error.description == "cannot find the eBPF program nonesuch: no program has that name")
        }
        do {
            try object.setMaxEntries(ofMap: "nonesuch", 1)
            Issue.record("found nonesuch")
        } catch {
            #expect(error.description == "cannot find the eBPF map nonesuch: no map has that name")
        }
    }

    @Test func garbageIsNoObject() {
        do {
            _ = try BPFObject([1, 2, 3, 4], name: "garbage")
            Issue.record("opened garbage")
        } catch {
            #expect(error.description.hasPrefix("cannot open the eBPF object garbage: "))
            #expect(!error.details.isEmpty)
        }
    }

    @Test func verifierIsQuoted() {
        do {
            // Returns what was never written.
            _ = try BPFProgram.load([Code.exit], type: BPF_PROG_TYPE_SCHED_CLS, name: "test_bad")
            Issue.record("loaded a bad program")
        } catch {
            #expect(error.errno == EACCES)
            #expect(
                error.description
                    == "cannot load the eBPF program test_bad: permission denied: R0 !read_ok; "
                    + "run `meshctl doctor` to see what this kernel lacks")
            #expect(error.details.last == "R0 !read_ok")
        }
    }

    @Test func probesPassHere() {
        let results = KernelProbe.run(cgroup: nil)
        #expect(results.count > 20)
        for result in results where result.required { #expect(result.ok, "\(result.sentence)") }
        #expect(Set(results.map(\.name)).count == results.count)
    }

    @Test(arguments: [
        ("/proc", "cannot use /proc: it is not in a cgroup2 file system"),
        ("/nowhere", "cannot look at /nowhere: no such file or directory"),
    ]) func badCgroup(path: String, detail: String) throws {
        let result = try #require(KernelProbe.run(cgroup: path).first { $0.name == "cgroup2" })
        #expect(!result.ok && result.required)
        #expect(result.detail == detail)
        #expect(result.remedy == "give the path of a cgroup2 directory that exists")
    }
}

@Suite(.enabled(if: mayUseKernel, "needs root")) struct LinkTests {
    /// What a process in the cgroup is told when it connects to a closed port.
    private func connect(from cgroup: ScratchCgroup) throws -> String {
        try shell(
            "bash -c 'echo $$ > \(cgroup.path)/cgroup.procs && exec 3<>/dev/tcp/127.0.0.1/1'", mayFail: true)
    }

    @Test func cgroupLinksStandSideBySide() throws {
        let cgroup = try ScratchCgroup()
        let counters = Pair(try BPFMap.counter(), try BPFMap.counter())
        func program(_ counter: borrowing BPFMap, _ result: Int32) throws -> BPFProgram {
            try BPFProgram.load(
                Code.counting(in: counter, result: result), type: BPF_PROG_TYPE_CGROUP_SOCK,
                attachType: BPF_CGROUP_INET_SOCK_CREATE, name: "test_sock")
        }
        let programs = Pair(try program(counters.a, 1), try program(counters.b, 0))
        #expect(try connect(from: cgroup).contains("Connection refused"))
        let first = try BPFLink.cgroup(programs.a, path: cgroup.path)
        #expect(try connect(from: cgroup).contains("Connection refused"))
        do {
            // This one forbids sockets.
            let second = try BPFLink.cgroup(programs.b, path: cgroup.path)
            #expect(try connect(from: cgroup).contains("Operation not permitted"))
            #expect(second.descriptor >= 0)
        }
        #expect(try connect(from: cgroup).contains("Connection refused"))
        #expect(try counters.a.count == 3)
        #expect(try counters.b.count == 1)
        #expect(first.descriptor >= 0)
    }

    @Test func notACgroup() throws {
        let counter = try BPFMap.counter()
        let program = try BPFProgram.load(
            Code.counting(in: counter, result: 1), type: BPF_PROG_TYPE_CGROUP_SOCK,
            attachType: BPF_CGROUP_INET_SOCK_CREATE, name: "test_sock")
        do {
            _ = try BPFLink.cgroup(program, path: "/tmp")
            Issue.record("attached to /tmp")
        } catch {
            #expect(
                error.description
                    == "cannot attach test_sock to cgroup /tmp: bad file descriptor; "
                    + "give the path of a cgroup2 directory")
        }
    }

    @Test func tcx() throws {
        let (during, after, shown) = try inNewNetworkNamespace {
            let counters = Pair(try BPFMap.counter(), try BPFMap.counter())
            let programs = Pair(
                try TCFilterTests.program(counters.a), try TCFilterTests.program(counters.b)
            )
            let shown: String
            do {
                let links = Pair(
                    try BPFLink.tcx(programs.a, interface: 1, .ingress),
                    try BPFLink.tcx(programs.b, interface: 1, .egress)
                )
                try TCFilterTests.sendPacket()
                shown = "\(links.a.descriptor >= 0 && links.b.descriptor >= 0)"
            }
            let during = [try counters.a.count, try counters.b.count]
            try TCFilterTests.sendPacket()
            return (during, [try counters.a.count, try counters.b.count], shown)
        }
        #expect(during == [1, 1])
        #expect(after == [1, 1])
        #expect(shown == "true")
    }

    @Test func interfaceIsGone() throws {
        let counter = try BPFMap.counter()
        let program = try TCFilterTests.program(counter)
        do {
            _ = try BPFLink.tcx(program, interface: .max, .ingress)
            Issue.record("attached to nothing")
        } catch {
            #expect(error.errno == ENODEV)
        }
        do {
            _ = try TCFilter(interface: .max)
            Issue.record("attached to nothing")
        } catch {
            #expect(error.errno == ENODEV)
        }
    }

    /// The iterator program writes each element's value; the storage is put on sockets from here.
    @Test func iteratorOverSocketStorage() throws {
        let map = try socketStorage()
        let sockets = (0..<3).map { _ in socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0) }
        defer { for socket in sockets { close(socket) } }
        // The kernel has no batches for such maps, so this goes one by one.
        try map.update(keys: sockets, values: [1000, 1001, 1002] as [UInt64])
        let type = libbpf_find_vmlinux_btf_id("bpf_sk_storage_map", BPF_TRACE_ITER)
        try #require(type > 0)
        // struct bpf_iter__bpf_sk_storage_map: meta, map, sk, value; and meta->seq.
        let program = try BPFProgram.load(
            [
                Code.load64(6, 1, 24), Code.skipIfZero(6, 5), Code.load64(1, 1, 0), Code.load64(1, 1, 0),
                Code.copy(2, 6), Code.set(3, 8), Code.call(127 /* seq_write */), Code.set(0, 0), Code.exit,
            ], type: BPF_PROG_TYPE_TRACING, attachType: BPF_TRACE_ITER, name: "test_iter",
            typeID: UInt32(type))
        let link = try BPFLink.iterator(program, over: map)
        for _ in 0..<2 {
            let values = try link.readIterator().withUnsafeBytes { bytes in
                stride(from: 0, to: bytes.count, by: 8).map {
                    bytes.loadUnaligned(fromByteOffset: $0, as: UInt64.self)
                }
            }
            #expect(values.sorted() == [1000, 1001, 1002])
        }
        try map.delete(keys: sockets)
        #expect(try map.lookup(sockets[0], as: UInt64.self) == nil)
    }

    /// A socket-storage map, which demands type information: an int key and a 64-bit value.
    private func socketStorage() throws -> BPFMap {
        let types = btf__new_empty()
        defer { btf__free(types) }
        var options = bpf_map_create_opts()
        options.sz = MemoryLayout<bpf_map_create_opts>.size
        options.map_flags = UInt32(BPF_F_NO_PREALLOC)
        options.btf_key_type_id = UInt32(btf__add_int(types, "int", 4, Int32(BTF_INT_SIGNED)))
        options.btf_value_type_id = UInt32(btf__add_int(types, "u64", 8, 0))
        try #require(btf__load_into_kernel(types) == 0)
        options.btf_fd = UInt32(btf__fd(types))
        let made = bpf_map_create(BPF_MAP_TYPE_SK_STORAGE, "test_storage", 4, 8, 0, &options)
        try #require(made >= 0)
        return try BPFMap(FileDescriptor(owning: made), name: "test_storage")
    }
}

@Suite(.enabled(if: mayUseKernel, "needs root")) struct TCFilterTests {
    /// Counts packets and leaves them to the next filter.
    static func program(_ counter: borrowing BPFMap) throws(SystemError) -> BPFProgram {
        try BPFProgram.load(
            Code.counting(in: counter, result: -1), type: BPF_PROG_TYPE_SCHED_CLS, name: "test_tc")
    }

    /// One datagram to a loopback port, which nobody answers: a UDP socket of ours listens there.
    static func sendPacket() throws {
        let socket = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        defer { close(socket) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let sent = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, $0, size) == 0 && getsockname(socket, $0, &size) == 0
                    && sendto(socket, "x", 1, 0, $0, size) == 1
            }
        }
        var byte: UInt8 = 0
        guard sent, recv(socket, &byte, 1, 0) == 1 else { throw SystemError("send", "a datagram") }
    }

    static func filters(_ direction: String) throws -> String {
        try shell("tc filter show dev lo \(direction)")
    }
    static func qdiscs() throws -> String { try shell("tc qdisc show dev lo") }

    @Test func comesAndGoesWithItsQdisc() throws {
        let result = try inNewNetworkNamespace {
            let counters = Pair(try BPFMap.counter(), try BPFMap.counter())
            let programs = Pair(try Self.program(counters.a), try Self.program(counters.b))
            var shown: [String] = []
            do {
                var filter = try TCFilter(interface: 1)
                try filter.attach(programs.a, .ingress)
                try filter.attach(programs.b, .egress)
                shown = [try Self.filters("ingress"), try Self.filters("egress"), try Self.qdiscs()]
                try Self.sendPacket()
            }
            try Self.sendPacket()
            return (shown, [try counters.a.count, try counters.b.count], try Self.qdiscs())
        }
        for shown in result.0[..<2] {
            #expect(
                shown.contains("pref 2 bpf chain 0 handle 0x4d41 mesh-agent-clsact direct-action"), "\(shown)"
            )
        }
        #expect(result.0[2].contains("qdisc clsact ffff:"))
        #expect(result.1 == [1, 1])
        #expect(!result.2.contains("clsact"))
    }

    /// Filters that do nothing and are not ours: one at a lower and one at our own priority.
    static func addForeign(_ direction: String) throws {
        let code = "bpf direct-action bytecode '1,6 0 0 4294967295,'"
        try shell("tc filter add dev lo \(direction) protocol all pref 1 handle 1 \(code)")
        try shell("tc filter add dev lo \(direction) protocol all pref 2 handle 7 \(code)")
    }

    @Test func foreignFiltersStay() throws {
        let result = try inNewNetworkNamespace {
            let counter = try BPFMap.counter()
            let program = try Self.program(counter)
            try shell("tc qdisc add dev lo clsact")
            try Self.addForeign("ingress")
            try Self.addForeign("egress")
            let before = [try Self.filters("ingress"), try Self.filters("egress")]
            let during: [String]
            do {
                var filter = try TCFilter(interface: 1)
                try filter.attach(program, .ingress)
                try filter.attach(program, .egress)
                during = [try Self.filters("ingress"), try Self.filters("egress")]
                try Self.sendPacket()
            }
            return (
                before, during, [try Self.filters("ingress"), try Self.filters("egress")],
                try counter.count, try Self.qdiscs()
            )
        }
        for (before, during) in zip(result.0, result.1) {
            let others = during.split(separator: "\n").filter { !$0.contains("mesh-agent") }
            #expect(others.joined(separator: "\n") + "\n" == before)
            #expect(during.contains("handle 0x4d41 mesh-agent direct-action"), "\(during)")
        }
        #expect(result.2 == result.0)
        #expect(result.3 == 2)
        #expect(result.4.contains("clsact"))
    }

    /// Another program came to use the qdisc that the agent made: then it stays.
    @Test func qdiscInUseStays() throws {
        let (before, after) = try inNewNetworkNamespace {
            let counter = try BPFMap.counter()
            let program = try Self.program(counter)
            let before: String
            do {
                var filter = try TCFilter(interface: 1)
                try filter.attach(program, .ingress)
                try Self.addForeign("egress")
                before = try Self.filters("egress")
            }
            return (before, [try Self.filters("ingress"), try Self.filters("egress")])
        }
        #expect(after == ["", before])
        #expect(before.contains("handle 0x7"))
    }

    /// A killed agent leaves filter and qdisc; the next one takes both over, without a gap.
    @Test func staleFilterIsReplaced() throws {
        let result = try inNewNetworkNamespace {
            let counters = Pair(try BPFMap.counter(), try BPFMap.counter())
            let programs = Pair(try Self.program(counters.a), try Self.program(counters.b))
            let stale = UnsafeMutablePointer<TCFilter>.allocate(capacity: 1)
            stale.initialize(to: try TCFilter(interface: 1))
            try stale.pointee.attach(programs.a, .ingress)
            try Self.sendPacket()
            let shown: String
            do {
                var filter = try TCFilter(interface: 1)
                try filter.attach(programs.b, .ingress)
                shown = try Self.filters("ingress")
                try Self.sendPacket()
                // Should the old one only have been slow to end, it must not remove its successor's filter.
                stale.deinitialize(count: 1)
                stale.deallocate()
                try Self.sendPacket()
            }
            return (shown, [try counters.a.count, try counters.b.count], try Self.qdiscs())
        }
        #expect(result.0.split(separator: "\n").filter { $0.contains("handle") }.count == 1, "\(result.0)")
        #expect(result.1 == [1, 2])
        #expect(!result.2.contains("clsact"))
    }

    @Test func takenPlaceIsNotTakenOver() throws {
        let (error, before, after) = try inNewNetworkNamespace { () -> (SystemError?, String, String) in
            let counter = try BPFMap.counter()
            let program = try Self.program(counter)
            try shell("tc qdisc add dev lo clsact")
            try shell(
                "tc filter add dev lo ingress protocol all pref 2 handle 0x4d41 "
                    + "bpf direct-action bytecode '1,6 0 0 4294967295,'")
            let before = try Self.filters("ingress")
            var failure: SystemError?
            do throws(SystemError) {
                var filter = try TCFilter(interface: 1)
                try filter.attach(program, .ingress)
            } catch {
                failure = error
            }
            return (failure, before, try Self.filters("ingress"))
        }
        #expect(error?.errno == EEXIST)
        #expect(error?.hint == "choose another priority")
        #expect(before == after && before.contains("0x4d41"))
    }

    /// The older ingress qdisc has no egress side: the kernel would run an egress filter at ingress.
    @Test func ingressQdisc() throws {
        let (error, counts, qdiscs) = try inNewNetworkNamespace { () -> (SystemError?, [UInt64], String) in
            let counters = Pair(try BPFMap.counter(), try BPFMap.counter())
            let programs = Pair(try Self.program(counters.a), try Self.program(counters.b))
            try shell("tc qdisc add dev lo ingress")
            var failure: SystemError?
            do {
                var filter = try TCFilter(interface: 1)
                try filter.attach(programs.a, .ingress)
                do throws(SystemError) { try filter.attach(programs.b, .egress) } catch { failure = error }
                try Self.sendPacket()
            }
            return (failure, [try counters.a.count, try counters.b.count], try Self.qdiscs())
        }
        #expect(error?.errno == EOPNOTSUPP)
        #expect(counts == [1, 0])
        #expect(qdiscs.contains("qdisc ingress ffff:"))
    }
}
