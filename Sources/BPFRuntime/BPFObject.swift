// An eBPF object file: opened from memory, adjusted, loaded into the kernel, and taken apart into
// maps and programs, which outlive it.
import CLibBPF
import Glibc
import MeshSystem

/// An eBPF object. Once its maps and programs are taken it can go; it holds memory that they do not need.
public struct BPFObject: ~Copyable {
    private let object: OpaquePointer
    private let name: String

    /// Opens the object that the build embedded, made from bpf/mesh.bpf.c.
    public static func mesh() throws(SystemError) -> BPFObject {
        let text = UnsafeBufferPointer(start: meshObject.utf8Start, count: meshObject.utf8CodeUnitCount)
        guard let bytes = decodeBase64(text) else {
            throw SystemError("decode", "the embedded eBPF object", errno: EINVAL)
        }
        return try BPFObject(bytes, name: "mesh")
    }

    /// Tells the embedded object from that of another build: FNV-1a, 64 bits, in hex. A test may pretend another.
    public static let meshDigest: String = {
        let text = UnsafeBufferPointer(start: meshObject.utf8Start, count: meshObject.utf8CodeUnitCount)
        let hash = text.reduce(0xcbf2_9ce4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
        return String(hash, radix: 16) + (getenv("MESH_AGENT_BUILD").map { "-" + String(cString: $0) } ?? "")
    }()

    /// Opens an object file that is in memory. Nothing reaches the kernel yet.
    /// - Parameters:
    ///   - bytes: The ELF file, as clang's bpf target makes it.
    ///   - name: What errors call it.
    public init(_ bytes: [UInt8], name: String) throws(SystemError) {
        LoadLog.start()
        _ = LoadLog.take()
        let opened = bytes.withUnsafeBytes { clibbpf_open($0.baseAddress, $0.count, name) }
        guard let opened else {
            let number = errno
            let digest = LoadLog.digest(LoadLog.take())
            throw SystemError(
                "open", "the eBPF object \(name)", errno: number, reason: digest.reason,
                details: digest.details)
        }
        object = opened
        self.name = name
    }

    deinit { bpf_object__close(object) }

    /// The names of all programs in the object.
    public var programNames: [String] {
        var names: [String] = []
        var program: OpaquePointer?
        while let next = bpf_object__next_program(object, program) {
            names.append(String(cString: bpf_program__name(next)))
            program = next
        }
        return names
    }

    /// Sets how many entries a map has (bytes, for a ring buffer), before `load`.
    public func setMaxEntries(ofMap name: String, _ count: UInt32) throws(SystemError) {
        let result = bpf_map__set_max_entries(try findMap(name), count)
        guard result == 0 else { throw SystemError("size", "the eBPF map \(name)", errno: -result) }
    }

    /// Says where `load` finds a map, or pins it if it is not there.
    public func setPin(ofMap name: String, _ path: String) throws(SystemError) {
        let result = bpf_map__set_pin_path(try findMap(name), path)
        guard result == 0 else { throw SystemError("pin", "the eBPF map \(name)", errno: -result) }
    }

    /// Whether a map that is pinned somewhere is as this object wants it.
    public func fits(map name: String, pinned path: String) -> Bool {
        guard let wanted = try? findMap(name), let found = try? BPFMap.pinned(at: path, name: name) else {
            return false
        }
        return found.type == bpf_map__type(wanted) && found.keySize == Int(bpf_map__key_size(wanted))
            && found.valueSize == Int(bpf_map__value_size(wanted))
            && found.maxEntries == Int(bpf_map__max_entries(wanted))
            && found.flags == bpf_map__map_flags(wanted)
    }

    /// Says whether `load` loads a program; by default it loads all.
    public func setAutoload(ofProgram name: String, _ on: Bool) throws(SystemError) {
        let result = bpf_program__set_autoload(try findProgram(name), on)
        guard result == 0 else {
            throw SystemError("configure", "the eBPF program \(name)", errno: -result)
        }
    }

    /// Creates the maps and loads the programs.
    /// - Throws: With the verifier's last line as the reason, and those before it as details.
    public func load() throws(SystemError) {
        _ = LoadLog.take()
        let result = bpf_object__load(object)
        guard result == 0 else {
            let digest = LoadLog.digest(LoadLog.take())
            let what = digest.program.map { "the eBPF program \($0)" } ?? "the eBPF object \(name)"
            throw loadError(what, -result, digest)
        }
    }

    /// A map of the loaded object. Global data is a map too: `.data.control`, `.bss`, `.rodata`.
    /// - Throws: `ENOENT` if there is none of that name.
    public func map(named name: String) throws(SystemError) -> BPFMap {
        let found = bpf_map__fd(try findMap(name))
        guard found >= 0 else { throw SystemError("use", "the eBPF map \(name)", errno: -found) }
        return try BPFMap(FileDescriptor(duplicating: found), name: name)
    }

    /// A program of the loaded object.
    /// - Throws: `ENOENT` if there is none of that name, or if it was not loaded.
    public func program(named name: String) throws(SystemError) -> BPFProgram {
        let program = try findProgram(name)
        let found = bpf_program__fd(program)
        guard found >= 0 else {
            throw SystemError("use", "the eBPF program \(name)", errno: ENOENT, reason: "it is not loaded")
        }
        return BPFProgram(
            try FileDescriptor(duplicating: found), name: name,
            attachType: bpf_program__expected_attach_type(program))
    }

    private func findMap(_ name: String) throws(SystemError) -> OpaquePointer {
        guard let found = bpf_object__find_map_by_name(object, name) else {
            throw SystemError("find", "the eBPF map \(name)", errno: ENOENT, reason: "no map has that name")
        }
        return found
    }

    private func findProgram(_ name: String) throws(SystemError) -> OpaquePointer {
        guard let found = bpf_object__find_program_by_name(object, name) else {
            throw SystemError(
                "find", "the eBPF program \(name)", errno: ENOENT, reason: "no program has that name")
        }
        return found
    }
}
