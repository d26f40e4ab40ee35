// The circuit breaker as a pure state machine: outcomes and the time go in, transitions and what the
// kernel should know come out.

/// One service's circuit breaker.
///
/// **Closed**, it counts every outcome in a sliding window and trips when a rule of its policy is met.
/// **Open**, it listens to nothing: what still arrives began before it opened. At its deadline it is
/// **half-open**; the kernel makes that move by itself and admits probes. A probe that fails reopens it,
/// for twice as long; enough that succeed start the ramp, half-open with a growing share, in which the
/// closed state's rules apply to a fresh window of probes. At the ramp's end it is closed, and the next
/// time it opens it is for the shortest time again.
///
/// An outcome counts only if its attempt began after the breaker last became half-open, so that a
/// connect() that times out minutes later says nothing about a service that has recovered since.
///
/// An override lies on top: the automatic machine goes on underneath, unseen, and its state is what is
/// left when the override ends. Under an override that closes everything is admitted, so there every
/// outcome counts as a probe.
///
/// All times are `CLOCK_MONOTONIC` nanoseconds. Nothing allocates but a transition.
public struct Breaker: Sendable {
    /// How it behaves; see `replacePolicy(_:at:)`.
    public private(set) var policy: BreakerPolicy
    /// The state that automation computes, under any override.
    public private(set) var automaticState = BreakerState.closed
    /// What a person forced, if anything.
    public private(set) var override: BreakerOverride? {
        didSet { isForced = override != nil }
    }
    /// What the kernel had been told when somebody forced a state on what this breaker was not yet; nil if
    /// nothing, and once it has come as far: see `catchUp(to:)`.
    private var ahead: BreakerKernelWord?
    /// Why the effective state is what it is; nil if it never changed.
    public private(set) var reason: BreakerReason?
    /// Since when the effective state is what it is: the last transition, or when it was made.
    public private(set) var since: UInt64
    /// How many failures came in a row.
    public private(set) var consecutiveFailures: UInt32 = 0
    /// How many probes have succeeded since it became half-open.
    public private(set) var probeSuccesses: UInt32 = 0
    /// The trip rule that is met while only the open-share limit keeps it closed; nil if it is not held. It
    /// opens with the first outcome for which it may, if a rule is still met then.
    public private(set) var heldReason: BreakerReason?

    private var window: SlidingWindow
    /// When an open breaker becomes half-open.
    private var openUntil: UInt64 = 0
    /// Since when it is, or last was, half-open: attempts that began before count nowhere.
    private var epoch: UInt64 = 0
    private var ramp = Ramp.none
    private var rampStart: UInt64 = 0
    /// How many times in a row it has reopened.
    private var reopened: UInt32 = 0
    /// Whether `consecutiveFailures` are connects only.
    private var streakOfConnects = true
    /// Whether a request ever ended. Where none does, connects that succeed are the probes.
    private var sawRequest = false
    private var random: SplitMix64

    private typealias Ramp = BreakerMemory.Ramp

    /// The shares that the two halves of the ramp admit, at least.
    static let rampShares = (first: 0.1, second: 0.5)

    /// A closed breaker. `seed` decides its jitter: give each breaker its own.
    public init(policy: BreakerPolicy, seed: UInt64, at now: UInt64) {
        self.policy = policy
        window = SlidingWindow(length: policy.window)
        random = SplitMix64(seed: seed)
        since = now
    }

    /// The breaker that another one was, under a policy that may be another too: see `memory`. What follows
    /// from a change of the policy is what `replacePolicy(_:at:)` makes of it, but nothing is told.
    public init(policy: BreakerPolicy, _ memory: BreakerMemory, override: BreakerOverride?, at now: UInt64) {
        self.policy = policy
        automaticState = memory.state
        self.override = override
        isForced = override != nil
        reason = memory.reason
        since = memory.since
        consecutiveFailures = memory.consecutiveFailures
        probeSuccesses = memory.probeSuccesses
        heldReason = memory.heldReason
        window =
            memory.window.length == policy.window ? memory.window : SlidingWindow(length: policy.window)
        openUntil = memory.openUntil
        epoch = memory.epoch
        ramp = memory.ramp
        rampStart = memory.rampStart
        reopened = memory.reopened
        streakOfConnects = memory.streakOfConnects
        sawRequest = memory.sawRequest
        random = SplitMix64(seed: memory.random)
        if policy.mode == .off {
            self.override = nil
            isForced = false
            enterClosed()
            forget()
        } else if automaticState == .open {
            openUntil = min(openUntil, saturatingSum(now, policy.maxOpenFor))
        }
    }

    /// What it has to remember to go on in another process; the override aside.
    public var memory: BreakerMemory {
        BreakerMemory(
            state: automaticState, reason: reason, since: since, consecutiveFailures: consecutiveFailures,
            probeSuccesses: probeSuccesses, heldReason: heldReason, window: window, openUntil: openUntil,
            epoch: epoch, ramp: ramp, rampStart: rampStart, reopened: reopened,
            streakOfConnects: streakOfConnects, sawRequest: sawRequest, random: random.state)
    }

    // MARK: - What it is

    /// The effective state: what is forced, else what automation computes.
    public var state: BreakerState { override?.forced.state ?? automaticState }

    /// Whether automation holds it open or half-open: what `BreakerOpenShare` counts.
    public var holdsOpen: Bool { automaticState != .closed }

    /// Whether only the open-share limit keeps it closed; see `heldReason`.
    public var heldClosed: Bool { heldReason != nil }

    /// Whether overrides may be forced on it: not in mode `off`.
    public var acceptsOverrides: Bool { policy.mode != .off }

    /// Whether it is half-open and in its ramp.
    public var isRamping: Bool { ramp != .none }

    /// What its window held when the breaker was last touched; `tick` brings it up to date.
    public var counts: SlidingWindow.Counts { window.counts }

    /// When automation's open state ends; nil unless it is open.
    public var openDeadline: UInt64? { automaticState == .open ? openUntil : nil }

    /// The share of attempts that the kernel admits while half-open, 0 to 1: known in advance while open,
    /// because the kernel makes that move by itself. 0 when closed.
    public var probeShare: Double {
        let share: Double
        switch (automaticState, ramp) {
        case (.closed, _): return 0
        case (_, .none): share = policy.probeRatio
        case (_, .first): share = max(policy.probeRatio, Breaker.rampShares.first)
        case (_, .second): share = max(policy.probeRatio, Breaker.rampShares.second)
        }
        return min(max(share, 0), 1)
    }

    /// Whether an outcome that is neither a failure nor slow may change its state, so that the kernel should
    /// wake the reader for every one: it is not closed, or is held closed, or there is trouble in its window,
    /// which has less than the minimum of requests as yet. Past the minimum such an outcome makes every rate
    /// smaller; only time makes one larger, when good requests leave the window, and then it is not this
    /// outcome that decides, and it may wait for the next look at what has come.
    public var alert: Bool {
        guard policy.mode != .off else { return false }
        if automaticState != .closed || heldClosed { return true }
        let counts = window.counts
        return counts.requests < policy.minimumRequests && (counts.failures > 0 || counts.slow > 0)
    }

    /// Whether it is closed, and neither forced nor held so: then only `alert` may differ in `kernelWord`
    /// from one sample to the next.
    public var isAtEase: Bool { automaticState == .closed && !isForced && heldReason == nil }
    /// Whether there is an override: to ask that of `override` copies it.
    private var isForced = false

    /// When `tick` next has something to do; nil if never.
    public var nextDeadline: UInt64? {
        let automatic = automaticDeadline
        guard let override else { return automatic }
        return min(override.expiresAt, automatic ?? .max)
    }

    /// What the kernel should know now. Write it when it differs from what was last written.
    public var kernelWord: BreakerKernelWord {
        BreakerKernelWord(
            state: automaticState, mode: policy.mode, forced: override?.forced, drain: policy.drain,
            alert: alert,
            probeShare: probeShare >= 1 ? .max : UInt32(probeShare * 4_294_967_296),
            openUntil: automaticState == .open ? openUntil : 0, probeInterval: policy.probeInterval,
            overrideUntil: override?.expiresAt ?? 0, slow: policy.slowCallDuration,
            urgentClasses: policy.failureStatuses.classMask)
    }

    // MARK: - What happens to it

    /// Makes the moves whose time has come, oldest first, and lets the window slide. Harmless at any time,
    /// and cheap when there is nothing to do.
    public mutating func tick(_ now: UInt64) -> [BreakerTransition] {
        var transitions: [BreakerTransition] = []
        while let deadline = nextDeadline, deadline <= now {
            if let override, override.expiresAt == deadline {
                change(.overrideExpired, at: deadline, &transitions) { $0.override = nil }
            } else if automaticState == .open {
                change(.deadline, at: deadline, &transitions) { $0.enterHalfOpen(at: deadline) }
            } else if ramp == .first {
                ramp = .second
            } else {
                change(.recovered, at: deadline, &transitions) { $0.enterClosed() }
            }
        }
        window.advance(to: now)
        if heldClosed { heldReason = metRule }
        return transitions
    }

    /// Takes in the outcome of an attempt that ended at `now`, after the moves whose time had come by then
    /// (`tick`). `mayOpen` is `BreakerOpenShare.mayOpen`; a breaker that reopens does not need it. Up to
    /// three transitions come back, oldest first, almost always none.
    public mutating func record(_ outcome: BreakerOutcome, at now: UInt64, mayOpen: Bool)
        -> [BreakerTransition]
    {
        guard policy.mode != .off else { return [] }
        var transitions = tick(now)
        let began = now > outcome.duration ? now - outcome.duration : 0
        guard began >= epoch else { return transitions }
        sawRequest = sawRequest || !outcome.connect

        switch automaticState {
        case .open:
            break
        case .closed:
            count(outcome, at: now)
            heldReason = metRule
            if mayOpen, let rule = heldReason { open(rule, at: now, &transitions) }
        case .halfOpen:
            guard outcome.probe || isForcedClosed(at: began) else { break }
            if ramp != .none {
                count(outcome, at: now)
                if metRule != nil { open(.rampFailed, at: now, &transitions) }
            } else if outcome.failure || (outcome.slow && policy.watchesSlowCalls) {
                open(.probeFailed, at: now, &transitions)
            } else if !outcome.connect || !sawRequest {
                probeSucceeded(at: now, &transitions)
            }
        }
        return transitions
    }

    /// Whether everything was admitted then: a sample may be older than the override.
    private func isForcedClosed(at time: UInt64) -> Bool {
        guard let override else { return false }
        return override.forced == .close && override.since <= time
    }

    /// Takes in what almost every sample is: a request that went well, while nothing has gone wrong for a
    /// whole window. It is what `record` would do, in a few nanoseconds, and changes nothing but the
    /// window's count.
    /// - Returns: False if the sample or the breaker is any other: then nothing was counted.
    public mutating func recordQuietly(_ sample: Sample) -> Bool {
        goesWell(sample) && recordQuietly(duration: sample.duration, at: sample.time)
    }

    /// Whether a sample is a request that went well, however long it took.
    private func goesWell(_ sample: Sample) -> Bool {
        sample.role == .client && sample.kind == .request && sample.outcome == .ok && sample.flags.isEmpty
            && policy.mode != .off
            && (sample.status == 0 || !policy.failureStatuses.contains(sample.status))
    }

    /// The same for a sample of the same head as one that was taken in so under this policy.
    public mutating func recordQuietly(duration: UInt64, at time: UInt64) -> Bool {
        guard isAtEase, consecutiveFailures == 0,
            policy.slowCallDuration == 0 || duration < policy.slowCallDuration
        else { return false }
        window.advance(to: time)
        guard window.counts.failures == 0 && window.counts.slow == 0 else { return false }
        if saturatingSum(epoch, duration) <= time {
            sawRequest = true
            window.record(failure: false, slow: false, at: time)
        }
        return true
    }

    /// Forces a state, in place of any other override. Nil, and nothing changed, where overrides are not
    /// accepted (mode `off`).
    public mutating func setOverride(_ new: BreakerOverride, at now: UInt64) -> [BreakerTransition]? {
        guard acceptsOverrides else { return nil }
        var transitions = tick(now)
        change(.override, at: now, &transitions) { $0.override = new }
        return transitions
    }

    /// Ends the override, if there is one, and returns to the state that automation computes.
    public mutating func endOverride(at now: UInt64) -> [BreakerTransition] {
        var transitions = tick(now)
        change(.override, at: now, &transitions) { $0.override = nil }
        return transitions
    }

    /// Follows a new policy. State, streak, override and, if its length is the same, the window stay; an
    /// open breaker stays open no longer than the new policy lets it. Mode `off` ends everything.
    public mutating func replacePolicy(_ new: BreakerPolicy, at now: UInt64) -> [BreakerTransition] {
        var transitions = tick(now)
        if new.window != policy.window { window = SlidingWindow(length: new.window) }
        policy = new
        if new.mode == .off {
            change(.reload, at: now, &transitions) {
                $0.override = nil
                $0.enterClosed()
                $0.forget()
            }
        } else if automaticState == .open {
            openUntil = min(openUntil, saturatingSum(now, new.maxOpenFor))
        }
        // A deadline may have come closer, and past.
        return transitions + tick(now)
    }

    /// Goes on where another breaker of this policy, or of an older one, was ended: with what the kernel was
    /// told of that one. For one that is fresh. The window begins empty.
    /// - Parameter forced: The override that the word tells of, if any, with who and why.
    public mutating func restore(_ word: BreakerKernelWord, override forced: BreakerOverride?, at now: UInt64)
    {
        guard policy.mode != .off else { return }
        automaticState = word.state
        override = forced
        if forced != nil { reason = .override }
        guard word.state != .closed else { return }
        // The next time it opens is not the first.
        reopened = 1
        if word.state == .open {
            openUntil = min(word.openUntil, saturatingSum(now, policy.maxOpenFor))
        } else if let phase = rampPhase(ofShare: word.probeShare) {
            ramp = phase
            rampStart = now
        }
    }

    /// Notes what the kernel has been told of the breaker that this one goes on from. Where that had decided more
    /// than was kept of it, and somebody forced a state since, the same outcomes come again, and lead to the same
    /// transitions. Nobody has told those, although the override hides their state now.
    public mutating func catchUp(to word: BreakerKernelWord) {
        ahead = override != nil && !memory.fits(word) ? word : nil
    }

    // MARK: - How it works

    /// The part of the ramp in which the kernel admits such a share of 2^32; nil if none does.
    private func rampPhase(ofShare share: UInt32) -> Ramp? {
        for phase in [Ramp.second, .first] {
            var breaker = self
            breaker.ramp = phase
            if breaker.probeShare > policy.probeRatio && breaker.kernelWord.probeShare == share {
                return phase
            }
        }
        return nil
    }

    private var automaticDeadline: UInt64? {
        switch (automaticState, ramp) {
        case (.open, _): openUntil
        case (_, .first): saturatingSum(rampStart, policy.ramp / 2)
        case (_, .second): saturatingSum(rampStart, policy.ramp)
        default: nil
        }
    }

    /// Applies `body` and tells of it if the effective state is another afterwards, or was at that time.
    private mutating func change(
        _ reason: BreakerReason, at time: UInt64, _ transitions: inout [BreakerTransition],
        _ body: (inout Breaker) -> Void
    ) {
        if let ahead, let override, time < override.since {
            let before = automaticState
            body(&self)
            if memory.fits(ahead) { self.ahead = nil }
            guard automaticState != before else { return }
            transitions.append(
                BreakerTransition(from: before, to: automaticState, reason: reason, time: time))
            // Unless the override changed the effective state, that is what it is for this reason.
            if self.reason != .override || since < override.since { (self.reason, since) = (reason, time) }
            return
        }
        let before = state
        body(&self)
        guard state != before else { return }
        // An outcome may come a little after one that ended later; history does not go back.
        let time = max(time, since)
        self.reason = reason
        since = time
        transitions.append(BreakerTransition(from: before, to: state, reason: reason, time: time))
    }

    private mutating func open(
        _ reason: BreakerReason, at now: UInt64, _ transitions: inout [BreakerTransition]
    ) {
        let base = min(policy.openFor, policy.maxOpenFor)
        let fits = reopened < UInt32(base.leadingZeroBitCount)
        let doubled = fits ? base << UInt64(reopened) : policy.maxOpenFor
        let jitter = random.next() % (doubled / 10 + 1)
        let duration = min(saturatingSum(doubled, jitter), policy.maxOpenFor)
        change(reason, at: now, &transitions) {
            $0.automaticState = .open
            $0.openUntil = saturatingSum(now, duration)
            $0.ramp = .none
            $0.heldReason = nil
        }
        // Counted now, so that the next time it is twice as long unless it closes before.
        reopened = min(reopened + 1, 63)
    }

    private mutating func enterHalfOpen(at time: UInt64) {
        automaticState = .halfOpen
        epoch = time
        probeSuccesses = 0
        ramp = .none
    }

    private mutating func enterClosed() {
        automaticState = .closed
        ramp = .none
        reopened = 0
        probeSuccesses = 0
    }

    private mutating func forget() {
        window.clear()
        consecutiveFailures = 0
        streakOfConnects = true
        heldReason = nil
    }

    private mutating func probeSucceeded(at now: UInt64, _ transitions: inout [BreakerTransition]) {
        probeSuccesses += 1
        guard probeSuccesses >= policy.probeSuccesses else { return }
        forget()
        rampStart = now
        ramp = .first
        // A ramp of no length ends here and now.
        transitions += tick(now)
    }

    /// Counts an outcome in the window and in the streak. A connect that succeeds is no request: it only
    /// ends a streak of failed connects, or else a service that refuses every request over a new
    /// connection would look half well.
    private mutating func count(_ outcome: BreakerOutcome, at now: UInt64) {
        if outcome.connect && !outcome.failure {
            if streakOfConnects { consecutiveFailures = 0 }
            return
        }
        window.record(failure: outcome.failure, slow: outcome.slow, at: now)
        if outcome.failure {
            streakOfConnects = outcome.connect && (streakOfConnects || consecutiveFailures == 0)
            consecutiveFailures &+= consecutiveFailures == .max ? 0 : 1
        } else {
            consecutiveFailures = 0
            streakOfConnects = true
        }
    }

    /// The trip rule that the window and the streak meet, if any.
    private var metRule: BreakerReason? {
        if policy.consecutiveFailures > 0 && consecutiveFailures >= policy.consecutiveFailures {
            return .consecutiveFailures
        }
        let counts = window.counts
        guard counts.requests > 0 && counts.requests >= policy.minimumRequests else { return nil }
        // Quotients, not products: a quotient of integers is the very number that "0.1" is read as.
        if policy.failureRate > 0 && counts.failureRatio >= policy.failureRate { return .failureRate }
        if policy.watchesSlowCalls && counts.slowRatio >= policy.slowCallRate { return .slowCalls }
        return nil
    }
}

private func saturatingSum(_ a: UInt64, _ b: UInt64) -> UInt64 {
    let (sum, overflow) = a.addingReportingOverflow(b)
    return overflow ? .max : sum
}
