// Finds what a mistyped name was probably meant to be.

/// Suggests names for typos.
public enum NearestName {
    /// The name nearest to `word` by Damerau-Levenshtein distance (insertions, deletions, replacements
    /// and swapped neighbours), without regard to case; nil if none is near enough, which is a third
    /// of the longer one's characters. Of equally near ones, the first.
    public static func suggest(_ word: String, from names: some Sequence<String>) -> String? {
        // Nobody mistypes more than this; it bounds the work for words that others choose.
        let longest = 256
        let typed = Array(word.lowercased().unicodeScalars.prefix(longest + 1))
        if typed.isEmpty || typed.count > longest { return nil }
        var best: (name: String, distance: Int)?
        for name in names {
            let candidate = Array(name.lowercased().unicodeScalars.prefix(longest + 1))
            let limit = min(max(1, max(typed.count, candidate.count) / 3), (best?.distance ?? .max) - 1)
            if candidate.count > longest || abs(candidate.count - typed.count) > limit { continue }
            let distance = distance(typed, candidate)
            // One edit away from one character is every other character.
            if distance <= limit && distance < candidate.count { best = (name, distance) }
        }
        return best?.name
    }

    private static func distance(_ one: [UnicodeScalar], _ other: [UnicodeScalar]) -> Int {
        var twoAgo: [Int] = []
        var previous = Array(0...other.count)
        for i in one.indices {
            var row = [i + 1]
            row.reserveCapacity(other.count + 1)
            for j in other.indices {
                var best = min(previous[j] + (one[i] == other[j] ? 0 : 1), previous[j + 1] + 1, row[j] + 1)
                if i > 0, j > 0, one[i] == other[j - 1], one[i - 1] == other[j] {
                    best = min(best, twoAgo[j - 1] + 1)
                }
                row.append(best)
            }
            twoAgo = previous
            previous = row
        }
        return previous[other.count]
    }
}
