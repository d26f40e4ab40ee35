// Text as a terminal shows it: how many columns it takes, how it is cut and wrapped, how it is
// made harmless, and how it is coloured.

/// What a piece of text is, which decides its colour.
enum Style: String {
    case plain = ""
    case bold = "1"
    case dim = "2"
    case red = "31"
    case green = "32"
    case yellow = "33"
}

extension String {
    /// The text with everything replaced that could move the cursor, change colours or reorder
    /// what is read: names of cgroups and reasons are written by people we know nothing of.
    var harmless: String {
        if utf8.allSatisfy({ (0x20..<0x7f).contains($0) }) { return self }
        let isSafe: (Unicode.Scalar) -> Bool = { scalar in
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse: false
            default: true
            }
        }
        guard !unicodeScalars.allSatisfy(isSafe) else { return self }
        var result = String.UnicodeScalarView()
        for scalar in unicodeScalars { result.append(isSafe(scalar) ? scalar : "\u{FFFD}") }
        return String(result)
    }

    /// How many columns of a terminal the text takes.
    var columns: Int {
        if utf8.allSatisfy({ $0 < 0x80 }) { return utf8.count }
        return reduce(0) { $0 + $1.columns }
    }

    /// The text in at most `width` columns, its end given up for an ellipsis.
    func truncated(to width: Int, ascii: Bool = false) -> String {
        guard columns > width else { return self }
        let ellipsis = ascii ? "~" : "…"
        guard width > 1 else { return width == 1 ? ellipsis : "" }
        var (result, used) = ("", 0)
        for character in self {
            guard used + character.columns < width else { break }
            result.append(character)
            used += character.columns
        }
        return result + ellipsis
    }

    /// The text with blanks up to `width` columns, on the left when `right` is set.
    func padded(to width: Int, right: Bool = false) -> String {
        let blanks = String(repeating: " ", count: max(0, width - columns))
        return right ? blanks + self : self + blanks
    }

    /// The text's words in lines of at most `width` columns, or of one word that is longer.
    func wrapped(to width: Int) -> [String] {
        var lines: [String] = []
        var line = ""
        for word in split(separator: " ").map(String.init) {
            if line.isEmpty {
                line = word
            } else if line.columns + 1 + word.columns <= width {
                line += " " + word
            } else {
                lines.append(line)
                line = word
            }
        }
        return line.isEmpty && !lines.isEmpty ? lines : lines + [line]
    }
}

extension Character {
    /// 2 for wide East Asian characters and emoji, 0 for a lone combining mark, else 1.
    fileprivate var columns: Int {
        guard let first = unicodeScalars.first else { return 0 }
        switch first.value {
        case 0x1100...0x115F, 0x2E80...0xA4CF, 0xAC00...0xD7A3, 0xF900...0xFAFF, 0xFE30...0xFE6F,
            0xFF00...0xFF60, 0xFFE0...0xFFE6, 0x1F300...0x1FAFF, 0x20000...0x3FFFD:
            return 2
        default:
            let isMark = first.properties.generalCategory == .nonspacingMark
            return isMark ? 0 : 1
        }
    }
}
