// Aligned columns: as wide as their content, narrowed and then left out where a terminal is
// too narrow for them. On anything but a terminal nothing is ever cut.

/// One cell: text and what it means.
struct Cell: ExpressibleByStringLiteral {
    let text: String
    let style: Style

    init(_ text: String, _ style: Style = .plain) {
        self.text = text.harmless
        self.style = style
    }

    init(stringLiteral value: String) { self.init(value) }
}

/// One column's heading, and how the column gives way on a narrow terminal.
struct Column {
    let title: String
    var right = false
    /// Never narrower than this, so that lines that come one by one, or again, stay aligned.
    var minimum = 0
    /// Its texts may be cut down to this many columns; nil: they are never cut.
    var floor: Int?
    /// It may be left out when cutting is not enough, lower ranks first; nil: it stays.
    var rank: Int?

    static func left(_ title: String, minimum: Int = 0, cut floor: Int? = nil, drop rank: Int? = nil)
        -> Column
    {
        Column(title: title, minimum: minimum, floor: floor, rank: rank)
    }

    static func right(_ title: String, minimum: Int = 0, drop rank: Int? = nil) -> Column {
        Column(title: title, right: true, minimum: minimum, rank: rank)
    }
}

/// The widths that a table's columns have on a page; nil where a column is left out.
struct Layout {
    fileprivate let widths: [Int?]
}

/// A table of rows under headings.
struct Table {
    private static let gap = "  "

    let columns: [Column]
    private(set) var rows: [[Cell]] = []

    init(_ columns: [Column]) { self.columns = columns }

    mutating func add(_ cells: [Cell]) {
        precondition(cells.count == columns.count)
        rows.append(cells)
    }

    /// The lines of the table, headings first.
    func lines(on page: Page) -> [String] {
        let layout = layout(on: page)
        return [heading(layout, on: page)] + rows.map { line($0, layout, on: page) }
    }

    /// The line of headings.
    func heading(_ layout: Layout, on page: Page) -> String {
        line(columns.map { Cell($0.title, .bold) }, layout, on: page)
    }

    /// One row's line, which need not be one of ``rows``.
    func line(_ cells: [Cell], _ layout: Layout, on page: Page) -> String {
        let shown = columns.indices.filter { layout.widths[$0] != nil }
        var result = ""
        for index in shown {
            let width = layout.widths[index] ?? 0
            let cell = cells[index]
            let text = page.width == nil ? cell.text : cell.text.truncated(to: width, ascii: page.ascii)
            let blanks = String(repeating: " ", count: max(0, width - text.columns))
            let styled = page.paint(text, cell.style)
            if columns[index].right { result += blanks }
            result += styled
            guard index != shown.last else { break }
            if !columns[index].right { result += blanks }
            result += Self.gap
        }
        return result
    }

    /// Widths that hold the rows there are, within the page.
    func layout(on page: Page) -> Layout {
        let natural = columns.indices.map { index in
            let least = max(columns[index].minimum, columns[index].title.columns)
            return rows.reduce(least) { max($0, $1[index].text.columns) }
        }
        guard let available = page.width else { return Layout(widths: natural) }
        var shown = Set(columns.indices)
        while true {
            let widths = cut(natural, shown, to: available)
            let candidates = shown.filter { columns[$0].rank != nil }
            let next = candidates.min { (columns[$0].rank ?? 0) < (columns[$1].rank ?? 0) }
            guard total(widths, shown) > available, let next else {
                return Layout(widths: columns.indices.map { shown.contains($0) ? widths[$0] : nil })
            }
            shown.remove(next)
        }
    }

    private func total(_ widths: [Int], _ shown: Set<Int>) -> Int {
        shown.reduce(0) { $0 + widths[$1] } + Self.gap.count * max(0, shown.count - 1)
    }

    /// Takes column by column from the widest that can still give, so that the cut ones end up alike.
    private func cut(_ natural: [Int], _ shown: Set<Int>, to available: Int) -> [Int] {
        var widths = natural
        while total(widths, shown) > available {
            let candidates = shown.filter { index in
                guard let floor = columns[index].floor else { return false }
                return widths[index] > max(floor, columns[index].title.columns)
            }
            guard let widest = candidates.max(by: { (widths[$0], $0) < (widths[$1], $1) }) else { break }
            widths[widest] -= 1
        }
        return widths
    }
}
