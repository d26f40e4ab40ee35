// A file that grows by commits: each is there in full once `append` has returned, and a file that takes its place
// does so at once. It outlives the process, not the machine, so nothing is forced to a disk.
import Glibc

/// A log that one process writes.
public struct StateFile: ~Copyable {
    private let file: FileDescriptor
    private let path: String
    /// How many bytes it has.
    public private(set) var count: Int

    /// Puts a new file in the place of what is at a path: it is there with both parts of its content, or not at
    /// all.
    public init(
        replacing path: String, with head: [UInt8], _ rest: UnsafeRawBufferPointer
    ) throws(SystemError) {
        let fresh = path + ".new"
        // One that a process left that was stopped right here.
        unlink(fresh)
        do throws(SystemError) {
            let file = try FileDescriptor(opening: fresh, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW)
            try head.withUnsafeBytes { bytes in
                Result { () throws(SystemError) in
                    try StateFile.write(bytes, to: file.descriptor, at: 0, fresh)
                }
            }.get()
            try StateFile.write(rest, to: file.descriptor, at: head.count, fresh)
            guard rename(fresh, path) == 0 else { throw SystemError("put in place", path) }
            self.file = file
            self.path = path
            count = head.count + rest.count
        } catch {
            unlink(fresh)
            throw error
        }
    }

    /// Goes on with a file that another process has left, of which so many bytes are good.
    public init(extending path: String, to end: Int) throws(SystemError) {
        let file = try FileDescriptor(opening: path, O_RDWR | O_NOFOLLOW)
        guard ftruncate(file.descriptor, off_t(end)) == 0 else { throw SystemError("cut off", path) }
        self.file = file
        self.path = path
        count = end
    }

    /// Adds bytes at the end, all of them or none.
    public mutating func append(_ bytes: UnsafeRawBufferPointer) throws(SystemError) {
        do throws(SystemError) {
            try StateFile.write(bytes, to: file.descriptor, at: count, path)
        } catch {
            // What was written of it must not come before what is written next.
            _ = ftruncate(file.descriptor, off_t(count))
            throw error
        }
        count += bytes.count
    }

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
