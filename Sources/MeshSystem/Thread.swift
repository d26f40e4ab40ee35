// Operating-system threads with names. The agent's loops are threads of their own rather than tasks,
// so that nothing else is scheduled in between.
import CMeshSystem
import Glibc

/// A running thread that may be waited for; dropping the value lets the thread run on its own.
public struct Thread: ~Copyable, Sendable {
    private let thread: pthread_t

    private init(_ thread: pthread_t) { self.thread = thread }

    deinit { pthread_detach(thread) }

    /// Starts a thread.
    /// - Parameters:
    ///   - name: Shown by `ps -L` and debuggers; the kernel keeps the first 15 bytes.
    ///   - body: What the thread does. It runs outside every actor.
    public static func spawn(
        name: String, _ body: @escaping @Sendable () -> Void
    ) throws(SystemError) -> Thread {
        let start = Unmanaged.passRetained(Start(name: name, body: body))
        var thread = pthread_t()
        let result = pthread_create(
            &thread, nil,
            { argument in
                let start = Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
                _ = start.name.withCString(mesh_set_thread_name)
                start.body()
                return nil
            }, start.toOpaque())
        guard result == 0 else {
            start.release()
            throw SystemError("start", "the thread \(name)", errno: result)
        }
        return Thread(thread)
    }

    /// Waits until the thread's body returned.
    public consuming func join() {
        pthread_join(thread, nil)
        discard self
    }

    /// Has the scheduler run the calling thread soon after it wakes, for as long as it runs briefly: a short
    /// slice, and a nice value of -10 where that is allowed. It stays an ordinary thread, so that it can take
    /// a CPU from nobody for long. Threads that it starts later are as others.
    /// - Returns: Why the nice value could not be had (`EPERM`: it takes `CAP_SYS_NICE`); nil if it could.
    public static func favour() -> SystemError? {
        let slice: UInt64 = 100_000
        let result = mesh_favour_thread(-10, slice)
        guard result != 0 else { return nil }
        _ = mesh_favour_thread(19, slice)  // as nice as it is
        return SystemError("favour", "the thread", errno: result)
    }

    private final class Start: Sendable {
        let name: String
        let body: @Sendable () -> Void

        init(name: String, body: @escaping @Sendable () -> Void) {
            // The kernel refuses longer names. Cut between characters, not within one.
            var short = name
            while short.utf8.count > 15 { short.removeLast() }
            self.name = short
            self.body = body
        }
    }
}
