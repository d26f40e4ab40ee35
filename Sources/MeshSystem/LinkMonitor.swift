// Network interfaces that come and go: a pod's veth lives as long as the pod.
import CMeshSystem
import Glibc

/// A network interface.
public struct Link: Equatable, Sendable {
    /// The number by which the kernel knows it.
    public var index: Int32
    /// Its name, such as `eth0`.
    public var name: String
    /// The kind of virtual device, such as `veth`, `bridge`; empty for a real one and for `lo`.
    public var kind: String
    /// Whether it is administratively up.
    public var isUp: Bool
    /// Whether it is a loopback device.
    public var isLoopback: Bool

    /// An interface with these properties.
    public init(index: Int32, name: String, kind: String, isUp: Bool, isLoopback: Bool) {
        self.index = index
        self.name = name
        self.kind = kind
        self.isUp = isUp
        self.isLoopback = isLoopback
    }
}

/// What happened to an interface.
public enum LinkEvent: Equatable, Sendable {
    /// It came.
    case added(Link)
    /// Its name or a flag changed.
    case changed(Link)
    /// It went.
    case removed(Link)
}

/// What one netlink message says about an interface.
enum LinkMessage: Equatable {
    case present(Link)
    case gone(index: Int32)

    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`; nil for everything else and for what is malformed.
    init?(_ message: NetlinkMessage) {
        guard let head = message.payload.load(ifinfomsg.self) else { return nil }
        // With the family of bridges, the same messages say that an interface joined or left a bridge.
        guard head.ifi_family == UInt8(AF_UNSPEC), head.ifi_index > 0 else { return nil }
        switch Int(message.type) {
        case Int(RTM_DELLINK): self = .gone(index: head.ifi_index)
        case Int(RTM_NEWLINK):
            var link = Link(
                index: head.ifi_index, name: "", kind: "",
                isUp: head.ifi_flags & UInt32(IFF_UP) != 0,
                isLoopback: head.ifi_flags & UInt32(IFF_LOOPBACK) != 0)
            let header = MemoryLayout<ifinfomsg>.size
            for attribute in NetlinkAttributes(message.payload, from: header) {
                switch Int(attribute.type) {
                case Int(IFLA_IFNAME): link.name = attribute.text
                case Int(IFLA_LINKINFO):
                    for inner in NetlinkAttributes(attribute.value)
                    where Int(inner.type) == Int(IFLA_INFO_KIND) {
                        link.kind = inner.text
                    }
                default: break
                }
            }
            guard !link.name.isEmpty else { return nil }
            self = .present(link)
        default: return nil
        }
    }
}

/// Follows the interfaces of the network namespace that it is made in.
public struct LinkMonitor: ~Copyable {
    private let notifications: RouteSocket
    private let requests: RouteSocket
    private var known: [Int32: Link]
    private let buffer: UnsafeMutableRawBufferPointer

    /// Subscribes, and reads what interfaces there are.
    public init() throws(SystemError) {
        // Subscribed first, so that nothing is missed in between.
        let notifications = try RouteSocket(groups: UInt32(RTMGRP_LINK))
        let requests = try RouteSocket()
        known = try Self.list(requests)
        self.notifications = notifications
        self.requests = requests
        buffer = .allocate(byteCount: RouteSocket.bufferSize, alignment: 8)
    }

    deinit { buffer.deallocate() }

    /// Readable while something happened that `events` has not told yet.
    public var descriptor: Int32 { notifications.descriptor }

    /// The interfaces as far as they have been told, by number.
    public var links: [Link] { known.values.sorted { $0.index < $1.index } }

    /// An interface by its number, as far as has been told; nil if there is none.
    public subscript(index: Int32) -> Link? { known[index] }

    /// What happened since the last call, in order. When the kernel dropped notifications, the list is
    /// read anew and the differences are told.
    public mutating func events() throws(SystemError) -> [LinkEvent] {
        var events: [LinkEvent] = []
        var lost = false
        while true {
            let received: UnsafeRawBufferPointer?
            do {
                received = try notifications.receive(into: buffer, wait: false)
            } catch {
                guard error.errno == ENOBUFS else { throw error }
                lost = true
                continue
            }
            guard let received else { break }
            // What was queued before the loss is older than the list read below.
            if lost { continue }
            for message in NetlinkMessages(received) {
                if let parsed = LinkMessage(message), let event = known.apply(parsed) { events.append(event) }
            }
        }
        if lost { events += try resynchronize() }
        return events
    }

    /// Reads the list anew and tells the differences.
    mutating func resynchronize() throws(SystemError) -> [LinkEvent] {
        let current = try Self.list(requests)
        let gone = known.keys.filter { current[$0] == nil }.sorted()
        var events = gone.compactMap { known.apply(.gone(index: $0)) }
        for link in current.values.sorted(by: { $0.index < $1.index }) {
            if let event = known.apply(.present(link)) { events.append(event) }
        }
        return events
    }

    private static func list(_ socket: borrowing RouteSocket) throws(SystemError) -> [Int32: Link] {
        while true {
            var found: [Int32: Link] = [:]
            let request = NetlinkRequest(Int(RTM_GETLINK), ifinfomsg())
            let consistent = try socket.dump(request, "list", "the network interfaces") { message in
                if case .present(let link) = LinkMessage(message) { found[link.index] = link }
            }
            if consistent { return found }
        }
    }
}

extension [Int32: Link] {
    /// Takes in what a message says.
    /// - Returns: What that changed; nil if nothing.
    mutating func apply(_ message: LinkMessage) -> LinkEvent? {
        switch message {
        case .gone(let index):
            return removeValue(forKey: index).map { .removed($0) }
        case .present(let link):
            guard let old = updateValue(link, forKey: link.index) else { return .added(link) }
            return old == link ? nil : .changed(link)
        }
    }
}
