// rtnetlink: building requests, walking answers that may be cut or wrong, and exchanging them.
import CMeshSystem
import Glibc

/// One message of a netlink buffer.
public struct NetlinkMessage {
    /// What it is, such as `RTM_NEWLINK`.
    public let type: UInt16
    /// The `NLM_F_` bits.
    public let flags: UInt16
    /// The number of the request that it answers; 0 for a notification.
    public let sequence: UInt32
    /// What follows the header.
    public let payload: UnsafeRawBufferPointer
}

/// The messages of a netlink buffer. Ends at the first one that does not fit into what is left.
public struct NetlinkMessages: Sequence, IteratorProtocol {
    private var rest: UnsafeRawBufferPointer

    /// Walks a buffer that must outlive this value.
    public init(_ bytes: UnsafeRawBufferPointer) { rest = bytes }

    /// The next whole message.
    public mutating func next() -> NetlinkMessage? {
        let header = MemoryLayout<nlmsghdr>.size
        guard let head = rest.load(nlmsghdr.self), head.nlmsg_len >= header, head.nlmsg_len <= rest.count
        else {
            return nil
        }
        let length = Int(head.nlmsg_len)
        defer { rest = rest.from(aligned(length)) }
        return NetlinkMessage(
            type: head.nlmsg_type, flags: head.nlmsg_flags, sequence: head.nlmsg_seq,
            payload: UnsafeRawBufferPointer(rebasing: rest[header..<length]))
    }
}

/// One attribute of a netlink message.
public struct NetlinkAttribute {
    /// What it is, without the flag bits.
    public let type: UInt16
    /// Its value, which may be attributes again.
    public let value: UnsafeRawBufferPointer

    /// The value as text, without the terminating zero.
    public var text: String { String(decoding: value.prefix { $0 != 0 }, as: UTF8.self) }
    /// The value as a 32-bit number; nil if it is too short.
    public var number: UInt32? { value.load(UInt32.self) }
}

/// The attributes in a piece of a netlink message. Ends at the first one that does not fit.
public struct NetlinkAttributes: Sequence, IteratorProtocol {
    private var rest: UnsafeRawBufferPointer

    /// Walks bytes that must outlive this value, from `offset` (rounded up to 4) on.
    public init(_ bytes: UnsafeRawBufferPointer, from offset: Int = 0) { rest = bytes.from(aligned(offset)) }

    /// The next whole attribute.
    public mutating func next() -> NetlinkAttribute? {
        let header = MemoryLayout<rtattr>.size
        guard let head = rest.load(rtattr.self), head.rta_len >= header, head.rta_len <= rest.count else {
            return nil
        }
        let length = Int(head.rta_len)
        defer { rest = rest.from(aligned(length)) }
        // The two upper bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        return NetlinkAttribute(
            type: head.rta_type & 0x3fff, value: UnsafeRawBufferPointer(rebasing: rest[header..<length]))
    }
}

/// A request in the making.
public struct NetlinkRequest {
    var bytes: [UInt8] = []

    /// Begins a request.
    /// - Parameters:
    ///   - type: What it is, such as `RTM_GETLINK`.
    ///   - flags: The `NLM_F_` bits besides `NLM_F_REQUEST`.
    ///   - body: The struct that this type of message begins with.
    public init<Body: BitwiseCopyable>(_ type: Int, flags: Int32 = 0, _ body: Body) {
        append(
            nlmsghdr(
                nlmsg_len: 0, nlmsg_type: UInt16(type), nlmsg_flags: UInt16(NLM_F_REQUEST | flags),
                nlmsg_seq: 0,
                nlmsg_pid: 0))
        append(body)
    }

    /// Adds an attribute with a number or struct as its value.
    public mutating func add<Value: BitwiseCopyable>(_ type: Int, _ value: Value) {
        withUnsafeBytes(of: value) { add(type, bytes: $0) }
    }

    /// Adds an attribute with text as its value, and a terminating zero.
    public mutating func add(_ type: Int, text: String) {
        (Array(text.utf8) + [0]).withUnsafeBytes { add(type, bytes: $0) }
    }

    /// Adds an attribute that consists of attributes.
    public mutating func add(_ type: Int, nested build: (inout NetlinkRequest) -> Void) {
        let start = bytes.count
        append(rtattr(rta_len: 0, rta_type: UInt16(type)))
        build(&self)
        let length = UInt16(bytes.count - start)
        bytes.withUnsafeMutableBytes { $0.storeBytes(of: length, toByteOffset: start, as: UInt16.self) }
    }

    private mutating func add(_ type: Int, bytes value: UnsafeRawBufferPointer) {
        append(
            rtattr(
                rta_len: UInt16(MemoryLayout<rtattr>.size + value.count), rta_type: UInt16(type)))
        bytes.append(contentsOf: value)
        pad()
    }

    /// Adds a bare struct, with which some nested attributes begin.
    public mutating func append<Value: BitwiseCopyable>(_ value: Value) {
        withUnsafeBytes(of: value) { bytes.append(contentsOf: $0) }
        pad()
    }

    private mutating func pad() {
        bytes.append(contentsOf: repeatElement(0, count: aligned(bytes.count) - bytes.count))
    }

    /// The finished message.
    func encoded(sequence: UInt32, flags: Int32) -> [UInt8] {
        var done = bytes
        done.withUnsafeMutableBytes { raw in
            var head = raw.loadUnaligned(as: nlmsghdr.self)
            head.nlmsg_len = UInt32(raw.count)
            head.nlmsg_flags |= UInt16(flags)
            head.nlmsg_seq = sequence
            raw.storeBytes(of: head, as: nlmsghdr.self)
        }
        return done
    }
}

/// An rtnetlink socket. It belongs to the network namespace that its thread was in when it was made.
public struct RouteSocket: ~Copyable, Sendable {
    private let socket: FileDescriptor

    /// Opens a socket.
    /// - Parameter groups: The `RTMGRP_` bits of the notifications to get.
    public init(groups: UInt32 = 0) throws(SystemError) {
        let made = Glibc.socket(AF_NETLINK, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), NETLINK_ROUTE)
        guard made >= 0 else { throw SystemError("open", "a netlink socket") }
        let socket = FileDescriptor(owning: made)
        var on: Int32 = 1
        let size = socklen_t(MemoryLayout<Int32>.size)
        // The kernel then says in words what it refused, where it has words.
        _ = setsockopt(made, SOL_NETLINK, Int32(NETLINK_EXT_ACK), &on, size)
        _ = setsockopt(made, SOL_NETLINK, Int32(NETLINK_CAP_ACK), &on, size)
        var address = sockaddr_nl()
        address.nl_family = sa_family_t(AF_NETLINK)
        address.nl_groups = groups
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(made, $0, socklen_t(MemoryLayout<sockaddr_nl>.size))
            }
        }
        guard bound == 0 else { throw SystemError("subscribe to", "netlink notifications") }
        self.socket = socket
    }

    /// Readable while a message waits.
    public var descriptor: Int32 { socket.descriptor }

    /// Sends a request that changes something and waits for the kernel's word on it.
    /// - Parameters:
    ///   - request: What to do.
    ///   - operation: What that is, for the error: a verb phrase.
    ///   - subject: What it is done to, for the error.
    public func execute(
        _ request: NetlinkRequest, _ operation: String, _ subject: String
    ) throws(SystemError) {
        _ = try exchange(request, flags: NLM_F_ACK, operation, subject) { _ in }
    }

    /// Asks for a list and gives each message of the answer to `body`.
    /// - Returns: Whether the list is consistent; false if it changed while it was read.
    public func dump(
        _ request: NetlinkRequest, _ operation: String, _ subject: String, _ body: (NetlinkMessage) -> Void
    ) throws(SystemError) -> Bool {
        try exchange(request, flags: NLM_F_DUMP, operation, subject, body)
    }

    private func exchange(
        _ request: NetlinkRequest, flags: Int32, _ operation: String, _ subject: String,
        _ body: (NetlinkMessage) -> Void
    ) throws(SystemError) -> Bool {
        // One request at a time, so any number will do that notifications do not have.
        let sequence: UInt32 = 1
        let bytes = request.encoded(sequence: sequence, flags: flags)
        guard retrying({ Glibc.send(socket.descriptor, bytes, bytes.count, 0) }) == bytes.count else {
            throw SystemError(operation, subject)
        }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.bufferSize, alignment: 8)
        defer { buffer.deallocate() }
        var consistent = true
        while true {
            guard let received = try receive(into: buffer, wait: true) else { continue }
            for message in NetlinkMessages(received) where message.sequence == sequence {
                if message.flags & UInt16(NLM_F_DUMP_INTR) != 0 { consistent = false }
                switch Int32(message.type) {
                case NLMSG_DONE: return consistent
                case NLMSG_ERROR:
                    let number = message.payload.load(Int32.self) ?? -EBADMSG
                    if number == 0 { return consistent }
                    throw SystemError(operation, subject, errno: -number, reason: Self.reason(message))
                default: body(message)
                }
            }
        }
    }

    /// How long a message can be that the kernel sends: a page, or 32 KiB in a dump.
    static let bufferSize = 65536

    /// Receives one datagram of the kernel.
    /// - Returns: nil when none waits, or when it came from someone else.
    /// - Throws: `ENOBUFS` when notifications were lost.
    func receive(
        into buffer: UnsafeMutableRawBufferPointer, wait: Bool
    ) throws(SystemError) -> UnsafeRawBufferPointer? {
        var sender = sockaddr_nl()
        var size = socklen_t(MemoryLayout<sockaddr_nl>.size)
        let flags = wait ? 0 : Int32(MSG_DONTWAIT)
        let count = withUnsafeMutablePointer(to: &sender) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                retrying {
                    recvfrom(socket.descriptor, buffer.baseAddress, buffer.count, flags, address, &size)
                }
            }
        }
        guard count >= 0 else {
            if errno == EAGAIN { return nil }
            throw SystemError("read from", "the netlink socket")
        }
        guard sender.nl_pid == 0 else { return UnsafeRawBufferPointer(rebasing: buffer[..<0]) }
        return UnsafeRawBufferPointer(rebasing: buffer[..<count])
    }

    /// What the kernel says about an error beyond its number.
    private static func reason(_ message: NetlinkMessage) -> String? {
        // An int and the header of the request, then attributes if there are any.
        guard message.flags & 0x200 /* NLM_F_ACK_TLVS */ != 0 else { return nil }
        let offset = MemoryLayout<Int32>.size + MemoryLayout<nlmsghdr>.size
        for attribute in NetlinkAttributes(message.payload, from: offset)
        where attribute.type == 1 /* _MSG */ {
            return attribute.text
        }
        return nil
    }
}

private func aligned(_ length: Int) -> Int { (length + 3) & ~3 }

extension UnsafeRawBufferPointer {
    /// A value at the beginning; nil if the bytes are too few.
    public func load<Value: BitwiseCopyable>(_: Value.Type) -> Value? {
        count >= MemoryLayout<Value>.size ? loadUnaligned(as: Value.self) : nil
    }

    /// What follows the first `offset` bytes; nothing if there are fewer.
    func from(_ offset: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: self[Swift.min(offset, count)...])
    }
}
