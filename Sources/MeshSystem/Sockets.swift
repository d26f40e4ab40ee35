// Listening, connecting, and who is on the other side.
import CMeshSystem
import Glibc

/// Who opened the other side of a UNIX socket, as the kernel recorded it at connect.
public struct PeerCredentials: Equatable, Sendable {
    /// The process ID, in this process' PID namespace; 0 if it is not visible here.
    public let pid: Int32
    /// The effective user ID.
    public let uid: UInt32
    /// The effective group ID.
    public let gid: UInt32
}

/// A listening socket. A UNIX listener removes its path when it goes away.
public struct Listener: ~Copyable, Sendable {
    private let socket: FileDescriptor
    private let path: String?
    private let inode: ino_t
    /// Where it listens: `127.0.0.1:9464`, `[::1]:9464` or a path, with the real port if 0 was asked for.
    public let address: String
    /// The TCP port; 0 for a UNIX listener.
    public let port: UInt16

    private init(
        _ socket: consuming FileDescriptor, address: String, port: UInt16, path: String?, inode: ino_t
    ) {
        self.socket = socket
        self.address = address
        self.port = port
        self.path = path
        self.inode = inode
    }

    deinit {
        // Only our own: a successor may have taken the path over.
        guard let path else { return }
        var status = stat()
        if lstat(path, &status) == 0, status.st_ino == inode { unlink(path) }
    }

    /// Whether clients that go by the path come here: nobody has removed it, or put something else there.
    public var isInPlace: Bool {
        guard let path else { return true }
        var status = stat()
        return lstat(path, &status) == 0 && status.st_ino == inode
    }

    /// Readable while a connection waits to be accepted.
    public var descriptor: Int32 { socket.descriptor }

    /// Listens on a TCP port.
    /// - Parameters:
    ///   - address: A numeric IPv4 or IPv6 address, without brackets; `0.0.0.0` and `::` are all that
    ///     this machine has. An IPv6 listener does not take IPv4 connections.
    ///   - port: 0 for any free one.
    ///   - backlog: How many connections may wait to be accepted.
    /// - Throws: `EADDRINUSE` for a taken port, `EINVAL` for text that is no address.
    public static func tcp(
        address: String, port: UInt16, backlog: Int32 = 1024
    ) throws(SystemError) -> Listener {
        let operation = "listen on"
        let host = address.contains(":") ? "[\(address)]" : address
        guard var name = SocketAddress(ip: address, port: port) else {
            throw SystemError(
                operation, "\(host):\(port)", errno: EINVAL, reason: "that is not an IP address",
                hint: "write one such as 127.0.0.1 or ::1")
        }
        let socket = try makeSocket(name.family, operation, "\(host):\(port)", nonBlocking: true)
        // Take the port over from connections of an agent that just ended.
        setOption(socket.descriptor, SOL_SOCKET, SO_REUSEADDR, Int32(1))
        if name.family == AF_INET6 {
            setOption(socket.descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, Int32(1))
        }
        guard name.withPointer({ bind(socket.descriptor, $0, $1) }) == 0,
            listen(socket.descriptor, backlog) == 0, name.readName(of: socket.descriptor)
        else {
            let number = errno
            let hint: String? =
                switch number {
                case EADDRINUSE: "stop the program that listens there, or choose another address or port"
                case EADDRNOTAVAIL: "choose an address that this machine has"
                case EACCES: "choose a port from 1024 upward, or lower net.ipv4.ip_unprivileged_port_start"
                default: nil
                }
            throw SystemError(operation, "\(host):\(port)", errno: number, hint: hint)
        }
        return Listener(socket, address: "\(host):\(name.port)", port: name.port, path: nil, inode: 0)
    }

    /// Listens on a path that only this user and root reach: the directory is made with mode 0700 if it is
    /// missing, the socket has mode 0600. A socket that a dead process left is taken over. Of two agents that start
    /// together, the `FileLock` beside the socket lets one come so far.
    /// - Throws: `EADDRINUSE` when someone answers at that path, `EEXIST` when something that is no
    ///   socket lies there, `EACCES` or `ELOOP` when others could put a socket of their own there.
    public static func unix(path: String, backlog: Int32 = 128) throws(SystemError) -> Listener {
        let operation = "listen on"
        guard var name = SocketAddress(path: path) else { throw SocketAddress.badPath(operation, path) }
        let directory = try SocketDirectory.open(directory(of: path))
        let file = path.split(separator: "/", omittingEmptySubsequences: false).last.map(String.init) ?? path
        try removeStaleSocket(path, directory, file, operation)

        let socket = try makeSocket(AF_UNIX, operation, path, nonBlocking: true)
        // The path is made with the socket's own mode, so there is no moment in which others could connect.
        var status = stat()
        guard fchmod(socket.descriptor, 0o600) == 0,
            name.withPointer({ bind(socket.descriptor, $0, $1) }) == 0
        else { throw SystemError(operation, path) }
        guard fstatat(directory.descriptor, file, &status, AT_SYMLINK_NOFOLLOW) == 0,
            listen(socket.descriptor, backlog) == 0
        else {
            let error = SystemError(operation, path)
            unlinkat(directory.descriptor, file, 0)
            throw error
        }
        return Listener(socket, address: path, port: 0, path: path, inode: status.st_ino)
    }

    /// The next waiting connection, non-blocking and closed on exec; nil when none waits.
    /// - Throws: `EMFILE` and the like; the connection then still waits.
    public func accept() throws(SystemError) -> FileDescriptor? {
        while true {
            let accepted = mesh_accept(socket.descriptor)
            if accepted >= 0 { return FileDescriptor(owning: accepted) }
            switch errno {
            case EAGAIN: return nil
            case EMFILE, ENFILE, ENOBUFS, ENOMEM, EBADF, EINVAL, EFAULT, ENOTSOCK, EOPNOTSUPP:
                throw SystemError("accept a connection on", address)
            // Everything else is about the one connection, which is gone (see accept(2)).
            default: continue
            }
        }
    }

    private static func removeStaleSocket(
        _ path: String, _ directory: borrowing FileDescriptor, _ file: String, _ operation: String
    ) throws(SystemError) {
        var status = stat()
        guard fstatat(directory.descriptor, file, &status, AT_SYMLINK_NOFOLLOW) == 0 else { return }
        guard status.st_mode & S_IFMT == S_IFSOCK else {
            throw SystemError(
                operation, path, errno: EEXIST, reason: "something that is not a socket is there",
                hint: "remove it, or choose another path")
        }
        do {
            _ = try FileDescriptor(connectingTo: path, timeout: 1_000_000)
        } catch {
            switch error.errno {
            case ECONNREFUSED:
                guard unlinkat(directory.descriptor, file, 0) == 0 || errno == ENOENT else {
                    throw SystemError("remove", path)
                }
                return
            case ENOENT: return
            // A full backlog: whoever it is, it lives.
            case EAGAIN: break
            default: throw SystemError(operation, path, errno: error.errno)
            }
        }
        throw SystemError(
            operation, path, errno: EADDRINUSE, reason: "another agent answers at \(path)",
            hint: "stop it first, or choose another path")
    }
}

extension FileDescriptor {
    /// Connects to a UNIX socket. The result blocks, and each later read or write waits no longer than
    /// `timeout` either (see `setTimeouts`).
    /// - Parameter timeout: Nanoseconds.
    /// - Throws: `ENOENT` and `ECONNREFUSED` when nobody listens there, `EACCES` when this user may
    ///   not, `EAGAIN` after the timeout.
    public init(connectingTo path: String, timeout: UInt64) throws(SystemError) {
        let operation = "connect to"
        guard var name = SocketAddress(path: path) else { throw SocketAddress.badPath(operation, path) }
        let socket = try makeSocket(AF_UNIX, operation, path, nonBlocking: false)
        socket.setTimeouts(receive: timeout, send: timeout)
        guard retrying({ name.withPointer { connect(socket.descriptor, $0, $1) } }) == 0 else {
            let number = errno
            switch number {
            case ENOENT, ECONNREFUSED:
                throw SystemError(
                    operation, path, errno: number, reason: "no agent is there",
                    hint: "start it with `mesh-agent run`")
            case EACCES, EPERM: throw SystemError(operation, path, errno: number, hint: "run this as root")
            case EAGAIN:
                throw SystemError(operation, path, errno: number, reason: "it did not answer in time")
            default: throw SystemError(operation, path, errno: number)
            }
        }
        self = socket
    }

    /// Limits how long a blocking socket's reads and writes wait, in nanoseconds; nil is for ever.
    /// After that they come to `.wouldBlock`.
    public func setTimeouts(receive: UInt64?, send: UInt64?) {
        for (option, limit) in [(SO_RCVTIMEO, receive), (SO_SNDTIMEO, send)] {
            // To the kernel zero means for ever; so the shortest is a microsecond.
            let microseconds = limit.map { max(1, $0 / 1000) } ?? 0
            let time = timeval(
                tv_sec: Int(microseconds / 1_000_000), tv_usec: Int(microseconds % 1_000_000))
            setOption(descriptor, SOL_SOCKET, option, time)
        }
    }

    /// Who connected, for a connected UNIX socket.
    public func peerCredentials() throws(SystemError) -> PeerCredentials {
        var pid: Int32 = 0
        var uid: UInt32 = 0
        var gid: UInt32 = 0
        guard mesh_peer_credentials(descriptor, &pid, &uid, &gid) == 0 else {
            throw SystemError("ask who is on the other side of", "file descriptor \(descriptor)")
        }
        return PeerCredentials(pid: pid, uid: uid, gid: gid)
    }
}

/// The name of a user, nil when there is none for that ID.
public func userName(ofUID uid: UInt32) -> String? {
    var entry = passwd()
    var found: UnsafeMutablePointer<passwd>?
    return withUnsafeTemporaryAllocation(of: CChar.self, capacity: 16384) { buffer in
        let result = getpwuid_r(uid, &entry, buffer.baseAddress!, buffer.count, &found)
        guard result == 0, let found else { return nil }
        return String(cString: found.pointee.pw_name)
    }
}

/// Who does something, as histories and logs name them: `root (pid 1234)`.
/// - Parameter user: The name of `uid`, nil if it has none.
public func actorName(_ user: String?, uid: UInt32, pid: Int32) -> String {
    "\(user ?? "uid \(uid)") (pid \(pid))"
}

private func makeSocket(
    _ family: Int32, _ operation: String, _ subject: String, nonBlocking: Bool
) throws(SystemError) -> FileDescriptor {
    let flags = SOCK_CLOEXEC.rawValue | (nonBlocking ? SOCK_NONBLOCK.rawValue : 0)
    let made = socket(family, Int32(SOCK_STREAM.rawValue | flags), 0)
    guard made >= 0 else { throw SystemError(operation, subject) }
    return FileDescriptor(owning: made)
}

private func setOption<Value: BitwiseCopyable>(
    _ socket: Int32, _ level: Int32, _ option: Int32, _ value: Value
) {
    withUnsafePointer(to: value) { pointer in
        _ = setsockopt(socket, level, option, pointer, socklen_t(MemoryLayout<Value>.size))
    }
}

/// A sockaddr of any of the three families.
private struct SocketAddress {
    private var storage = sockaddr_storage()
    private var length: socklen_t

    var family: Int32 { Int32(storage.ss_family) }

    init?(ip: String, port: UInt16) {
        var v4 = sockaddr_in()
        var v6 = sockaddr_in6()
        if inet_pton(AF_INET, ip, &v4.sin_addr) == 1 {
            v4.sin_family = sa_family_t(AF_INET)
            v4.sin_port = port.bigEndian
            length = socklen_t(MemoryLayout<sockaddr_in>.size)
            withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: v4, as: sockaddr_in.self) }
        } else if inet_pton(AF_INET6, ip, &v6.sin6_addr) == 1 {
            v6.sin6_family = sa_family_t(AF_INET6)
            v6.sin6_port = port.bigEndian
            length = socklen_t(MemoryLayout<sockaddr_in6>.size)
            withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: v6, as: sockaddr_in6.self) }
        } else {
            return nil
        }
    }

    init?(path: String) {
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        // A terminating zero belongs to it, and a zero within would cut it short.
        guard !bytes.isEmpty, bytes.count < MemoryLayout.size(ofValue: name.sun_path), !bytes.contains(0)
        else { return nil }
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        length = socklen_t(MemoryLayout<sockaddr_un>.size)
        withUnsafeMutableBytes(of: &storage) { $0.storeBytes(of: name, as: sockaddr_un.self) }
    }

    static func badPath(_ operation: String, _ path: String) -> SystemError {
        SystemError(
            operation, path.isEmpty ? "an empty path" : path, errno: ENAMETOOLONG,
            reason: "a socket's path has 1 to 107 bytes", hint: "choose another path")
    }

    mutating func withPointer<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
        let length = length
        return withUnsafePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, length) }
        }
    }

    /// Replaces this by the address that a socket is bound to.
    mutating func readName(of socket: Int32) -> Bool {
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &storage) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket, $0, &size) }
        } == 0
    }

    /// The port, which lies at the same place for IPv4 and IPv6.
    var port: UInt16 {
        withUnsafeBytes(of: storage) {
            UInt16(bigEndian: $0.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
        }
    }
}
