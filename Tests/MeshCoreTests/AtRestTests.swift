// Breakers without an agent: what is shown of them, and that what is forced on them is what an agent would have made
// of it.
import Testing

@testable import MeshCore

private let second: UInt64 = 1_000_000_000
private let now = 1000 * second
private let wallOffset = 7_000_000 * second

private func policy(_ mode: BreakerPolicy.Mode = .enforce) -> BreakerPolicy {
    var policy = BreakerPolicy()
    policy.mode = mode
    policy.consecutiveFailures = 1
    policy.openFor = 10 * second
    return policy
}

/// A breaker that opened so many seconds ago.
private func opened(_ ago: UInt64) -> Breaker {
    var breaker = Breaker(policy: policy(), seed: 3, at: 0)
    _ = breaker.record(BreakerOutcome(failure: true), at: now - ago * second, mayOpen: true)
    return breaker
}

/// What is left of services with these breakers, the first with ID 1.
private func rest(
    _ services: [(name: String, breaker: Breaker)], leaseUntil: UInt64 = now + second, more: [StateRow] = []
) throws -> BreakersAtRest {
    var rows: [StateRow] = []
    var words: [UInt32: BreakerKernelWord] = [:]
    for (index, (name, breaker)) in services.enumerated() {
        let id = UInt32(index + 1)
        words[id] = breaker.kernelWord
        // In the order in which an agent writes them.
        rows.append(.breaker(service: id, breaker.memory, admittedConnects: 5, admittedRequests: 6))
        if let override = breaker.override { rows.append(.override(service: id, override)) }
        rows.append(.service(id: id, name: name, isConfigured: true, isActive: true))
    }
    return try BreakersAtRest(words: words, leaseUntil: leaseUntil, state: log(rows + more))
}

private func log(_ rows: [StateRow]) throws -> StateLog {
    let owner = StateOwner(
        instance: 1, layout: 1, boot: StateOwner.Boot("0b1fbd5b-2a0c-4a1b-9f1d-5b6b8a0e7c11")!)
    var writer = StateWriter()
    for row in rows { writer.append(row) }
    let commit = StateCommit(sequence: 1, counted: 0, decided: 0)
    return try StateLog(StateLog.header(of: owner) + writer.finish(commit), of: owner)
}

private func wish(_ seconds: Double = 60) throws -> OverrideWish {
    try OverrideWish(reason: "why", seconds: seconds)
}

@Suite struct AtRestTests {
    @Test func theyAreWhatTheyWere() throws {
        let trip = opened(3)
        let rest = try rest([("web", Breaker(policy: policy(), seed: 1, at: 9)), ("db", trip)])
        #expect(rest.services == [2, 1] && rest.configured == 2)
        let shown = rest.breaker(2, at: now)
        #expect(shown.state == .open && shown.reason == .consecutiveFailures && shown.since == trip.since)
        #expect(shown.openDeadline == trip.openDeadline)
        #expect(rest.rejects(2, at: now) && !rest.rejects(1, at: now))
        #expect(rest.admitted(2) == (5, 6))
        #expect(rest.mayReject == 1)
    }

    @Test func theKernelsDeadlinesPass() throws {
        let rest = try rest([("web", opened(3))])
        let later = now + 60 * second
        #expect(rest.breaker(1, at: later).state == .halfOpen)
        #expect(rest.breaker(1, at: later).reason == .deadline)
    }

    @Test func aDeadlineThatPassedIsToldOnce() throws {
        let later = now + 60 * second
        let word = opened(3).kernelWord
        var rows: [StateRow] = [
            .service(id: 1, name: "web", isConfigured: true, isActive: true),
            .breaker(service: 1, opened(3).memory, admittedConnects: 0, admittedRequests: 0),
        ]
        // Each is another meshctl, which finds what the one before has left; the kernel's word keeps the deadline.
        for (number, forced) in [BreakerOverride.Forced.close, nil, .close].enumerated() {
            var current = word
            if number == 1 { (current.forced, current.overrideUntil) = (.close, later + 3600 * second) }
            var rest = try BreakersAtRest(words: [1: current], leaseUntil: .max, state: log(rows))
            let time = later + UInt64(number)
            let change = try rest.force(
                1, forced.map { ($0, try wish()) }, actor: "me", at: time, wallOffset: wallOffset)
            rows += try #require(change).rows
        }
        let changes = rows.compactMap { row -> UInt64? in
            if case .transitions(1, .open, .halfOpen, .deadline, let count) = row { count } else { nil }
        }
        #expect(changes == [1])
        let rest = try BreakersAtRest(words: [1: word], leaseUntil: .max, state: log(rows))
        #expect(rest.history(of: 1).count { $0.reason == .deadline } == 1)
    }

    @Test func pastTheLeaseOnlyOverridesReject() throws {
        var forced = Breaker(policy: policy(), seed: 1, at: 9)
        _ = forced.setOverride(
            BreakerOverride(forced: .open, actor: "a", reason: "b", since: 10, expiresAt: now + 9 * second),
            at: 10)
        let rest = try rest([("web", opened(3)), ("db", forced)], leaseUntil: now)
        #expect(!rest.rejects(1, at: now) && rest.rejects(2, at: now))
        #expect(rest.breaker(1, at: now).state == .open)
        #expect(!rest.rejects(2, at: now + 9 * second))
    }

    @Test func theKernelIsRightWhereTheStateIsBehind() throws {
        let state = try log([
            .service(id: 1, name: "web", isConfigured: true, isActive: true),
            .breaker(
                service: 1, Breaker(policy: policy(), seed: 1, at: 9).memory, admittedConnects: 0,
                admittedRequests: 0),
        ])
        let word = opened(3).kernelWord
        var rest = try BreakersAtRest(words: [1: word], leaseUntil: .max, state: state)
        #expect(rest.breaker(1, at: now).state == .open)
        // The next agent makes the same decision again, so the state keeps what was before it.
        let change = try rest.force(1, (.close, wish()), actor: "me", at: now, wallOffset: wallOffset)
        let forced = try #require(change)
        guard case .breaker(1, let memory, 0, 0)? = forced.rows.dropLast().last else {
            Issue.record("\(forced.rows)")
            return
        }
        #expect(memory.state == .closed && memory.reason == .override && memory.since == now)
        #expect(forced.word.state == .open && forced.word.openUntil == word.openUntil)
    }

    /// An agent decides, tells the kernel and is killed before it is kept; then somebody forces a state. The next agent
    /// comes to the same decision from the same outcomes: each transition is counted once, by one of them.
    @Test(arguments: [BreakerOverride.Forced.close, .open], [3 * second, 20 * second])
    func whatWasDecidedAndNotKeptIsCounted(forced: BreakerOverride.Forced, ago: UInt64) throws {
        let fresh = Breaker(policy: policy(), seed: 3, at: 0)
        let killed = opened(ago / second)
        var rows: [StateRow] = [
            .service(id: 1, name: "web", isConfigured: true, isActive: true),
            .breaker(service: 1, fresh.memory, admittedConnects: 0, admittedRequests: 0),
        ]
        var rest = try BreakersAtRest(words: [1: killed.kernelWord], leaseUntil: .max, state: log(rows))
        let change = try rest.force(1, (forced, wish(600)), actor: "me", at: now, wallOffset: wallOffset)
        let made = try #require(change)
        rows += made.rows
        var told = rows.compactMap { row -> String? in
            if case .transitions(1, let from, let to, let reason, let count) = row {
                "\(from) \(to) \(reason) \(count)"
            } else {
                nil
            }
        }

        var memory = fresh.memory
        var override: BreakerOverride?
        for row in rows {
            if case .breaker(1, let found, _, _) = row { memory = found }
            if case .override(1, let found) = row { override = found }
        }
        var next = Breaker(policy: policy(), memory, override: override, at: now + second)
        next.catchUp(to: made.word)
        let tripped = now - ago
        let failure = BreakerOutcome(failure: true)
        var transitions = next.record(failure, at: tripped, mayOpen: true)
        #expect(
            transitions == [
                BreakerTransition(from: .closed, to: .open, reason: .consecutiveFailures, time: tripped)
            ])
        // What came later is hidden by the override, or was told by whoever forced it.
        transitions = next.record(failure, at: now + second, mayOpen: true)
        transitions += next.tick(now + 100 * second)
        #expect(transitions == [])
        #expect(next.openDeadline == nil && next.state == forced.state)

        // One agent that was there all the time.
        var whole = fresh
        var all = whole.record(failure, at: tripped, mayOpen: true)
        all += whole.tick(now)
        let expected = try #require(override)
        let changes = whole.setOverride(expected, at: now)
        all += try #require(changes)
        #expect(next.reason == whole.reason && next.since == whole.since)
        told.insert("closed open consecutiveFailures 1", at: 0)
        #expect(told == all.map { "\($0.from) \($0.to) \($0.reason) 1" })
    }

    @Test func forcingIsWhatAnAgentDoes() throws {
        let before = Breaker(policy: policy(), seed: 1, at: 9)
        let old = BreakerEvent(time: 4, kind: .reload, service: "web", reason: .reload)
        var rest = try rest(
            [("web", before)],
            more: [
                .event(number: 41, old),
                .transitions(service: 1, from: .closed, to: .open, .override, count: 2),
            ])
        let change = try rest.force(1, (.open, wish()), actor: "me (pid 1)", at: now, wallOffset: wallOffset)
        let forced = try #require(change)
        let override = BreakerOverride(
            forced: .open, actor: "me (pid 1)", reason: "why", since: now, expiresAt: now + 60 * second)
        var agent = before
        _ = agent.setOverride(override, at: now)
        var memory = agent.memory
        memory.window = before.memory.window
        var event = BreakerEvent(
            time: now + wallOffset, kind: .override, service: "web", from: .closed, to: .open,
            reason: .override, actor: "me (pid 1)", text: "why", expiresAt: now + 60 * second + wallOffset)
        event.isUntold = true
        #expect(
            forced.rows == [
                .transitions(service: 1, from: .closed, to: .open, .override, count: 3),
                .event(number: 42, event),
                .breaker(service: 1, memory, admittedConnects: 5, admittedRequests: 6),
                .override(service: 1, override),
            ])
        #expect(forced.before == before.kernelWord && forced.word == agent.kernelWord)
        #expect(rest.history(of: 1) == [old, event])
    }

    @Test func whatPassedMeanwhileComesFirst() throws {
        var breaker = Breaker(policy: policy(), seed: 1, at: 9)
        _ = breaker.setOverride(
            BreakerOverride(forced: .open, actor: "a", reason: "b", since: 10, expiresAt: now - second),
            at: 10)
        var rest = try rest([("web", breaker)])
        let change = try rest.force(1, (.open, wish()), actor: "me", at: now, wallOffset: 0)
        let forced = try #require(change)
        #expect(
            rest.history(of: 1).map { "\($0.kind) \($0.reason) \($0.time)" } == [
                "overrideEnd overrideExpired \(now - second)", "override override \(now)",
            ])
        #expect(
            forced.rows.first
                == .transitions(service: 1, from: .open, to: .closed, .overrideExpired, count: 1))
        #expect(forced.word.overrideUntil == now + 60 * second)
    }

    @Test func endingAnOverride() throws {
        var breaker = opened(3)
        _ = breaker.setOverride(
            BreakerOverride(forced: .close, actor: "a", reason: "b", since: 10, expiresAt: now + second),
            at: now - second)
        var rest = try rest([("web", breaker)])
        let change = rest.force(1, nil, actor: "me", at: now, wallOffset: 0)
        let ended = try #require(change)
        #expect(ended.rows.last == .override(service: 1, nil))
        #expect(ended.word.forced == nil && ended.word.overrideUntil == 0 && ended.word.state == .open)
        #expect(rest.history(of: 1).map(\.kind) == [.overrideEnd])
        #expect(rest.history(of: 1).map(\.to) == [.open])
        // Nothing to end.
        var other = try self.other()
        let nothing = other.force(1, nil, actor: "me", at: now, wallOffset: 0)
        #expect(nothing == nil)
    }

    private func other() throws -> BreakersAtRest { try rest([("web", opened(3))]) }

    @Test func namesAndWhatHasNoBreaker() throws {
        let rest = try rest(
            [("web", opened(3)), ("gone", Breaker(policy: policy(), seed: 1, at: 9))],
            more: [
                .service(id: 2, name: "gone", isConfigured: true, isActive: false),
                .service(id: 3, name: "plain", isConfigured: true, isActive: true),
                .service(id: 60_000, name: "1.2.3.4:5", isConfigured: false, isActive: true),
            ])
        #expect(rest.services == [1] && rest.configured == 2 && rest.discovered == 1)
        #expect(try rest.service(named: "web") == 1)
        #expect(throws: Refusal.noBreaker("plain")) { try rest.service(named: "plain") }
        #expect(throws: Refusal.noService("wbe", among: ["web", "plain"])) { try rest.service(named: "wbe") }
        #expect(throws: Refusal.self) { try rest.service(named: "gone") }
        let nameless = try BreakersAtRest(words: [7: opened(3).kernelWord], leaseUntil: 0, state: nil)
        #expect(nameless.name(of: 7) == "unknown-7" && nameless.services == [7])
    }
}

@Suite struct OverrideWishTests {
    @Test func whatIsGood() throws {
        let longest = try OverrideWish(reason: String(repeating: "x", count: 500), seconds: 7 * 86_400)
        #expect(longest.duration == 7 * 86_400 * second)
        #expect(try OverrideWish(reason: "a", seconds: 0.5).duration == second / 2)
    }

    @Test(
        arguments: [
            (nil, 1.0), ("", 1.0), (" \n", 1.0), (String(repeating: "x", count: 501), 1.0), ("x", 0.0),
            ("x", -1.0),
            ("x", 7 * 86_400.1), ("x", .nan), ("x", .infinity),
        ] as [(String?, Double)])
    func whatIsNot(reason: String?, seconds: Double) {
        #expect(throws: Refusal.self) { try OverrideWish(reason: reason, seconds: seconds) }
    }
}
