// The queue of deadlines, beside a list that is searched.
import MeshCore
import Testing

@Test func theEarliestDeadlineComesFirstWhateverWasSetBefore() {
    let seed = UInt64.random(in: 0 ... .max)
    var generator = SplitMix64(seed: seed)
    var queue = DeadlineQueue()
    var known: [UInt64] = []
    for step in 0..<20_000 {
        if known.isEmpty || (known.count < 60 && step % 50 == 0) {
            queue.append()
            known.append(.max)
        }
        let row = Int.random(in: known.indices, using: &generator)
        // Few values, so that some are equal, and often none: what is removed leaves a gap to fill.
        let deadline = UInt64.random(in: 0..<300, using: &generator)
        known[row] = deadline < 100 ? .max : deadline
        queue.set(row, known[row])
        let next = known.min() ?? .max
        #expect(queue.next == next, "seed \(seed), step \(step)")
        #expect(queue.due(at: next &- 1) == nil, "seed \(seed), step \(step)")
        if next == .max { continue }
        let due = queue.due(at: next)
        #expect(due.map { known[$0] } == next, "seed \(seed), step \(step)")
    }
}

@Test func allDeadlinesAreHandedOutInOrder() {
    let seed = UInt64.random(in: 0 ... .max)
    var generator = SplitMix64(seed: seed)
    for _ in 0..<300 {
        var queue = DeadlineQueue()
        var times = (0..<60).map { _ in UInt64.random(in: 0..<1000, using: &generator) }
        for (row, time) in times.enumerated() {
            queue.append()
            queue.set(row, time)
        }
        for row in times.indices.shuffled(using: &generator).prefix(30) {
            queue.set(row, .max)
            times[row] = .max
        }
        var order: [UInt64] = []
        while let row = queue.due(at: 1000) {
            order.append(times[row])
            queue.set(row, .max)
        }
        #expect(order == times.filter { $0 != .max }.sorted(), "seed \(seed)")
        #expect(queue.next == .max && queue.due(at: .max) == nil)
    }
}
