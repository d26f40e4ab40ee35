// From maps of another layout to those of this one, when an agent takes over from one of another version.
//
// The rule that this relies on: a new layout adds fields where there was padding, or at the end of a value. So what
// both know is at the same place, and is carried over; a map whose key is another is begun anew. A layout that
// breaks this rule brings the code that translates.
import BPFRuntime
import CMeshABI
import CMeshSystem
import Glibc
import MeshCore
import MeshMaps
import MeshSystem

/// The maps of an earlier agent that were replaced by ones of another layout. Until its links are updated, the
/// earlier agent's programs go on with them.
final class ReplacedMaps {
    /// The version of their layout.
    let version: UInt32
    private var ring: RingBuffer?
    private let attempts: BPFMap
    private let discovered: BPFMap
    /// So many configured services' entries count.
    private let services: Int

    /// So many services may be discovered by the earlier programs between the copy and their end, without an ID
    /// that is given twice.
    private static let discoveryGap: UInt32 = 64

    /// Opens the maps that are pinned in a directory.
    /// - Throws: If they are not a set that an agent has marked as whole.
    init(in directory: String) throws(SystemError) {
        let control = try mesh_control.pinned(in: directory)
        version = control.abi_version
        services = Int(min(max(1, control.next_service), UInt32(MESH_MAX_SERVICES)))
        ring = try? RingBuffer(ReplacedMaps.open("events", directory))
        attempts = try ReplacedMaps.open("attempts", directory)
        discovered = try ReplacedMaps.open("discovered", directory)
    }

    /// Opens the maps that an earlier start had replaced, if it did not come to finish with them.
    static func unfinished(_ pins: PinDirectory) -> ReplacedMaps? {
        guard let spare = try? mesh_control.pinned(in: pins.spareDirectory),
            let own = try? mesh_control.pinned(in: pins.mapDirectory),
            spare.instance == own.instance
        else { return nil }
        return try? ReplacedMaps(in: pins.spareDirectory)
    }

    /// Copies what can be from maps of another layout to fresh ones.
    /// - Returns: The names of those that begin anew, but for connections and samples, which always do.
    static func copy(from directory: String, to fresh: borrowing BPFObject) throws(SystemError) -> [String] {
        let old = try mesh_control.pinned(in: directory)
        var lost: [String] = []
        let names = [
            "endpoints", "prefixes", "discovered", "exempt", "scope", "breakers", "stamps", "bindings",
            "counters",
        ]
        for name in names {
            do throws(SystemError) {
                let limit = name == "breakers" ? Int(old.next_service) : .max
                try open(name, directory).copy(to: fresh.map(named: name), limit: limit)
            } catch {
                lost.append(name)
            }
        }
        let map = try fresh.map(named: PinDirectory.control).mapped()
        let control = map.element(0, as: mesh_control.self)
        control.pointee = old
        control.pointee.discovered += discoveryGap
        return lost
    }

    /// What the earlier programs discovered.
    func discoveries() -> [(key: mesh_endpoint, id: UInt32)] {
        ((try? discovered.entries(keys: mesh_endpoint.self, values: UInt32.self)) ?? []).map {
            ($0.key, $0.value)
        }
    }

    /// Moves the decisions that the earlier programs counted, once they run no more.
    func moveAttempts(to fresh: borrowing BPFMap) throws(SystemError) {
        let old = try attempts.mapped(services)
        let new = try fresh.mapped(services)
        for service in 0..<services {
            for offset in stride(from: 0, to: MemoryLayout<mesh_attempts>.offset(of: \.last_probe_ns)!, by: 8)
            {
                let count = mesh_exchange_u64(old[service] + offset, 0)
                if count != 0 { mesh_add_u64(new[service] + offset, count) }
            }
            let probe = MemoryLayout<mesh_attempts>.offset(of: \.last_probe_ns)!
            let last = mesh_load_relaxed_u64(old[service] + probe)
            if last > mesh_load_relaxed_u64(new[service] + probe) {
                mesh_store_relaxed_u64(new[service] + probe, last)
            }
        }
    }

    /// Goes on in their ring buffer where an agent before this one was: see `RingBuffer.resume`.
    func resume(_ commit: StateCommit) -> (shown: Int, unknown: UInt64)? {
        ring?.resume(at: commit.counted, shown: commit.decided)
    }

    /// Hands over the records that still wait, oldest first.
    func consume(_ body: (UnsafeRawBufferPointer) -> Void) -> Int {
        ring?.consumeWhile { record in
            body(record)
            return true
        } ?? 0
    }

    private static func open(_ name: String, _ directory: String) throws(SystemError) -> BPFMap {
        try BPFMap.pinned(at: PinDirectory.pin(of: name, in: directory), name: name)
    }
}
