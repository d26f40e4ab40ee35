// A file that grows by commits: each is there in full once `append` has returned, and a file that takes its place
// does so at once. It outlives the process, not the machine, so nothing is forced to a disk.
import Glibc

/// A log that one process writes.
public struct StateFile: ~Copyable {
    private let file: FileDescriptor
    private let path: String
    /// How many bytes it has.
    public private(set) var count: Int
    /// Whether it is at its path, and not beside it.
    private var isInPlace: Bool

    private static func fresh(_ path: String) -> String { path + ".new" }

    /// Begins a new file, which is to take the place of what is at a path: see `putInPlace`.
    public init(replacing path: String, with head: [UInt8]) throws(SystemError) {
        let fresh = StateFile.fresh(path)
        // One that a process left that was stopped right here.
        unlink(fresh)
        let file = try FileDescriptor(opening: fresh, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW)
        do throws(SystemError) {
            try head.withUnsafeBytes { bytes in
                Result { () throws(SystemError) in
                    try StateFile.write(bytes, to: file.descriptor, at: 0, fresh)
                }
            }.get()
        } catch {
            unlink(fresh)
            throw error
        }
        self.init(file, path: path, count: head.count, isInPlace: false)
    }

    deinit {
        if !isInPlace { unlink(StateFile.fresh(path)) }
    }

    /// Puts it in the place of what is at its path, at once.
    public mutating func putInPlace() throws(SystemError) {
        guard !isInPlace else { return }
        guard rename(StateFile.fresh(path), path) == 0 else { throw SystemError("put in place", path) }
        isInPlace = true
    }

    /// Goes on with a file that another process has left, of which so many bytes are good.
    public init(extending path: String, to end: Int) throws(SystemError) {
        let file = try FileDescriptor(opening: path, O_RDWR | O_NOFOLLOW)
        guard ftruncate(file.descriptor, off_t(end)) == 0 else { throw SystemError("cut off", path) }
        self.init(file, path: path, count: end, isInPlace: true)
    }

    private init(_ file: consuming FileDescriptor, path: String, count: Int, isInPlace: Bool) {
        self.file = file
        self.path = path
        self.count = count
        self.isInPlace = isInPlace
    }

    /// Whether it is what lies at its path: nobody has removed it, or put another there.
    public var isAtPath: Bool {
        var (ours, there) = (stat(), stat())
        return fstat(file.descriptor, &ours) == 0 && lstat(path, &there) == 0 && ours.st_ino == there.st_ino
    }

    /// Adds bytes at the end, all of them or none.
    public mutating func append(_ bytes: UnsafeRawBufferPointer) throws(SystemError) {
        try write(bytes, beyond: 0)
        grow(by: bytes.count)
    }

    /// Writes bytes so far beyond the end. They are not part of it before it has grown by them; if they cannot be
    /// written, all that is beyond the end goes.
    public mutating func write(_ bytes: UnsafeRawBufferPointer, beyond offset: Int) throws(SystemError) {
        do throws(SystemError) {
            try StateFile.write(bytes, to: file.descriptor, at: count + offset, path)
        } catch {
            _ = ftruncate(file.descriptor, off_t(count))
            throw error
        }
    }

    /// Makes so many bytes that were written beyond the end a part of it.
    public mutating func grow(by length: Int) { count += length }

    /// Cuts it off at so many bytes.
    public mutating func truncate(to length: Int) {
        guard length < count, ftruncate(file.descriptor, off_t(length)) == 0 else { return }
        count = length
    }

    private static func write(
        _ bytes: UnsafeRawBufferPointer, to descriptor: Int32, at offset: Int, _ path: String
    ) throws(SystemError) {
        var done = 0
        while done < bytes.count {
            let count = retrying {
                pwrite(
                    descriptor, bytes.baseAddress! + done, bytes.count - done, off_t(offset + done))
            }
            guard count > 0 else {
                throw SystemError("write", path, errno: count == 0 ? ENOSPC : errno)
            }
            done += count
        }
    }
}
