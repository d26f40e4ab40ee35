// Decodes the records that the kernel side puts into the ring buffer (mesh_abi.h). A record is
// believed only after its length, kind and enumerations were checked; nothing here allocates.
import CMeshABI

/// One ring-buffer record of kinds 1 to 6: what happened on a connection. Times are
/// `CLOCK_MONOTONIC` nanoseconds, durations nanoseconds.
public struct Sample: Equatable, Sendable {
    /// What happened.
    public enum Kind: UInt8, Sendable, CaseIterable {
        /// A request ended; its duration is the time to first byte.
        case request = 1
        /// A connect() ended, well or not; its duration is the handshake's.
        case connect = 2
        /// A connection was accepted.
        case accept = 3
        /// A connection older than the agent was first seen.
        case adopt = 4
        /// A connection that had been opened or adopted ended.
        case close = 5
        /// Nothing ended; the byte counts moved on.
        case bytes = 6

        /// The kind as `meshctl flows` names it.
        public var label: String {
            switch self {
            case .request: "request"
            case .connect: "connect"
            case .accept: "accept"
            case .adopt: "adopt"
            case .close: "close"
            case .bytes: "bytes"
            }
        }
    }

    /// Which side of the connection this node's socket is.
    public enum Role: UInt8, Sendable, CaseIterable {
        /// The socket called connect().
        case client = 1
        /// The socket was accepted.
        case server = 2

        /// The value of the label `role`.
        public var label: String { self == .client ? "client" : "server" }
    }

    /// What the payload looks like.
    public enum WireProtocol: UInt8, Sendable, CaseIterable {
        /// Neither of the others.
        case tcp = 0
        /// HTTP/1.x.
        case http = 1
        /// TLS.
        case tls = 2

        /// The value of the label `protocol`.
        public var label: String {
            switch self {
            case .tcp: "tcp"
            case .http: "http"
            case .tls: "tls"
            }
        }
    }

    /// How a request or connect ended, its HTTP status aside.
    public enum Outcome: UInt8, Sendable, CaseIterable {
        /// A response came, or the connection was made.
        case ok = 0
        /// Nobody listens there.
        case refused = 1
        /// No answer in time.
        case timeout = 2
        /// No way there.
        case unreachable = 3
        /// The peer reset the connection.
        case reset = 4
        /// The connection closed with the request pending.
        case aborted = 5

        /// The value of the labels `code` and `reason`.
        public var label: String {
            switch self {
            case .ok: "ok"
            case .refused: "refused"
            case .timeout: "timeout"
            case .unreachable: "unreachable"
            case .reset: "reset"
            case .aborted: "aborted"
            }
        }
    }

    /// What the kernel's admit() had to say about the attempt. Unknown bits are kept and ignored.
    public struct Flags: OptionSet, Sendable {
        /// The bits of `mesh_sample.flags`.
        public let rawValue: UInt16
        /// Flags from the bits of `mesh_sample.flags`.
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        /// A half-open breaker admitted this attempt.
        public static let probe = Flags(rawValue: 1 << 0)
        /// An observing breaker would have rejected it.
        public static let wouldReject = Flags(rawValue: 1 << 1)
        /// No breaker applies to this connection.
        public static let exempt = Flags(rawValue: 1 << 2)
        /// Rejected, but no tc hook was there to reset it.
        public static let unenforced = Flags(rawValue: 1 << 3)

        /// With any of these, a breaker learns nothing from the attempt.
        static let tellsNothing = Flags([.wouldReject, .exempt, .unenforced])
    }

    /// What happened.
    public var kind: Kind
    /// Which side of the connection this node's socket is.
    public var role: Role
    /// What the payload looks like.
    public var wireProtocol: WireProtocol
    /// How it ended.
    public var outcome: Outcome
    /// The HTTP status, 100 to 999, or 0 where there is none.
    public var status: UInt16
    /// What admit() said.
    public var flags: Flags
    /// The service's ID; 0 is `other`.
    public var service: UInt32
    /// Segments retransmitted since this connection's last sample.
    public var retransmits: Int32
    /// The cgroup ID of the socket's owner.
    public var workload: UInt64
    /// When it ended.
    public var time: UInt64
    /// How long the request or connect took; 0 for the other kinds.
    public var duration: UInt64
    /// Payload bytes sent since this connection's last sample.
    public var sentBytes: Int32
    /// Payload bytes received since this connection's last sample.
    public var receivedBytes: Int32
    /// The trace ID; nil if it is unknown.
    public var traceID: TraceID?

    /// How many bytes a sample has.
    public static let length = 64
    /// How many bytes a sample has that carries its connection's addresses.
    public static let flowLength = 112

    /// A sample from its parts, for tests and tools; the decoder is `init(record:)`.
    public init(
        kind: Kind, role: Role, wireProtocol: WireProtocol = .tcp, outcome: Outcome = .ok,
        status: UInt16 = 0, flags: Flags = [], service: UInt32 = 0, retransmits: Int32 = 0,
        workload: UInt64 = 0, time: UInt64 = 0, duration: UInt64 = 0, sentBytes: Int32 = 0,
        receivedBytes: Int32 = 0, traceID: TraceID? = nil
    ) {
        self.kind = kind
        self.role = role
        self.wireProtocol = wireProtocol
        self.outcome = outcome
        self.status = status
        self.flags = flags
        self.service = service
        self.retransmits = retransmits
        self.workload = workload
        self.time = time
        self.duration = duration
        self.sentBytes = sentBytes
        self.receivedBytes = receivedBytes
        self.traceID = traceID
    }

    /// Decodes a record. Nil if the length, the kind or an enumeration is not one of the ABI's. A status that is
    /// not a number of three digits is a peer's nonsense, not a malformed record: it becomes 0, so that the
    /// request still counts.
    public init?(record: UnsafeRawBufferPointer) {
        guard let record = SampleRecord(record) else { return nil }
        self.init(record)
    }

    /// The same for one whose length is known to be right.
    public init?(_ record: SampleRecord) {
        let head = record.head
        guard
            let kind = Kind(rawValue: UInt8(truncatingIfNeeded: head)),
            let role = Role(rawValue: UInt8(truncatingIfNeeded: head >> 8)),
            let wireProtocol = WireProtocol(rawValue: UInt8(truncatingIfNeeded: head >> 16)),
            let outcome = Outcome(rawValue: UInt8(truncatingIfNeeded: head >> 24))
        else { return nil }
        let status = UInt16(truncatingIfNeeded: head >> 32)
        self.init(
            kind: kind, role: role, wireProtocol: wireProtocol, outcome: outcome,
            status: (100...999).contains(status) ? status : 0,
            flags: Flags(rawValue: UInt16(truncatingIfNeeded: head >> 48)), service: record.service,
            retransmits: record.retransmits, workload: record.workload, time: record.time,
            duration: record.duration, sentBytes: record.sentBytes, receivedBytes: record.receivedBytes,
            traceID: record.traceID)
    }

    /// The head of a record that says the same.
    public var head: UInt64 {
        UInt64(kind.rawValue) | UInt64(role.rawValue) << 8 | UInt64(wireProtocol.rawValue) << 16
            | UInt64(outcome.rawValue) << 24 | UInt64(status) << 32 | UInt64(flags.rawValue) << 48
    }

    /// The value of the label `code` as a number: the HTTP status, else the outcome's raw value (0 to 5).
    public var code: UInt16 { status != 0 ? status : UInt16(outcome.rawValue) }

    /// Whether a breaker with these failure statuses sees a failure in it: only requests and connects
    /// can be one.
    public func isFailure(_ statuses: Configuration.StatusSet) -> Bool {
        guard kind == .request || kind == .connect else { return false }
        return outcome != .ok || (status != 0 && statuses.contains(status))
    }

    /// What this sample tells a breaker with this policy; nil where it tells nothing. Only requests and
    /// connects of clients that the breaker let through do: not those of exempt sockets, nor attempts
    /// that were rejected, or would have been, and ran all the same.
    public func breakerOutcome(_ policy: BreakerPolicy) -> BreakerOutcome? {
        guard role == .client, kind == .request || kind == .connect else { return nil }
        guard flags.isDisjoint(with: .tellsNothing) else { return nil }
        return BreakerOutcome(
            failure: isFailure(policy.failureStatuses),
            slow: kind == .request && policy.slowCallDuration > 0 && duration >= policy.slowCallDuration,
            probe: flags.contains(.probe), connect: kind == .connect, duration: duration)
    }
}

/// A record of kinds 1 to 6 in the ring buffer, as it lies there: of what it holds only the length was checked.
public struct SampleRecord {
    @usableFromInline let bytes: UnsafeRawPointer

    /// A record of 64 bytes, or of 112 whose head is a sample; nil for one of any other length. Alignment does
    /// not matter. It is valid as long as the record is.
    @inlinable public init?(_ record: UnsafeRawBufferPointer) {
        guard record.count == Sample.length || record.count == Sample.flowLength else { return nil }
        bytes = record.baseAddress.unsafelyUnwrapped
    }

    /// Kind, role, protocol, outcome, status and flags, as they lie in it: where one record with this head can
    /// be decoded, all can.
    @inlinable public var head: UInt64 { load(0) }
    /// Whether it says that its role is the client's.
    @inlinable public var isOfClient: Bool { load(1) == Sample.Role.client.rawValue }
    /// Whether it says that it is of a client's request or connect: no other tells a breaker anything.
    @inlinable public var isOfAttempt: Bool {
        let kind: UInt8 = load(0)
        return isOfClient && (kind == Sample.Kind.request.rawValue || kind == Sample.Kind.connect.rawValue)
    }
    /// The service's ID.
    @inlinable public var service: UInt32 { load(8) }
    /// Segments retransmitted.
    @inlinable public var retransmits: Int32 { load(12) }
    /// The cgroup ID.
    @inlinable public var workload: UInt64 { load(16) }
    /// When it ended.
    @inlinable public var time: UInt64 { load(24) }
    /// How long it took.
    @inlinable public var duration: UInt64 { load(32) }
    /// Payload bytes sent.
    @inlinable public var sentBytes: Int32 { load(40) }
    /// Payload bytes received.
    @inlinable public var receivedBytes: Int32 { load(44) }
    /// The trace ID; nil if it is unknown.
    @inlinable public var traceID: TraceID? {
        TraceID(high: UInt64(bigEndian: load(48)), low: UInt64(bigEndian: load(56)))
    }

    @inlinable func load<Value: BitwiseCopyable>(_ offset: Int) -> Value {
        bytes.loadUnaligned(fromByteOffset: offset, as: Value.self)
    }
}

/// The two ends of the connection that a sample is about.
public struct SampleTuple: Equatable, Sendable {
    /// This node's end.
    public var localAddress: IPAddress
    /// The other end.
    public var remoteAddress: IPAddress
    /// This node's port.
    public var localPort: UInt16
    /// The other end's port.
    public var remotePort: UInt16
    /// The cookie of the network namespace.
    public var netns: UInt64

    /// Decodes the tail of a 112-byte record; nil for a record of any other length.
    public init?(record: UnsafeRawBufferPointer) {
        guard record.count == Sample.flowLength else { return nil }
        localAddress = IPAddress(record, at: 64)
        remoteAddress = IPAddress(record, at: 80)
        localPort = record.loadUnaligned(fromByteOffset: 96, as: UInt16.self)
        remotePort = record.loadUnaligned(fromByteOffset: 98, as: UInt16.self)
        netns = record.loadUnaligned(fromByteOffset: 104, as: UInt64.self)
    }
}

/// A record of kind 7: the kernel gave an unknown destination or listening port a service ID.
public struct SampleDiscovery: Equatable, Sendable {
    /// Client: `address` is a destination. Server: a listening port, the address all zero.
    public var role: Sample.Role
    /// The port.
    public var port: UInt16
    /// The new service's ID.
    public var service: UInt32
    /// The destination's address.
    public var address: IPAddress
    /// When.
    public var time: UInt64

    /// How many bytes a discovery has.
    public static let length = 32

    /// Decodes a record of 32 bytes and kind 7; nil for any other, or if its role is neither.
    public init?(record: UnsafeRawBufferPointer) {
        guard
            record.count == SampleDiscovery.length, UInt32(record[0]) == MESH_EVENT_DISCOVERED.rawValue,
            let role = Sample.Role(rawValue: record[1])
        else { return nil }
        self.role = role
        port = record.loadUnaligned(fromByteOffset: 2, as: UInt16.self)
        service = record.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
        address = IPAddress(record, at: 8)
        time = record.loadUnaligned(fromByteOffset: 24, as: UInt64.self)
    }
}

extension IPAddress {
    /// The address at an offset of a record that is long enough.
    fileprivate init(_ record: UnsafeRawBufferPointer, at offset: Int) {
        self.init(
            high: UInt64(bigEndian: record.loadUnaligned(fromByteOffset: offset, as: UInt64.self)),
            low: UInt64(bigEndian: record.loadUnaligned(fromByteOffset: offset + 8, as: UInt64.self)))
    }
}
