// What is suggested for a typo, and what is not.

import Testing

@testable import MeshCore

@Suite struct NearestNameTests {
    @Test(
        arguments: [
            ("resaon", ["for", "reason"], "reason"), ("openFr", ["maxOpenFor", "openFor"], "openFor"),
            ("OPENFOR", ["openFor"], "openFor"), ("payment", ["orders", "payments"], "payments"),
            ("brekaer", ["breaker", "services"], "breaker"), ("stauts", ["services", "status"], "status"),
            ("opne", ["open", "close"], "open"), ("colse", ["open", "close"], "close"),
            ("abc", ["abd", "abe"], "abd"),
            ("ab", ["ba"], "ba"), ("listn", ["listen"], "listen"),
            ("pyaments", ["payments-db", "payments"], "payments"),
            ("completely", ["different", "words"], nil), ("x", ["y"], nil), ("", ["a"], nil),
            ("abc", [], nil),
            ("a", [""], nil), ("zzz", ["abc"], nil), ("kitten", ["sitting"], nil),
            ("kittne", ["sitten"], "sitten"), ("same", ["same"], "same"), ("café", ["cafe"], "cafe"),
        ] as [(String, [String], String?)])
    func suggest(word: String, names: [String], expected: String?) {
        #expect(NearestName.suggest(word, from: names) == expected)
    }

    @Test func longWordsCostLittle() {
        let long = String(repeating: "a", count: 100_000)
        #expect(NearestName.suggest(long, from: [long]) == nil)
        #expect(NearestName.suggest("short", from: [long, "shirt"]) == "shirt")
    }
}
