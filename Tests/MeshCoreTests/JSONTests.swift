// The JSON parser by the letter of RFC 8259, its lines and messages, and the serializer.

import Testing

@testable import MeshCore

private func parse(_ text: String) throws(JSONError) -> JSONValue {
    try JSONValue.parse(Array(text.utf8))
}

private func failure(_ text: String) -> JSONError? {
    failure(Array(text.utf8))
}

private func failure(_ bytes: [UInt8]) -> JSONError? {
    do throws(JSONError) {
        _ = try JSONNode.parse(bytes)
        return nil
    } catch {
        return error
    }
}

@Suite struct JSONParserTests {
    private static let texts: [(String, JSONValue)] = [
        ("null", .null), ("true", true), (" false\r\n\t", false), ("0", 0), ("-0", 0), ("-12", -12),
        ("0.5", 0.5), ("1e3", 1000), ("1E+3", 1000), ("25e-1", 2.5),
        ("9007199254740993", 9_007_199_254_740_992),
        ("1e-400", 0), ("\"\"", ""), ("\"a b\"", "a b"), ("[]", []), ("{}", [:]), ("[ ]", []), ("{ }", [:]),
        ("[1, [2], {\"a\": 3}]", [1, [2], ["a": 3]]),
        ("{\"b\": 1, \"a\": {\"c\": null}}", ["b": 1, "a": ["c": nil]]),
        (#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"), (#""\u00e9\u20AC""#, "é€"),
        (#""\ud83d\ude00""#, "😀"), (#""a\u0000b""#, "a\u{0}b"), ("\"é€😀\u{7f}\"", "é€😀\u{7f}"),
    ]

    @Test(arguments: texts) func values(text: String, value: JSONValue) throws {
        #expect(try parse(text) == value)
    }

    private static let wrongTexts: [(String, Int, String)] = [
        ("", 1, "the document is empty"), (" \n ", 2, "the document is empty"),
        ("\u{feff}{}", 1, "the document begins with a byte order mark; save it as plain UTF-8"),
        ("{} x", 1, "unexpected \"x\" after the end of the document"),
        ("1 2", 1, "unexpected \"2\" after the end of the document"),
        ("[1,\n2,]", 2, "a comma before \"]\"; remove it"),
        ("{\"a\": 1,\n\n}", 3, "a comma before \"}\"; remove it"),
        ("[1 2]", 1, "expected \",\" or \"]\", found \"2\""),
        ("{\"a\": 1 \"b\"", 1, "expected \",\" or \"}\", found \"\\\"\""),
        ("[1", 1, "expected \",\" or \"]\", found end of the document"),
        ("{", 1, "expected a key in double quotes, found end of the document"),
        ("{a: 1}", 1, "expected a key in double quotes, found \"a\""),
        ("{'a': 1}", 1, "expected a key in double quotes, found \"'\""),
        ("{\"a\" 1}", 1, "expected \":\" after the key \"a\", found \"1\""),
        ("{\"a\":}", 1, "expected a value, found \"}\""), ("[,1]", 1, "expected a value, found \",\""),
        ("\n// x\n1", 2, "expected a value, found \"/\" (JSON has no comments)"),
        ("nul", 1, "expected a value; did you mean null?"), ("True", 1, "expected a value, found \"T\""),
        ("NaN", 1, "expected a value, found \"N\""), ("+1", 1, "expected a value, found \"+\""),
        (".5", 1, "expected a value, found \".\""), ("01", 1, "a number may not begin with 0"),
        ("-01", 1, "a number may not begin with 0"), ("-", 1, "expected a digit, found end of the document"),
        ("1.", 1, "expected a digit, found end of the document"),
        ("1.e1", 1, "expected a digit, found \"e\""),
        ("1e", 1, "expected a digit, found end of the document"),
        ("1e400", 1, "the number \"1e400\" is out of range"),
        ("0x10", 1, "unexpected \"x\" after the end of the document"),
        ("\"abc", 1, "a string is not closed"),
        ("\"abc\n\"", 1, "a string is not closed at the end of the line"),
        ("\"a\tb\"", 1, "byte 0x09 in a string must be escaped"),
        ("\"\u{1}\"", 1, "byte 0x01 in a string must be escaped"),
        (#""\x""#, 1, "a string has \"\\\" before \"x\", which is no escape"),
        (#""\u12g4""#, 1, "\"\\u\" needs four hexadecimal digits, found \"g\""),
        (#""\u12"#, 1, "\"\\u\" needs four hexadecimal digits, found end of the document"),
        (#""\ud800""#, 1, "a string has half of a surrogate pair"),
        (#""\ud800\n""#, 1, "a string has half of a surrogate pair"),
        (#""\ud800\ud800""#, 1, "a string has half of a surrogate pair"),
        (#""\udc00\ud800""#, 1, "a string has half of a surrogate pair"),
        ("{\"a\": 1,\n\"b\": 2,\n\"a\": 3}", 3, "the key \"a\" is already on line 1"),
        ("{\"a\": 1,\n\"\\u0061\": 2}", 2, "the key \"a\" is already on line 1"),
        ("é", 1, "expected a value, found byte 0xc3"),
    ]

    @Test(arguments: wrongTexts) func mistakes(text: String, line: Int, message: String) {
        #expect(failure(text) == JSONError(line: line, message: message))
    }

    @Test(arguments: [
        [0xff], [0xc3], [0xc3, 0x28], [0xe2, 0x82], [0xed, 0xa0, 0x80], [0xf4, 0x90, 0x80, 0x80],
        [0xc0, 0xaf],
        [0x80], [0x5c, 0x6e, 0xff],
    ])
    func invalidUTF8(bytes: [UInt8]) {
        let quoted = [0x22] + bytes + [0x22]
        #expect(failure(quoted) == JSONError(line: 1, message: "a string is not valid UTF-8"))
    }

    @Test func duplicatesInLargeObjects() throws {
        let members = (0..<40).map { "\"k\($0)\": \($0)" }
        let good = try parse("{" + members.joined(separator: ",\n") + "}")
        #expect(good["k39"] == 39)
        for key in ["k0", "k15", "k16", "k39"] {
            let number = Int(key.dropFirst())!
            let bad = "{" + (members + ["\"\(key)\": 0"]).joined(separator: ",\n") + "}"
            let message = "the key \"\(key)\" is already on line \(number + 1)"
            #expect(failure(bad) == JSONError(line: 41, message: message))
        }
    }

    @Test func depth() throws {
        let limit = JSONNode.maximumDepth
        #expect(limit == 64)
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = String(repeating: open, count: limit) + "0" + String(repeating: close, count: limit)
            #expect(throws: Never.self) { try parse(deep) }
            #expect(failure(open + deep + close)?.message == "nested deeper than 64 levels")
            #expect(
                failure(String(repeating: open, count: 100_000))?.message == "nested deeper than 64 levels")
        }
    }

    @Test func tooManyValues() throws {
        let bytes = Array("[0,{\"a\":1},\n2]".utf8)
        #expect(throws: Never.self) { try JSONNode.parse(bytes, maximumValues: 5) }
        #expect(throws: JSONError(line: 2, message: "the document has more than 4 values")) {
            try JSONNode.parse(bytes, maximumValues: 4)
        }
    }

    @Test func lines() throws {
        let node = try JSONNode.parse(Array("{\r\n  \"a\":\n    [1,\n 2],\n\n  \"b\": \"x\"\n}\n".utf8))
        guard case .object(let members) = node.content, case .array(let elements) = members[0].value.content
        else {
            Issue.record("not an object with an array")
            return
        }
        #expect(node.line == 1)
        #expect(members.map(\.key) == ["a", "b"])
        #expect(members.map(\.line) == [2, 6])
        #expect(members.map(\.value.line) == [3, 6])
        #expect(elements.map(\.line) == [3, 4])
    }

    @Test func longNumber() throws {
        let digits = String(repeating: "9", count: 300_000)
        #expect(try parse("0." + digits) == 1)
        #expect(failure(digits)?.message == "the number \"\(digits.prefix(40))\"... is out of range")
    }
}

@Suite struct JSONValueTests {
    @Test func accessors() throws {
        let value = try parse(#"{"n": 1.5, "i": 3, "s": "x", "b": true, "a": [1, "y"], "o": {"k": null}}"#)
        #expect(value["n"]?.double == 1.5)
        #expect(value["n"]?.int == nil)
        #expect(value["i"]?.int == 3)
        #expect(value["s"]?.string == "x")
        #expect(value["b"]?.bool == true)
        #expect(value["a"]?.array == [1, "y"])
        #expect(value["a"]?[1]?.string == "y")
        #expect(value["a"]?[2] == nil)
        #expect(value["a"]?[-1] == nil)
        #expect(value["o"]?["k"]?.isNull == true)
        #expect(value["o"]?.object?.map(\.key) == ["k"])
        #expect(value["missing"] == nil)
        #expect(value["s"]?["k"] == nil)
        #expect(value["s"]?.int == nil)
        #expect(value["i"]?.string == nil)
        #expect(JSONValue.number(1e300).int == nil)
        #expect(JSONValue.integer(UInt64(1) << 53).int == 1 << 53)
        #expect(JSONValue.number(.infinity).int == nil)
    }

    @Test func equality() {
        #expect(JSONValue.object([("a", 1), ("b", 2)]) != JSONValue.object([("b", 2), ("a", 1)]))
        #expect(JSONValue.object([("a", 1)]) != JSONValue.object([("a", 2)]))
        #expect(JSONValue.array([1, 2]) != JSONValue.array([1]))
        #expect(JSONValue.null != false)
    }

    private static let compactTexts: [(JSONValue, String)] = [
        (.null, "null"), (true, "true"), (0, "0"), (-7, "-7"), (0.1, "0.1"), (1.5e-7, "1.5e-07"),
        (1_234_567_890_123, "1234567890123"), (.number(9_007_199_254_740_991), "9007199254740991"),
        (.number(0.1 + 0.2), "0.30000000000000004"), (.number(.nan), "null"), (.number(-.infinity), "null"),
        ("", "\"\""), ("a\"b\\c/", #""a\"b\\c/""#),
        ("\n\r\t\u{0}\u{1f}\u{7f}", #""\n\r\t\u0000\u001f\u007f""#),
        ("é😀", "\"é😀\""), ([], "[]"), ([:], "{}"), ([1, [2, "x"]], "[1,[2,\"x\"]]"),
        (["b": 1, "a": ["c": nil]], #"{"b":1,"a":{"c":null}}"#),
    ]

    @Test(arguments: compactTexts) func compact(value: JSONValue, text: String) {
        #expect(value.serialized() == text)
    }

    @Test func pretty() {
        let value: JSONValue = ["name": "x", "empty": [], "none": [:], "list": [1, ["k": true]]]
        let text = """
            {
              "name": "x",
              "empty": [],
              "none": {},
              "list": [
                1,
                {
                  "k": true
                }
              ]
            }
            """
        #expect(value.serialized(pretty: true) == text)
    }

    @Test func numbersReadBackTheSame() throws {
        var random = SplitMix64(seed: 1)
        for _ in 0..<5000 {
            let value = Double(bitPattern: random.next())
            guard value.isFinite else { continue }
            let back = try parse(JSONValue.number(value).serialized())
            #expect(back.double?.bitPattern == value.bitPattern)
        }
    }

    @Test(arguments: [
        ("plain", 80, "\"plain\""), ("a\nb\"\\", 80, #""a\nb\"\\""#), ("abcdef", 3, "\"abc\"..."),
        ("", 80, "\"\""),
        ("é😀\u{85}\u{2028}\u{202e}\u{1b}", 80, #""é😀\u0085\u2028\u202e\u001b""#),
    ])
    func quoted(text: String, limit: Int, expected: String) {
        #expect(text.quoted(limit: limit) == expected)
    }
}
