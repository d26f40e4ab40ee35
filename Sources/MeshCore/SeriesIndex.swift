// Which row a series has: a hash index over flat storage that bounds how many rows there are.

/// Maps series keys to row numbers, by open addressing.
///
/// Rows are given in order of appearance. Once there are `maxSeries` of them, a new key is folded: it
/// gets the row of the same key with the workload `other`. Those rows too are bounded, by twice
/// `maxSeries` in all; past that the service becomes `other` as well, which leaves only roles,
/// protocols and codes: a few thousand rows at the very most.
struct SeriesIndex: Sendable {
    /// The key of each row.
    private(set) var keys: [SeriesKey] = []
    /// How many samples were recorded under another series than their own.
    var folded: UInt64 = 0
    let maxSeries: Int
    /// Row numbers plus one at the places that their keys hash to; 0 is free. The count is a power of two,
    /// and at least a quarter is free.
    private var places: [UInt32]

    init(maxSeries: Int) {
        self.maxSeries = max(0, maxSeries)
        places = [UInt32](repeating: 0, count: 64)
    }

    /// The row of a key; nil if it has none.
    func find(_ key: SeriesKey) -> Int? {
        let place = place(of: key)
        return places[place] == 0 ? nil : Int(places[place]) - 1
    }

    /// The row in which a sample of this key is recorded, and whether that row is new. Allocates only if
    /// it is.
    mutating func row(of key: SeriesKey) -> (row: Int, isNew: Bool) {
        if let row = find(key) { return (row, false) }
        if keys.count < maxSeries { return (add(key), true) }
        return fold(key)
    }

    /// The row of a key that had one before, however many there are, and whether it is new.
    mutating func restore(_ key: SeriesKey) -> (row: Int, isNew: Bool) {
        find(key).map { ($0, false) } ?? (add(key), true)
    }

    /// The row in which the end of something is recorded that began under this key: where the key has no
    /// row, the beginning can only have been folded.
    mutating func rowOfEnd(of key: SeriesKey) -> (row: Int, isNew: Bool) {
        if let row = find(key) { return (row, false) }
        if let row = find(key.withOtherWorkload) ?? find(key.withOtherService) {
            folded += 1
            return (row, false)
        }
        return row(of: key)
    }

    private mutating func fold(_ key: SeriesKey) -> (row: Int, isNew: Bool) {
        var target = key.withOtherWorkload
        var found = find(target)
        if found == nil && keys.count >= 2 * maxSeries {
            target = key.withOtherService
            found = find(target)
        }
        if target != key { folded += 1 }
        return found.map { ($0, false) } ?? (add(target), true)
    }

    private mutating func add(_ key: SeriesKey) -> Int {
        if keys.count >= places.count / 4 * 3 { rebuild(places: places.count * 2) }
        keys.append(key)
        places[place(of: key)] = UInt32(keys.count)
        return keys.count - 1
    }

    /// Keeps the rows that `isKept` says, in their order; returns their old numbers.
    mutating func compact(_ isKept: (Int) -> Bool) -> [Int] {
        let kept = keys.indices.filter(isKept)
        keys = kept.map { keys[$0] }
        rebuild(places: places.count)
        return kept
    }

    private mutating func rebuild(places count: Int) {
        places = [UInt32](repeating: 0, count: count)
        for (row, key) in keys.enumerated() { places[place(of: key)] = UInt32(row + 1) }
    }

    /// Where the key is, or the free place where it belongs.
    private func place(of key: SeriesKey) -> Int {
        var mixed = key.rawValue
        mixed = (mixed ^ (mixed >> 32)) &* 0xD6E8_FEB8_6659_FD93
        mixed ^= mixed >> 32
        return places.withUnsafeBufferPointer { places in
            let mask = places.count - 1
            var place = Int(truncatingIfNeeded: mixed) & mask
            while places[place] != 0, keys[Int(places[place]) - 1] != key { place = (place + 1) & mask }
            return place
        }
    }
}
