// Wall-clock times as text: RFC 3339 in UTC, without Foundation.

/// Formats wall-clock times as RFC 3339 says.
public enum RFC3339 {
    /// `2026-07-14T21:39:54.012Z`.
    ///
    /// - Parameters:
    ///   - seconds: Seconds since 1970-01-01T00:00:00Z; what lies outside of the years 0 to 9999 is shown as
    ///     the nearest second inside.
    ///   - nanoseconds: The part of a second, from 0 to 999,999,999.
    ///   - digits: How many digits of the second's fraction to show, from 0 to 9; the rest is cut off.
    public static func format(seconds: Int64, nanoseconds: UInt32 = 0, digits: Int = 3) -> String {
        let secondsPerDay: Int64 = 86400
        let seconds = min(max(seconds, -62_167_219_200), 253_402_300_799)
        let day = (seconds >= 0 ? seconds : seconds - secondsPerDay + 1) / secondsPerDay
        let second = seconds - day * secondsPerDay
        let date = date(ofDay: day)
        var text = padded(date.year, 4) + "-" + padded(date.month, 2) + "-" + padded(date.day, 2) + "T"
        text += padded(second / 3600, 2) + ":" + padded(second / 60 % 60, 2) + ":" + padded(second % 60, 2)
        if digits > 0 { text += "." + padded(Int64(min(nanoseconds, 999_999_999)), 9).prefix(digits) }
        return text + "Z"
    }

    /// The date of a day counted from 1970-01-01, in the proleptic Gregorian calendar. Years are counted
    /// from March here, so that the leap day is the last one; an era is the 400 years after which the
    /// calendar repeats.
    private static func date(ofDay day: Int64) -> (year: Int64, month: Int64, day: Int64) {
        let daysPerEra: Int64 = 146_097
        let shifted = day + 719_468
        let era = (shifted >= 0 ? shifted : shifted - daysPerEra + 1) / daysPerEra
        let dayOfEra = shifted - era * daysPerEra
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let marchMonth = (5 * dayOfYear + 2) / 153
        let month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
        return (
            yearOfEra + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * marchMonth + 2) / 5 + 1
        )
    }

    private static func padded(_ number: Int64, _ width: Int) -> String {
        let text = String(number)
        return String(repeating: "0", count: max(0, width - text.count)) + text
    }
}
