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

    /// Adds a row, as changed unless said otherwise.
    public mutating func append(isMarked: Bool = true) {
        links.append(0)
        if isMarked { mark(links.count - 1) }
    }

    /// Whether a row is noted.
    public func contains(_ row: Int) -> Bool { links[row] != 0 }

    /// Notes that a row changed.
    @inlinable @inline(__always)
    public mutating func mark(_ row: Int) {
        if links[row] == 0 { add(row) }
    }

    @usableFromInline @inline(never)
    mutating func add(_ row: Int) {
        links[row] = last
        last = UInt32(row) + 1
    }

    /// Notes all rows.
    public mutating func markAll() {
        for row in links.indices { mark(row) }
    }

    /// Hands out rows that changed, the latest first, and forgets that they did.
    /// - Parameter limit: How many at most; so many less afterwards.
    public mutating func take(_ limit: inout Int, _ body: (Int) -> Void) {
        links.withUnsafeMutableBufferPointer { links in
            while limit > 0 && last != DirtyRows.end {
                let row = Int(last) - 1
                last = links[row]
                links[row] = 0
                limit -= 1
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

/// What of the state is saved.
public enum StateScope: Sendable {
    /// What decisions have changed since the last time: breakers, how often they opened, what was told of them.
    case decisions
    /// All that has changed since the last time.
    case changes
    /// All there is.
    case everything
}
