// The consumer side of an eBPF ring buffer. The protocol is that of libbpf's ringbuf.c and the kernel's
// kernel/bpf/ringbuf.c; it is done here so that a record costs neither a C callback nor an allocation.
import CLibBPF
import CMeshSystem
import Glibc
import MeshSystem

/// Reads the records of a ring buffer. There must be one reader only.
///
/// What was handed out stays in the ring buffer until `release()`: a reader that dies before has taken nothing,
/// and the next one finds it again.
public struct RingBuffer: ~Copyable {
    private let file: FileDescriptor
    private let page: Int
    private let size: Int
    /// The consumer's position, which is ours to write.
    private let consumer: UnsafeMutableRawPointer
    /// The producers' position, then a page later the data, then its first page again: a record that wraps
    /// around is in one piece. (The kernel has all of it twice; but what is mapped counts as resident.)
    private let producer: UnsafeMutableRawPointer
    /// How far records were handed out, in bytes since the ring buffer was made.
    public private(set) var position: UInt64
    /// How far they were shown; less than `position` if they were handed out without.
    private var peeked: UInt64
    /// How far the kernel knows that they were read.
    private var released: UInt64
    /// Whether the last `peekWhile` ended at a record that a program is still writing: what is behind it
    /// was not shown, and a wake-up for it has come already.
    public private(set) var isHeldUp = false

    /// Maps a ring buffer into memory. None of its records may be longer than a page with its header.
    public init(_ map: borrowing BPFMap) throws(SystemError) {
        let operation = "map into memory"
        let subject = "the ring buffer \(map.name)"
        guard map.type == BPF_MAP_TYPE_RINGBUF else { throw SystemError(operation, subject, errno: EINVAL) }
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let file = try FileDescriptor(duplicating: map.descriptor)
        let consumer = mmap(nil, page, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor, 0)
        guard let consumer, consumer != MAP_FAILED else { throw SystemError(operation, subject) }
        let producer = mmap(nil, 2 * page + map.maxEntries, PROT_READ, MAP_SHARED, file.descriptor, page)
        guard let producer, producer != MAP_FAILED else {
            let error = SystemError(operation, subject)
            munmap(consumer, page)
            throw error
        }
        position = mesh_load_acquire_u64(consumer)
        peeked = position
        released = position
        size = map.maxEntries
        self.page = page
        self.file = file
        self.consumer = consumer
        self.producer = producer
    }

    deinit {
        munmap(consumer, page)
        munmap(producer, 2 * page + size)
    }

    /// Readable while there are records. Level-triggered it tells of records that nobody was to be woken
    /// for, too; edge-triggered, only when a program wakes the reader.
    public var descriptor: Int32 { file.descriptor }

    /// Bytes of records, with their headers, that wait to be consumed.
    public var pendingBytes: Int { Int(mesh_load_acquire_u64(producer) &- position) }

    /// How far records were shown to `peekWhile`, or handed out.
    public var shownPosition: UInt64 { max(peeked, position) }

    /// Bytes of records that were handed out and not released.
    public var heldBytes: Int { Int(position &- released) }

    /// Gives the room of what was handed out back to the kernel.
    public mutating func release() {
        guard released != position else { return }
        mesh_store_release_u64(consumer, position)
        released = position
    }

    /// Goes on where another reader was: what it was handed out, up to `position`, is released, and what it was
    /// shown, up to `shown`, is not shown again. Call it before anything is read.
    /// - Returns: How many records were shown and are still to be handed out, and how many bytes the kernel was
    ///   told to be read that the reader did not know of. Nil, and nothing is done, if that cannot be: the ring
    ///   buffer never came so far.
    public mutating func resume(at position: UInt64, shown: UInt64) -> (shown: Int, unknown: UInt64)? {
        let produced = mesh_load_acquire_u64(producer)
        guard position <= shown, shown <= produced, (position | shown) & 7 == 0 else { return nil }
        let unknown = self.position > position ? self.position - position : 0
        self.position = max(self.position, position)
        release()
        var records = 0
        var place = self.position
        while place < shown, let found = record(at: place) {
            if found.payload != nil { records += 1 }
            place = found.next
        }
        peeked = place
        return (records, unknown)
    }

    /// Hands out the records that wait, oldest first, each valid only during the call of `body`.
    /// - Parameters:
    ///   - limit: After so many records it returns, so that a loop can do other things.
    ///   - body: Takes a record; false makes it the last one for now.
    /// - Returns: How many records there were; less than `limit` means that there are no more now, unless
    ///   `body` ended it.
    @discardableResult
    public mutating func consumeWhile(limit: Int = .max, _ body: (UnsafeRawBufferPointer) -> Bool) -> Int {
        var produced = mesh_load_acquire_u64(producer)
        var count = 0
        var goesOn = true
        while goesOn && count < limit {
            if position >= produced {
                produced = mesh_load_acquire_u64(producer)
                if position >= produced { break }
            }
            guard let found = record(at: position) else { break }
            if let payload = found.payload {
                goesOn = body(payload)
                count += 1
            }
            position = found.next
        }
        return count
    }

    /// Shows the records that wait and were not shown before, oldest first, each valid only during the call
    /// of `body`; they are handed out later all the same. What comes meanwhile waits for the next call.
    /// - Parameter body: Looks at a record; false makes it the last one for now.
    /// - Returns: How many records there were.
    @discardableResult
    public mutating func peekWhile(_ body: (UnsafeRawBufferPointer) -> Bool) -> Int {
        let produced = mesh_load_acquire_u64(producer)
        peeked = max(peeked, position)
        var count = 0
        var goesOn = true
        isHeldUp = false
        while goesOn && peeked < produced {
            guard let found = record(at: peeked) else {
                isHeldUp = true
                break
            }
            if let payload = found.payload {
                goesOn = body(payload)
                count += 1
            }
            peeked = found.next
        }
        return count
    }

    /// The record at a position, without a payload if it was discarded, and where the next one is; nil while
    /// a program is still writing it.
    private func record(at position: UInt64) -> (payload: UnsafeRawBufferPointer?, next: UInt64)? {
        let header = UnsafeRawPointer(producer) + page + Int(position & UInt64(size - 1))
        let length = mesh_load_acquire_u32(header)
        if length & BPF_RINGBUF_BUSY_BIT != 0 { return nil }
        let count = Int(length & ~BPF_RINGBUF_DISCARD_BIT)
        let next = position + UInt64((count + Self.headerSize + 7) & ~7)
        guard length & BPF_RINGBUF_DISCARD_BIT == 0 else { return (nil, next) }
        return (UnsafeRawBufferPointer(start: header + Self.headerSize, count: count), next)
    }

    private static let headerSize = Int(BPF_RINGBUF_HDR_SZ)
}
