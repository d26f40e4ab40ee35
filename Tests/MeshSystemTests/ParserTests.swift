// Parsers of what the kernel says: exact results for known texts, and nothing worse than nil for others.
import CMeshSystem
import Foundation
import Testing

@testable import MeshSystem

@Suite struct ParserTests {
    @Test func mountInfo() {
        let text = """
            24 29 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
            30 25 0:26 /../.. /odd rw - cgroup2 cgroup2 rw
            31 25 0:26 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate
            32 25 0:26 / /cut rw
            33 25 0:26 / /nodash rw a b c
            34 25 0:26 / /back\\134slash\\9 rw -
            35 25 0:26 / /back\\134slash\\9x rw - tmpfs

            """
        let mounts = Mount.parse(mountInfo: text)
        #expect(
            mounts == [
                Mount(root: "/", point: "/proc", type: "proc"),
                Mount(root: "/../..", point: "/odd", type: "cgroup2"),
                Mount(root: "/", point: "/sys/fs/cgroup/uni fied", type: "cgroup2"),
                Mount(root: "/", point: "/back\\slash\\9x", type: "tmpfs"),
            ])
        #expect(Mount.cgroup2(in: mounts) == "/sys/fs/cgroup/uni fied")
        #expect(Mount.cgroup2(in: Array(mounts[..<2])) == "/odd")
        #expect(Mount.cgroup2(in: []) == nil)
    }

    @Test func cgroup2OfThisMachine() throws {
        let point = try Mount.cgroup2()
        #expect(FileManager.default.fileExists(atPath: point + "/cgroup.procs"))
        #expect(try Mount.isCgroup2(point))
        #expect(try !Mount.isCgroup2("/proc"))
        #expect(throws: SystemError("look at", "/nowhere", errno: ENOENT)) { try Mount.isCgroup2("/nowhere") }
    }

    @Test(arguments: [
        ("1 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", UInt64(4711)),
        ("1 (x) S 1 2 3", nil), ("", nil), (")", nil),
        ("1 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x", nil),
    ]) func startTicks(stat: String, ticks: UInt64?) {
        #expect(ProcessStatistics.startTicks(stat: stat) == ticks)
    }

    @Test func bootTime() {
        #expect(ProcessStatistics.bootTime(stat: "cpu 1 2\nbtime 1700000000\nprocesses 3\n") == 1_700_000_000)
        #expect(ProcessStatistics.bootTime(stat: "cpu 1 2\n") == nil)
    }

    @Test(arguments: [
        (
            "Name:\tx\nCapEff:\t000000c000201000\nCapBnd:\t0\n",
            Capabilities([.bpf, .perfmon, .netAdmin, .sysAdmin])
        ),
        ("CapEff:\t0000000000000000\n", Capabilities([])), ("CapEff:\tx\n", nil), ("", nil),
    ]) func capabilities(status: String, expected: Capabilities?) {
        #expect(Privileges(status: status)?.capabilities == expected)
    }

    @Test(arguments: [
        ("6.1.0-18-amd64", [6, 1]), ("6.18.44-fc-v669", [6, 18]), ("5.15-rc1", [5, 15]), ("7.0", [7, 0]),
        ("7", []),
        ("", []), ("a.b", []), ("6.", []), ("-1.x", []),
    ]) func kernelVersion(release: String, expected: [Int]) {
        let version = Kernel.version(ofRelease: release)
        #expect((version.map { [$0.major, $0.minor] } ?? []) == expected)
    }

    @Test func errorsAreSentences() {
        #expect(
            SystemError("open", "/x", errno: ENOENT).description
                == "cannot open /x: no such file or directory")
        #expect(
            SystemError("wait", errno: EIO, hint: "try again").description
                == "cannot wait: input/output error; try again")
        #expect(
            SystemError("load", "m", errno: 524).description == "cannot load m: not supported by this kernel")
        #expect(SystemError("open", "/x", errno: EMFILE).hint == "raise the limit of open files (ulimit -n)")
        #expect(
            SystemError("a", "b", errno: EIO, reason: "r").advising("h").description == "cannot a b: r; h")
    }

    // MARK: netlink

    /// An `RTM_NEWLINK` as the kernel writes it.
    static func linkMessage(
        type: Int = Int(RTM_NEWLINK), family: UInt8 = 0, index: Int32 = 7, flags: UInt32 = UInt32(IFF_UP),
        name: String = "veth0", kind: String? = "veth"
    ) -> [UInt8] {
        var head = ifinfomsg()
        head.ifi_family = family
        head.ifi_index = index
        head.ifi_flags = flags
        var request = NetlinkRequest(type, head)
        request.add(Int(IFLA_MTU), UInt32(1500))
        request.add(Int(IFLA_IFNAME), text: name)
        if let kind { request.add(Int(IFLA_LINKINFO)) { $0.add(Int(IFLA_INFO_KIND), text: kind) } }
        return request.encoded(sequence: 0, flags: 0)
    }

    static func parse(_ bytes: [UInt8]) -> [LinkMessage] {
        bytes.withUnsafeBytes { NetlinkMessages($0).compactMap { LinkMessage($0) } }
    }

    @Test func linkMessages() {
        let veth = Link(index: 7, name: "veth0", kind: "veth", isUp: true, isLoopback: false)
        let lo = Link(index: 1, name: "lo", kind: "", isUp: false, isLoopback: true)
        let bytes =
            Self.linkMessage()
            + Self.linkMessage(index: 1, flags: UInt32(IFF_LOOPBACK), name: "lo", kind: nil)
            // A port that leaves its bridge is not a device that goes.
            + Self.linkMessage(type: Int(RTM_DELLINK), family: UInt8(AF_BRIDGE))
            + Self.linkMessage(name: "") + Self.linkMessage(index: -1)
            + Self.linkMessage(type: Int(RTM_NEWADDR))
            + Self.linkMessage(type: Int(RTM_DELLINK))
        #expect(Self.parse(bytes) == [.present(veth), .present(lo), .gone(index: 7)])
    }

    @Test func linkTable() {
        var table: [Int32: Link] = [:]
        let up = Link(index: 7, name: "veth0", kind: "veth", isUp: true, isLoopback: false)
        var down = up
        down.isUp = false
        #expect(table.apply(.gone(index: 7)) == nil)
        #expect(table.apply(.present(down)) == .added(down))
        #expect(table.apply(.present(down)) == nil)
        #expect(table.apply(.present(up)) == .changed(up))
        #expect(table.apply(.gone(index: 7)) == .removed(up))
        #expect(table.isEmpty)
    }

    /// Every cut and many random changes of a good buffer must be survived, with every access in bounds:
    /// the bytes end at an unmapped page.
    @Test func hostileNetlinkBytes() {
        let good = Self.linkMessage() + Self.linkMessage(index: 8, name: "veth1")
        let page = 4096
        let memory = mmap(nil, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
        defer { munmap(memory, 2 * page) }
        mprotect(memory + page, page, PROT_NONE)
        func parseAtEdge(_ bytes: some Collection<UInt8>) -> Int {
            let place = UnsafeMutableRawBufferPointer(start: memory + page - bytes.count, count: bytes.count)
            place.copyBytes(from: bytes)
            return NetlinkMessages(UnsafeRawBufferPointer(place)).reduce(0) {
                $0 + (LinkMessage($1) == nil ? 0 : 1)
            }
        }
        #expect(parseAtEdge(good) == 2)
        for length in 0..<good.count {
            #expect(parseAtEdge(good[..<length]) == (length < good.count / 2 ? 0 : 1))
        }
        var random = SystemRandomNumberGenerator()
        for _ in 0..<20_000 {
            var bytes = good
            for _ in 0...Int.random(in: 0..<4, using: &random) {
                bytes[Int.random(in: 0..<bytes.count, using: &random)] = [0, 1, 3, 4, 15, 0xff, 0x80]
                    .randomElement(using: &random)!
            }
            #expect(parseAtEdge(bytes.prefix(Int.random(in: 0...bytes.count, using: &random))) <= 2)
        }
    }
}
