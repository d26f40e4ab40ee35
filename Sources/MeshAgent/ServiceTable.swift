// Names and numbers of services: which ID a configured service has, across reloads, and what the
// kernel discovered. Pure bookkeeping; the maps are written by others from the changes it gives.
import CMeshABI
import MeshCore

/// A service as the agent knows it.
struct ServiceInfo {
    enum Kind: String {
        case configured
        case discovered
    }

    let id: UInt32
    let name: String
    let kind: Kind
    /// False for a configured service that a reload took away: its series go on under its name.
    var isActive: Bool
}

/// All services by ID and by name.
struct ServiceTable {
    /// IDs from here on are the kernel's to give, as many as `maxDiscoveredServices` may be; those below
    /// are configured services'.
    static let firstDiscovered = UInt32(MESH_MAX_SERVICES) - 10_000

    /// The last ID below them: the agent's canary's, and no service's.
    static let canary = UInt32(MESH_SERVICE_CANARY)

    /// Whether an ID is one that the kernel may give.
    static func isDiscovered(_ id: UInt32) -> Bool {
        (firstDiscovered..<UInt32(MESH_MAX_SERVICES)).contains(id)
    }

    private(set) var byID: [UInt32: ServiceInfo] = [:]
    private(set) var idByName: [String: UInt32] = [:]
    /// The names by ID, for labels; empty where there is no service.
    private(set) var labels: [String] = [ServiceTable.other]
    private(set) var discoveredCount = 0
    /// The ID that the next configured service gets.
    private(set) var next: UInt32 = 1
    /// The services that changed since the table was last saved.
    private var changed: Set<UInt32> = []
    /// Of those, the ones that a save that is under way has still to add, high IDs first.
    private var unsaved: [UInt32] = []

    init() {
        byID[0] = ServiceInfo(id: 0, name: ServiceTable.other, kind: .discovered, isActive: true)
    }

    /// The name of what lies past the discovery cap.
    static let other = "other"

    /// How many services the configuration names now.
    private(set) var configuredCount = 0

    /// Gives each configured service its ID: the one it had, or a fresh one. IDs are never given
    /// again, because sockets and series still carry them.
    /// - Returns: The IDs in the order of `services`, and those of services that are gone; nil if
    ///   reloads have used up all IDs.
    mutating func configure(_ services: [Configuration.Service]) -> (ids: [UInt32], removed: [UInt32])? {
        let names = Set(services.map(\.name))
        let fresh = services.count { service in
            guard let id = idByName[service.name] else { return true }
            return byID[id]?.kind != .configured
        }
        guard next + UInt32(fresh) <= ServiceTable.canary else { return nil }
        var removed: [UInt32] = []
        for (id, info) in byID where info.kind == .configured && info.isActive && !names.contains(info.name) {
            byID[id]?.isActive = false
            changed.insert(id)
            removed.append(id)
        }
        var ids: [UInt32] = []
        ids.reserveCapacity(services.count)
        for service in services {
            if let id = idByName[service.name], byID[id]?.kind == .configured {
                if byID[id]?.isActive == false { changed.insert(id) }
                byID[id]?.isActive = true
                ids.append(id)
            } else {
                changed.insert(next)
                byID[next] = ServiceInfo(id: next, name: service.name, kind: .configured, isActive: true)
                idByName[service.name] = next
                label(next, service.name)
                ids.append(next)
                next += 1
            }
        }
        configuredCount = services.count
        return (ids, removed.sorted())
    }

    /// Takes over the IDs of an earlier agent's configured services, before the first `configure`.
    /// - Parameters:
    ///   - names: Those that have a name; all others below `next` are in use no more, but were.
    ///   - next: The ID that the next one gets.
    mutating func restore(_ names: [UInt32: String], next: UInt32) {
        self.next = max(self.next, next)
        for id in 1..<self.next where byID[id] == nil {
            // Samples may still come with an ID whose name is lost.
            let name = names[id] ?? "removed-\(id)"
            byID[id] = ServiceInfo(id: id, name: name, kind: .configured, isActive: names[id] != nil)
            if names[id] != nil { idByName[name] = id }
            label(id, name)
            changed.insert(id)
        }
    }

    /// Names a service that the kernel discovered; false if it was known already, or if the ID is none that
    /// the kernel may give.
    @discardableResult
    mutating func discovered(id: UInt32, role: Sample.Role, address: IPAddress, port: UInt16) -> Bool {
        guard ServiceTable.isDiscovered(id), byID[id] == nil else { return false }
        let name =
            role == .server ? "*:\(port)" : AddressPort(address: address, port: port).description
        byID[id] = ServiceInfo(id: id, name: name, kind: .discovered, isActive: true)
        // A configured service of that name keeps it; the ID still tells them apart.
        if idByName[name] == nil { idByName[name] = id }
        label(id, name)
        discoveredCount += 1
        changed.insert(id)
        return true
    }

    /// Has `save` add all services.
    mutating func markAll() {
        unsaved = byID.keys.filter { $0 != 0 }.sorted(by: >)
        changed = []
    }

    /// Adds services that have changed since the last time, those with low IDs first.
    /// - Parameter limit: How many at most; so many less afterwards.
    mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        if !changed.isEmpty {
            unsaved = changed.union(unsaved).sorted(by: >)
            changed = []
        }
        while limit > 0, let id = unsaved.popLast() {
            guard let info = byID[id] else { continue }
            limit -= 1
            writer.append(
                .service(
                    id: id, name: info.name, isConfigured: info.kind == .configured, isActive: info.isActive))
        }
    }

    /// Gives a service the ID that it had. False if it cannot have it.
    mutating func restore(id: UInt32, name: String, isConfigured: Bool, isActive: Bool) -> Bool {
        guard id > 0, id < UInt32(MESH_MAX_SERVICES), id != ServiceTable.canary, !name.isEmpty,
            isConfigured == (id < ServiceTable.firstDiscovered)
        else { return false }
        if let known = byID[id] {
            guard known.name == name else { return false }
            byID[id]?.isActive = isActive
            return true
        }
        let kind = isConfigured ? ServiceInfo.Kind.configured : .discovered
        byID[id] = ServiceInfo(id: id, name: name, kind: kind, isActive: isActive)
        if isConfigured || idByName[name] == nil { idByName[name] = id }
        label(id, name)
        if isConfigured { next = max(next, id + 1) } else { discoveredCount += 1 }
        return true
    }

    /// Whether the service has a name.
    func isKnown(_ id: UInt32) -> Bool { Int(id) < labels.count && !labels[Int(id)].isEmpty }

    private mutating func label(_ id: UInt32, _ name: String) {
        while labels.count <= Int(id) { labels.append("") }
        labels[Int(id)] = name
    }

    /// A service's name for labels and people.
    func name(_ id: UInt32) -> String { byID[id]?.name ?? "unknown" }

    /// The ID of the active service of that name.
    func id(named name: String) -> UInt32? {
        guard let id = idByName[name], byID[id]?.isActive == true else { return nil }
        return id
    }

    /// Every active service's name.
    var activeNames: [String] { byID.values.filter(\.isActive).map(\.name) }
}
