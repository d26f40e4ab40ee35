// Which of many has something to do next, and when.

/// A deadline for each of a number of rows, and which of them comes first.
///
/// A binary heap (Knuth, The Art of Computer Programming 3, 5.2.3) that knows where each row is in it, so that
/// a deadline that moves is moved and not added again: setting one takes logarithmic time, and the size never
/// exceeds the rows that have one. Times are in nanoseconds of whatever clock; `.max` is none.
public struct DeadlineQueue: Sendable {
    /// Rows with a deadline; none is earlier than the one at half its place.
    private var heap: [Int32] = []
    /// Of each row: its place in `heap`; -1 if it has no deadline.
    private var places: [Int32] = []
    /// Of each row: its deadline.
    private var deadlines: [UInt64] = []

    /// No rows.
    public init() {}

    /// The earliest deadline; `.max` if there is none.
    public var next: UInt64 { heap.isEmpty ? .max : deadlines[Int(heap[0])] }

    /// The row whose deadline is the earliest, if that is not after a time. It keeps its deadline until it is
    /// given another.
    public func due(at now: UInt64) -> Int? { next != .max && next <= now ? Int(heap[0]) : nil }

    /// Adds a row, without a deadline.
    public mutating func append() {
        places.append(-1)
        deadlines.append(.max)
    }

    /// Gives a row a deadline in place of the one it has; `.max` for none.
    public mutating func set(_ row: Int, _ deadline: UInt64) {
        let old = deadlines[row]
        guard deadline != old else { return }
        deadlines[row] = deadline
        if deadline == .max {
            remove(row)
        } else if old == .max {
            heap.append(Int32(row))
            rise(from: heap.count - 1)
        } else if deadline < old {
            rise(from: Int(places[row]))
        } else {
            sink(from: Int(places[row]))
        }
    }

    private mutating func remove(_ row: Int) {
        let place = Int(places[row])
        places[row] = -1
        let last = heap.removeLast()
        guard place < heap.count else { return }
        // The last one takes its place, and may be too early or too late for it.
        heap[place] = last
        sink(from: place)
        rise(from: Int(places[Int(last)]))
    }

    /// Moves a row towards the first place, past those that are later.
    private mutating func rise(from start: Int) {
        let row = heap[start]
        var place = start
        while place > 0 {
            let above = (place - 1) / 2
            guard deadlines[Int(row)] < deadlines[Int(heap[above])] else { break }
            put(heap[above], at: place)
            place = above
        }
        put(row, at: place)
    }

    /// Moves a row away from the first place, past those that are earlier.
    private mutating func sink(from start: Int) {
        let row = heap[start]
        var place = start
        while place * 2 + 1 < heap.count {
            var below = place * 2 + 1
            if below + 1 < heap.count && deadlines[Int(heap[below + 1])] < deadlines[Int(heap[below])] {
                below += 1
            }
            guard deadlines[Int(heap[below])] < deadlines[Int(row)] else { break }
            put(heap[below], at: place)
            place = below
        }
        put(row, at: place)
    }

    private mutating func put(_ row: Int32, at place: Int) {
        heap[place] = row
        places[Int(row)] = Int32(place)
    }
}
