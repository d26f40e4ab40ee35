// A request that is understood and not carried out: what the agent answers, and meshctl where no agent runs.

/// Why the answer is no, as a sentence for people.
public struct Refusal: Error, Equatable, Sendable {
    /// The HTTP status that says the same to programs.
    public var status: Int
    /// The sentence.
    public var text: String
    /// The name that was probably meant.
    public var suggestion: String?

    /// A refusal from its parts.
    public init(status: Int, text: String, suggestion: String? = nil) {
        self.status = status
        self.text = text
        self.suggestion = suggestion
    }

    /// There is no such service.
    public static func noService(_ name: String, among names: [String]) -> Refusal {
        Refusal(
            status: 404, text: "there is no service named \(name.quoted())",
            suggestion: NearestName.suggest(name, from: names))
    }

    /// The service has no breaker, or one in mode `off`.
    public static func noBreaker(_ name: String) -> Refusal {
        Refusal(
            status: 409,
            text:
                "\(name.quoted()) is only observed: give it a \"breaker\" in the configuration to break it"
        )
    }
}

/// What a person says of an override, found good.
public struct OverrideWish: Equatable, Sendable {
    /// Why, in up to `reasonLimit` bytes.
    public let reason: String
    /// For how long, in nanoseconds.
    public let duration: UInt64

    /// The most bytes that a reason has.
    public static let reasonLimit = 500
    /// How long an override lasts if nothing is said of it, in seconds: a quarter of an hour.
    public static let usualSeconds = 900.0
    /// The longest override, in seconds: a week.
    public static let mostSeconds = 7 * 24 * 3600.0

    /// Checks what was said.
    public init(reason: String?, seconds: Double) throws(Refusal) {
        guard let reason, reason.contains(where: { !$0.isWhitespace }) else {
            throw Refusal(status: 400, text: "an override needs a reason")
        }
        guard reason.utf8.count <= OverrideWish.reasonLimit else {
            throw Refusal(
                status: 400, text: "the reason is longer than \(OverrideWish.reasonLimit) bytes")
        }
        guard seconds > 0, seconds <= OverrideWish.mostSeconds else {
            throw Refusal(
                status: 400, text: "an override lasts more than nothing and at most a week")
        }
        self.reason = reason
        duration = UInt64(seconds * 1_000_000_000)
    }
}
