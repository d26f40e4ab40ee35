// What is counted per connection rather than per request.

/// Connection counters per service, workload and role, and a histogram of how long connects took.
///
/// A value like `SeriesTable`, with the same bounds on its size and the same promises.
public struct ConnectionTable: Sendable {
    /// The counters of a row.
    public enum Counter: Int, Sendable, CaseIterable {
        /// Connections made or accepted.
        case opened
        /// Connections that are open now, adopted ones included.
        case active
        /// Payload bytes sent.
        case sentBytes
        /// Payload bytes received.
        case receivedBytes
        /// Segments that were sent again.
        case retransmits
        /// connect()s that were refused.
        case refused
        /// connect()s that timed out.
        case timeout
        /// connect()s to where no way leads.
        case unreachable
        /// connect()s that were reset.
        case reset
        /// connect()s that the caller gave up.
        case aborted

        /// The counter of connects that failed with this outcome.
        init(failure outcome: Sample.Outcome) {
            switch outcome {
            case .ok: self = .opened
            case .refused: self = .refused
            case .timeout: self = .timeout
            case .unreachable: self = .unreachable
            case .reset: self = .reset
            case .aborted: self = .aborted
            }
        }
    }

    /// The upper bounds of the buckets in nanoseconds, ascending; past the last one is `+Inf`.
    public let bounds: [UInt64]

    private var index: SeriesIndex
    /// Per row: the counters, the count of each bucket (not cumulative), the sum in nanoseconds.
    private var values: [UInt64] = []
    private var dirty = DirtyRows()

    /// An empty table.
    ///
    /// - Parameters:
    ///   - bounds: The upper bounds of the connect histogram's buckets in nanoseconds, strictly ascending.
    ///   - maxSeries: How many rows there may be before new ones are folded into `other`.
    public init(bounds: [UInt64], maxSeries: Int) {
        self.bounds = bounds
        index = SeriesIndex(maxSeries: maxSeries)
    }

    /// How many rows there are.
    public var count: Int { index.keys.count }

    /// How many samples were recorded in another row than their own, because there were too many.
    public var dropped: UInt64 { index.folded }

    /// Takes over `dropped` from before.
    public mutating func restore(dropped: UInt64) { index.folded = dropped }

    /// Records what a sample of any kind says about its connection, which belongs to the workload with the
    /// given index.
    /// - Returns: The row that it is recorded in; nil if that is not its own.
    @discardableResult
    public mutating func record(_ sample: Sample, workload: UInt32) -> Int? {
        let key = SeriesKey(service: sample.service, workload: workload, role: sample.role)
        let (row, isNew) = sample.kind == .close ? index.rowOfEnd(of: key) : index.row(of: key)
        if isNew { addRow() }
        record(sample, row: row)
        return index.keys[row] == key ? row : nil
    }

    /// The same for a sample whose row, 0 to `count` - 1, is known.
    public mutating func record(_ sample: Sample, row: Int) {
        record(
            row: row, sentBytes: Int64(sample.sentBytes), receivedBytes: Int64(sample.receivedBytes),
            retransmits: sample.retransmits)
        let base = row * stride
        switch sample.kind {
        case .connect:
            values[base + Counter(failure: sample.outcome).rawValue] += 1
            if sample.outcome == .ok {
                values[base + Counter.active.rawValue] &+= 1
                let bucket = histogramBucket(of: sample.duration, in: bounds)
                values[base + ConnectionTable.counters + bucket] += 1
                values[base + stride - 1] &+= sample.duration
            }
        case .accept:
            values[base + Counter.opened.rawValue] += 1
            values[base + Counter.active.rawValue] &+= 1
        case .adopt:
            values[base + Counter.active.rawValue] &+= 1
        case .close:
            // May pass zero for a moment when a row was forgotten; see `value(_:_:)`.
            values[base + Counter.active.rawValue] &-= 1
        case .request, .bytes:
            break
        }
    }

    /// Records what connections of a row, 0 to `count` - 1, have sent and received.
    public mutating func record(row: Int, sentBytes: Int64, receivedBytes: Int64, retransmits: Int32) {
        dirty.mark(row)
        let base = row * stride
        // Signed: a sample may take back what another told too much (mesh_abi.h).
        values.withUnsafeMutableBufferPointer { values in
            values[base + Counter.sentBytes.rawValue] &+= UInt64(truncatingIfNeeded: sentBytes)
            values[base + Counter.receivedBytes.rawValue] &+= UInt64(truncatingIfNeeded: receivedBytes)
            values[base + Counter.retransmits.rawValue] &+= UInt64(truncatingIfNeeded: retransmits)
        }
    }

    private mutating func addRow() {
        values.append(contentsOf: repeatElement(0, count: stride))
        dirty.append()
    }

    /// The row of a key, if it has one.
    public func row(of key: SeriesKey) -> Int? { index.find(key) }

    /// The key of a row, 0 to `count` - 1; its protocol and code say nothing.
    public func key(_ row: Int) -> SeriesKey { index.keys[row] }

    /// A counter of a row. `active` is never less than 0.
    public func value(_ row: Int, _ counter: Counter) -> UInt64 {
        let value = values[row * stride + counter.rawValue]
        return counter == .active ? UInt64(max(0, Int64(bitPattern: value))) : value
    }

    /// How many successful connects are in one bucket of a row (not cumulative); bucket `bounds.count` is
    /// `+Inf`.
    public func bucket(_ row: Int, _ bucket: Int) -> UInt64 {
        values[row * stride + ConnectionTable.counters + bucket]
    }

    /// How long the successful connects of a row took together, in nanoseconds.
    public func sum(_ row: Int) -> UInt64 { values[(row + 1) * stride - 1] }

    /// How many connections are open, over all rows.
    public var active: UInt64 { (0..<count).reduce(0) { $0 + value($1, .active) } }

    /// Forgets the rows that `isGone` says and that have no open connection. Takes time and memory in
    /// proportion to the table; not for the record path.
    public mutating func removeAll(where isGone: (SeriesKey) -> Bool) {
        let (keys, old, stride) = (index.keys, values, stride)
        let kept = index.compact { row in
            !isGone(keys[row]) || old[row * stride + Counter.active.rawValue] != 0
        }
        guard kept.count < keys.count else { return }
        values = kept.flatMap { old[$0 * stride..<($0 + 1) * stride] }
        dirty.reset(count: kept.count)
    }

    /// Has `save` add all rows.
    public mutating func markAll() { dirty.markAll() }

    /// Adds rows that have changed since the last time.
    /// - Parameter limit: How many at most; so many less afterwards.
    public mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        let (keys, stride) = (index.keys, stride)
        values.withUnsafeBufferPointer { values in
            dirty.take(&limit) { row in
                writer.connections(
                    keys[row], UnsafeBufferPointer(rebasing: values[row * stride..<(row + 1) * stride]))
            }
        }
    }

    /// Gives a row the counters, buckets and sum that it had in a table with these bounds; false if that
    /// cannot be. Where these are other bounds than this table's, only the counters are taken.
    public mutating func restore(_ key: SeriesKey, _ saved: StateValues, bounds: [UInt64]) -> Bool {
        guard let saved = saved.expanded(to: ConnectionTable.counters + bounds.count + 2) else {
            return false
        }
        let (row, isNew) = index.restore(key)
        if isNew { addRow() }
        let taken = bounds == self.bounds ? saved : Array(saved.prefix(ConnectionTable.counters))
        values.replaceSubrange(row * stride..<row * stride + taken.count, with: taken)
        return true
    }

    private static let counters = Counter.allCases.count
    private var stride: Int { ConnectionTable.counters + bounds.count + 2 }
}
