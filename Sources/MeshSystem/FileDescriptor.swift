// An owned file descriptor, with reading and writing that know about signals and non-blocking mode.
import Glibc

/// What reading or writing came to.
public enum Transfer: Equatable, Sendable {
    /// That many bytes were moved; at least one.
    case bytes(Int)
    /// Nothing can be moved now without waiting, or a timeout passed.
    case wouldBlock
    /// The end of the file, or the other side is gone.
    case closed
}

/// A file descriptor that is closed when its owner goes away.
public struct FileDescriptor: ~Copyable, Sendable {
    /// The number, for system calls. It is valid only as long as this value lives.
    public let descriptor: Int32

    /// Takes over an open descriptor.
    public init(owning descriptor: Int32) {
        self.descriptor = descriptor
    }

    /// Opens a file, with `O_CLOEXEC` added to `flags`.
    public init(opening path: String, _ flags: Int32 = O_RDONLY, mode: mode_t = 0o600) throws(SystemError) {
        let opened = retrying { open(path, flags | O_CLOEXEC, mode) }
        guard opened >= 0 else { throw SystemError("open", path) }
        self.init(owning: opened)
    }

    /// Duplicates a descriptor that someone else owns; the copy is closed on exec.
    public init(duplicating number: Int32) throws(SystemError) {
        let copy = fcntl(number, F_DUPFD_CLOEXEC, 0)
        guard copy >= 0 else { throw SystemError("duplicate", "file descriptor \(number)") }
        self.init(owning: copy)
    }

    deinit { _ = close(descriptor) }

    /// Gives the descriptor up without closing it.
    public consuming func release() -> Int32 {
        let number = descriptor
        discard self
        return number
    }

    /// Switches non-blocking mode on or off.
    public func setNonBlocking(_ on: Bool) throws(SystemError) {
        let flags = fcntl(descriptor, F_GETFL)
        let wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK
        guard flags >= 0, fcntl(descriptor, F_SETFL, wanted) == 0 else {
            throw SystemError("set the mode of", "file descriptor \(descriptor)")
        }
    }

    /// Reads what is there, at most `buffer.count` bytes, going on after a signal.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(SystemError) -> Transfer {
        try transfer("read from") { Glibc.read(descriptor, buffer.baseAddress, buffer.count) }
    }

    /// Writes as much of at least one byte as fits, going on after a signal. For sockets, use `send`:
    /// writing to one whose other side is gone raises SIGPIPE.
    public func write(_ bytes: UnsafeRawBufferPointer) throws(SystemError) -> Transfer {
        try transfer("write to") { Glibc.write(descriptor, bytes.baseAddress, bytes.count) }
    }

    /// Sends as much of at least one byte as fits to the other side of a socket, never raising SIGPIPE.
    public func send(_ bytes: UnsafeRawBufferPointer) throws(SystemError) -> Transfer {
        try transfer("send to") {
            Glibc.send(descriptor, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
        }
    }

    private func transfer(_ operation: String, _ call: () -> Int) throws(SystemError) -> Transfer {
        let count = retrying(call)
        if count > 0 { return .bytes(count) }
        if count == 0 { return .closed }
        switch errno {
        case EAGAIN: return .wouldBlock
        case EPIPE, ECONNRESET: return .closed
        default: throw SystemError(operation, "file descriptor \(descriptor)")
        }
    }
}

/// Repeats a system call for as long as a signal interrupts it.
func retrying<Result: SignedInteger>(_ call: () -> Result) -> Result {
    while true {
        let result = call()
        if result != -1 || errno != EINTR { return result }
    }
}
