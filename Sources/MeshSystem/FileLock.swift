// A lock that is a file: one process holds it, the kernel takes it away when that process ends, however it
// ends, and the others can read who it is.
import Glibc

/// A held lock. The file goes when it is released.
public struct FileLock: ~Copyable, Sendable {
    private let file: FileDescriptor
    private let path: String

    private init(_ file: consuming FileDescriptor, path: String) {
        self.file = file
        self.path = path
    }

    deinit { unlink(path) }

    /// What came of trying.
    public enum Attempt: ~Copyable {
        case taken(FileLock)
        /// By a process of that number; nil while it is about to say so.
        case held(by: Int32?)
    }

    /// How long whoever only looks waits for another one who does: that takes milliseconds.
    public static let patience: UInt64 = 1_000_000_000

    /// Takes the lock if nobody holds it for that long, in nanoseconds. Its directory is made if it is missing.
    /// - Throws: `EACCES` or `ELOOP` for a directory that others could change.
    public static func attempt(_ path: String, waiting patience: UInt64) throws(SystemError) -> Attempt {
        let deadline = MonotonicClock.now() + patience
        while true {
            switch try attempt(path) {
            case .taken(let lock): return .taken(lock)
            case .held(let holder):
                if MonotonicClock.now() >= deadline { return .held(by: holder) }
            }
            usleep(10_000)
        }
    }

    /// The same without waiting.
    public static func attempt(_ path: String) throws(SystemError) -> Attempt {
        let directory = try SocketDirectory.open(directory(of: path))
        let name = path.split(separator: "/").last.map(String.init) ?? path
        while true {
            let opened = retrying {
                openat(directory.descriptor, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0o600)
            }
            guard opened >= 0 else { throw SystemError("lock", path) }
            let file = FileDescriptor(owning: opened)
            guard retrying({ flock(file.descriptor, LOCK_EX | LOCK_NB) }) == 0 else {
                guard errno == EWOULDBLOCK else { throw SystemError("lock", path) }
                let holder = try? readText(path, limit: 64)
                return .held(by: holder.flatMap { Int32($0.prefix { $0.isNumber }) })
            }
            // The file may be one that its holder has removed meanwhile: then there is another.
            var ours = stat()
            var there = stat()
            guard fstat(file.descriptor, &ours) == 0, lstat(path, &there) == 0, ours.st_ino == there.st_ino
            else { continue }
            let line = Array("\(getpid())\n".utf8)
            guard ftruncate(file.descriptor, 0) == 0,
                line.withUnsafeBytes({ pwrite(file.descriptor, $0.baseAddress, $0.count, 0) }) == line.count
            else { throw SystemError("write to", path) }
            return .taken(FileLock(file, path: path))
        }
    }
}
