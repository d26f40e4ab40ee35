// What this process may do, and how it gives up what it does not need: capabilities, what execve() could
// bring, and system calls.
import CMeshSystem
import Glibc

/// What the kernel lets a thread do, as /proc tells it.
public struct Privileges: Equatable, Sendable {
    /// The effective capabilities.
    public var capabilities: Capabilities
    /// Whether execve() gives it nothing that it does not have (`no_new_privs`).
    public var gainsNone: Bool
    /// Whether a filter looks at its system calls.
    public var isFiltered: Bool

    /// Those of the calling thread.
    public static func now() throws(SystemError) -> Privileges {
        let path = "/proc/thread-self/status"
        guard let found = Privileges(status: try readText(path)) else {
            throw SystemError("read", path, errno: EINVAL, reason: "it does not look as proc(5) says")
        }
        return found
    }

    /// Reads the text of /proc/PID/status.
    init?(status: String) {
        func value(_ key: String) -> Substring? {
            status.split(separator: "\n").first { $0.hasPrefix("\(key):") }
                .map { $0.dropFirst(key.utf8.count + 1).drop { $0 == "\t" || $0 == " " } }
        }
        guard let digits = value("CapEff"), let bits = UInt64(digits, radix: 16) else { return nil }
        capabilities = Capabilities(rawValue: bits)
        gainsNone = value("NoNewPrivs") == "1"
        isFiltered = value("Seccomp") == "2"
    }

    /// Gives up all capabilities but some, and whatever execve() could bring. To be called before other
    /// threads are started: it is for the calling one and those that it starts.
    public static func reduce(to kept: Capabilities) throws(SystemError) {
        guard mesh_reduce_capabilities(kept.rawValue) == 0 else {
            throw SystemError("give up", "capabilities")
        }
    }

    /// Filters the system calls of every thread from now on: no program is run, nothing is mounted or
    /// loaded into the kernel, no other process is touched. What ends the process and what is refused:
    /// `sandbox.c`.
    public static func filterCalls() throws(SystemError) {
        guard mesh_filter_calls() == 0 else { throw SystemError("filter", "system calls") }
    }

    /// How many system calls the filter has refused so far, and the number of the last one.
    public static var refusedCalls: (count: UInt64, last: Int) {
        var last: Int32 = 0
        let count = mesh_refused_calls(&last)
        return (count, Int(last))
    }
}
