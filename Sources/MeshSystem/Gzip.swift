// Compression of whole answers, for clients that ask for gzip.
import CMeshSystem
import Glibc

/// Compresses bytes into one gzip member.
/// - Parameters:
///   - bytes: What to compress.
///   - level: 1 (fast) to 9 (small).
public func gzip(_ bytes: UnsafeRawBufferPointer, level: Int32 = 1) throws(SystemError) -> [UInt8] {
    let operation = "compress"
    let subject = "\(bytes.count) bytes"
    var stream = z_stream()
    guard bytes.count <= UInt32.max / 2 else { throw SystemError(operation, subject, errno: EFBIG) }
    guard mesh_gzip_begin(&stream, level) == Z_OK else {
        throw SystemError(operation, subject, errno: ENOMEM)
    }
    defer { deflateEnd(&stream) }
    // The bound holds for the worst case, so one call does it all.
    let bound = Int(deflateBound(&stream, UInt(bytes.count)))
    var status = Z_OK
    let result = [UInt8](unsafeUninitializedCapacity: bound) { output, count in
        // zlib reads its input through a pointer that is not const for historical reasons.
        stream.next_in = UnsafeMutablePointer(
            mutating: bytes.baseAddress?.assumingMemoryBound(to: UInt8.self))
        stream.avail_in = UInt32(bytes.count)
        stream.next_out = output.baseAddress
        stream.avail_out = UInt32(bound)
        status = deflate(&stream, Z_FINISH)
        count = bound - Int(stream.avail_out)
    }
    guard status == Z_STREAM_END else { throw SystemError(operation, subject, errno: EIO) }
    return result
}
