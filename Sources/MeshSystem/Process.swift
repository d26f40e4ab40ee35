// What the agent tells and needs to know about its own process and its machine: figures for the
// process_* metrics, limits, capabilities, the kernel's release, and where cgroup2 is mounted.
import CMeshSystem
import Glibc

/// Figures about this process, as the `process_*` metrics have them.
public struct ProcessStatistics: Equatable, Sendable {
    /// Resident memory in bytes.
    public var residentBytes: UInt64
    /// Address space in bytes.
    public var virtualBytes: UInt64
    /// User and system CPU time in seconds.
    public var cpuSeconds: Double
    /// File descriptors that are open.
    public var openDescriptors: Int
    /// The limit of open file descriptors.
    public var maxDescriptors: UInt64
    /// When the process started, in seconds since 1970.
    public var startTimeSeconds: Double

    /// Reads the figures of this process.
    public static func read() throws(SystemError) -> ProcessStatistics {
        let pages = try readText("/proc/self/statm").split(separator: " ").compactMap { UInt64($0) }
        guard pages.count >= 2 else { throw malformed("/proc/self/statm") }
        let page = UInt64(sysconf(Int32(_SC_PAGESIZE)))
        var cpu = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu)
        var limit: UInt64 = 0
        guard mesh_raise_descriptor_limit(0, &limit) == 0 else {
            throw SystemError("read", "the resource limits")
        }
        return ProcessStatistics(
            residentBytes: pages[1] * page, virtualBytes: pages[0] * page,
            cpuSeconds: Double(cpu.tv_sec) + Double(cpu.tv_nsec) / 1e9,
            openDescriptors: try countDescriptors(), maxDescriptors: limit,
            startTimeSeconds: try startTime.get())
    }

    /// When this process started; it does not change, and reading it walks all of /proc/stat.
    private static let startTime: Result<Double, SystemError> = Result { () throws(SystemError) in
        guard let ticks = startTicks(stat: try readText("/proc/self/stat")) else {
            throw malformed("/proc/self/stat")
        }
        guard let boot = bootTime(stat: try readText("/proc/stat")) else { throw malformed("/proc/stat") }
        return Double(boot) + Double(ticks) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// When a process started, in clock ticks since boot: with its ID, that tells it from all others.
    public static func startTicks(pid: Int32) throws(SystemError) -> UInt64 {
        let path = "/proc/\(pid)/stat"
        guard let ticks = startTicks(stat: try readText(path)) else { throw malformed(path) }
        return ticks
    }

    /// Field 22 of /proc/PID/stat: when the process started, in clock ticks since boot.
    static func startTicks(stat: String) -> UInt64? {
        // The second field is the program's name in parentheses, which may hold anything.
        guard let end = stat.lastIndex(of: ")") else { return nil }
        let fields = stat[stat.index(after: end)...].split(separator: " ")
        return fields.count > 19 ? UInt64(fields[19]) : nil
    }

    /// The line `btime` of /proc/stat: when the machine booted, in seconds since 1970.
    static func bootTime(stat: String) -> UInt64? {
        for line in stat.split(separator: "\n") where line.hasPrefix("btime ") {
            return UInt64(line.dropFirst(6))
        }
        return nil
    }

    private static func countDescriptors() throws(SystemError) -> Int {
        guard let directory = opendir("/proc/self/fd") else { throw SystemError("open", "/proc/self/fd") }
        defer { closedir(directory) }
        var count = 0
        while readdir(directory) != nil { count += 1 }
        // Without `.`, `..` and the descriptor that reads the directory.
        return count - 3
    }

    private static func malformed(_ path: String) -> SystemError {
        SystemError("read", path, errno: EINVAL, reason: "it does not look as proc(5) says")
    }
}

/// Limits of this process.
public enum ResourceLimits {
    /// Raises the limit of open files as far as this user may, up to `wanted`; never lowers it.
    /// - Returns: The limit that now holds.
    @discardableResult
    public static func raiseOpenFiles(to wanted: UInt64) throws(SystemError) -> UInt64 {
        var limit: UInt64 = 0
        guard mesh_raise_descriptor_limit(wanted, &limit) == 0 else {
            throw SystemError("raise", "the limit of open files")
        }
        return limit
    }
}

/// A set of Linux capabilities.
public struct Capabilities: OptionSet, Sendable {
    /// The bits as in `CapEff` of /proc/PID/status.
    public let rawValue: UInt64
    /// Wraps the bits of `CapEff`.
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    /// Listening on ports below 1024.
    public static let netBindService = Capabilities(rawValue: 1 << 10)
    /// Attaching to network devices and cgroups.
    public static let netAdmin = Capabilities(rawValue: 1 << 12)
    /// Stands for all that the finer ones allow.
    public static let sysAdmin = Capabilities(rawValue: 1 << 21)
    /// Raising the priority of threads.
    public static let sysNice = Capabilities(rawValue: 1 << 23)
    /// Tracing programs.
    public static let perfmon = Capabilities(rawValue: 1 << 38)
    /// Loading eBPF programs and maps.
    public static let bpf = Capabilities(rawValue: 1 << 39)

    /// The capabilities that the calling thread has now.
    public static func effective() throws(SystemError) -> Capabilities { try Privileges.now().capabilities }

    /// Their names in the kernel's order, those that have none here as `CAP_` and a number.
    public var names: [String] {
        (0..<64).filter { rawValue >> $0 & 1 == 1 }.map { bit in
            switch Capabilities(rawValue: 1 << bit) {
            case .netBindService: "CAP_NET_BIND_SERVICE"
            case .netAdmin: "CAP_NET_ADMIN"
            case .sysAdmin: "CAP_SYS_ADMIN"
            case .sysNice: "CAP_SYS_NICE"
            case .perfmon: "CAP_PERFMON"
            case .bpf: "CAP_BPF"
            default: "CAP_\(bit)"
            }
        }
    }
}

/// The kernel that runs.
public enum Kernel {
    /// Its release, such as `6.1.0-18-amd64`.
    public static func release() -> String {
        var name = utsname()
        uname(&name)
        return withUnsafeBytes(of: name.release) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    /// The first two numbers of a release; nil if it does not begin with them.
    public static func version(ofRelease release: String) -> (major: Int, minor: Int)? {
        let parts = release.split(separator: ".", maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count >= 2, let major = Int(parts[0]), let minor = Int(parts[1].prefix { $0.isNumber })
        else { return nil }
        return (major, minor)
    }
}

/// A mounted file system: a line of /proc/self/mountinfo.
public struct Mount: Equatable, Sendable {
    /// Which directory of the file system is mounted: `/` for all of it.
    public var root: String
    /// Where it is mounted.
    public var point: String
    /// The file system's type, such as `cgroup2`.
    public var type: String

    /// Reads the text of a mountinfo file (proc(5)); lines that are not as they should be are left out.
    public static func parse(mountInfo text: String) -> [Mount] {
        text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ")
            // Six fields, any number of optional ones, a dash, the type.
            guard let dash = fields.dropFirst(6).firstIndex(of: "-"), dash + 1 < fields.count else {
                return nil
            }
            return Mount(
                root: unescape(fields[3]), point: unescape(fields[4]), type: unescape(fields[dash + 1]))
        }
    }

    /// Where cgroup2 is mounted; nil if it is not. Of several places, the first with the whole
    /// hierarchy that this process sees.
    public static func cgroup2(in mounts: [Mount]) -> String? {
        let candidates = mounts.filter { $0.type == "cgroup2" }
        return (candidates.first { $0.root == "/" } ?? candidates.first)?.point
    }

    /// Where cgroup2 is mounted on this machine.
    /// - Throws: `ENOENT` if it is not.
    public static func cgroup2() throws(SystemError) -> String {
        let mounts = parse(mountInfo: try readText("/proc/self/mountinfo", limit: 64 << 20))
        guard let point = cgroup2(in: mounts) else {
            throw SystemError(
                "find", "the cgroup2 file system", errno: ENOENT, reason: "it is not mounted",
                hint: "mount it: mount -t cgroup2 none /sys/fs/cgroup")
        }
        return point
    }

    /// Makes sure that the file system of eBPF pins is mounted at its place, /sys/fs/bpf.
    public static func ensureBPF() throws(SystemError) {
        let point = "/sys/fs/bpf"
        if try isBPF(point) { return }
        guard mount("bpf", point, "bpf", 0, "mode=0700") == 0 else {
            throw SystemError(
                "mount", "the bpf file system", hint: "mount it at boot: mount -t bpf bpf \(point)")
        }
    }

    /// Whether a path lies in a bpf file system.
    /// - Throws: `ENOENT` if there is nothing at that path.
    public static func isBPF(_ path: String) throws(SystemError) -> Bool {
        var status = statfs()
        guard statfs(path, &status) == 0 else { throw SystemError("look at", path) }
        return status.f_type == 0xcafe_4a11  // BPF_FS_MAGIC
    }

    /// Whether a path lies in a cgroup2 file system.
    /// - Throws: `ENOENT` if there is nothing at that path.
    public static func isCgroup2(_ path: String) throws(SystemError) -> Bool {
        var status = statfs()
        guard statfs(path, &status) == 0 else { throw SystemError("look at", path) }
        return status.f_type == 0x6367_7270  // CGROUP2_SUPER_MAGIC
    }

    /// Undoes the kernel's escapes: a backslash and three octal digits.
    private static func unescape(_ field: Substring) -> String {
        guard field.contains("\\") else { return String(field) }
        var bytes: [UInt8] = []
        var rest = field
        while let escape = rest.firstIndex(of: "\\") {
            bytes += rest[..<escape].utf8
            rest = rest[escape...]
            if let value = UInt8(rest.dropFirst().prefix(3), radix: 8) {
                bytes.append(value)
                rest = rest.dropFirst(4)
            } else {
                bytes += rest.prefix(1).utf8
                rest = rest.dropFirst()
            }
        }
        return String(decoding: bytes + rest.utf8, as: UTF8.self)
    }
}

/// The C heap, which is Swift's too.
public enum Heap {
    /// From now on, blocks of 128 KiB and more go back to the kernel when they are freed, however often they
    /// come. Left to itself, the heap keeps the room of the largest that it ever had.
    public static func returnLargeBlocks() { mesh_return_large_blocks() }

    /// Gives what is free to the kernel. Takes a millisecond for a few megabytes.
    public static func trim() { mesh_trim_heap() }
}
