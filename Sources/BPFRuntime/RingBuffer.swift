// The consumer side of an eBPF ring buffer. The protocol is that of libbpf's ringbuf.c and the kernel's
// kernel/bpf/ringbuf.c; it is done here so that a record costs neither a C callback nor an allocation.
import CLibBPF
import CMeshSystem
import Glibc
import MeshSystem

/// Reads the records of a ring buffer. There must be one reader only.
public struct RingBuffer: ~Copyable {
    private let file: FileDescriptor
    private let page: Int
    private let size: Int
    /// Two pages of positions (the consumer's, the producer's), then the data twice in a row, so that
    /// a record that wraps around is in one piece.
    private let consumer: UnsafeMutableRawPointer
    private let producer: UnsafeMutableRawPointer
    /// How far we have read; the kernel learns of it now and then.
    private var position: UInt64

    /// How far `peek` has read.
    private var peeked: UInt64

    /// Maps a ring buffer into memory.
    public init(_ map: borrowing BPFMap) throws(SystemError) {
        let operation = "map into memory"
        let subject = "the ring buffer \(map.name)"
        guard map.type == BPF_MAP_TYPE_RINGBUF else { throw SystemError(operation, subject, errno: EINVAL) }
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let file = try FileDescriptor(duplicating: map.descriptor)
        let consumer = mmap(nil, page, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor, 0)
        guard let consumer, consumer != MAP_FAILED else { throw SystemError(operation, subject) }
        let producer = mmap(nil, page + 2 * map.maxEntries, PROT_READ, MAP_SHARED, file.descriptor, page)
        guard let producer, producer != MAP_FAILED else {
            let error = SystemError(operation, subject)
            munmap(consumer, page)
            throw error
        }
        position = mesh_load_acquire_u64(consumer)
        peeked = position
        size = map.maxEntries
        self.page = page
        self.file = file
        self.consumer = consumer
        self.producer = producer
    }

    deinit {
        munmap(consumer, page)
        munmap(producer, page + 2 * size)
    }

    /// Readable while there are records. Add it to a poller level-triggered, as is the default: then
    /// none is forgotten that arrives while `consume` returns.
    public var descriptor: Int32 { file.descriptor }

    /// Bytes of records, with their headers, that wait to be consumed.
    public var pendingBytes: Int { Int(mesh_load_acquire_u64(producer) &- position) }

    /// Hands out the records that wait, oldest first, each valid only during the call of `body`.
    /// - Parameter limit: After so many records it returns, so that a loop can do other things.
    /// - Returns: How many records there were; less than `limit` means that there are no more now.
    @discardableResult
    public mutating func consume(limit: Int = .max, _ body: (UnsafeRawBufferPointer) -> Void) -> Int {
        let data = UnsafeRawPointer(producer) + page
        let mask = UInt64(size - 1)
        var produced = mesh_load_acquire_u64(producer)
        var published = position
        var count = 0
        while count < limit {
            if position >= produced {
                produced = mesh_load_acquire_u64(producer)
                if position >= produced { break }
            }
            let header = data + Int(position & mask)
            let length = mesh_load_acquire_u32(header)
            // A program is still writing this record; it says so when it is done.
            if length & BPF_RINGBUF_BUSY_BIT != 0 { break }
            let payload = Int(length & ~BPF_RINGBUF_DISCARD_BIT)
            if length & BPF_RINGBUF_DISCARD_BIT == 0 {
                body(UnsafeRawBufferPointer(start: header + Self.headerSize, count: payload))
                count += 1
            }
            position += UInt64((payload + Self.headerSize + 7) & ~7)
            // Giving room back for each record would pass a cache line to and fro with the writers.
            if position - published >= Self.publishEvery {
                mesh_store_release_u64(consumer, position)
                published = position
            }
        }
        mesh_store_release_u64(consumer, position)
        return count
    }

    /// Shows the records that wait and were not shown before, oldest first, each valid only during the call
    /// of `body`; `consume` hands them out again.
    /// - Returns: How many records there were.
    @discardableResult
    public mutating func peek(_ body: (UnsafeRawBufferPointer) -> Void) -> Int {
        let data = UnsafeRawPointer(producer) + page
        let mask = UInt64(size - 1)
        // Asked once: a flood shall not keep the caller here.
        let produced = mesh_load_acquire_u64(producer)
        peeked = max(peeked, position)
        var count = 0
        while peeked < produced {
            let header = data + Int(peeked & mask)
            let length = mesh_load_acquire_u32(header)
            if length & BPF_RINGBUF_BUSY_BIT != 0 { break }
            let payload = Int(length & ~BPF_RINGBUF_DISCARD_BIT)
            if length & BPF_RINGBUF_DISCARD_BIT == 0 {
                body(UnsafeRawBufferPointer(start: header + Self.headerSize, count: payload))
                count += 1
            }
            peeked += UInt64((payload + Self.headerSize + 7) & ~7)
        }
        return count
    }

    private static let headerSize = Int(BPF_RINGBUF_HDR_SZ)
    private static let publishEvery: UInt64 = 4096
}
