// Whole small files: configuration, /proc and /sys.
import Glibc

/// Reads a whole file.
/// - Parameters:
///   - path: Where it is.
///   - limit: The most bytes that are accepted.
/// - Throws: `EFBIG` for a longer file, `EISDIR` for a directory, else what opening and reading says.
public func readFile(_ path: String, limit: Int) throws(SystemError) -> [UInt8] {
    let file = try FileDescriptor(opening: path)
    // Grown as it is read, because files in /proc have no size; one byte past the limit tells.
    var content: [UInt8] = []
    while true {
        let room = min(max(4096, content.count), limit + 1 - content.count)
        let offset = content.count
        content.append(contentsOf: repeatElement(0, count: room))
        let got = content.withUnsafeMutableBytes { bytes in
            retrying { read(file.descriptor, bytes.baseAddress! + offset, room) }
        }
        guard got >= 0 else { throw SystemError("read", path) }
        content.removeLast(room - got)
        if got == 0 { return content }
        guard content.count <= limit else {
            throw SystemError(
                "read", path, errno: EFBIG, reason: "it is longer than \(limit) bytes",
                hint: "check that it is the right file")
        }
    }
}

/// Reads a whole file that somebody may be writing: what was there at one moment, not the beginning of one text and
/// the end of another.
/// - Parameters:
///   - path: Where it is.
///   - limit: The most bytes that are accepted.
/// - Throws: `EAGAIN` if it does not come to rest within a second, else what `readFile` says.
public func readSettledFile(_ path: String, limit: Int) throws(SystemError) -> [UInt8] {
    var before = try readFile(path, limit: limit)
    var status = stat()
    // A pipe has it once.
    guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return before }
    for _ in 0..<50 {
        let now = try readFile(path, limit: limit)
        if now == before { return now }
        before = now
        usleep(20_000)
    }
    throw SystemError(
        "read", path, errno: EAGAIN, reason: "it is being written all the time",
        hint: "write it beside, and rename it to its place")
}

/// Reads a whole file as text; bytes that are not UTF-8 become U+FFFD.
/// - Parameters:
///   - path: Where it is.
///   - limit: The most bytes that are accepted.
public func readText(_ path: String, limit: Int = 1 << 20) throws(SystemError) -> String {
    String(decoding: try readFile(path, limit: limit), as: UTF8.self)
}
