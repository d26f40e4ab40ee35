// The request histograms: what mesh_request_duration_seconds is rendered from.

/// The last request of a bucket whose trace ID is known.
public struct SeriesExemplar: Equatable, Sendable {
    /// Its trace ID.
    public var traceID: TraceID
    /// How long it took, in nanoseconds.
    public var duration: UInt64
    /// When it ended, in nanoseconds since 1970.
    public var wallTime: UInt64
}

/// A histogram of request durations per service, workload, role, protocol and code.
///
/// It is a value: a copy is a snapshot that another thread may render, and costs nothing until the
/// original is written to. Recording into a series that exists allocates nothing (the first recording
/// after a copy aside). How many series there can be, and what happens past that, see `SeriesIndex`:
/// past `maxSeries` the workload becomes `other`; at 2 × `maxSeries` in all, the service does too.
public struct SeriesTable: Sendable {
    /// The upper bounds of the buckets in nanoseconds, ascending; past the last one is `+Inf`.
    public let bounds: [UInt64]

    private var index: SeriesIndex
    /// Per row: the sum in nanoseconds, then the count of each bucket (not cumulative). Most requests are
    /// in the first buckets, and so in the sum's cache line.
    private var values: [UInt64] = []
    /// Per row and bucket: high and low half of a trace ID (0: no exemplar), duration, wall time.
    private var exemplars: [Exemplar] = []
    private var dirty = DirtyRows()

    private struct Exemplar {
        var high: UInt64 = 0
        var low: UInt64 = 0
        var duration: UInt64 = 0
        var wallTime: UInt64 = 0
    }

    /// An empty table.
    ///
    /// - Parameters:
    ///   - bounds: The upper bounds of the buckets in nanoseconds, strictly ascending.
    ///   - maxSeries: How many series there may be before new ones are folded into `other`.
    public init(bounds: [UInt64], maxSeries: Int) {
        self.bounds = bounds
        index = SeriesIndex(maxSeries: maxSeries)
    }

    /// Bucket bounds in nanoseconds from bounds in seconds, as the configuration has them.
    public static func bounds(seconds: [Double]) -> [UInt64] {
        seconds.map { UInt64(($0 * 1e9).rounded()) }
    }

    /// How many series there are.
    public var count: Int { index.keys.count }

    /// How many samples were recorded under another series than their own, because there were too many.
    public var dropped: UInt64 { index.folded }

    /// Takes over `dropped` from before.
    public mutating func restore(dropped: UInt64) { index.folded = dropped }

    /// Records a request. `duration` in nanoseconds, `wallTime` (of an exemplar, when the trace ID is
    /// known) in nanoseconds since 1970.
    /// - Returns: The row that it is recorded in; nil if that is not its own.
    @discardableResult
    public mutating func record(_ key: SeriesKey, duration: UInt64, traceID: TraceID?, wallTime: UInt64)
        -> Int?
    {
        let (row, isNew) = index.row(of: key)
        if isNew { addRow() }
        record(row: row, duration: duration, traceID: traceID, wallTime: wallTime)
        return index.keys[row] == key ? row : nil
    }

    /// Records a request in a row, 0 to `count` - 1.
    public mutating func record(row: Int, duration: UInt64, traceID: TraceID?, wallTime: UInt64) {
        dirty.mark(row)
        let bucket = histogramBucket(of: duration, in: bounds)
        let base = row * stride
        values.withUnsafeMutableBufferPointer { values in
            values[base] &+= duration
            values[base + 1 + bucket] &+= 1
        }
        if let traceID {
            exemplars[row * (bounds.count + 1) + bucket] = Exemplar(
                high: traceID.high, low: traceID.low, duration: duration, wallTime: wallTime)
        }
    }

    private mutating func addRow() {
        values.append(contentsOf: repeatElement(0, count: stride))
        exemplars.append(contentsOf: repeatElement(Exemplar(), count: bounds.count + 1))
        dirty.append()
    }

    /// Records a sample if it is a request, of the workload with the given index; `wallTime` in
    /// nanoseconds since 1970.
    /// - Returns: The row that it is recorded in; nil if that is not its own, or it is none.
    @discardableResult
    public mutating func record(_ sample: Sample, workload: UInt32, wallTime: UInt64) -> Int? {
        guard sample.kind == .request else { return nil }
        let key = SeriesKey(
            service: sample.service, workload: workload, role: sample.role, wireProtocol: sample.wireProtocol,
            code: sample.code)
        return record(key, duration: sample.duration, traceID: sample.traceID, wallTime: wallTime)
    }

    /// The series of a row, 0 to `count` - 1.
    public func key(_ row: Int) -> SeriesKey { index.keys[row] }

    /// How many requests are in one bucket of a row (not cumulative); bucket `bounds.count` is `+Inf`.
    public func bucket(_ row: Int, _ bucket: Int) -> UInt64 { values[row * stride + 1 + bucket] }

    /// How long the requests of a row took together, in nanoseconds.
    public func sum(_ row: Int) -> UInt64 { values[row * stride] }

    /// The last request of one bucket of a row whose trace ID is known.
    public func exemplar(_ row: Int, _ bucket: Int) -> SeriesExemplar? {
        let exemplar = exemplars[row * (bounds.count + 1) + bucket]
        guard let traceID = TraceID(high: exemplar.high, low: exemplar.low) else { return nil }
        return SeriesExemplar(
            traceID: traceID, duration: exemplar.duration, wallTime: exemplar.wallTime)
    }

    /// Forgets the series that `isGone` says, such as those of workloads that ended: to scrapers they end.
    /// Takes time and memory in proportion to the table; not for the record path.
    public mutating func removeAll(where isGone: (SeriesKey) -> Bool) {
        let keys = index.keys
        let kept = index.compact { !isGone(keys[$0]) }
        guard kept.count < keys.count else { return }
        let buckets = bounds.count + 1
        values = kept.flatMap { values[$0 * stride..<($0 + 1) * stride] }
        exemplars = kept.flatMap { exemplars[$0 * buckets..<($0 + 1) * buckets] }
        dirty.reset(count: kept.count)
    }

    /// Has `save` add all rows.
    public mutating func markAll() { dirty.markAll() }

    /// Adds rows that have changed since the last time. Exemplars are not kept.
    /// - Parameter limit: How many at most; so many less afterwards.
    public mutating func save(to writer: inout StateWriter, rows limit: inout Int) {
        let (keys, stride) = (index.keys, stride)
        values.withUnsafeBufferPointer { values in
            dirty.take(&limit) { row in
                writer.requests(
                    keys[row], UnsafeBufferPointer(rebasing: values[row * stride..<(row + 1) * stride]))
            }
        }
    }

    /// Gives a series the sum and buckets that it had in a table with the same bounds; false if that cannot be.
    public mutating func restore(_ key: SeriesKey, _ saved: StateValues) -> Bool {
        guard let saved = saved.expanded(to: stride) else { return false }
        let (row, isNew) = index.restore(key)
        if isNew { addRow() }
        values.replaceSubrange(row * stride..<(row + 1) * stride, with: saved)
        return true
    }

    private var stride: Int { bounds.count + 2 }
}

/// The bucket of a value: the first whose upper bound is not below it.
func histogramBucket(of value: UInt64, in bounds: [UInt64]) -> Int {
    // One after the other: most requests are in the first few.
    bounds.withUnsafeBufferPointer { bounds in
        var bucket = 0
        while bucket < bounds.count && value > bounds[bucket] { bucket += 1 }
        return bucket
    }
}
