// What identifies a row of the series tables, packed into one word so that it hashes and compares
// in a few instructions.

/// The identity of a series: service, workload, role, protocol and code in 64 bits.
///
/// Bits 63–44 hold the service's ID, 43–16 the workload's index, 15–14 the role, 13–12 the protocol, 11–0
/// the code. It is never 0, because a role never is.
public struct SeriesKey: Hashable, Sendable {
    /// The packed key.
    public let rawValue: UInt64

    /// The index of the workload `other`.
    public static let otherWorkload: UInt32 = 0
    /// The ID of the service `other`.
    public static let otherService: UInt32 = 0
    /// The first service ID that does not fit; it and what follows counts as `other`.
    public static let serviceLimit: UInt32 = 1 << 20
    /// The first workload index that does not fit; it and what follows counts as `other`.
    public static let workloadLimit: UInt32 = 1 << 28

    /// A key. `code` is `Sample.code`: an HTTP status up to 999, or the raw value of an outcome.
    public init(
        service: UInt32, workload: UInt32, role: Sample.Role, wireProtocol: Sample.WireProtocol = .tcp,
        code: UInt16 = 0
    ) {
        let service = service < SeriesKey.serviceLimit ? service : SeriesKey.otherService
        let workload = workload < SeriesKey.workloadLimit ? workload : SeriesKey.otherWorkload
        rawValue =
            UInt64(service) << 44 | UInt64(workload) << 16 | UInt64(role.rawValue) << 14
            | UInt64(wireProtocol.rawValue) << 12 | UInt64(min(code, 4095))
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    /// The service's ID.
    public var service: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 44) }
    /// The workload's index.
    public var workload: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 16) & 0x0fff_ffff }
    /// The role.
    public var role: Sample.Role { rawValue >> 14 & 3 == 1 ? .client : .server }
    /// The protocol; `tcp` in tables that do not tell protocols apart.
    public var wireProtocol: Sample.WireProtocol {
        Sample.WireProtocol(rawValue: UInt8(rawValue >> 12 & 3)) ?? .tcp
    }
    /// The HTTP status, or below 100 the raw value of an outcome.
    public var code: UInt16 { UInt16(rawValue & 0xfff) }

    /// The same series with the workload `other`.
    var withOtherWorkload: SeriesKey { SeriesKey(rawValue: rawValue & ~(0x0fff_ffff << 16)) }
    /// The same series with the service and the workload `other`.
    var withOtherService: SeriesKey { SeriesKey(rawValue: rawValue & 0xffff) }
    /// The same series of the other role.
    var withOtherRole: SeriesKey { SeriesKey(rawValue: rawValue ^ (3 << 14)) }
}
