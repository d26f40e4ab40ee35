// A program that the kernel holds.
import CLibBPF
import Glibc
import MeshSystem

/// A loaded eBPF program. It stays in the kernel for as long as this value or a link to it lives.
public struct BPFProgram: ~Copyable, Sendable {
    private let file: FileDescriptor
    /// Its name, as in the source.
    public let name: String
    /// Where it is made to be attached, which its section in the source says.
    public let attachType: bpf_attach_type

    init(_ file: consuming FileDescriptor, name: String, attachType: bpf_attach_type) {
        self.file = file
        self.name = name
        self.attachType = attachType
    }

    /// Opens a program that is pinned.
    /// - Throws: `ENOENT` if there is none at that path.
    static func pinned(
        at path: String, name: String, attachType: bpf_attach_type
    ) throws(SystemError) -> BPFProgram {
        let result = bpf_obj_get(path)
        guard result >= 0 else { throw SystemError("open", "the eBPF program \(path)", errno: -result) }
        return BPFProgram(FileDescriptor(owning: result), name: name, attachType: attachType)
    }

    /// Pins it.
    func pin(at path: String) throws(SystemError) {
        let result = bpf_obj_pin(descriptor, path)
        guard result == 0 else { throw SystemError("pin", "the eBPF program \(path)", errno: -result) }
    }

    /// The program's descriptor.
    public var descriptor: Int32 { file.descriptor }

    /// The number by which the kernel lists it.
    public func id() throws(SystemError) -> UInt32 {
        var info = bpf_prog_info()
        var size = UInt32(MemoryLayout<bpf_prog_info>.size)
        let result = bpf_obj_get_info_by_fd(descriptor, &info, &size)
        guard result == 0 else { throw SystemError("inspect", "the eBPF program \(name)", errno: -result) }
        return info.id
    }

    /// Loads a program given as instructions; for probing and tests.
    /// - Parameters:
    ///   - instructions: Eight bytes each, as `struct bpf_insn` lays them out.
    ///   - type: The program's type.
    ///   - attachType: Where it will be attached.
    ///   - name: Its name; the kernel keeps 15 bytes.
    ///   - typeID: The BTF type in the kernel that it attaches to, 0 for none.
    public static func load(
        _ instructions: [UInt64], type: bpf_prog_type, attachType: bpf_attach_type = bpf_attach_type(0),
        name: String, typeID: UInt32 = 0
    ) throws(SystemError) -> BPFProgram {
        LoadLog.start()
        var log = [CChar](repeating: 0, count: 65536)
        let result = instructions.withUnsafeBytes { code in
            clibbpf_load(
                type, attachType, name, "Dual BSD/GPL",
                code.assumingMemoryBound(to: bpf_insn.self).baseAddress,
                instructions.count, typeID, &log, UInt32(log.count))
        }
        guard result >= 0 else {
            let text = String(decoding: log.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            throw loadError("the eBPF program \(name)", -result, LoadLog.digest(text))
        }
        return BPFProgram(FileDescriptor(owning: result), name: name, attachType: attachType)
    }
}
