// Durations as people write them: 250ms, 1.5s, 1m30s.

/// What is wrong with the text of a duration.
public struct DurationError: Error, Equatable, Sendable, CustomStringConvertible {
    /// A sentence for people.
    public let description: String
}

/// Reads and writes durations. All are in nanoseconds.
public enum DurationText {
    private static let units: [(name: String, nanoseconds: UInt64)] = [
        ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000),
        ("us", 1000),
        ("ns", 1),
    ]

    /// Parses `250ms`, `1.5s`, `10m`, `1m30s`: decimal numbers, each with a unit out of h, m, s, ms,
    /// us and ns, the larger units first.
    ///
    /// - Returns: Nanoseconds; what is finer is cut off.
    /// - Throws: `DurationError`, also past about 584 years.
    public static func parse(_ text: String) throws(DurationError) -> UInt64 {
        var total: UInt64 = 0
        var rest = Array(text.utf8)[...]
        var units = self.units[...]
        if rest.isEmpty { throw wrong(text, "is not a duration") }
        while !rest.isEmpty {
            let number = rest.prefix { isDigit($0) || $0 == UInt8(ascii: ".") }
            rest = rest[number.endIndex...]
            let letters = rest.prefix { !isDigit($0) && $0 != UInt8(ascii: ".") }
            rest = rest[letters.endIndex...]
            if number.isEmpty { throw wrong(text, "is not a duration") }
            if letters.isEmpty { throw wrong(text, "needs a unit") }
            guard let unit = units.firstIndex(where: { letters.elementsEqual($0.name.utf8) }) else {
                let known = self.units.contains { letters.elementsEqual($0.name.utf8) }
                throw wrong(text, known ? "has its units out of order" : "has an unknown unit")
            }
            guard let nanoseconds = scale(number, by: units[unit].nanoseconds) else {
                throw wrong(text, "has no valid number before the unit")
            }
            units = units[(unit + 1)...]
            let (sum, overflow) = total.addingReportingOverflow(nanoseconds)
            if overflow { throw wrong(text, "is too long") }
            total = sum
        }
        return total
    }

    /// The exact text that `parse` reads back: `250ms`, `1.5s`, `10m`, `1h30m`.
    public static func format(_ nanoseconds: UInt64) -> String {
        let minute: UInt64 = 60_000_000_000
        guard nanoseconds >= minute else { return belowMinute(nanoseconds) }
        let (hours, minutes, rest) = (
            nanoseconds / (60 * minute), nanoseconds / minute % 60, nanoseconds % minute
        )
        return (hours > 0 ? "\(hours)h" : "") + (minutes > 0 ? "\(minutes)m" : "")
            + (rest > 0 ? belowMinute(rest) : "")
    }

    /// About three digits, for tables: `1.23ms`, `1.5s`, `1m30s`, `2h5m`, `3d4h`.
    public static func brief(_ nanoseconds: UInt64) -> String {
        let second: UInt64 = 1_000_000_000
        if nanoseconds < 60 * second {
            // Round to three digits first: 999.6 ms is 1 s.
            var step: UInt64 = 1
            while nanoseconds / step >= 1000 { step *= 10 }
            let rounded = (nanoseconds + step / 2) / step * step
            if rounded < 60 * second { return belowMinute(rounded) }
        }
        let total = nanoseconds / second + (nanoseconds % second >= second / 2 ? 1 : 0)
        let (days, hours, minutes, seconds) = (
            total / 86400, total / 3600 % 24, total / 60 % 60, total % 60
        )
        func pair(_ first: UInt64, _ unit: String, _ second: UInt64, _ lesser: String) -> String {
            "\(first)\(unit)" + (second > 0 ? "\(second)\(lesser)" : "")
        }
        if days > 0 { return pair(days, "d", hours, "h") }
        if hours > 0 { return pair(hours, "h", minutes, "m") }
        return pair(minutes, "m", seconds, "s")
    }

    private static func belowMinute(_ nanoseconds: UInt64) -> String {
        if nanoseconds == 0 { return "0s" }
        let unit = units.dropFirst(2).first { nanoseconds >= $0.nanoseconds } ?? ("ns", 1)
        let whole = nanoseconds / unit.nanoseconds
        var fraction = String(nanoseconds % unit.nanoseconds + unit.nanoseconds).dropFirst()
        while fraction.last == "0" { fraction.removeLast() }
        return "\(whole)" + (fraction.isEmpty ? "" : ".") + fraction + unit.name
    }

    private static func isDigit(_ byte: UInt8) -> Bool {
        byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9")
    }

    /// A decimal number times a power of ten or 60 of nanoseconds; nil if it is none or too large.
    private static func scale(_ number: ArraySlice<UInt8>, by unit: UInt64) -> UInt64? {
        let parts = number.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        guard parts.count <= 2, parts.allSatisfy({ !$0.isEmpty }) else { return nil }
        var whole: UInt64 = 0
        for digit in parts[0] {
            let (tens, overflow) = whole.multipliedReportingOverflow(by: 10)
            let (sum, carry) = tens.addingReportingOverflow(UInt64(digit - UInt8(ascii: "0")))
            if overflow || carry { return nil }
            whole = sum
        }
        let (scaled, overflow) = whole.multipliedReportingOverflow(by: unit)
        if overflow { return nil }
        guard parts.count == 2 else { return scaled }
        // Nine digits of a fraction decide every nanosecond of a unit up to a second; an hour's need
        // more, but what is finer is cut off.
        var numerator: UInt64 = 0
        var denominator: UInt64 = 1
        for digit in parts[1].prefix(12) {
            numerator = numerator * 10 + UInt64(digit - UInt8(ascii: "0"))
            denominator *= 10
        }
        let product = numerator.multipliedFullWidth(by: unit)
        let fraction = denominator.dividingFullWidth(product).quotient
        let (sum, carry) = scaled.addingReportingOverflow(fraction)
        return carry ? nil : sum
    }

    private static func wrong(_ text: String, _ what: String) -> DurationError {
        DurationError(description: "\(text.quoted()) \(what); write it like \"250ms\", \"10s\" or \"1m30s\"")
    }
}
