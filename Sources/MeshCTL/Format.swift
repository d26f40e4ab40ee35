// How numbers, times and names are written for people: short, with a unit, and safe to print.
// None of it traps, whatever the number: it may come from something that is not an agent.

import Glibc

/// Numbers and names as people read them. `ascii` says that only ASCII may be printed.
enum Format {
    /// A latency: `850µs`, `1.2ms`, `123ms`, `12.3s`. `-` where there is none.
    static func latency(_ seconds: Double?, ascii: Bool = false) -> String {
        guard let seconds, seconds.isFinite, seconds >= 0 else { return "-" }
        if seconds == 0 { return "0s" }
        let micro = ascii ? "us" : "µs"
        if seconds < 0.000_999_5 { return short(seconds * 1e6) + micro }
        if seconds < 0.999_5 { return short(seconds * 1e3) + "ms" }
        return seconds < 999.5 ? short(seconds) + "s" : age(seconds)
    }

    /// How long ago, or for how long: `0.4s`, `12s`, `3m12s`, `3h12m`, `5d3h`.
    static func age(_ seconds: Double) -> String {
        guard seconds.isFinite, seconds < 1e12 else { return "-" }
        if seconds <= 0 { return "0s" }
        if seconds < 9.95 { return short(seconds) + "s" }
        let whole = Int(seconds.rounded())
        let (days, hours, minutes) = (whole / 86400, whole / 3600 % 24, whole / 60 % 60)
        if days > 0 { return "\(days)d\(hours)h" }
        if hours > 0 { return "\(hours)h\(padded(minutes))m" }
        if minutes > 0 { return "\(minutes)m\(padded(whole % 60))s" }
        return "\(whole)s"
    }

    /// A rate: `0/s`, `0.5/s`, `123/s`, `1.2k/s`.
    static func rate(_ perSecond: Double) -> String {
        guard perSecond >= 0, perSecond < 1e15 else { return "-" }
        if perSecond > 0, perSecond < 0.05 { return "<0.1/s" }
        return scaled(perSecond, units: ["", "k", "M", "G"]) + "/s"
    }

    /// Bytes in decimal units: `0B`, `999B`, `1.2kB`, `3.4MB`.
    static func bytes(_ count: Double) -> String {
        guard count >= 0, count < 1e18 else { return "-" }
        return scaled(count, units: ["B", "kB", "MB", "GB", "TB", "PB"])
    }

    /// A share: `0%`, `<0.1%`, `12.3%`, `100%`.
    static func percent(_ ratio: Double?) -> String {
        guard let ratio, ratio.isFinite, ratio >= 0 else { return "-" }
        if ratio > 0, ratio < 0.0005 { return "<0.1%" }
        if ratio < 1, ratio >= 0.9995 { return ">99.9%" }
        return short(ratio * 100) + "%"
    }

    /// A count with its thousands apart: `12,345`.
    static func count(_ value: Double) -> String {
        guard value.isFinite, value.magnitude < 9e15 else { return "-" }
        let digits = Array(String(Int(value.magnitude.rounded())))
        var text = value < 0 ? "-" : ""
        for (index, digit) in digits.enumerated() {
            if index > 0, (digits.count - index) % 3 == 0 { text += "," }
            text.append(digit)
        }
        return text
    }

    /// `1 breaker`, `2 breakers`; `plural` where it is not made with an s.
    static func count(_ value: Double, _ noun: String, _ plural: String? = nil) -> String {
        count(value) + " " + (value == 1 ? noun : plural ?? noun + "s")
    }

    /// A number that only names something, such as a pid: `12345`.
    static func plain(_ value: Double) -> String {
        value.isFinite && value.magnitude < 9e15 ? String(Int(value)) : "-"
    }

    /// A wall time as the agent wrote it, a little easier to read and to the second:
    /// `2026-01-02T03:04:05.678Z` → `2026-01-02 03:04:05Z`. Any other text stays as it is.
    static func time(_ rfc3339: String) -> String {
        guard Timestamp.seconds(rfc3339) != nil else { return rfc3339 }
        return rfc3339.prefix(10) + " " + rfc3339.dropFirst(11).prefix(8) + "Z"
    }

    /// One decimal below 100 unless it is zero, none from there on.
    private static func short(_ value: Double) -> String {
        guard value.magnitude < 9e14 else { return "-" }
        if value >= 99.95 { return String(Int(value.rounded())) }
        let tenths = Int((value * 10).rounded())
        return tenths % 10 == 0 ? "\(tenths / 10)" : "\(tenths / 10).\(tenths % 10)"
    }

    private static func scaled(_ value: Double, units: [String]) -> String {
        var (value, index) = (value, 0)
        while value >= 999.5, index + 1 < units.count {
            value /= 1000
            index += 1
        }
        return short(value) + units[index]
    }

    private static func padded(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }
}

/// RFC 3339 wall times.
enum Timestamp {
    /// Seconds since 1970 of a time in UTC (`…Z`), nil for any other text.
    static func seconds(_ text: String) -> Double? {
        let bytes = Array(text.utf8)
        guard bytes.count >= 20, bytes.last == 0x5a, bytes[4] == 0x2d, bytes[7] == 0x2d, bytes[10] == 0x54,
            bytes[13] == 0x3a, bytes[16] == 0x3a,
            let year = number(bytes[0..<4]), let month = number(bytes[5..<7]),
            let day = number(bytes[8..<10]),
            let hour = number(bytes[11..<13]), let minute = number(bytes[14..<16]),
            let second = number(bytes[17..<19]),
            (1...12).contains(month), (1...31).contains(day), hour < 24, minute < 60, second <= 60
        else { return nil }
        var fraction = 0.0
        if bytes.count > 20 {
            let digits = bytes[20..<(bytes.count - 1)]
            guard bytes[19] == 0x2e, !digits.isEmpty, digits.count <= 9, let value = number(digits) else {
                return nil
            }
            fraction = digits.reduce(Double(value)) { value, _ in value / 10 }
        }
        // Days since 1970 in the proleptic Gregorian calendar, years counted from March.
        let shifted = month <= 2 ? year - 1 : year
        let monthFromMarch = (month + 9) % 12
        let dayOfYear = (153 * monthFromMarch + 2) / 5 + day - 1
        let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + dayOfYear - 719_468
        return Double(days * 86400 + hour * 3600 + minute * 60 + second) + fraction
    }

    /// Seconds since 1970, now.
    static func now() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
        guard digits.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return digits.reduce(0) { $0 * 10 + Int($1 - 0x30) }
    }
}
