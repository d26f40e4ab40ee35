// Which processes have a trace ID bound to them, and the watch that ends a binding with its process,
// so that a reused process ID never inherits one.
import Glibc
import MeshCore
import MeshSystem

/// The pid → trace ID bindings.
final class TraceBindings {
    /// One binding.
    struct Binding {
        let pid: UInt32
        let trace: TraceID
        /// Monotonic nanoseconds.
        let since: UInt64
    }

    // A class, because a dictionary cannot hold a value that is not copyable.
    private final class Watch {
        let handle: ProcessHandle
        init(pid: Int32) throws(SystemError) { handle = try ProcessHandle(pid: pid) }
    }

    private(set) var bindings: [UInt32: Binding] = [:]
    private var watches: [UInt32: Watch] = [:]

    /// Notes a binding and watches its process.
    /// - Returns: The descriptor to poll: it becomes readable when the process exits. Nil if the
    ///   process is watched already.
    func bind(pid: UInt32, trace: TraceID, at now: UInt64) throws(SystemError) -> Int32? {
        var descriptor: Int32?
        if watches[pid] == nil {
            let watch = try Watch(pid: Int32(bitPattern: pid))
            descriptor = watch.handle.descriptor
            watches[pid] = watch
        }
        bindings[pid] = Binding(pid: pid, trace: trace, since: now)
        return descriptor
    }

    /// Forgets a binding; false if there was none. Closing the descriptor ends the watch.
    func unbind(pid: UInt32) -> Bool {
        watches[pid] = nil
        return bindings.removeValue(forKey: pid) != nil
    }
}
