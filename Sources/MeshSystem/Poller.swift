// Waiting for many descriptors at once (epoll).
import CMeshSystem
import Glibc

/// An epoll instance. Waiting allocates nothing.
public struct Poller: ~Copyable {
    /// What to be told about.
    public struct Interest: OptionSet, Sendable {
        /// The epoll event bits.
        public let rawValue: UInt32
        /// Wraps epoll event bits.
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        /// There is something to read, or the other side is gone.
        public static let readable = Interest(rawValue: EPOLLIN.rawValue | EPOLLRDHUP.rawValue)
        /// There is room to write.
        public static let writable = Interest(rawValue: EPOLLOUT.rawValue)
        /// Told once per change rather than for as long as it lasts.
        public static let edgeTriggered = Interest(rawValue: EPOLLET.rawValue)
    }

    /// A descriptor that became ready.
    public struct Event: Equatable, Sendable {
        /// The token it was added with.
        public let token: UInt64
        private let bits: UInt32

        init(_ event: epoll_event) {
            token = event.data.u64
            bits = event.events
        }

        /// There is something to read, be it the end or an error.
        public var isReadable: Bool { bits & ~EPOLLOUT.rawValue != 0 }
        /// There is room to write, or writing would fail at once.
        public var isWritable: Bool { bits & EPOLLOUT.rawValue != 0 || isHangUp }
        /// Both directions are closed, or there is an error on the descriptor.
        public var isHangUp: Bool { bits & (EPOLLERR.rawValue | EPOLLHUP.rawValue) != 0 }
    }

    private let epoll: FileDescriptor
    private let events: UnsafeMutableBufferPointer<epoll_event>

    /// Makes a poller that reports up to `capacity` events per wait.
    public init(capacity: Int = 256) throws(SystemError) {
        let made = epoll_create1(Int32(EPOLL_CLOEXEC))
        guard made >= 0 else { throw SystemError("create", "an epoll instance") }
        epoll = FileDescriptor(owning: made)
        events = .allocate(capacity: capacity)
        events.initialize(repeating: epoll_event())
    }

    deinit { events.deallocate() }

    /// The poller's own descriptor; it is readable when an event waits.
    public var descriptor: Int32 { epoll.descriptor }

    /// Starts watching a descriptor. One that is closed stops being watched by itself.
    public func add(_ descriptor: Int32, token: UInt64, _ interest: Interest) throws(SystemError) {
        try control(EPOLL_CTL_ADD, descriptor, token, interest)
    }

    /// Changes token and interest of a watched descriptor.
    public func modify(_ descriptor: Int32, token: UInt64, _ interest: Interest) throws(SystemError) {
        try control(EPOLL_CTL_MOD, descriptor, token, interest)
    }

    /// Stops watching a descriptor.
    public func remove(_ descriptor: Int32) throws(SystemError) {
        try control(EPOLL_CTL_DEL, descriptor, 0, [])
    }

    private func control(
        _ operation: Int32, _ descriptor: Int32, _ token: UInt64, _ interest: Interest
    ) throws(SystemError) {
        var event = epoll_event(events: interest.rawValue, data: epoll_data_t(u64: token))
        guard epoll_ctl(epoll.descriptor, operation, descriptor, &event) == 0 else {
            throw SystemError("watch", "file descriptor \(descriptor)")
        }
    }

    /// Waits until something is ready or `timeout` nanoseconds passed (nil: for as long as it takes).
    /// - Returns: How many events there are, to be read with the subscript until the next wait; 0
    ///   after the timeout or a signal.
    public mutating func wait(timeout: UInt64?) throws(SystemError) -> Int {
        let count: Int32
        if let timeout {
            var limit = timespec(nanoseconds: timeout)
            count = epoll_pwait2(epoll.descriptor, events.baseAddress, Int32(events.count), &limit, nil)
        } else {
            count = epoll_pwait2(epoll.descriptor, events.baseAddress, Int32(events.count), nil, nil)
        }
        guard count >= 0 else {
            if errno == EINTR { return 0 }
            throw SystemError("wait for", "events")
        }
        return Int(count)
    }

    /// One event of the last wait.
    public subscript(index: Int) -> Event { Event(events[index]) }
}
