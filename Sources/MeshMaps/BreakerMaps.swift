// The maps through which programs are told what to reject, and tell what they decided: the one place where breakers
// are written, for the agent and for meshctl where none runs.
import BPFRuntime
import CMeshABI
import CMeshSystem
import MeshCore
import MeshSystem

/// `breakers` and `attempts`, as much of them in memory as services are configured.
public struct BreakerMaps: ~Copyable {
    /// So many services' entries are mapped at a time.
    private static let servicesPerMapping = 1024

    /// The map of attempts.
    public let attemptsMap: BPFMap
    private let breakersMap: BPFMap
    private var breakers: MappedArray
    private var attempts: MappedArray

    /// Maps both into memory.
    public init(breakers: consuming BPFMap, attempts: consuming BPFMap) throws(SystemError) {
        let mapped = try breakers.mapped(BreakerMaps.servicesPerMapping)
        let counted = try attempts.mapped(BreakerMaps.servicesPerMapping, writable: false)
        breakersMap = breakers
        attemptsMap = attempts
        self.breakers = mapped
        self.attempts = counted
    }

    /// Makes room for the breakers of services with IDs up to this one.
    public mutating func reserve(service: UInt32) throws(SystemError) {
        guard Int(service) >= breakers.count || Int(service) >= attempts.count else { return }
        let count = (Int(service) / BreakerMaps.servicesPerMapping + 1) * BreakerMaps.servicesPerMapping
        breakers = try breakersMap.mapped(count)
        attempts = try attemptsMap.mapped(count, writable: false)
    }

    /// What was written for services with IDs below this one, where anything was.
    public mutating func words(below next: UInt32) throws(SystemError) -> [UInt32: BreakerKernelWord] {
        try reserve(service: next)
        var found: [UInt32: BreakerKernelWord] = [:]
        for service in 1..<max(1, next) {
            let entry = breakers.element(Int(service), as: mesh_breaker.self).pointee
            if let word = BreakerKernelWord(entry) { found[service] = word }
        }
        return found
    }

    /// Writes a breaker, and how many may reject: that goes up before and down after, so that tc never misses a
    /// rejected request.
    /// - Parameters:
    ///   - word: What programs are to read.
    ///   - before: What they read until now.
    ///   - enforcing: How many may reject; 0 lets tc pass everything at once.
    ///   - control: The control map.
    public func write(
        _ word: BreakerKernelWord, inPlaceOf before: BreakerKernelWord?, service: UInt32,
        enforcing: inout UInt32,
        _ control: borrowing MappedArray
    ) {
        let was = before?.mayReject ?? false
        if word.mayReject && !was {
            enforcing += 1
            BreakerMaps.setEnforcing(enforcing, control)
        }
        write(word, service: service)
        if was && !word.mayReject {
            enforcing -= 1
            BreakerMaps.setEnforcing(enforcing, control)
        }
    }

    /// Tells tc how many breakers may reject.
    public static func setEnforcing(_ count: UInt32, _ control: borrowing MappedArray) {
        mesh_store_release_u32(
            control[0] + MemoryLayout<mesh_control>.offset(of: \.enforcing)!, count)
    }

    /// Writes a breaker. When it opens, the state comes last; when it closes, first: a program that
    /// reads in between sees one or the other, never an old deadline with a new state.
    public func write(_ word: BreakerKernelWord, service: UInt32) {
        let entry = breakers[Int(service)]
        var head = UInt32(word.state.rawValue) | UInt32(word.mode.rawValue) << 8
        head |= UInt32(word.forced?.rawValue ?? 0) << 16
        let drain = word.drain ? MESH_BREAKER_DRAIN.rawValue : 0
        let alert = word.alert ? MESH_BREAKER_ALERT.rawValue : 0
        head |= (drain | alert) << 24
        let opens = word.mayReject
        // The first four fields are bytes of one word, so that they change together.
        if !opens { mesh_store_release_u32(entry, head) }
        mesh_store_release_u32(entry + 4, word.probeShare)
        mesh_store_release_u64(entry + 8, word.openUntil)
        mesh_store_release_u64(entry + 16, word.probeInterval)
        mesh_store_release_u64(entry + 24, word.overrideUntil)
        mesh_store_release_u64(entry + 32, word.slow)
        mesh_store_release_u32(entry + 40, word.urgentClasses)
        if opens { mesh_store_release_u32(entry, head) }
    }

    /// The decisions on a service's attempts, but for those that were simply admitted.
    public func attempts(_ service: UInt32) -> BreakerAttempts {
        let entry = attempts[Int(service)]
        func point(_ point: mesh_point) -> BreakerAttempts.Point {
            func count(_ decision: mesh_decision) -> UInt64 {
                mesh_load_relaxed_u64(entry + Int(point.rawValue * 4 + decision.rawValue) * 8)
            }
            return BreakerAttempts.Point(
                rejected: count(MESH_DECISION_REJECTED), probe: count(MESH_DECISION_PROBE),
                wouldReject: count(MESH_DECISION_WOULD_REJECT))
        }
        return BreakerAttempts(connect: point(MESH_POINT_CONNECT), request: point(MESH_POINT_REQUEST))
    }
}
