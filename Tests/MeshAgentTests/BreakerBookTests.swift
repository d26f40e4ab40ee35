// Breakers by service: what samples do to them, what is to be written, and what a reload keeps.
import CMeshABI
import MeshCore
import Testing

@testable import MeshAgent

private let second: UInt64 = 1_000_000_000

private func policy(_ change: (inout BreakerPolicy) -> Void = { _ in }) -> BreakerPolicy {
    var policy = BreakerPolicy()
    policy.consecutiveFailures = 3
    change(&policy)
    return policy
}

private func request(_ service: UInt32, status: UInt16 = 200, flags: Sample.Flags = [], at time: UInt64)
    -> Sample
{
    Sample(
        kind: .request, role: .client, status: status, flags: flags, service: service, time: time, duration: 1
    )
}

@Test func failuresInARowOpenOnlyTheirOwnBreaker() throws {
    var book = BreakerBook(share: 1)
    _ = book.configure([(1, policy()), (2, policy())], share: 1, at: second)
    for count in 1...2 {
        let result = book.record(request(2, status: 500, at: second + UInt64(count)))
        #expect(result?.transitions.isEmpty == true)
    }
    let result = book.record(request(2, status: 500, at: second + 3))
    let third = try #require(result)
    #expect(third.slot == 1)
    #expect(third.transitions.map(\.reason) == [.consecutiveFailures])
    #expect(book.slots.map(\.breaker.state) == [.closed, .open])
    #expect(book.nextDeadline == book.slots[1].breaker.openDeadline)
}

@Test func aWordIsWrittenOnceAndOnlyWhenItChanged() throws {
    var book = BreakerBook(share: 1)
    _ = book.configure([(7, policy())], share: 1, at: second)
    let words = [book.wordToWrite(0), book.wordToWrite(0)]
    let first = try #require(words[0])
    #expect(first.old == nil)
    #expect(first.new.state == .closed)
    #expect(words[1] == nil)
    // A failure, and less than the minimum of requests: the kernel is asked to wake the reader for each.
    let change = book.record(request(7, status: 503, at: second + 1))
    #expect(change?.isSettled == false && change?.isUrgent == true)
    let afterwards = book.wordToWrite(0)
    let changed = try #require(afterwards)
    #expect(changed.old == first.new)
    #expect(changed.new.alert)
}

@Test func samplesOfOthersTellABreakerNothing() {
    var book = BreakerBook(share: 1)
    _ = book.configure([(1, policy())], share: 1, at: second)
    var server = request(1, status: 500, at: second)
    server.role = .server
    var bytes = request(1, at: second)
    bytes.kind = .bytes
    let strangers = [
        request(2, status: 500, at: second), request(UInt32(MESH_MAX_SERVICES), status: 500, at: second),
        server,
        bytes,
    ]
    for sample in strangers {
        let result = book.record(sample)
        #expect(result == nil)
    }
    #expect(book.slots[0].admittedRequests == 0)
}

/// Whether it was for a failure or, which leaves no failures in a row, for a slow call.
@Test(arguments: [503, 200] as [UInt16])
func anAlertIsTakenBackByTheFirstSampleAfterIt(status: UInt16) throws {
    var book = BreakerBook(share: 1)
    _ = book.configure([(7, policy { $0.slowCallDuration = 2 })], share: 1, at: second)
    var trouble = request(7, status: status, at: second)
    trouble.duration = status == 200 ? 2 : 1
    _ = book.record(trouble)
    let word = book.wordToWrite(0)
    #expect(word?.new.alert == true)
    let change = book.record(request(7, at: second * 30))
    #expect(change?.isSettled == false, "the failure has left the window")
    let next = book.wordToWrite(0)
    #expect(next?.new.alert == false)
    let quiet = book.record(request(7, at: second * 31))
    #expect(quiet == nil)
    #expect(book.slots[0].admittedRequests == 3)
}

@Test func whatIsUrgentIsWhatTheKernelWakesFor() {
    var book = BreakerBook(share: 1)
    let patient = policy {
        $0.minimumRequests = 2
        $0.failureRate = 1
        $0.slowCallDuration = 10
        $0.slowCallRate = 1
    }
    _ = book.configure([(1, patient)], share: 1, at: second)
    _ = book.wordToWrite(0)
    var slow = request(1, at: second + 3)
    slow.duration = 10
    let fine = book.record(request(1, at: second + 1))
    let failed = book.record(request(1, status: 500, at: second + 2))
    let late = book.record(slow)
    let afterwards = book.record(request(1, at: second + 4))
    #expect(fine == nil)
    #expect(failed?.isUrgent == true && failed?.isSettled == true, "the minimum is reached: no alert")
    #expect(late?.isUrgent == true && late?.isSettled == true)
    #expect(afterwards?.isUrgent == false && afterwards?.isSettled == true, "the window is not clean")
}

@Test func admittedAttemptsAreCountedByTheirSamples() {
    var book = BreakerBook(share: 1)
    _ = book.configure([(1, policy())], share: 1, at: second)
    _ = book.record(request(1, at: second))
    _ = book.record(request(1, status: 500, at: second))
    _ = book.record(request(1, flags: .probe, at: second))
    _ = book.record(request(1, flags: .wouldReject, at: second))
    _ = book.record(request(1, flags: .exempt, at: second))
    var connect = request(1, status: 0, at: second)
    connect.kind = .connect
    _ = book.record(connect)
    #expect(book.slots[0].admittedRequests == 3)
    #expect(book.slots[0].admittedConnects == 1)
}

@Test func noMoreThanTheShareOpensAtOnce() {
    var book = BreakerBook(share: 0.5)
    _ = book.configure((1...4).map { ($0, policy()) }, share: 0.5, at: second)
    for service in UInt32(1)...4 {
        for count in UInt64(0)..<3 { _ = book.record(request(service, status: 500, at: second + count)) }
    }
    #expect(book.slots.map(\.breaker.state) == [.open, .open, .closed, .closed])
    #expect(book.slots.map(\.breaker.heldClosed) == [false, false, true, true])
}

@Test func aReloadKeepsStatesAndSwitchesOffWhatIsGone() {
    var book = BreakerBook(share: 1)
    _ = book.configure([(1, policy()), (2, policy())], share: 1, at: second)
    for service in UInt32(1)...2 {
        for count in UInt64(0)..<3 { _ = book.record(request(service, status: 500, at: second + count)) }
    }
    let changes = book.configure([(1, policy { $0.minimumRequests = 5 })], share: 1, at: second * 2)
    #expect(book.slots.map(\.breaker.state) == [.open, .closed])
    #expect(book.slots[1].breaker.policy.mode == .off)
    #expect(changes.map(\.slot) == [0, 1])
    #expect(changes.flatMap(\.transitions).map(\.reason) == [.reload])
    #expect(book.share.breakers == 1)
    #expect(book.share.open == 1)
}

@Test func deadlinesAreKeptWithoutSamples() {
    var book = BreakerBook(share: 1)
    _ = book.configure([(1, policy()), (2, policy())], share: 1, at: second)
    for count in UInt64(0)..<3 { _ = book.record(request(2, status: 500, at: second + count)) }
    let deadline = book.nextDeadline
    let early = book.tick(deadline - 1)
    #expect(early.isEmpty)
    let changes = book.tick(deadline)
    #expect(changes.map(\.slot) == [1])
    #expect(changes[0].transitions.map(\.to) == [.halfOpen])
    #expect(book.nextDeadline == .max)
}

@Test func deadlinesComeInTheirOrderAndSoManyAtATime() {
    var book = BreakerBook(share: 1)
    _ = book.configure((0..<5).map { (UInt32($0), policy()) }, share: 1, at: second)
    let opened: [UInt32] = [3, 0, 4, 1, 2]
    for (order, service) in opened.enumerated() {
        let time = second * UInt64(order + 1)
        for _ in 0..<3 { _ = book.record(request(service, status: 500, at: time)) }
    }
    // The second one is forced open, and its override ends first of all.
    let until = book.nextDeadline - 1
    _ = book.force(
        0, BreakerOverride(forced: .open, actor: "a", reason: "r", since: second * 5, expiresAt: until),
        at: second * 5)
    #expect(book.nextDeadline == until)
    let last = book.slots[2].breaker.openDeadline ?? 0
    let first = book.tick(last, limit: 2)
    #expect(first.map(\.slot) == [0, 3])
    // What it was open for anyway goes on after the override; both are past.
    #expect(first[0].transitions.map(\.reason) == [.deadline])
    let rest = book.tick(last)
    #expect(rest.map(\.slot) == [4, 1, 2])
    #expect(book.nextDeadline == .max)
}
