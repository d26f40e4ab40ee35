// Descriptors made to be waited for: counters, timers, signals, processes.
import CMeshSystem
import Glibc

/// A counter that any thread may raise to wake a poller (eventfd).
public struct EventCounter: ~Copyable, Sendable {
    private let file: FileDescriptor

    /// Makes a counter at zero.
    public init() throws(SystemError) {
        let made = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
        guard made >= 0 else { throw SystemError("create", "an eventfd") }
        file = FileDescriptor(owning: made)
    }

    /// Readable while the counter is not zero.
    public var descriptor: Int32 { file.descriptor }

    /// Adds one. Safe on any thread.
    public func signal() {
        // Fails only when the counter is full, and then it is readable anyway.
        _ = retrying { eventfd_write(file.descriptor, 1) }
    }

    /// Takes the count and sets it back to zero.
    @discardableResult
    public func drain() -> UInt64 {
        var count: eventfd_t = 0
        return retrying { eventfd_read(file.descriptor, &count) } == 0 ? count : 0
    }
}

/// A timer on CLOCK_MONOTONIC (timerfd).
public struct TimerDescriptor: ~Copyable, Sendable {
    private let file: FileDescriptor

    /// Makes a timer that is not set.
    public init() throws(SystemError) {
        let made = timerfd_create(CLOCK_MONOTONIC, Int32(TFD_NONBLOCK | TFD_CLOEXEC))
        guard made >= 0 else { throw SystemError("create", "a timerfd") }
        file = FileDescriptor(owning: made)
    }

    /// Readable once the time has come, until `drain`.
    public var descriptor: Int32 { file.descriptor }

    /// Sets the timer to a time on CLOCK_MONOTONIC, in nanoseconds; one that has passed fires at once.
    /// - Parameter interval: Nanoseconds after which it fires again, and again; 0 for once.
    public func set(at time: UInt64, every interval: UInt64 = 0) {
        // A time of zero would disarm it.
        arm(itimerspec(it_interval: .init(nanoseconds: interval), it_value: .init(nanoseconds: max(1, time))))
    }

    /// Unsets the timer.
    public func cancel() { arm(itimerspec()) }

    private func arm(_ setting: itimerspec) {
        var setting = setting
        let result = timerfd_settime(file.descriptor, Int32(TFD_TIMER_ABSTIME), &setting, nil)
        precondition(result == 0, "timerfd_settime takes any time")
    }

    /// How often the timer fired since it was last asked or set.
    @discardableResult
    public func drain() -> UInt64 {
        var count: UInt64 = 0
        let size = MemoryLayout<UInt64>.size
        return retrying { read(file.descriptor, &count, size) } == size ? count : 0
    }
}

/// Signals read as events instead of interrupting the program (signalfd).
public struct SignalDescriptor: ~Copyable, Sendable {
    private let file: FileDescriptor

    /// Blocks the signals in the calling thread, and so in every thread that it starts later, and
    /// queues them here. Call it before any thread is started.
    public init(_ signals: [Int32] = [SIGTERM, SIGINT, SIGHUP]) throws(SystemError) {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
        pthread_sigmask(SIG_BLOCK, &set, nil)
        let made = signalfd(-1, &set, Int32(SFD_NONBLOCK | SFD_CLOEXEC))
        guard made >= 0 else { throw SystemError("create", "a signalfd") }
        file = FileDescriptor(owning: made)
    }

    /// Readable while a signal waits.
    public var descriptor: Int32 { file.descriptor }

    /// The next signal that arrived, nil when there is none.
    public func next() -> Int32? {
        var info = signalfd_siginfo()
        let size = MemoryLayout<signalfd_siginfo>.size
        return retrying { read(file.descriptor, &info, size) } == size ? Int32(info.ssi_signo) : nil
    }
}

/// A process that can be watched without being its parent, and whose number cannot be reused
/// under one's hands (pidfd).
public struct ProcessHandle: ~Copyable, Sendable {
    /// The process ID.
    public let pid: Int32
    private let file: FileDescriptor

    /// Opens a running process; `ESRCH` when there is none of that number.
    public init(pid: Int32) throws(SystemError) {
        let opened = mesh_pidfd_open(pid)
        guard opened >= 0 else { throw SystemError("watch", "process \(pid)") }
        self.pid = pid
        file = FileDescriptor(owning: opened)
    }

    /// When a process began, in monotonic nanoseconds, to a hundredth of a second; nil if there is none.
    public static func began(pid: UInt32) -> UInt64? {
        guard let text = try? readText("/proc/\(pid)/stat"),
            let ticks = ProcessStatistics.startTicks(stat: text)
        else { return nil }
        // The kernel counts it from boot with the time asleep, and the monotonic clock without.
        var sinceBoot = timespec()
        clock_gettime(CLOCK_BOOTTIME, &sinceBoot)
        let asleep =
            UInt64(sinceBoot.tv_sec) * 1_000_000_000 + UInt64(sinceBoot.tv_nsec) &- MonotonicClock.now()
        let began = ticks * (1_000_000_000 / UInt64(sysconf(Int32(_SC_CLK_TCK))))
        return began > asleep ? began - asleep : 0
    }

    /// Readable once the process has exited.
    public var descriptor: Int32 { file.descriptor }

    /// Whether the process has exited.
    public var hasExited: Bool {
        var wanted = pollfd(fd: file.descriptor, events: Int16(POLLIN), revents: 0)
        return retrying { poll(&wanted, 1, 0) } == 1
    }
}
