// Network namespaces by the number of their file: interfaces are numbered in each anew.
import CMeshSystem
import Glibc

/// A network namespace.
public enum NetworkNamespace {
    private static let own = "/proc/thread-self/ns/net"

    /// The number of the calling thread's; 0 if /proc is not there.
    public static var current: UInt64 { number(of: own) ?? 0 }

    /// Runs something with the calling thread in another namespace.
    /// - Returns: Nil if that namespace has no name any more: no process is in it, and none is mounted.
    public static func inside<Result>(
        _ wanted: UInt64, _ body: () throws(SystemError) -> Result
    ) throws(SystemError) -> Result? {
        if wanted == current { return try body() }
        guard let path = path(of: wanted) else { return nil }
        let home = try FileDescriptor(opening: own)
        let there = try FileDescriptor(opening: path)
        guard mesh_enter_network(there.descriptor) == 0 else { throw SystemError("enter", path) }
        defer {
            let back = mesh_enter_network(home.descriptor)
            precondition(back == 0, "a thread may go back to where it came from")
        }
        return try body()
    }

    private static func number(of path: String) -> UInt64? {
        var status = stat()
        return stat(path, &status) == 0 ? UInt64(status.st_ino) : nil
    }

    private static func path(of wanted: UInt64) -> String? {
        let named = directoryNames("/run/netns").map { "/run/netns/" + $0 }
        let processes = directoryNames("/proc").filter { $0.first!.isNumber }.map { "/proc/\($0)/ns/net" }
        return (named + processes).first { number(of: $0) == wanted }
    }
}
