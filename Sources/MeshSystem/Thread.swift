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

    /// Has the scheduler run the calling thread as soon as it wakes. It gets a short slice and a nice value of
    /// -10, which count among the threads of its own cgroup only, and with `realTime` the lowest real-time
    /// priority, which counts on the whole machine. That one is lent: a thread that runs for 100 ms without
    /// waiting for anything loses it until it is asked for again. Threads that it starts get none of this.
    /// - Returns: Why some of it could not be had (`EPERM`: it takes `CAP_SYS_NICE`); nil if all could.
    public static func favour(realTime: Bool) -> SystemError? {
        let result = mesh_favour_thread(-10, 100_000, realTime ? 100_000 : 0)
        return result == 0 ? nil : SystemError("raise the priority of", "the thread", errno: result)
    }

    /// Has the calling thread, if it has real-time priority, go on on a CPU that it may have, and leaves it all those:
    /// such a thread is woken where it last ran, as long as nothing of its priority or a higher one runs there
    /// (`select_task_rq_rt`). For one thread of a process.
    /// - Returns: Whether it went to another one, which takes some tens of microseconds.
    public static func go(toCPU cpu: UInt32) -> Bool { mesh_go_to_cpu(cpu) }

    /// CPU time that the calling thread has used so far, in nanoseconds.
    public static func cpuTime() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
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
