// The two clocks: one that only moves forward and that the kernel's eBPF programs share, and the
// calendar's.
import Glibc

/// CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns()`.
public enum MonotonicClock {
    /// Nanoseconds since boot, not counting sleep.
    public static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// What to add to a time of this clock, at this moment, for nanoseconds since 1970.
    public static func wallOffset() -> UInt64 {
        let wall = WallTime.now()
        return UInt64(wall.seconds) * 1_000_000_000 + UInt64(wall.nanoseconds) &- now()
    }
}

/// A time on the calendar's clock.
public struct WallTime: Equatable, Sendable {
    /// Seconds since 1970-01-01T00:00:00Z.
    public var seconds: Int64
    /// Nanoseconds within that second.
    public var nanoseconds: UInt32

    /// A time given in parts.
    public init(seconds: Int64, nanoseconds: UInt32) {
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }

    /// The time it is.
    public static func now() -> WallTime {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return WallTime(seconds: Int64(time.tv_sec), nanoseconds: UInt32(time.tv_nsec))
    }
}

extension timespec {
    init(nanoseconds: UInt64) {
        self.init(
            tv_sec: Int(nanoseconds / 1_000_000_000), tv_nsec: Int(nanoseconds % 1_000_000_000))
    }
}
