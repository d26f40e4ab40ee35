// Reads the agent's JSON by name and kind, and says exactly what is missing when an answer is
// not what this meshctl understands.

import MeshCore

/// A part of an answer, with the path by which it was reached.
struct Answer {
    let value: JSONValue
    let path: String

    init(_ value: JSONValue, path: String = "answer") {
        self.value = value
        self.path = path
    }

    /// The named member; it must be there, null or not.
    func member(_ key: String) throws(Failure) -> Answer {
        guard case .object = value else { throw mismatch("an object") }
        guard let member = value[key] else { throw Answer(.null, path: "\(path).\(key)").missing() }
        return Answer(member, path: "\(path).\(key)")
    }

    /// The named member, nil when it is null or not there.
    func optional(_ key: String) throws(Failure) -> Answer? {
        guard case .object = value else { throw mismatch("an object") }
        guard let member = value[key], member != .null else { return nil }
        return Answer(member, path: "\(path).\(key)")
    }

    func text(_ key: String) throws(Failure) -> String { try member(key).text() }
    func number(_ key: String) throws(Failure) -> Double { try member(key).number() }
    func flag(_ key: String) throws(Failure) -> Bool {
        let member = try member(key)
        guard case .bool(let flag) = member.value else { throw member.mismatch("true or false") }
        return flag
    }
    func optionalText(_ key: String) throws(Failure) -> String? { try optional(key)?.text() }
    func optionalNumber(_ key: String) throws(Failure) -> Double? { try optional(key)?.number() }

    /// The named member's elements, each decoded.
    func list<Element>(
        _ key: String, _ decode: (Answer) throws(Failure) -> Element
    ) throws(Failure) -> [Element] {
        let member = try member(key)
        guard case .array(let elements) = member.value else { throw member.mismatch("an array") }
        var result: [Element] = []
        result.reserveCapacity(elements.count)
        for (index, element) in elements.enumerated() {
            result.append(try decode(Answer(element, path: "\(member.path)[\(index)]")))
        }
        return result
    }

    func text() throws(Failure) -> String {
        guard case .string(let text) = value else { throw mismatch("a string") }
        return text
    }

    func number() throws(Failure) -> Double {
        guard case .number(let number) = value else { throw mismatch("a number") }
        return number
    }

    private func mismatch(_ expected: String) -> Failure {
        .noAgent("the agent's answer is not understood: \(path) is not \(expected); \(Self.remedy)")
    }

    private func missing() -> Failure {
        .noAgent("the agent's answer is not understood: \(path) is missing; \(Self.remedy)")
    }

    private static let remedy = "are meshctl and the agent of the same version?"
}
