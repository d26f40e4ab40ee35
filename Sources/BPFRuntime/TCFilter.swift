// Attaching to an interface on kernels without tcx: filters on a clsact qdisc, beside those of others.
//
// libbpf's bpf_tc_* is not used: it cannot list filters, and bpf_tc_hook_destroy for one direction
// flushes all filters of that direction, whoever they belong to.
import CLibBPF
import CMeshSystem
import Glibc
import MeshSystem

/// The agent's filters on one interface. When this goes away they are removed, unless they are to be kept,
/// and the qdisc with them if the agent made it and no other filter is left in either direction.
public struct TCFilter: ~Copyable {
    /// Where among the filters of a direction ours stand: lower ones run first. Those that others leave to
    /// the kernel to choose start at 49152; Cilium's has 1.
    public static let defaultPriority: UInt16 = 2
    /// The handle under which ours are found, but for agents beside the usual one.
    public static let defaultHandle: UInt32 = 0x4d41

    private let socket: RouteSocket
    private let interface: Int32
    private let priority: UInt16
    private let handle: UInt32
    private let kind: String
    /// Whether the qdisc is the agent's own.
    public let ownsQdisc: Bool
    /// Whether the filters stay when this goes away.
    public var isKept = false
    private var attached: [TrafficDirection: UInt32] = [:]

    /// Prepares an interface: makes its clsact qdisc if there is none.
    /// - Parameters:
    ///   - interface: Its number in this thread's network namespace.
    ///   - priority: Where among the filters ours stand.
    ///   - handle: Which of that place are ours.
    ///   - madeQdisc: An earlier agent had made the qdisc.
    /// - Throws: `ENODEV` if it is gone.
    public init(
        interface: Int32, priority: UInt16 = defaultPriority, handle: UInt32 = defaultHandle,
        madeQdisc: Bool = false
    ) throws(SystemError) {
        let socket = try RouteSocket()
        var request = NetlinkRequest(
            Int(RTM_NEWQDISC), flags: NLM_F_CREATE | NLM_F_EXCL,
            message(interface, parent: Self.hook, handle: Self.qdiscHandle))
        request.add(Int(TCA_KIND), text: "clsact")
        var kind = "clsact"
        var owns = true
        do {
            try socket.execute(request, "make a clsact qdisc on", "interface \(interface)")
        } catch {
            guard error.errno == EEXIST else { throw error }
            // Someone's; or an agent's that was killed, and then its filter's name tells.
            kind = try Self.qdiscKind(socket, interface)
            owns = madeQdisc
            for direction in TrafficDirection.allCases where kind == "clsact" || direction == .ingress {
                let ours = try Self.filters(socket, interface, direction).first { $0.name == Name.withQdisc }
                if ours != nil { owns = true }
            }
        }
        self.socket = socket
        self.interface = interface
        self.priority = priority
        self.handle = handle
        self.kind = kind
        ownsQdisc = owns
    }

    /// Adds a direct-action filter, or replaces the one that an agent left behind, without a gap.
    /// - Throws: `EEXIST` if another program's filter has our priority and handle.
    public mutating func attach(
        _ program: borrowing BPFProgram, _ direction: TrafficDirection
    ) throws(SystemError) {
        let operation = "attach"
        let subject = "\(program.name) to \(direction.rawValue) of interface \(interface)"
        // On the older ingress qdisc the kernel would take an egress filter, and run it at ingress.
        guard kind == "clsact" || direction == .ingress else {
            throw SystemError(
                operation, subject, errno: EOPNOTSUPP,
                reason: "another program put an ingress qdisc there, which has no egress side",
                hint: "ask its owner to use clsact")
        }
        let id = try program.id()
        let present = try Self.filters(socket, interface, direction)
            .first { $0.priority == priority && $0.handle == handle }
        if let present, !Name.isOurs(present.name) {
            throw SystemError(
                operation, subject, errno: EEXIST,
                reason: "a filter of another program (\(present.name)) has that place",
                hint: "choose another priority")
        }
        var request = NetlinkRequest(
            Int(RTM_NEWTFILTER), flags: NLM_F_CREATE | (present == nil ? NLM_F_EXCL : 0),
            message(interface, parent: parent(direction), handle: handle, info: info))
        request.add(Int(TCA_KIND), text: "bpf")
        request.add(Int(TCA_OPTIONS)) { options in
            options.add(Int(TCA_BPF_FD), program.descriptor)
            options.add(Int(TCA_BPF_NAME), text: ownsQdisc ? Name.withQdisc : Name.plain)
            options.add(Int(TCA_BPF_FLAGS), UInt32(TCA_BPF_FLAG_ACT_DIRECT))
        }
        try socket.execute(request, operation, subject)
        attached[direction] = id
    }

    /// The directions whose filter is not there any more, or runs another program.
    public func missing() throws(SystemError) -> [TrafficDirection] {
        var missing: [TrafficDirection] = []
        for (direction, id) in attached {
            let isThere = try Self.filters(socket, interface, direction).contains {
                $0.priority == priority && $0.handle == handle && $0.programID == id
            }
            if !isThere { missing.append(direction) }
        }
        return missing
    }

    deinit {
        if isKept { return }
        // What fails here is an interface that is gone, and its filters with it.
        for (direction, id) in attached { try? detach(direction, id) }
        if ownsQdisc { try? Self.removeQdisc(socket, interface) }
    }

    private func detach(_ direction: TrafficDirection, _ id: UInt32) throws(SystemError) {
        // If another agent has replaced our filter by now, it is not ours to remove.
        let ours = try Self.filters(socket, interface, direction).contains {
            $0.priority == priority && $0.handle == handle && $0.programID == id
        }
        if ours { try Self.remove(socket, interface, direction, info: info, handle: handle) }
    }

    /// Removes the filters that an earlier agent left on an interface of this thread's network namespace.
    /// - Parameter withQdisc: That agent had made the qdisc, so it goes too, if no other filter is left.
    public static func remove(
        interface: Int32, priority: UInt16 = defaultPriority, handle: UInt32, withQdisc: Bool
    ) throws(SystemError) {
        do throws(SystemError) {
            let socket = try RouteSocket()
            var owns = withQdisc
            for direction in TrafficDirection.allCases {
                let ours = try filters(socket, interface, direction).first {
                    $0.priority == priority && $0.handle == handle && Name.isOurs($0.name)
                }
                guard let ours else { continue }
                owns = owns || ours.name == Name.withQdisc
                try remove(socket, interface, direction, info: info(priority), handle: handle)
            }
            if owns { try removeQdisc(socket, interface) }
        } catch {
            // The interface is gone, or its qdisc is, and the filters with it.
            guard error.errno == ENODEV || error.errno == EINVAL || error.errno == ENOENT else { throw error }
        }
    }

    /// Whether an interface of this thread's network namespace has a filter that an agent left.
    public static func isLeft(
        interface: Int32, priority: UInt16 = defaultPriority, handle: UInt32
    ) throws(SystemError) -> Bool {
        let socket = try RouteSocket()
        return try filters(socket, interface, .egress).contains {
            $0.priority == priority && $0.handle == handle && Name.isOurs($0.name)
        }
    }

    /// Whether an interface has a qdisc to hold filters.
    public static func hasQdisc(interface: Int32) throws(SystemError) -> Bool {
        try !qdiscKind(RouteSocket(), interface).isEmpty
    }

    private static func remove(
        _ socket: borrowing RouteSocket, _ interface: Int32, _ direction: TrafficDirection, info: UInt32,
        handle: UInt32
    ) throws(SystemError) {
        var request = NetlinkRequest(
            Int(RTM_DELTFILTER), message(interface, parent: parent(direction), handle: handle, info: info))
        request.add(Int(TCA_KIND), text: "bpf")
        try socket.execute(request, "remove", "the \(direction.rawValue) filter of interface \(interface)")
    }

    private static func removeQdisc(
        _ socket: borrowing RouteSocket, _ interface: Int32
    ) throws(SystemError) {
        for direction in TrafficDirection.allCases {
            guard try filters(socket, interface, direction).isEmpty else { return }
        }
        var request = NetlinkRequest(
            Int(RTM_DELQDISC), message(interface, parent: hook, handle: qdiscHandle))
        request.add(Int(TCA_KIND), text: "clsact")
        try socket.execute(request, "remove", "the clsact qdisc of interface \(interface)")
    }

    /// A filter's name is what `tc filter show` prints, and the place where a killed agent left word of
    /// whether the qdisc was its own.
    private enum Name {
        static let plain = "mesh-agent"
        static let withQdisc = "mesh-agent-clsact"
        static func isOurs(_ name: String) -> Bool { name == plain || name == withQdisc }
    }

    private struct Filter {
        var priority: UInt16
        var handle: UInt32
        var name = ""
        var programID: UInt32 = 0
    }

    private static func filters(
        _ socket: borrowing RouteSocket, _ interface: Int32, _ direction: TrafficDirection
    ) throws(SystemError) -> [Filter] {
        let request = NetlinkRequest(Int(RTM_GETTFILTER), message(interface, parent: parent(direction)))
        var found: [Filter] = []
        _ = try socket.dump(request, "list", "the filters of interface \(interface)") { message in
            guard let head = message.payload.load(tcmsg.self) else { return }
            var filter = Filter(priority: UInt16(head.tcm_info >> 16), handle: head.tcm_handle)
            let body = MemoryLayout<tcmsg>.size
            for attribute in NetlinkAttributes(message.payload, from: body)
            where attribute.type == TCA_OPTIONS {
                for option in NetlinkAttributes(attribute.value) {
                    switch Int(option.type) {
                    case Int(TCA_BPF_NAME): filter.name = option.text
                    case Int(TCA_BPF_ID): filter.programID = option.number ?? 0
                    default: break
                    }
                }
            }
            found.append(filter)
        }
        return found
    }

    private static func qdiscKind(
        _ socket: borrowing RouteSocket, _ interface: Int32
    ) throws(SystemError) -> String {
        var kind = ""
        let request = NetlinkRequest(Int(RTM_GETQDISC), message(interface, parent: 0))
        _ = try socket.dump(request, "list", "the qdiscs of interface \(interface)") { message in
            guard let head = message.payload.load(tcmsg.self), head.tcm_ifindex == interface,
                head.tcm_parent == hook
            else { return }
            let body = MemoryLayout<tcmsg>.size
            for attribute in NetlinkAttributes(message.payload, from: body) where attribute.type == TCA_KIND {
                kind = attribute.text
            }
        }
        return kind
    }

    /// Priority and protocol as netlink has them: all protocols, in network order.
    private var info: UInt32 { Self.info(priority) }
    private static func info(_ priority: UInt16) -> UInt32 {
        UInt32(priority) << 16 | UInt32(UInt16(ETH_P_ALL).bigEndian)
    }

    /// TC_H_CLSACT, the place of a clsact or ingress qdisc.
    private static let hook: UInt32 = 0xffff_fff1
    private static let qdiscHandle: UInt32 = 0xffff_0000
}

/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS).
private func parent(_ direction: TrafficDirection) -> UInt32 {
    direction == .ingress ? 0xffff_fff2 : 0xffff_fff3
}

private func message(_ interface: Int32, parent: UInt32, handle: UInt32 = 0, info: UInt32 = 0) -> tcmsg {
    var message = tcmsg()
    message.tcm_ifindex = interface
    message.tcm_parent = parent
    message.tcm_handle = handle
    message.tcm_info = info
    return message
}
