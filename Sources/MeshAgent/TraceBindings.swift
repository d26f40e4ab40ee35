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
        /// When the process started, in clock ticks since boot.
        let started: UInt64
    }

    // A class, because a dictionary cannot hold a value that is not copyable.
    private final class Watch {
        let handle: ProcessHandle
        let started: UInt64
        init(pid: Int32) throws(SystemError) {
            handle = try ProcessHandle(pid: pid)
            // Asked with the handle in hand: it is that process, or none any more.
            started = try ProcessStatistics.startTicks(pid: pid)
        }
    }

    private(set) var bindings: [UInt32: Binding] = [:]
    private var watches: [UInt32: Watch] = [:]
    /// Those that changed since the bindings were last saved.
    private var changed: Set<UInt32> = []
    /// What a save that is under way has still to add.
    private var unsaved: [StateRow] = []

    /// Notes a binding and watches its process.
    /// - Returns: The descriptor to poll: it becomes readable when the process exits. Nil if the
    ///   process is watched already.
    func bind(pid: UInt32, trace: TraceID, at now: UInt64) throws(SystemError) -> Int32? {
        let known = watches[pid]
        let watch: Watch
        if let known { watch = known } else { watch = try Watch(pid: Int32(bitPattern: pid)) }
        watches[pid] = watch
        bindings[pid] = Binding(pid: pid, trace: trace, since: now, started: watch.started)
        changed.insert(pid)
        return known == nil ? watch.handle.descriptor : nil
    }

    /// Forgets a binding; false if there was none. Closing the descriptor ends the watch.
    func unbind(pid: UInt32) -> Bool {
        watches[pid] = nil
        changed.insert(pid)
        return bindings.removeValue(forKey: pid) != nil
    }

    /// Begins to save those that have changed since the last time, or all of them.
    func beginSave(_ scope: StateScope) {
        let pids = scope == .everything ? Set(bindings.keys) : changed
        unsaved = pids.map { pid in
            .binding(
                pid: pid,
                bindings[pid].map { StateBinding(trace: $0.trace, since: $0.since, started: $0.started) })
        }
        changed = []
    }

    /// Adds bindings as they were at `beginSave`.
    /// - Parameter limit: How many at most; so many less afterwards.
    func save(to writer: inout StateWriter, rows limit: inout Int) {
        while limit > 0, let row = unsaved.popLast() {
            writer.append(row)
            limit -= 1
        }
    }

    /// Binds a process again that an agent before had bound.
    /// - Returns: The descriptor to poll; nil if that process is gone, whoever has its ID now.
    func restore(pid: UInt32, _ binding: StateBinding) -> Int32? {
        guard let watch = try? Watch(pid: Int32(bitPattern: pid)), watch.started == binding.started else {
            return nil
        }
        watches[pid] = watch
        bindings[pid] = Binding(
            pid: pid, trace: binding.trace, since: binding.since, started: binding.started)
        return watch.handle.descriptor
    }
}
