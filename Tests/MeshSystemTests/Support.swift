// What these tests share: scratch directories, and network namespaces of their own.
import CMeshSystem
import Foundation
import MeshSystem

/// Whether tests that need root run. Without root they are skipped, but under CI they run and fail.
let mayUseKernel = getuid() == 0 || ProcessInfo.processInfo.environment["CI"] == "true"

/// A directory that is removed with everything in it.
final class ScratchDirectory: Sendable {
    let path: String

    init() throws {
        path = "/tmp/mesh-test-\(getpid())-\(UInt64.random(in: 0...UInt64.max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// Runs `body` on a thread that has a network namespace of its own. Check what it returns in the test
/// itself: an expectation on another thread does not know its test.
func inNewNetworkNamespace<Value>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
    try onThread {
        guard mesh_unshare_network() == 0 else { throw SystemError("make", "a network namespace") }
        return try body()
    }
}

/// Runs `body` on a thread of its own and waits for it.
func onThread<Value>(name: String = "test", _ body: @escaping @Sendable () throws -> Value) throws -> Value {
    let box = Box<Value>()
    try Thread.spawn(name: name) { box.result = Result { try body() } }.join()
    return try box.result!.get()
}

/// The nanoseconds in so many milliseconds.
func milliseconds(_ count: UInt64) -> UInt64 { count * 1_000_000 }

private final class Box<Value>: @unchecked Sendable {
    var result: Result<Value, any Error>?
}
