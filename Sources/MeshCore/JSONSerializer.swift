// Writes JSON values as UTF-8: compact for the wire and the logs, indented for people.

extension JSONValue {
    /// The value as JSON text, on one line, or indented by two spaces a level if `pretty`. No
    /// newline at the end.
    public func serialized(pretty: Bool = false) -> String {
        String(decoding: bytes(pretty: pretty), as: UTF8.self)
    }

    /// The value as UTF-8 JSON, on one line, or indented by two spaces a level if `pretty`. No
    /// newline at the end.
    public func bytes(pretty: Bool = false) -> [UInt8] {
        var output: [UInt8] = []
        append(to: &output, pretty: pretty)
        return output
    }

    /// Appends the value as UTF-8 JSON, on one line, or indented by two spaces a level if `pretty`.
    public func append(to output: inout [UInt8], pretty: Bool = false) {
        write(to: &output, indent: pretty ? 0 : nil)
    }

    /// Appends a string as a quoted JSON string.
    public static func append(_ string: String, to output: inout [UInt8]) {
        let hex = Array("0123456789abcdef".utf8)
        output.append(UInt8(ascii: "\""))
        for byte in string.utf8 {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"):
                output.append(UInt8(ascii: "\\"))
                output.append(byte)
            case 0x0a: output.append(contentsOf: "\\n".utf8)
            case 0x0d: output.append(contentsOf: "\\r".utf8)
            case 0x09: output.append(contentsOf: "\\t".utf8)
            case 0..<0x20, 0x7f:
                output.append(contentsOf: "\\u00".utf8)
                output.append(hex[Int(byte >> 4)])
                output.append(hex[Int(byte & 15)])
            default: output.append(byte)
            }
        }
        output.append(UInt8(ascii: "\""))
    }

    private func write(to output: inout [UInt8], indent: Int?) {
        switch self {
        case .null: output.append(contentsOf: "null".utf8)
        case .bool(let value): output.append(contentsOf: (value ? "true" : "false").utf8)
        case .number(let value): output.append(contentsOf: JSONValue.text(of: value).utf8)
        case .string(let value): JSONValue.append(value, to: &output)
        case .array(let elements):
            output.append(UInt8(ascii: "["))
            for (index, element) in elements.enumerated() {
                JSONValue.separate(first: index == 0, indent: indent.map { $0 + 1 }, to: &output)
                element.write(to: &output, indent: indent.map { $0 + 1 })
            }
            if !elements.isEmpty { JSONValue.breakLine(indent: indent, to: &output) }
            output.append(UInt8(ascii: "]"))
        case .object(let members):
            output.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                JSONValue.separate(first: index == 0, indent: indent.map { $0 + 1 }, to: &output)
                JSONValue.append(member.key, to: &output)
                output.append(contentsOf: (indent == nil ? ":" : ": ").utf8)
                member.value.write(to: &output, indent: indent.map { $0 + 1 })
            }
            if !members.isEmpty { JSONValue.breakLine(indent: indent, to: &output) }
            output.append(UInt8(ascii: "}"))
        }
    }

    private static func separate(first: Bool, indent: Int?, to output: inout [UInt8]) {
        if !first { output.append(UInt8(ascii: ",")) }
        breakLine(indent: indent, to: &output)
    }

    private static func breakLine(indent: Int?, to output: inout [UInt8]) {
        guard let indent else { return }
        output.append(0x0a)
        output.append(contentsOf: repeatElement(UInt8(ascii: " "), count: indent * 2))
    }

    /// The shortest text that reads back as the same double, and without a fraction if there is none.
    private static func text(of value: Double) -> String {
        guard value.isFinite else { return "null" }
        let text = value.description
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}

extension String {
    /// The string in double quotes, cut after `limit` Unicode scalars, with everything escaped that does
    /// not print: fit for a one-line message on a terminal, whoever wrote it.
    public func quoted(limit: Int = 80) -> String {
        let cut = unicodeScalars.prefix(limit)
        var bytes: [UInt8] = []
        JSONValue.append(String(cut), to: &bytes)
        var text = ""
        for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars {
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator:
                for unit in String(scalar).utf16 {
                    let digits = String(unit, radix: 16)
                    text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
                }
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + (cut.endIndex == endIndex ? "" : "...")
    }
}
