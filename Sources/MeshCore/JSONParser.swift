// A strict JSON parser (RFC 8259) that remembers the line of everything, so that a configuration
// error can point at its place. It is fed by files and by sockets: no input may crash it, nest it
// deeper than 64 levels or make it do more than linear work.

/// A JSON document that breaks the rules.
public struct JSONError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The line, counted from 1, where it was noticed.
    public let line: Int
    /// What is wrong there.
    public let message: String

    /// The line and what is wrong there.
    public var description: String { "line \(line): \(message)" }
}

/// A parsed JSON value that knows its line.
public struct JSONNode: Sendable {
    /// What a node holds.
    public enum Content: Sendable {
        /// `null`.
        case null
        /// `true` or `false`.
        case bool(Bool)
        /// A finite number.
        case number(Double)
        /// A string.
        case string(String)
        /// An array.
        case array([JSONNode])
        /// An object in the order of the document; no key comes twice.
        case object([JSONMember])
    }

    /// What the node holds.
    public let content: Content
    private let storedLine: Int32

    init(_ content: Content, line: Int32) {
        self.content = content
        self.storedLine = line
    }

    /// The line, counted from 1, on which the value begins.
    public var line: Int { Int(storedLine) }

    /// The value without its lines.
    public var value: JSONValue {
        switch content {
        case .null: .null
        case .bool(let value): .bool(value)
        case .number(let value): .number(value)
        case .string(let value): .string(value)
        case .array(let elements): .array(elements.map(\.value))
        case .object(let members): .object(members.map { (key: $0.key, value: $0.value.value) })
        }
    }

    /// How deep arrays and objects may nest.
    public static let maximumDepth = 64
    /// How many bytes a document may have.
    public static let maximumBytes = 64 << 20
    /// How many values a document may have, so that memory is bounded whatever they are.
    public static let maximumValues = 2_000_000

    /// Parses one JSON document.
    ///
    /// - Throws: `JSONError` with the line of the first thing that is wrong: any breach of RFC 8259,
    ///   a duplicate key, invalid UTF-8, a number beyond a double, or a document past the limits.
    public static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSONNode {
        try parse(bytes, maximumValues: maximumValues)
    }

    static func parse(_ bytes: [UInt8], maximumValues: Int) throws(JSONError) -> JSONNode {
        guard bytes.count <= maximumBytes else {
            throw JSONError(line: 1, message: "the document is larger than \(maximumBytes >> 20) MiB")
        }
        var parser = JSONParser(bytes: bytes, maximumValues: maximumValues)
        return try parser.document()
    }
}

/// A key of an object with its value.
public struct JSONMember: Sendable {
    /// The key.
    public let key: String
    /// The value.
    public let value: JSONNode
    private let storedLine: Int32

    init(key: String, value: JSONNode, line: Int32) {
        self.key = key
        self.value = value
        self.storedLine = line
    }

    /// The line, counted from 1, of the key.
    public var line: Int { Int(storedLine) }
}

private struct JSONParser {
    private let bytes: [UInt8]
    private let maximumValues: Int
    private var index = 0
    private var line: Int32 = 1
    private var values = 0

    init(bytes: [UInt8], maximumValues: Int) {
        self.bytes = bytes
        self.maximumValues = maximumValues
    }

    mutating func document() throws(JSONError) -> JSONNode {
        if bytes.starts(with: [0xef, 0xbb, 0xbf]) {
            throw error("the document begins with a byte order mark; save it as plain UTF-8")
        }
        skipSpace()
        if peek == nil { throw error("the document is empty") }
        let node = try value(depth: 0)
        skipSpace()
        if let byte = peek { throw error("unexpected \(name(of: byte)) after the end of the document") }
        return node
    }

    private var peek: UInt8? { index < bytes.count ? bytes[index] : nil }

    private func error(_ message: String) -> JSONError {
        JSONError(line: Int(line), message: message)
    }

    private func name(of byte: UInt8?) -> String {
        switch byte {
        case nil: "end of the document"
        case UInt8(ascii: "/"): "\"/\" (JSON has no comments)"
        case .some(let byte) where byte > 0x20 && byte < 0x7f: String(UnicodeScalar(byte)).quoted()
        case .some(let byte):
            "byte 0x" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }
    }

    private mutating func skipSpace() {
        while index < bytes.count {
            switch bytes[index] {
            case 0x0a: line += 1
            case 0x20, 0x09, 0x0d: break
            default: return
            }
            index += 1
        }
    }

    private mutating func value(depth: Int) throws(JSONError) -> JSONNode {
        values += 1
        if values > maximumValues {
            throw error("the document has more than \(maximumValues) values")
        }
        let start = line
        switch peek {
        case UInt8(ascii: "{"): return JSONNode(.object(try members(depth: depth)), line: start)
        case UInt8(ascii: "["): return JSONNode(.array(try elements(depth: depth)), line: start)
        case UInt8(ascii: "\""): return JSONNode(.string(try string()), line: start)
        case .some(UInt8(ascii: "0")...UInt8(ascii: "9")), UInt8(ascii: "-"):
            return JSONNode(.number(try number()), line: start)
        case UInt8(ascii: "t"): return JSONNode(try word("true", .bool(true)), line: start)
        case UInt8(ascii: "f"): return JSONNode(try word("false", .bool(false)), line: start)
        case UInt8(ascii: "n"): return JSONNode(try word("null", .null), line: start)
        case let byte: throw error("expected a value, found \(name(of: byte))")
        }
    }

    private mutating func word(_ word: StaticString, _ content: JSONNode.Content)
        throws(JSONError) -> JSONNode.Content
    {
        let end = index + word.utf8CodeUnitCount
        let matches = word.withUTF8Buffer { end <= bytes.count && bytes[index..<end].elementsEqual($0) }
        guard matches else { throw error("expected a value; did you mean \(word)?") }
        index = end
        return content
    }

    private mutating func enter(_ depth: Int) throws(JSONError) {
        if depth >= JSONNode.maximumDepth {
            throw error("nested deeper than \(JSONNode.maximumDepth) levels")
        }
        index += 1
        skipSpace()
    }

    /// Past an element: true if a comma says that another one follows, false at the closing bracket.
    private mutating func another(before close: UInt8) throws(JSONError) -> Bool {
        skipSpace()
        let closing = String(UnicodeScalar(close)).quoted()
        switch peek {
        case close:
            index += 1
            return false
        case UInt8(ascii: ","):
            index += 1
            skipSpace()
            if peek == close { throw error("a comma before \(closing); remove it") }
            return true
        case let byte: throw error("expected \",\" or \(closing), found \(name(of: byte))")
        }
    }

    private mutating func elements(depth: Int) throws(JSONError) -> [JSONNode] {
        try enter(depth)
        var elements: [JSONNode] = []
        if peek == UInt8(ascii: "]") {
            index += 1
            return elements
        }
        repeat {
            elements.append(try value(depth: depth + 1))
        } while try another(before: UInt8(ascii: "]"))
        return elements
    }

    private mutating func members(depth: Int) throws(JSONError) -> [JSONMember] {
        try enter(depth)
        var members: [JSONMember] = []
        var lines: [String: Int32] = [:]
        if peek == UInt8(ascii: "}") {
            index += 1
            return members
        }
        repeat {
            guard peek == UInt8(ascii: "\"") else {
                throw error("expected a key in double quotes, found \(name(of: peek))")
            }
            let keyLine = line
            let key = try string()
            if let first = earlierLine(of: key, in: members, &lines) {
                throw JSONError(
                    line: Int(keyLine), message: "the key \(key.quoted()) is already on line \(first)")
            }
            skipSpace()
            guard peek == UInt8(ascii: ":") else {
                throw error("expected \":\" after the key \(key.quoted()), found \(name(of: peek))")
            }
            index += 1
            skipSpace()
            members.append(JSONMember(key: key, value: try value(depth: depth + 1), line: keyLine))
        } while try another(before: UInt8(ascii: "}"))
        return members
    }

    /// Where `key` was before. A handful of keys is compared one by one; only large objects are worth
    /// a dictionary.
    private func earlierLine(of key: String, in members: [JSONMember], _ lines: inout [String: Int32]) -> Int?
    {
        let few = 16
        if members.count < few { return members.first { $0.key == key }?.line }
        if lines.isEmpty {
            for member in members { lines[member.key] = Int32(member.line) }
        }
        return lines.updateValue(line, forKey: key).map(Int.init)
    }

    private mutating func number() throws(JSONError) -> Double {
        let start = index
        if peek == UInt8(ascii: "-") { index += 1 }
        let leading = index
        try digits()
        if bytes[leading] == UInt8(ascii: "0") && index > leading + 1 {
            throw error("a number may not begin with 0")
        }
        if peek == UInt8(ascii: ".") {
            index += 1
            try digits()
        }
        if peek == UInt8(ascii: "e") || peek == UInt8(ascii: "E") {
            index += 1
            if peek == UInt8(ascii: "+") || peek == UInt8(ascii: "-") { index += 1 }
            try digits()
        }
        let text = String(decoding: bytes[start..<index], as: UTF8.self)
        guard let value = Double(text), value.isFinite else {
            throw error("the number \(text.quoted(limit: 40)) is out of range")
        }
        return value
    }

    private mutating func digits() throws(JSONError) {
        let start = index
        while let byte = peek, byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") { index += 1 }
        if index == start { throw error("expected a digit, found \(name(of: peek))") }
    }

    private mutating func string() throws(JSONError) -> String {
        index += 1
        let start = index
        skipPlain()
        if peek == UInt8(ascii: "\"") {
            index += 1
            return try text(bytes[start..<index - 1])
        }
        var unescaped = Array(bytes[start..<index])
        while true {
            switch peek {
            case UInt8(ascii: "\""):
                index += 1
                return try text(unescaped[...])
            case UInt8(ascii: "\\"):
                index += 1
                try escape(into: &unescaped)
            case nil: throw error("a string is not closed")
            case 0x0a: throw error("a string is not closed at the end of the line")
            case let byte: throw error("\(name(of: byte)) in a string must be escaped")
            }
            let plain = index
            skipPlain()
            unescaped.append(contentsOf: bytes[plain..<index])
        }
    }

    private mutating func skipPlain() {
        while index < bytes.count {
            let byte = bytes[index]
            if byte < 0x20 || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") { return }
            index += 1
        }
    }

    private func text(_ slice: ArraySlice<UInt8>) throws(JSONError) -> String {
        guard let text = String(validating: slice, as: UTF8.self) else {
            throw error("a string is not valid UTF-8")
        }
        return text
    }

    private mutating func escape(into unescaped: inout [UInt8]) throws(JSONError) {
        let byte = peek
        index += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): unescaped.append(byte ?? 0)
        case UInt8(ascii: "b"): unescaped.append(0x08)
        case UInt8(ascii: "f"): unescaped.append(0x0c)
        case UInt8(ascii: "n"): unescaped.append(0x0a)
        case UInt8(ascii: "r"): unescaped.append(0x0d)
        case UInt8(ascii: "t"): unescaped.append(0x09)
        case UInt8(ascii: "u"):
            let scalar = try escapedScalar()
            unescaped.append(contentsOf: String(Character(scalar)).utf8)
        default: throw error("a string has \"\\\" before \(name(of: byte)), which is no escape")
        }
    }

    private mutating func escapedScalar() throws(JSONError) -> UnicodeScalar {
        var code = try fourHexDigits()
        if code >= 0xd800 && code < 0xdc00 && peek == UInt8(ascii: "\\") {
            index += 1
            guard peek == UInt8(ascii: "u") else { throw loneSurrogate() }
            index += 1
            let low = try fourHexDigits()
            guard low >= 0xdc00 && low < 0xe000 else { throw loneSurrogate() }
            code = 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00)
        }
        guard let scalar = UnicodeScalar(code) else { throw loneSurrogate() }
        return scalar
    }

    private func loneSurrogate() -> JSONError {
        error("a string has half of a surrogate pair")
    }

    private mutating func fourHexDigits() throws(JSONError) -> UInt32 {
        var code: UInt32 = 0
        for _ in 0..<4 {
            guard let byte = peek, let digit = hexDigit(byte) else {
                throw error("\"\\u\" needs four hexadecimal digits, found \(name(of: peek))")
            }
            code = code << 4 | UInt32(digit)
            index += 1
        }
        return code
    }
}

/// The value of a hexadecimal digit of either case.
func hexDigit(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
}
