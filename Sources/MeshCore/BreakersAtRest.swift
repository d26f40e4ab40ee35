// The breakers of an agent that does not run: what the kernel goes on enforcing, and what the agent's state says of
// it. A person may force one all the same; what that changes is a commit that the next agent takes over.

/// The breakers of configured services, as an agent has left them.
public struct BreakersAtRest: Sendable {
    private struct Service: Sendable {
        var name: String
        var isActive: Bool
    }
    /// What is known of a breaker. Its rows may come before that of its service.
    private struct Kept: Sendable {
        var memory: BreakerMemory?
        var override: BreakerOverride?
        var admittedConnects: UInt64 = 0
        var admittedRequests: UInt64 = 0
    }
    private struct Change: Hashable, Sendable {
        let service: UInt32
        let from: BreakerState
        let to: BreakerState
        let reason: BreakerReason
    }

    private let words: [UInt32: BreakerKernelWord]
    private let leaseUntil: UInt64
    private var named: [UInt32: Service] = [:]
    private var kept: [UInt32: Kept] = [:]
    private var transitions: [Change: UInt64] = [:]
    private var events: [BreakerEvent] = []
    private var nextEvent: UInt64 = 0
    /// How many services the agent had discovered.
    public private(set) var discovered = 0

    /// - Parameters:
    ///   - words: What the kernel was told of each configured service's breaker, by ID.
    ///   - leaseUntil: The end of the lease, in monotonic nanoseconds.
    ///   - state: The agent's state; nil if there is none of any use.
    /// - Throws: What is wrong with the state.
    public init(
        words: [UInt32: BreakerKernelWord], leaseUntil: UInt64, state: StateLog?
    ) throws(StateLogError) {
        self.words = words
        self.leaseUntil = leaseUntil
        try state?.replay { row throws(StateLogError) in
            switch row {
            case .service(let id, let name, true, let isActive):
                named[id] = Service(name: name, isActive: isActive)
            case .service(_, _, false, _): discovered += 1
            case .breaker(let id, let memory, let connects, let requests):
                kept[id, default: Kept()].memory = memory
                kept[id]?.admittedConnects = connects
                kept[id]?.admittedRequests = requests
            case .override(let id, let override): kept[id, default: Kept()].override = override
            case .transitions(let id, let from, let to, let reason, let count):
                transitions[Change(service: id, from: from, to: to, reason: reason)] = count
            case .event(let number, let event):
                events.append(event)
                nextEvent = number &+ 1
            default: break
            }
        }
    }

    // MARK: - Looking

    /// The IDs of the services that have a breaker, in the order of their names. One whose name the state does not
    /// know is there too: it may reject.
    public var services: [UInt32] {
        words.keys.filter { words[$0]?.mode != .off && named[$0]?.isActive != false }
            .sorted { (name(of: $0), $0) < (name(of: $1), $1) }
    }

    /// How many services the configuration named.
    public var configured: Int { named.values.count(where: \.isActive) }

    /// A service's name; of one that the state does not know, its number.
    public func name(of id: UInt32) -> String { named[id]?.name ?? "unknown-\(id)" }

    /// The service with that name and a breaker.
    public func service(named name: String) throws(Refusal) -> UInt32 {
        if let id = services.first(where: { self.name(of: $0) == name }) { return id }
        let names = named.values.filter(\.isActive).map(\.name)
        throw names.contains(name) ? .noBreaker(name) : .noService(name, among: names)
    }

    /// What is forced on a breaker: as the kernel has it, with who and why from the state.
    public func override(of id: UInt32) -> BreakerOverride? {
        words[id]?.override(known: kept[id]?.override)
    }

    /// A breaker as it is now. Where the state is behind the kernel, that is right.
    public func breaker(_ id: UInt32, at now: UInt64) -> Breaker {
        var breaker = resting(id, at: now)
        _ = breaker.tick(now)
        return breaker
    }

    /// Whether a breaker rejects attempts: not if the lease that it needs is over.
    public func rejects(_ id: UInt32, at now: UInt64) -> Bool {
        let breaker = breaker(id, at: now)
        return breaker.policy.mode == .enforce && breaker.state != .closed
            && (breaker.override != nil || now < leaseUntil)
    }

    /// How many attempts the agent had counted as simply admitted.
    public func admitted(_ id: UInt32) -> (connects: UInt64, requests: UInt64) {
        (kept[id]?.admittedConnects ?? 0, kept[id]?.admittedRequests ?? 0)
    }

    /// The latest events of a service, oldest first, as many as an agent keeps.
    public func history(of id: UInt32) -> [BreakerEvent] {
        let name = name(of: id)
        return events.filter { $0.service == name }.suffix(BreakerHistory.perService)
    }

    /// How many breakers may reject now or when a deadline has passed.
    public var mayReject: UInt32 { UInt32(words.values.count(where: \.mayReject)) }

    /// As the agent's own, but that the rules by which it trips are not known.
    private func resting(_ id: UInt32, at now: UInt64) -> Breaker {
        let word = words[id] ?? .none
        let override = override(of: id)
        if let memory = kept[id]?.memory, memory.fits(word) {
            return Breaker(
                policy: BreakerPolicy(word, window: memory.window.length), memory, override: override, at: now
            )
        }
        let window = kept[id]?.memory?.window.length ?? BreakerPolicy().window
        var breaker = Breaker(policy: BreakerPolicy(word, window: window), seed: UInt64(id), at: now)
        breaker.restore(word, override: override, at: now)
        return breaker
    }

    // MARK: - Forcing

    /// What forcing a breaker changes.
    public struct Forced: Equatable, Sendable {
        /// What the kernel is to be told, after the rows are in the state.
        public var word: BreakerKernelWord
        /// What it was told before.
        public var before: BreakerKernelWord
        /// For the state.
        public var rows: [StateRow]
    }

    /// Forces a state on a breaker, or ends that; nil if there is nothing to end.
    /// - Parameters:
    ///   - id: A service with a breaker.
    ///   - wish: What is forced, for how long and why; nil to end it.
    ///   - actor: Who does it.
    ///   - wallOffset: What to add to monotonic time for nanoseconds since 1970.
    public mutating func force(
        _ id: UInt32, _ wish: (forced: BreakerOverride.Forced, OverrideWish)?, actor: String, at now: UInt64,
        wallOffset: UInt64
    ) -> Forced? {
        var breaker = resting(id, at: now)
        let old = breaker.override
        // What a deadline did meanwhile comes first, as the next agent would have told it.
        let passed = breaker.tick(now)
        let before = breaker.state
        guard wish != nil || breaker.override != nil else { return nil }
        var rows: [StateRow] = []
        for transition in passed {
            count(transition, of: id, &rows)
            if transition.reason == .overrideExpired { continue }
            note(
                BreakerEvent(
                    transition, service: name(of: id), wallOffset: Int64(bitPattern: wallOffset)), &rows)
        }
        if let old, breaker.override == nil {
            note(
                BreakerEvent(
                    time: old.expiresAt &+ wallOffset, kind: .overrideEnd, service: name(of: id),
                    from: old.forced.state, to: before, reason: .overrideExpired), &rows)
        }
        let override = wish.map { forced, wish in
            BreakerOverride(
                forced: forced, actor: actor, reason: wish.reason, since: now, expiresAt: now + wish.duration)
        }
        let changes =
            override.map { breaker.setOverride($0, at: now) ?? [] } ?? breaker.endOverride(at: now)
        for transition in changes { count(transition, of: id, &rows) }
        note(
            BreakerEvent(
                time: now &+ wallOffset, kind: override == nil ? .overrideEnd : .override,
                service: name(of: id), from: before, to: breaker.state, reason: .override, actor: actor,
                text: override?.reason, expiresAt: override.map { $0.expiresAt &+ wallOffset }), &rows)
        keep(breaker, override, of: id, &rows)

        var word = words[id] ?? .none
        let written = word
        word.forced = override?.forced
        word.overrideUntil = override?.expiresAt ?? 0
        return Forced(word: word, before: written, rows: rows)
    }

    private mutating func count(
        _ transition: BreakerTransition, of id: UInt32, _ rows: inout [StateRow]
    ) {
        let change = Change(
            service: id, from: transition.from, to: transition.to, reason: transition.reason)
        transitions[change, default: 0] += 1
        rows.append(
            .transitions(
                service: id, from: change.from, to: change.to, change.reason, count: transitions[change]!))
    }

    private mutating func note(_ event: BreakerEvent, _ rows: inout [StateRow]) {
        var event = event
        event.isUntold = true
        rows.append(.event(number: nextEvent, event))
        events.append(event)
        nextEvent += 1
    }

    private mutating func keep(
        _ breaker: Breaker, _ override: BreakerOverride?, of id: UInt32, _ rows: inout [StateRow]
    ) {
        var memory = breaker.memory
        if let before = kept[id]?.memory {
            // Samples that wait for the next agent are older than now.
            memory.window = before.window
            memory.consecutiveFailures = before.consecutiveFailures
            memory.heldReason = before.heldReason
            if !before.fits(words[id] ?? .none) {
                // What the agent had decided without keeping it, the next one decides again from the same samples.
                let (reason, since) = (memory.reason, memory.since)
                memory = before
                (memory.reason, memory.since) = (reason, since)
            }
        }
        let admitted = admitted(id)
        rows.append(
            .breaker(
                service: id, memory, admittedConnects: admitted.connects, admittedRequests: admitted.requests)
        )
        rows.append(.override(service: id, override))
    }
}

extension BreakerPolicy {
    /// What a kernel word tells of a policy. Nothing trips by it, and no ramp ends.
    fileprivate init(_ word: BreakerKernelWord, window: UInt64) {
        self.init()
        mode = word.mode
        drain = word.drain
        self.window = window
        probeRatio = Double(word.probeShare) / 4_294_967_296
        probeInterval = word.probeInterval
        slowCallDuration = word.slow
        minimumRequests = .max
        consecutiveFailures = 0
        maxOpenFor = .max
        ramp = .max
    }
}
