// Which rows of a table have changed since they were last saved.

/// The rows that changed, each once. Noting one that is noted already takes one compare; noting another, two
/// stores. Nothing is allocated but with a new row.
///
/// It is a list through the rows: each names the row that was noted before it.
public struct DirtyRows: Sendable {
    /// Of each row: 0 if it has not changed, else the row noted before it plus one, or `end`.
    @usableFromInline var links: [UInt32] = []
    /// The row noted last plus one; `end` if there is none.
    @usableFromInline var last = DirtyRows.end
    private static let end = UInt32.max

    /// No rows.
    public init() {}

    /// How many rows there are.
    public var count: Int { links.count }

    /// Adds a row, as changed.
    public mutating func append() {
        links.append(0)
        mark(links.count - 1)
    }

    /// Notes that a row changed.
    @inlinable
    public mutating func mark(_ row: Int) {
        guard links[row] == 0 else { return }
        links[row] = last
        last = UInt32(row) + 1
    }

    /// Hands out the rows that changed, the latest first, and forgets that they did.
    public mutating func take(_ body: (Int) -> Void) {
        links.withUnsafeMutableBufferPointer { links in
            while last != DirtyRows.end {
                let row = Int(last) - 1
                last = links[row]
                links[row] = 0
                body(row)
            }
        }
    }

    /// Begins anew with so many rows, none of them changed.
    public mutating func reset(count: Int) {
        links = [UInt32](repeating: 0, count: count)
        last = DirtyRows.end
    }
}

/// Which rows are saved.
public enum StateScope: Sendable {
    /// Those that have changed since the last time.
    case changes
    /// All of them.
    case everything

    /// Hands out these rows of a table, each once, and forgets that they changed.
    public func forEach(_ dirty: inout DirtyRows, _ body: (Int) -> Void) {
        switch self {
        case .changes: dirty.take(body)
        case .everything:
            dirty.reset(count: dirty.count)
            for row in 0..<dirty.count { body(row) }
        }
    }
}
