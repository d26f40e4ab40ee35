// Events as the control API and the audit log show them.

extension BreakerEvent {
    /// The event as an object with the keys `time`, `kind`, `service`, `from`, `to`, `reason`, `actor`, `text`
    /// and `expires_at`, always all of them and in this order; what it does not have is `null`.
    public var json: JSONValue {
        [
            "time": BreakerEvent.text(of: time), "kind": .string(kind.rawValue), "service": .string(service),
            "from": .string(orNull: from?.label), "to": .string(orNull: to?.label),
            "reason": .string(reason.rawValue), "actor": .string(actor), "text": .string(orNull: text),
            "expires_at": expiresAt.map(BreakerEvent.text(of:)) ?? .null,
        ]
    }

    private static func text(of time: UInt64) -> JSONValue {
        .string(
            RFC3339.format(
                seconds: Int64(time / 1_000_000_000), nanoseconds: UInt32(time % 1_000_000_000), digits: 3))
    }
}

extension JSONValue {
    fileprivate static func string(orNull text: String?) -> JSONValue { text.map(JSONValue.string) ?? .null }
}
