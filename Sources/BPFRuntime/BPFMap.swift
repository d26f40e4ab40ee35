// Maps: typed access by system call, in batches where the kernel has them, and by mapping an array
// into memory.
import CLibBPF
import Glibc
import MeshSystem

/// An eBPF map. It stays in the kernel for as long as this value or a program that uses it lives.
public struct BPFMap: ~Copyable, Sendable {
    /// What an update may do.
    public enum Update: UInt64, Sendable {
        /// Create or replace.
        case any = 0
        /// Create; `EEXIST` if there is one.
        case create = 1
        /// Replace; `ENOENT` if there is none.
        case replace = 2
    }

    private let file: FileDescriptor
    /// Its name, as in the source.
    public let name: String
    /// Its type.
    public let type: bpf_map_type
    /// Bytes of a key.
    public let keySize: Int
    /// Bytes of a value (of one CPU's, for a per-CPU map).
    public let valueSize: Int
    /// How many entries it may hold; bytes, for a ring buffer.
    public let maxEntries: Int
    /// The `BPF_F_` bits that it was created with.
    public let flags: UInt32

    init(_ file: consuming FileDescriptor, name: String) throws(SystemError) {
        var info = bpf_map_info()
        var size = UInt32(MemoryLayout<bpf_map_info>.size)
        let result = bpf_obj_get_info_by_fd(file.descriptor, &info, &size)
        guard result == 0 else { throw SystemError("inspect", "the eBPF map \(name)", errno: -result) }
        self.file = file
        self.name = name
        type = bpf_map_type(info.type)
        keySize = Int(info.key_size)
        valueSize = Int(info.value_size)
        maxEntries = Int(info.max_entries)
        flags = info.map_flags
    }

    /// Creates a map that belongs to no object.
    public static func create(
        _ type: bpf_map_type, name: String, keySize: Int, valueSize: Int, maxEntries: Int, flags: UInt32 = 0
    ) throws(SystemError) -> BPFMap {
        LoadLog.start()
        let result = clibbpf_create_map(
            type, name, UInt32(keySize), UInt32(valueSize), UInt32(maxEntries), flags)
        guard result >= 0 else {
            throw SystemError("create", "the eBPF map \(name)", errno: -result, hint: loadHint(-result))
        }
        return try BPFMap(FileDescriptor(owning: result), name: name)
    }

    /// Opens a map that is pinned.
    /// - Throws: `ENOENT` if there is none at that path.
    public static func pinned(at path: String, name: String) throws(SystemError) -> BPFMap {
        let result = bpf_obj_get(path)
        guard result >= 0 else { throw SystemError("open", "the eBPF map \(path)", errno: -result) }
        return try BPFMap(FileDescriptor(owning: result), name: name)
    }

    /// The map's descriptor.
    public var descriptor: Int32 { file.descriptor }

    // MARK: One entry

    /// Reads an entry into memory with room for `valueSize` bytes (for each possible CPU and rounded up
    /// to 8, for a per-CPU map).
    /// - Returns: False if there is no such entry.
    public func lookup(
        key: UnsafeRawPointer, into value: UnsafeMutableRawPointer
    ) throws(SystemError) -> Bool {
        let result = bpf_map_lookup_elem(descriptor, key, value)
        if result == -ENOENT { return false }
        guard result == 0 else { throw failure("read", result) }
        return true
    }

    /// Reads an entry; nil if there is none.
    public func lookup<Key: BitwiseCopyable, Value: BitwiseCopyable>(
        _ key: Key, as _: Value.Type = Value.self
    ) throws(SystemError) -> Value? {
        check(Key.self, keySize)
        check(Value.self, valueSize)
        return try withUnsafeTemporaryValue(of: Value.self) { room throws(SystemError) in
            var key = key
            return try lookup(key: &key, into: room) ? room.loadUnaligned(as: Value.self) : nil
        }
    }

    /// Reads an entry of a per-CPU map: one value per possible CPU; empty if there is no such entry.
    public func lookupPerCPU<Key: BitwiseCopyable, Value: BitwiseCopyable>(
        _ key: Key, as _: Value.Type = Value.self
    ) throws(SystemError) -> [Value] {
        check(Key.self, keySize)
        check(Value.self, valueSize)
        let stride = rounded(valueSize)
        let count = try Self.possibleCPUs.get()
        let room = UnsafeMutableRawBufferPointer.allocate(byteCount: stride * count, alignment: 16)
        defer { room.deallocate() }
        var key = key
        guard try lookup(key: &key, into: room.baseAddress!) else { return [] }
        return (0..<count).map { room.loadUnaligned(fromByteOffset: $0 * stride, as: Value.self) }
    }

    /// The sum over all CPUs of an entry of a per-CPU map of 64-bit counters; 0 if there is none.
    public func sumPerCPU<Key: BitwiseCopyable>(_ key: Key) throws(SystemError) -> UInt64 {
        try lookupPerCPU(key, as: UInt64.self).reduce(0, &+)
    }

    /// Writes an entry.
    public func update<Key: BitwiseCopyable, Value: BitwiseCopyable>(
        _ key: Key, _ value: Value, _ mode: Update = .any
    ) throws(SystemError) {
        check(Key.self, keySize)
        check(Value.self, valueSize)
        var key = key
        var value = value
        let result = bpf_map_update_elem(descriptor, &key, &value, mode.rawValue)
        guard result == 0 else { throw failure("write to", result) }
    }

    /// Removes an entry.
    /// - Returns: False if there was none.
    @discardableResult
    public func delete<Key: BitwiseCopyable>(_ key: Key) throws(SystemError) -> Bool {
        check(Key.self, keySize)
        var key = key
        let result = bpf_map_delete_elem(descriptor, &key)
        if result == -ENOENT { return false }
        guard result == 0 else { throw failure("delete from", result) }
        return true
    }

    // MARK: Many entries

    /// Writes many entries, in one system call where the kernel can. On an error, some may be written.
    public func update<Key: BitwiseCopyable, Value: BitwiseCopyable>(
        keys: [Key], values: [Value]
    ) throws(SystemError) {
        precondition(keys.count == values.count, "as many values as keys")
        check(Key.self, keySize, stride: true)
        check(Value.self, valueSize, stride: true)
        guard !keys.isEmpty else { return }
        var count = UInt32(keys.count)
        let result = bpf_map_update_batch(descriptor, keys, values, &count, nil)
        if Self.lacksBatches(result) {
            for (key, value) in zip(keys, values) { try update(key, value) }
        } else if result != 0 {
            throw failure("write to", result)
        }
    }

    /// Removes many entries, in one system call where the kernel can; absent ones do not matter.
    public func delete<Key: BitwiseCopyable>(keys: [Key]) throws(SystemError) {
        check(Key.self, keySize, stride: true)
        var rest = keys[...]
        while !rest.isEmpty {
            var count = UInt32(rest.count)
            let result = rest.withUnsafeBytes {
                bpf_map_delete_batch(descriptor, $0.baseAddress, &count, nil)
            }
            if result == 0 { return }
            if Self.lacksBatches(result) {
                for key in rest { try delete(key) }
                return
            }
            // The batch stops at an entry that is not there; go on behind it.
            guard result == -ENOENT, Int(count) < rest.count else { throw failure("delete from", result) }
            rest = rest.dropFirst(Int(count) + 1)
        }
    }

    /// All keys. Entries that come or go meanwhile may be missing or appear twice.
    public func keys<Key: BitwiseCopyable>(as _: Key.Type = Key.self) throws(SystemError) -> [Key] {
        check(Key.self, keySize)
        var found: [Key] = []
        try withUnsafeTemporaryValue(of: Key.self) { next throws(SystemError) in
            var result = bpf_map_get_next_key(descriptor, nil, next)
            // When a key vanishes under the walk, the kernel starts over: so there must be an end to it.
            while result == 0, found.count <= 2 * maxEntries {
                found.append(next.loadUnaligned(as: Key.self))
                result = bpf_map_get_next_key(descriptor, next, next)
            }
            guard result == 0 || result == -ENOENT else { throw failure("list", result) }
        }
        return found
    }

    /// All entries, in few system calls where the kernel can. Those that come or go meanwhile may be missing.
    public func entries<Key: BitwiseCopyable, Value: BitwiseCopyable>(
        keys _: Key.Type = Key.self, values _: Value.Type = Value.self
    ) throws(SystemError) -> [(key: Key, value: Value)] {
        check(Key.self, keySize, stride: true)
        check(Value.self, valueSize, stride: true)
        var found: [(key: Key, value: Value)] = []
        // A batch ends between two buckets of a hash table, so there must be room for all of one.
        let room = 4096
        let keys = UnsafeMutableBufferPointer<Key>.allocate(capacity: room)
        let values = UnsafeMutableBufferPointer<Value>.allocate(capacity: room)
        // The place to go on from: a number for hash tables, a key for tries.
        let place = UnsafeMutableRawPointer.allocate(byteCount: max(8, keySize), alignment: 8)
        defer {
            keys.deallocate()
            values.deallocate()
            place.deallocate()
        }
        var isFirst = true
        while true {
            var count = UInt32(room)
            let result = bpf_map_lookup_batch(
                descriptor, isFirst ? nil : place, place, keys.baseAddress, values.baseAddress, &count, nil)
            if Self.lacksBatches(result) { break }
            guard result == 0 || result == -ENOENT else { throw failure("list", result) }
            for index in 0..<Int(count) { found.append((keys[index], values[index])) }
            if result == -ENOENT { return found }
            isFirst = false
        }
        for key in try self.keys(as: Key.self) {
            if let value = try lookup(key, as: Value.self) { found.append((key, value)) }
        }
        return found
    }

    /// Writes the entries of this map to another with the same keys, whose values may be longer or shorter: they
    /// begin alike, and what is not in this map is zero there.
    /// - Parameter limit: So many entries at most; of an array, the first ones.
    /// - Throws: `EINVAL` if the keys are not of the same size.
    public func copy(to other: borrowing BPFMap, limit: Int = .max) throws(SystemError) {
        guard keySize == other.keySize else {
            throw SystemError(
                "copy", "the eBPF map \(name)", errno: EINVAL, reason: "its keys have another size")
        }
        let isPerCPU =
            type == BPF_MAP_TYPE_PERCPU_ARRAY || type == BPF_MAP_TYPE_PERCPU_HASH
            || type == BPF_MAP_TYPE_LRU_PERCPU_HASH
        let copies = isPerCPU ? try Self.possibleCPUs.get() : 1
        let (from, to) = (rounded(valueSize), rounded(other.valueSize))
        let key = UnsafeMutableRawPointer.allocate(byteCount: keySize, alignment: 8)
        let old = UnsafeMutableRawPointer.allocate(byteCount: from * copies, alignment: 8)
        let new = UnsafeMutableRawPointer.allocate(byteCount: to * copies, alignment: 8)
        defer {
            key.deallocate()
            old.deallocate()
            new.deallocate()
        }
        var count = 0
        var result = bpf_map_get_next_key(descriptor, nil, key)
        while result == 0, count < limit, count <= 2 * maxEntries {
            count += 1
            if try lookup(key: key, into: old) {
                memset(new, 0, to * copies)
                for copy in 0..<copies { memcpy(new + copy * to, old + copy * from, min(from, to)) }
                let written = bpf_map_update_elem(other.descriptor, key, new, Update.any.rawValue)
                // An array of the other may be shorter.
                if written == -E2BIG, type == BPF_MAP_TYPE_ARRAY || type == BPF_MAP_TYPE_PERCPU_ARRAY {
                    return
                }
                guard written == 0 else { throw other.failure("write to", written) }
            }
            result = bpf_map_get_next_key(descriptor, key, key)
        }
        guard result == 0 || result == -ENOENT else { throw failure("list", result) }
    }

    // MARK: Memory

    /// Maps an array that was created with `BPF_F_MMAPABLE` (global data is) into memory.
    /// - Parameters:
    ///   - count: How many of its elements, from the first: what is mapped counts as resident, used or
    ///     not. As many as there are, if there are less.
    ///   - writable: False to read only, as for `.rodata`.
    public func mapped(_ count: Int = .max, writable: Bool = true) throws(SystemError) -> MappedArray {
        try MappedArray(self, count: min(count, maxEntries), writable: writable)
    }

    private static let possibleCPUs: Result<Int, SystemError> = Result { () throws(SystemError) in
        let count = libbpf_num_possible_cpus()
        guard count > 0 else { throw SystemError("count", "the possible CPUs", errno: -count) }
        return Int(count)
    }

    /// Whether an error of a batch says that this kernel has none for this type of map.
    private static func lacksBatches(_ result: Int32) -> Bool {
        result == -524 /* ENOTSUPP */ || result == -EINVAL || result == -EOPNOTSUPP
    }

    private func failure(_ operation: String, _ result: Int32) -> SystemError {
        let full = result == -E2BIG || result == -ENOSPC
        return SystemError(
            operation, "the eBPF map \(name)", errno: -result,
            reason: full ? "its \(maxEntries) entries are all in use" : nil)
    }

    private func check<Value>(_: Value.Type, _ size: Int, stride: Bool = false) {
        let actual = stride ? MemoryLayout<Value>.stride : MemoryLayout<Value>.size
        precondition(actual == size, "\(Value.self) has \(actual) bytes, the eBPF map \(name) wants \(size)")
    }
}

/// An eBPF array in memory, which programs and this process read and write at the same time: use the
/// atomic accesses of CMeshSystem. Unmapped when it goes away.
public struct MappedArray: ~Copyable, @unchecked Sendable {
    /// The first element.
    public let base: UnsafeMutableRawPointer
    /// How many elements are mapped.
    public let count: Int
    /// Bytes from one element to the next: the value's size rounded up to 8.
    public let stride: Int
    private let length: Int

    init(_ map: borrowing BPFMap, count: Int, writable: Bool) throws(SystemError) {
        let stride = rounded(map.valueSize)
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let length = (stride * count + page - 1) / page * page
        let memory = mmap(
            nil, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, map.descriptor, 0)
        guard let memory, memory != MAP_FAILED else {
            throw SystemError("map into memory", "the eBPF map \(map.name)")
        }
        base = memory
        self.count = count
        self.stride = stride
        self.length = length
    }

    deinit { munmap(base, length) }

    /// The element of that number, which must be below `count`.
    public subscript(index: Int) -> UnsafeMutableRawPointer {
        precondition(index >= 0 && index < count, "element \(index) of \(count)")
        return base + index * stride
    }

    /// The element of that number as what it is.
    public func element<Value: BitwiseCopyable>(
        _ index: Int, as _: Value.Type = Value.self
    ) -> UnsafeMutablePointer<Value> {
        precondition(MemoryLayout<Value>.size <= stride, "\(Value.self) fits into \(stride) bytes")
        return self[index].assumingMemoryBound(to: Value.self)
    }
}

/// Sizes in eBPF maps are rounded up to 8 bytes.
private func rounded(_ size: Int) -> Int { (size + 7) & ~7 }

private func withUnsafeTemporaryValue<Value, Result>(
    of _: Value.Type, _ body: (UnsafeMutableRawPointer) throws(SystemError) -> Result
) throws(SystemError) -> Result {
    let outcome = withUnsafeTemporaryAllocation(
        byteCount: rounded(MemoryLayout<Value>.size), alignment: max(8, MemoryLayout<Value>.alignment)
    ) { room in
        Swift.Result { () throws(SystemError) in try body(room.baseAddress!) }
    }
    return try outcome.get()
}
