// What these tests share: eBPF instructions written by hand, namespaces and cgroups of their own.
import CLibBPF
import CMeshSystem
import Foundation
import MeshSystem

@testable import BPFRuntime

/// Whether tests that need root run. Without root they are skipped, but under CI they run and fail.
let mayUseKernel = getuid() == 0 || ProcessInfo.processInfo.environment["CI"] == "true"

/// eBPF instructions, eight bytes each (RFC 9669).
enum Code {
    static func instruction(
        _ code: UInt8, to: UInt8 = 0, from: UInt8 = 0, offset: Int16 = 0, value: Int32 = 0
    ) -> UInt64 {
        UInt64(code) | UInt64(to) << 8 | UInt64(from) << 12 | UInt64(UInt16(bitPattern: offset)) << 16
            | UInt64(UInt32(bitPattern: value)) << 32
    }
    static func set(_ register: UInt8, _ value: Int32) -> UInt64 {
        instruction(0xb7, to: register, value: value)
    }
    static func copy(_ to: UInt8, _ from: UInt8) -> UInt64 { instruction(0xbf, to: to, from: from) }
    static func add(_ register: UInt8, _ value: Int32) -> UInt64 {
        instruction(0x07, to: register, value: value)
    }
    static func load64(_ to: UInt8, _ from: UInt8, _ offset: Int16) -> UInt64 {
        instruction(0x79, to: to, from: from, offset: offset)
    }
    static func load32(_ to: UInt8, _ from: UInt8, _ offset: Int16) -> UInt64 {
        instruction(0x61, to: to, from: from, offset: offset)
    }
    static func store64(_ to: UInt8, _ offset: Int16, _ from: UInt8) -> UInt64 {
        instruction(0x7b, to: to, from: from, offset: offset)
    }
    static func store32(_ to: UInt8, _ offset: Int16, value: Int32) -> UInt64 {
        instruction(0x62, to: to, offset: offset, value: value)
    }
    static func call(_ helper: Int32) -> UInt64 { instruction(0x85, value: helper) }
    /// Skips so many instructions if the register is 0.
    static func skipIfZero(_ register: UInt8, _ count: Int16) -> UInt64 {
        instruction(0x15, to: register, offset: count)
    }
    /// The address of a map: two instructions.
    static func map(_ register: UInt8, _ map: borrowing BPFMap) -> [UInt64] {
        [instruction(0x18, to: register, from: 1, value: map.descriptor), 0]
    }
    static let exit = instruction(0x95)

    /// Adds 1 to element 0 of an array and returns `result`.
    static func counting(in array: borrowing BPFMap, result: Int32) -> [UInt64] {
        [store32(10, -4, value: 0), copy(2, 10), add(2, -4)] + map(1, array)
            + [
                call(1 /* map_lookup_elem */), skipIfZero(0, 2), set(1, 1),
                instruction(0xdb, to: 0, from: 1) /* atomic add */, set(0, result), exit,
            ]
    }
}

extension BPFMap {
    /// An array with one 64-bit element.
    static func counter() throws(SystemError) -> BPFMap {
        try create(BPF_MAP_TYPE_ARRAY, name: "test_counter", keySize: 4, valueSize: 8, maxEntries: 1)
    }

    /// Element 0 of an array of 64-bit numbers.
    var count: UInt64 { get throws { try lookup(UInt32(0), as: UInt64.self) ?? 0 } }
}

extension BPFProgram {
    /// Runs the program on a made-up packet of so many bytes, and returns its result.
    @discardableResult
    func run(packetBytes: Int, times: Int = 1) throws -> UInt32 {
        let packet = [UInt8](repeating: 0, count: packetBytes)
        var options = bpf_test_run_opts()
        options.sz = MemoryLayout<bpf_test_run_opts>.size
        options.repeat = Int32(times)
        options.data_size_in = UInt32(packetBytes)
        return try packet.withUnsafeBytes { bytes in
            options.data_in = bytes.baseAddress
            let status = bpf_prog_test_run_opts(descriptor, &options)
            guard status == 0 else { throw SystemError("run", name, errno: -status) }
            return options.retval
        }
    }
}

/// A cgroup of the test's own, below the cgroup2 mount.
final class ScratchCgroup: Sendable {
    let path: String

    init() throws {
        path = try Mount.cgroup2() + "/mesh-test-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        guard mkdir(path, 0o700) == 0 else { throw SystemError("make", path) }
    }

    deinit { rmdir(path) }
}

/// Runs `body` on a thread that has a network namespace of its own, where `lo` is up. Check what it
/// returns in the test itself: an expectation on another thread does not know its test.
func inNewNetworkNamespace<Value>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
    let box = Box<Value>()
    try MeshSystem.Thread.spawn(name: "namespace") {
        box.result = Result {
            guard mesh_unshare_network() == 0 else { throw SystemError("make", "a network namespace") }
            try shell("ip link set lo up")
            return try body()
        }
    }.join()
    return try box.result!.get()
}

private final class Box<Value>: @unchecked Sendable {
    var result: Result<Value, any Error>?
}

/// What a command writes, to standard error too; it runs in the calling thread's network namespace.
@discardableResult
func shell(_ command: String, mayFail: Bool = false) throws -> String {
    guard let pipe = popen("exec 2>&1; \(command)", "r") else { throw SystemError("run", command) }
    var output = ""
    while let line = readLine(from: pipe) { output += line }
    let status = pclose(pipe)
    guard status == 0 || mayFail else {
        throw SystemError("run", command, errno: EIO, reason: "status \(status): \(output)")
    }
    return output
}

private func readLine(from file: UnsafeMutablePointer<FILE>) -> String? {
    var room = [CChar](repeating: 0, count: 4096)
    guard fgets(&room, Int32(room.count), file) != nil else { return nil }
    return String(decoding: room.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Two values that cannot be copied; tuples of such do not exist yet.
struct Pair<Value: ~Copyable>: ~Copyable {
    let a: Value
    let b: Value

    init(_ a: consuming Value, _ b: consuming Value) {
        self.a = a
        self.b = b
    }
}
