// A JSON value: what the control API, the logs and meshctl's output are made of. Objects keep the
// order of their keys, so that output is stable.

/// A JSON value. Numbers are doubles, as in every other JSON implementation: integers are exact up
/// to 2^53.
public indirect enum JSONValue: Sendable {
    /// `null`.
    case null
    /// `true` or `false`.
    case bool(Bool)
    /// A number. One that is not finite is written as `null`.
    case number(Double)
    /// A string.
    case string(String)
    /// An array.
    case array([JSONValue])
    /// An object, in the order of its keys.
    case object([(key: String, value: JSONValue)])

    /// A number from any integer.
    public static func integer(_ value: some BinaryInteger) -> JSONValue {
        .number(Double(value))
    }

    /// Parses one JSON document, strictly by RFC 8259.
    ///
    /// - Throws: `JSONError` with the line of the first thing that is wrong. Duplicate keys, more
    ///   than 64 levels, invalid UTF-8, and anything after the value are errors.
    public static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSONValue {
        try JSONNode.parse(bytes).value
    }

    /// The value of an object's key; nil where there is none, or where this is not an object.
    public subscript(key: String) -> JSONValue? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.key == key }?.value
    }

    /// The element of an array; nil past its ends, or where this is not an array.
    public subscript(index: Int) -> JSONValue? {
        guard case .array(let elements) = self, elements.indices.contains(index) else { return nil }
        return elements[index]
    }

    /// The string, if this is one.
    public var string: String? {
        guard case .string(let value) = self else { return nil }
        return value
    }

    /// The number, if this is one.
    public var double: Double? {
        guard case .number(let value) = self else { return nil }
        return value
    }

    /// The number, if this is an integer of at most 2^53 in magnitude.
    public var int: Int? {
        guard case .number(let value) = self, value.magnitude <= JSONValue.exactIntegers else { return nil }
        return Int(exactly: value)
    }

    /// The truth value, if this is one.
    public var bool: Bool? {
        guard case .bool(let value) = self else { return nil }
        return value
    }

    /// The elements, if this is an array.
    public var array: [JSONValue]? {
        guard case .array(let elements) = self else { return nil }
        return elements
    }

    /// The members in their order, if this is an object.
    public var object: [(key: String, value: JSONValue)]? {
        guard case .object(let members) = self else { return nil }
        return members
    }

    /// Whether this is `null`.
    public var isNull: Bool {
        guard case .null = self else { return false }
        return true
    }

    /// Up to here a double holds every integer.
    static let exactIntegers = 9_007_199_254_740_992.0
}

extension JSONValue: Equatable {
    /// Equal values; objects compare with the order of their keys.
    public static func == (left: JSONValue, right: JSONValue) -> Bool {
        switch (left, right) {
        case (.null, .null): true
        case (.bool(let one), .bool(let other)): one == other
        case (.number(let one), .number(let other)): one == other
        case (.string(let one), .string(let other)): one == other
        case (.array(let one), .array(let other)): one == other
        case (.object(let one), .object(let other)):
            one.elementsEqual(other) { $0.key == $1.key && $0.value == $1.value }
        default: false
        }
    }
}

extension JSONValue: ExpressibleByNilLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
    ExpressibleByFloatLiteral, ExpressibleByStringInterpolation, ExpressibleByArrayLiteral,
    ExpressibleByDictionaryLiteral
{
    /// `null`.
    public init(nilLiteral: ()) { self = .null }
    /// A truth value.
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    /// A number.
    public init(integerLiteral value: Int) { self = .number(Double(value)) }
    /// A number.
    public init(floatLiteral value: Double) { self = .number(value) }
    /// A string.
    public init(stringLiteral value: String) { self = .string(value) }
    /// An array.
    public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
    /// An object, in the order written.
    public init(dictionaryLiteral elements: (String, JSONValue)...) {
        self = .object(elements.map { (key: $0.0, value: $0.1) })
    }
}
