// The agent's one thread of decisions: it reads samples from the kernel, keeps windows and
// histograms, runs the breakers and writes their state back. Everything that it owns is touched by
// this thread alone; other threads reach it through its mailbox.
import BPFRuntime
import CMeshABI
import Glibc
import MeshCore
import MeshSystem

/// The agent at work.
final class Engine {
    /// How long the loop waits when nothing happens. Samples that are not urgent wait in the ring buffer
    /// for it; whoever asks for figures has it drained first. The more wait, the less each costs: what they
    /// touch is in the cache for all of them. So the wait follows the traffic, below the half of the ring
    /// buffer at which the kernel wakes the reader; and it is short enough to find a cgroup that lives shortly.
    private static let pollIntervals: (least: UInt64, most: UInt64) = (10_000_000, 100_000_000)
    /// It waits longer while less than this many records were waiting for it, and less above.
    private static let recordsPerPoll = 4000...14_000
    /// Records taken in one go before deadlines and other descriptors are looked at again: about a
    /// millisecond's work.
    private static let recordsPerTurn = 4096
    /// What was counted is kept for the next agent after so long, and whenever records of a quarter of the ring
    /// buffer were counted: half of what has the kernel wake the engine. Until then they stay there, so that
    /// nothing hurries.
    private static let commitInterval: UInt64 = 1_000_000_000
    private static let commitBytes = Int(MESH_RING_BYTES) / 4
    /// What was decided, and who bound what, is kept after so long: the next agent could not find it all out
    /// again.
    private static let decisionsInterval: UInt64 = 50_000_000
    /// Rows of the state that are written before breakers are shown what has come since: mostly about 50
    /// microseconds' work.
    private static let rowsPerLook = 128
    /// For tests: the agent kills itself between this commit's being written and the release of its records.
    private static let fatalCommit = getenv("MESH_AGENT_DIE_AT_COMMIT").flatMap {
        UInt64(String(cString: $0))
    }
    /// Records counted in one go before breakers are shown what has come since.
    private static let recordsPerLook = 256
    /// Breakers whose time has come that are moved on before the others are shown what has come since.
    private static let deadlinesPerLook = 64

    /// The engine goes to another CPU no more often than this: some tens of microseconds of two CPUs each time.
    private static let moveInterval: UInt64 = 10_000_000

    /// How often series of workloads that are long gone are looked for: a minute.
    private static let sweepInterval: UInt64 = 60_000_000_000

    private enum Token: UInt64 {
        case ring = 1
        case signals
        case mailbox
        /// Process exits carry this and the process ID in the lower half.
        case process = 0x1_0000_0000
    }

    let log: Log
    let options: AgentOptions
    let startedAt: MeshSystem.WallTime
    let startedMonotonic: UInt64
    private(set) var configuration: Configuration
    private(set) var configurationLoaded: MeshSystem.WallTime
    private(set) var configurationError: String?
    let kernel: KernelSide
    private let shared: SharedState
    let commands: ControlServer
    private let renderer: Renderer
    private var poller: Poller
    private let signals: SignalDescriptor

    private var intake: Intake
    private(set) var history = History()
    let bindings = TraceBindings()
    /// The names of those who may control the agent. To ask for one takes files, or a directory server, for which
    /// no decision is to wait.
    let userNames: [UInt32: String]
    private var followers: [Follower] = []

    /// When it last went to another CPU.
    private var lastMove: UInt64 = 0
    private var pollInterval = Engine.pollIntervals.least
    private var looks = LookPlan()
    /// Records that breakers were shown, and that are still to be counted.
    private var decided = 0
    private(set) var lastHeartbeat: UInt64 = 0
    /// How many breakers may reject right now: what the kernel's tc programs look at first.
    private var enforcing: UInt32 = 0
    /// What an earlier agent left, until the configuration is applied to it.
    private var inherited: Inheritance?
    private var stopping = false
    /// The configuration is being read; and it is to be read once more then, because it was asked for meanwhile.
    private var isLoading = false
    private var loadsAgain = false
    /// What the thread had used at the last heartbeat.
    private var cpuTime: UInt64 = 0
    private var lastSweep = MonotonicClock.now()
    /// Looks after what is attached, on a thread of its own; nil while the agent starts.
    private var caretaker: Caretaker?
    /// What is attached, as it last reported.
    private(set) var attached = AttachmentReport()
    /// Those that the log has told of.
    private var refusedCalls: UInt64 = 0
    /// The state for the next agent; nil if nothing outlives this one.
    private(set) var journal: Journal?
    private var lastCommit: UInt64 = 0
    /// The last one of all that had changed.
    private var lastFullCommit: UInt64 = 0
    /// Something happened that the next agent could not find out again.
    private var wantsCommit = false
    /// A breaker on which something was just forced: the kernel is not told before it is in the state.
    private var withheld: Int?
    /// Breakers may be behind what the kernel was told of them: nothing is written there yet.
    private var isCatchingUp = false
    /// What the state knows of the ring buffer of maps that were replaced: how many of its records breakers saw
    /// that were not counted; nil if all were counted.
    private var shownBefore: Int? = 0
    /// Who waits for a metrics page. One is rendered at a time, for all who wait by then: a snapshot
    /// costs memory, and how many ask is not the agent's to say.
    private var scrapes: [HTTPExchange] = []
    private var isRendering = false

    var services: ServiceTable { intake.services }
    var workloads: WorkloadDirectory { intake.workloads }
    var breakers: BreakerBook { intake.breakers }
    var traffic: Traffic { intake.traffic }
    var samplesReceived: UInt64 { intake.received }
    var samplesMalformed: UInt64 { intake.malformed }

    init(
        options: AgentOptions, configuration: Configuration, kernel: KernelSide,
        signals: consuming SignalDescriptor, shared: SharedState, commands: ControlServer, log: Log
    ) throws(SystemError) {
        self.options = options
        self.configuration = configuration
        self.log = log
        self.shared = shared
        self.commands = commands
        self.signals = signals
        startedAt = .now()
        configurationLoaded = startedAt
        startedMonotonic = MonotonicClock.now()
        userNames = Set([0, geteuid()]).reduce(into: [:]) { $0[$1] = userName(ofUID: $1) }
        intake = Intake(
            workloads: WorkloadDirectory(kernel),
            breakers: BreakerBook(share: configuration.breakers.maxOpenShare),
            traffic: Traffic(configuration))
        renderer = try Renderer(whenDone: { shared.mailbox.post(.rendered) })
        poller = try Poller()
        self.kernel = kernel
        // Edge-triggered: told only when a program wakes the reader, not of every record in between.
        try poller.add(
            self.kernel.ringDescriptor, token: Token.ring.rawValue, [.readable, .edgeTriggered])
        try poller.add(self.signals.descriptor, token: Token.signals.rawValue, .readable)
        try poller.add(shared.mailbox.descriptor, token: Token.mailbox.rawValue, .readable)
    }

    // MARK: - The loop

    /// Applies the configuration, attaches, and runs until it is told to stop.
    /// - Throws: What keeps it from starting.
    func run() throws(SystemError) {
        let state = openState()
        if kernel.isTakeover { try restore(state) }
        try apply(configuration)
        let attachments = kernel.attachments
        attachments.follow(configuration.interfaces)
        while attachments.step(tellingOf: log) != nil {}
        StartStep.reached("leased")
        try attachments.attachToCgroup()
        try finishReplacing()
        StartStep.reached("layout-changed")
        for failure in attachments.sweep() {
            log.write(
                .warning, "something of an earlier agent is left", ["error": .string(failure.description)])
        }
        StartStep.reached("swept")
        if let error = attachments.pinError {
            log.write(
                .warning, "what is enforced ends with the agent: it cannot be pinned",
                ["error": .string(error.description)])
        }
        if let refused = MeshSystem.Thread.favour(realTime: true) {
            log.write(
                .info, "on a busy machine breakers may be late: the agent may not raise its priority",
                ["error": .string(refused.description), "hint": "give it CAP_SYS_NICE"])
        }
        confine()
        // Whoever is killed from here on has left who is who.
        commit(MonotonicClock.now())
        attachments.look(tellingOf: log)
        attached = attachments.report
        let mailbox = shared.mailbox
        let caretaker = try Caretaker(attachments, log: log) { mailbox.post(.attached($0)) }
        self.caretaker = caretaker
        defer { caretaker.end() }
        shared.setReady(true)
        ServiceManager.tell(.ready)
        StartStep.reached("ready")
        log.write(
            .info, "ready",
            [
                "takeover": .bool(kernel.isTakeover), "pins": kernel.pins.map { .string($0.path) } ?? .null,
                "cgroup": .string(kernel.cgroupPath), "listen": .string(shared.listenAddress),
                "control": .string(options.control), "services": .integer(services.configuredCount),
                "interfaces": .integer(attached.interfaces.count),
            ])
        // What parsing and loading took is not needed again.
        Heap.trim()
        var more = false
        /// How many records one wait has left to take, over all the turns that it takes.
        var waiting = 0
        while !stopping {
            let count = try poller.wait(timeout: more ? 0 : waitTime(MonotonicClock.now()))
            let isFilling = kernel.pendingBytes + kernel.heldBytes > Int(MESH_RING_BYTES) / 2
            // Who asks or forces waits until breakers have seen what came before, not until it is counted.
            if count > 0 {
                decideAll()
                for index in 0..<count { handle(poller[index]) }
            }
            let taken = drain(limit: Engine.recordsPerTurn)
            more = taken == Engine.recordsPerTurn
            waiting += taken
            if !more {
                if count == 0 && looks.next == nil { followPace(waiting) }
                waiting = 0
            }
            // Not only what breakers call urgent wakes: a status of a class with failures in it does, and a
            // sample behind one that is being written. A ring buffer that fills, and followers, are no reason.
            let isWoken =
                !isFilling && !intake.isFollowed
                && (0..<count).contains { poller[$0].token == Token.ring.rawValue }
            if isWoken { intake.sawUrgent = true }
            planLook()
            turn(more: more)
            if isWoken { goToWaker() }
        }
        ServiceManager.tell(.stopping)
        shared.setReady(false)
        caretaker.end()
        if options.keep {
            // What was unpinned since the last look would end with this process.
            attachments.look(tellingOf: log) {
                decideAll()
                return true
            }
            kernel.setNextLook(at: 0)
            kernel.setFlowsWanted(false)
            drainAll()
            heartbeat(MonotonicClock.now())
            commit(MonotonicClock.now())
            attachments.keep()
        } else {
            journal?.remove()
            attachments.detach()
        }
        tellRefusedCalls()
        log.write(
            .info, options.keep && kernel.pins != nil ? "stopped, and left everything enforced" : "stopped",
            ["samples": .integer(samplesReceived)])
    }

    // MARK: - Taking over

    /// Goes on where an earlier agent ended: with the IDs that its services had, the breakers as the kernel
    /// has them, and the bindings of processes that still run. Nothing is written to the kernel yet.
    private func restore(_ state: StateLog?) throws(SystemError) {
        var found = try kernel.inheritance()
        StartStep.reached("inherited")
        if let state {
            do {
                try restore(state, &found)
            } catch {
                journal?.putAside(error.description)
            }
        }
        found.nameServices(of: configuration)
        intake.services.restore(found.names, next: found.nextService)
        readDiscovered()
        enforcing = UInt32(found.words.values.count(where: \.mayReject))
        // Who bound a process that began later meant another one, of the same number.
        let lastBeat = found.leaseUntil - min(found.leaseUntil, configuration.breakers.lease)
        for (pid, trace) in found.bindings {
            if let known = found.bound[pid], known.trace == trace,
                let descriptor = bindings.restore(pid: pid, known),
                (try? poller.add(descriptor, token: Token.process.rawValue | UInt64(pid), .readable)) != nil
            {
                continue
            }
            let began = ProcessHandle.began(pid: pid)
            guard found.bound[pid]?.trace != trace, let began, began <= lastBeat,
                (try? watch(pid: pid, trace)) != nil
            else {
                _ = bindings.unbind(pid: pid)
                kernel.unbind(pid: pid)
                continue
            }
        }
        inherited = found
        StartStep.reached("restored")
    }

    /// Ends with the maps of another layout, if there were any.
    private func finishReplacing() throws(SystemError) {
        guard let version = kernel.replaced?.version else { return }
        var count = 0
        try kernel.finishReplacing { id, role, address, port in
            intake.services.discovered(id: id, role: role, address: address, port: port)
        } take: { record in
            guard let shownBefore else { return }
            count += 1
            if count > shownBefore, !intake.decide(record) { _ = settleDecided() }
            _ = intake.count(record)
            finish()
        }
        intake.endRun()
        // Before those maps are removed. From here on the state is of the new ones.
        commit(MonotonicClock.now())
        log.write(
            .warning,
            "the maps have another layout now: connections are adopted anew, without pending requests",
            [
                "from": .integer(version), "to": .integer(KernelSide.layout),
                "waiting_samples": .integer(count),
                "not_kept": .string(kernel.notKept.joined(separator: ", ")),
            ])
    }

    /// Gives breakers that were just made what the earlier agent's had, before anything is written of them.
    private func restoreBreakers(_ found: Inheritance) {
        let now = MonotonicClock.now()
        for (service, word) in found.words {
            if let slot = intake.breakers.slot(of: service) {
                if found.isStateCurrent && intake.breakers.slots[slot].isRestored {
                    intake.breakers.note(word, of: slot)
                } else {
                    intake.breakers.restore(service, word, override: found.override(of: service), at: now)
                }
            } else {
                kernel.write(.none, inPlaceOf: word, service: service, enforcing: &enforcing)
            }
        }
    }

    /// Gives up the system calls that the start took.
    private func confine() {
        guard options.filtersCalls else {
            log.write(.warning, "system calls are not filtered: the agent was started with --no-seccomp")
            return
        }
        do throws(SystemError) {
            try Privileges.filterCalls()
        } catch {
            log.write(
                .warning, "system calls are not filtered", ["error": .string(error.description)])
        }
    }

    /// Says so when the filter has refused system calls.
    private func tellRefusedCalls() {
        let refused = Privileges.refusedCalls
        guard refused.count != refusedCalls else { return }
        log.write(
            .warning, "system calls were refused to the agent: a fault in it, or somebody else's code",
            ["calls": .integer(refused.count - refusedCalls), "last": .integer(refused.last)])
        refusedCalls = refused.count
    }

    /// Somebody may have removed the control socket or the state: both are made anew.
    private func lookAtFiles() {
        journal?.look()
        switch commands.look() {
        case .same: break
        case .renewed:
            log.write(
                .warning, "the control socket was removed, and is made anew",
                ["control": .string(options.control)])
        case .lost(let error):
            log.write(
                .error, "the control socket was removed: meshctl finds no agent",
                ["error": .string(error.description)])
        }
    }

    private func waitTime(_ now: UInt64) -> UInt64 {
        let due = min(
            intake.breakers.nextDeadline, lastHeartbeat + heartbeatInterval, looks.next ?? .max)
        return min(pollInterval, due > now ? due - now : 0)
    }

    /// Waits longer or less from now on, by how many records were waiting after a whole interval.
    private func followPace(_ taken: Int) {
        if taken > Engine.recordsPerPoll.upperBound {
            pollInterval = max(pollInterval / 2, Engine.pollIntervals.least)
        } else if taken < Engine.recordsPerPoll.lowerBound {
            pollInterval = min(pollInterval * 2, Engine.pollIntervals.most)
        }
    }

    /// Goes to the CPU whose traffic woke the engine: failures mostly come several in a row, and the next one
    /// finds it there. Another CPU may sleep, and a virtual one wakes when its host pleases.
    private func goToWaker() {
        let now = MonotonicClock.now()
        guard now >= lastMove + Engine.moveInterval else { return }
        if MeshSystem.Thread.go(toCPU: kernel.wakerCPU) { lastMove = now }
    }

    /// Decides whether the kernel is to wake the engine for the next urgent sample, or the engine looks by
    /// itself.
    private func planLook() {
        let until = looks.plan(
            sawUrgent: intake.sawUrgent, isHeldUp: kernel.isHeldUp, at: MonotonicClock.now())
        intake.sawUrgent = false
        if let until { kernel.setNextLook(at: until) }
    }

    /// What is due whatever woke the loop.
    private func turn(more: Bool) {
        let now = MonotonicClock.now()
        if now >= lastHeartbeat + heartbeatInterval {
            favour(since: lastHeartbeat, now)
            heartbeat(now)
            ServiceManager.tell(.alive)
            tellRefusedCalls()
            dropGoneFollowers()
            lookAtFiles()
        }
        if now >= lastSweep + Engine.sweepInterval {
            lastSweep = now
            if intake.sweep(at: now) { journal?.rewrite() }
        }
        // Where thousands are due at once, what samples decide does not wait for all of them.
        while now >= intake.breakers.nextDeadline {
            for (slot, transitions) in intake.breakers.tick(now, limit: Engine.deadlinesPerLook) {
                settle(slot, transitions, sample: nil)
            }
            decideAll()
        }
        // Once for all that a wait has left: the more, the less each costs.
        if !more && now >= lastFullCommit + Engine.commitInterval {
            commit(now)
        } else if wantsCommit || intake.workloads.hasUnsaved, now >= lastCommit + Engine.decisionsInterval {
            commit(now, .decisions)
        }
    }

    private func handle(_ event: Poller.Event) {
        switch event.token {
        case Token.signals.rawValue:
            while let signal = signals.next() { received(signal) }
        case Token.mailbox.rawValue:
            for message in shared.mailbox.take() {
                switch message {
                case .ask(let exchange, let action): exchange.reply(action(self, exchange))
                case .rendered:
                    isRendering = false
                    render()
                case .loaded(let result): loaded(result)
                case .attached(let report): attached = report
                }
            }
        case let token where token >= Token.process.rawValue:
            let pid = UInt32(truncatingIfNeeded: token)
            if bindings.unbind(pid: pid) {
                kernel.unbind(pid: pid)
                log.write(.info, "trace binding ended with its process", ["pid": .integer(pid)])
            }
        default:
            break
        }
    }

    private func received(_ signal: Int32) {
        if signal == SIGHUP {
            reload()
        } else {
            log.write(.info, "stopping", ["signal": .string(signal == SIGTERM ? "TERM" : "INT")])
            stopping = true
        }
    }

    /// Leaves the question whether the agent enforces what it should with the caretaker.
    func readiness(_ exchange: HTTPExchange) -> HTTPReply {
        guard let caretaker else { return .respond(.text("not ready", status: 503)) }
        caretaker.answer(exchange)
        return .deferred
    }

    // MARK: - Samples

    /// Takes everything that the kernel has sent so far, so that figures are exact at this moment.
    func drainAll() {
        // Bounded: what is sent while it reads may wait for the next turn.
        var left = kernel.ringRecords
        while left > 0 {
            let count = drain(limit: min(left, Engine.recordsPerTurn))
            if count == 0 { break }
            left -= count
        }
    }

    @discardableResult
    private func drain(limit: Int) -> Int {
        guard kernel.pendingBytes > 0 else { return 0 }
        // One reading of the calendar for all of them: it only dates exemplars.
        intake.wallOffset = MonotonicClock.wallOffset()
        var taken = 0
        while taken < limit {
            decideAll()
            // No more than the breakers have seen.
            let wanted = min(decided, Engine.recordsPerLook, limit - taken)
            if wanted == 0 { break }
            var left = wanted
            while left > 0 {
                left -= Engine.count(from: kernel, limit: left, into: &intake)
                finish()
            }
            decided -= wanted
            taken += wanted
        }
        intake.endRun()
        if kernel.heldBytes >= Engine.commitBytes { commit(MonotonicClock.now()) }
        return taken
    }

    // MARK: - What outlives the agent

    /// Writes what has changed since the last time to the state, with how far records are in it, and only then
    /// gives their room in the ring buffer back: the next agent counts each of them once, wherever this one is
    /// killed. Decisions go on meanwhile.
    private func commit(_ now: UInt64, _ scope: StateScope = .changes) {
        lastCommit = now
        wantsCommit = false
        if scope != .decisions { lastFullCommit = now }
        guard let journal else { return kernel.release() }
        journal.commit(scope, at: now) { scope in
            intake.beginSave(scope)
            history.beginSave(scope)
            bindings.beginSave(scope)
            return kernel.ringPositions
        } save: { writer in
            var limit = Engine.rowsPerLook
            history.save(to: &writer, rows: &limit)
            bindings.save(to: &writer, rows: &limit)
            let more = intake.save(to: &writer, rows: &limit)
            if more { decideAll() }
            return more
        }
        if journal.commits == Engine.fatalCommit { raise(SIGKILL) }
        // Also where it could not be written: what comes must not find the ring buffer full.
        if scope != .decisions { kernel.release() }
    }

    /// Opens the file of the state, and reads what an agent before this one left there.
    private func openState() -> StateLog? {
        // Without pins, nobody could go on with it.
        guard kernel.pins != nil,
            let text = try? readText("/proc/sys/kernel/random/boot_id"), let boot = StateOwner.Boot(text)
        else { return nil }
        let journal = Journal(
            path: options.instance.state,
            owner: StateOwner(instance: kernel.instance, layout: KernelSide.layout, boot: boot), log: log)
        self.journal = journal
        return journal.read()
    }

    /// Goes on with what the agent before this one knew.
    private func restore(_ state: StateLog, _ found: inout Inheritance) throws(StateLogError) {
        // All or nothing.
        var (intake, history, known) = (self.intake, self.history, found)
        var bounds: [UInt64] = []
        var untold: [BreakerEvent] = []
        try state.replay { row throws(StateLogError) in
            var isGood = true
            switch row {
            case .bounds(let found): bounds = found
            case .event(let number, var event):
                if event.isUntold { untold.append(event) }
                event.isUntold = false
                isGood = history.restore(event, number: number)
            case .binding(let pid, let binding): known.bound[pid] = binding
            case .override(let service, let override):
                known.overrides[service] = override
                isGood = intake.restore(row, bounds: bounds)
            default: isGood = intake.restore(row, bounds: bounds)
            }
            guard isGood else { throw .damaged(at: 0, what: "a row contradicts another") }
        }
        let isOfTheseMaps = state.layout == KernelSide.layout
        let resumed = isOfTheseMaps ? kernel.resume(state.last) : kernel.replaced?.resume(state.last)
        guard let place = resumed else {
            throw .damaged(at: 0, what: "the ring buffer never came as far as it says")
        }
        intake.workloads.restored(at: MonotonicClock.now())
        for info in intake.services.byID.values where info.kind == .configured {
            known.names[info.id] = info.name
        }
        known.isStateCurrent = place.unknown == 0
        (self.intake, self.history, found) = (intake, history, known)
        for event in untold { log.write(event) }
        decided = isOfTheseMaps ? place.shown : 0
        shownBefore = isOfTheseMaps ? nil : place.shown
        if bounds != traffic.requests.bounds {
            log.write(.warning, "\"histogram\" was changed: the histograms begin anew, all else goes on")
        }
        if place.unknown > 0 {
            log.write(
                .warning, "counts are short: the state is older than what was counted",
                ["bytes_of_samples": .integer(Int(place.unknown))])
        }
    }

    // MARK: - Decisions

    /// Shows everything that the kernel has sent so far to the breakers, and settles them: a sample that
    /// decides does not wait until those before it are counted.
    private func decideAll() {
        repeat {
            decided += Engine.decide(from: kernel, into: &intake)
        } while settleDecided()
    }

    private func settleDecided() -> Bool {
        guard let done = intake.takeUnsettled() else { return false }
        settle(done.slot, done.transitions, sample: done.sample)
        return true
    }

    /// For as many records as it takes, this is the one access to the intake: the check that no two overlap
    /// costs as much as counting a record.
    private static func decide(from kernel: KernelSide, into intake: inout Intake) -> Int {
        kernel.peekWhile { record in intake.decide(record) }
    }

    private static func count(from kernel: KernelSide, limit: Int, into intake: inout Intake) -> Int {
        kernel.consumeWhile(limit: limit) { record in intake.count(record) }
    }

    /// Does what counting a record left to do, if it did.
    private func finish() {
        guard let work = intake.takeWork() else { return }
        if work.isUnknown { readDiscovered() }
        if let tuple = work.tuple { tell(work.sample, tuple) }
    }

    /// Makes sure that a service's name is known.
    func learn(_ service: UInt32) {
        if !intake.services.isKnown(service) { readDiscovered() }
    }

    func workloadName(_ cgroup: UInt64) -> String {
        intake.workloads.names[Int(intake.workloads.index(cgroup: cgroup))]
    }

    private func readDiscovered() {
        for found in kernel.discovered() {
            intake.services.discovered(
                id: found.id, role: found.role, address: found.address, port: found.port)
        }
    }

    // MARK: - Metrics

    /// Leaves the answer to `/metrics` with the renderer.
    func renderMetrics(_ exchange: HTTPExchange) -> HTTPReply {
        scrapes.append(exchange)
        render()
        return .deferred
    }

    private func render() {
        guard !isRendering else { return }
        let waiting = scrapes.filter(\.isOpen)
        scrapes = []
        guard !waiting.isEmpty else { return }
        drainAll()
        isRendering = true
        renderer.render(Renderer.Job(snapshot: snapshot(), exchanges: waiting))
    }

    // MARK: - Breakers

    /// Writes a breaker's new state to the kernel, then tells of it.
    private func settle(
        _ slot: Int, _ transitions: [BreakerTransition], sample: Sample?,
        endedBy: BreakerReason = .overrideExpired
    ) {
        // Its override is being kept: the kernel is told, and the override's end, after that.
        if slot == withheld { return tell(slot, transitions, sample: sample) }
        let overrideBefore = intake.breakers.slots[slot].written?.forced
        // An agent before this one may have decided so, and have been killed before it was in the state.
        let isWritten = write(slot)
        if let sample, isWritten, transitions.contains(where: { $0.to == .open }) {
            intake.traffic.recordReaction(MonotonicClock.now() &- sample.time)
        }
        tell(slot, transitions, sample: sample)
        let breaker = intake.breakers.slots[slot].breaker
        if let overrideBefore, breaker.override == nil, !isCatchingUp {
            record(
                BreakerEvent(
                    time: wallNow(), kind: .overrideEnd,
                    service: services.name(intake.breakers.slots[slot].service), from: overrideBefore.state,
                    to: breaker.state, reason: endedBy))
        }
    }

    /// Writes a breaker's state to the kernel; false if that has it already.
    private func write(_ slot: Int) -> Bool {
        guard !isCatchingUp, let (old, new) = intake.breakers.wordToWrite(slot) else { return false }
        kernel.write(
            new, inPlaceOf: old, service: intake.breakers.slots[slot].service, enforcing: &enforcing)
        return true
    }

    /// Counts and tells what happened to a breaker.
    private func tell(_ slot: Int, _ transitions: [BreakerTransition], sample: Sample?) {
        let service = intake.breakers.slots[slot].service
        for transition in transitions {
            intake.traffic.recordTransition(service: service, transition)
            // An override has an event of its own, which says more.
            if transition.reason == .override || transition.reason == .overrideExpired { continue }
            record(
                BreakerEvent(
                    transition, service: services.name(service),
                    wallOffset: Int64(bitPattern: MonotonicClock.wallOffset())))
        }
        let breaker = intake.breakers.slots[slot].breaker
        if intake.breakers.noteHeldClosed(slot, at: sample?.time ?? MonotonicClock.now()) {
            record(
                BreakerEvent(
                    time: wallNow(), kind: .heldClosed, service: services.name(service), to: breaker.state,
                    reason: breaker.reason ?? .failureRate))
        }
    }

    private func setEnforcing(_ count: UInt32) {
        enforcing = count
        kernel.setEnforcing(count)
    }

    private func record(_ event: BreakerEvent) {
        note(event)
        announce(event)
    }

    private func note(_ event: BreakerEvent) {
        history.append(event)
        // The next agent would decide most of it again, but not tell of all, nor know how fast this one was.
        wantsCommit = true
    }

    private func announce(_ event: BreakerEvent) {
        log.write(event)
        for follower in followers where follower.wantsEvents { follower.send(event.json) }
    }

    /// Lets the window of a breaker slide before somebody looks at it.
    func refresh(_ slot: Int, at now: UInt64) {
        settle(slot, intake.breakers.refresh(slot, at: now), sample: nil)
    }

    /// Forces a state on a breaker. It is in the state before the kernel knows: no override is without who and
    /// why.
    func force(
        _ slot: Int, _ forced: BreakerOverride.Forced, actor: String, reason: String, for duration: UInt64
    ) {
        decideAll()
        let now = MonotonicClock.now()
        let before = intake.breakers.slots[slot].breaker.state
        let override = BreakerOverride(
            forced: forced, actor: actor, reason: reason, since: now, expiresAt: now + duration)
        guard let transitions = intake.breakers.force(slot, override, at: now) else { return }
        tell(slot, transitions, sample: nil)
        let event = BreakerEvent(
            time: wallNow(), kind: .override, service: services.name(intake.breakers.slots[slot].service),
            from: before, to: forced.state, reason: .override, actor: actor, text: reason,
            expiresAt: wallNow() + duration)
        keep(slot, now, event)
    }

    /// Ends an override.
    func release(_ slot: Int, actor: String) {
        decideAll()
        let now = MonotonicClock.now()
        let before = intake.breakers.slots[slot].breaker
        tell(slot, intake.breakers.release(slot, at: now), sample: nil)
        guard before.override != nil else { return keep(slot, now, nil) }
        let breaker = intake.breakers.slots[slot]
        let event = BreakerEvent(
            time: wallNow(), kind: .overrideEnd, service: services.name(breaker.service),
            from: before.state, to: breaker.breaker.state, reason: .override, actor: actor)
        keep(slot, now, event)
    }

    /// Keeps what was forced on a breaker, then tells the kernel, and all others last.
    private func keep(_ slot: Int, _ now: UInt64, _ event: BreakerEvent?) {
        if let event { note(event) }
        withheld = slot
        commit(now, .decisions)
        withheld = nil
        _ = write(slot)
        if let event { announce(event) }
    }

    // MARK: - Traces and followers

    /// Binds a trace ID to a process, until it exits.
    func bind(pid: UInt32, _ trace: TraceID) throws(SystemError) {
        do {
            try watch(pid: pid, trace)
            try kernel.bind(pid: pid, trace)
            wantsCommit = true
        } catch {
            _ = bindings.unbind(pid: pid)
            throw error
        }
        log.write(.info, "trace bound", ["pid": .integer(pid), "trace_id": .string(trace.description)])
    }

    private func watch(pid: UInt32, _ trace: TraceID) throws(SystemError) {
        if let descriptor = try bindings.bind(pid: pid, trace: trace, at: MonotonicClock.now()) {
            try poller.add(descriptor, token: Token.process.rawValue | UInt64(pid), .readable)
        }
    }

    /// Ends a binding; false if there was none.
    func unbind(pid: UInt32) -> Bool {
        guard bindings.unbind(pid: pid) else { return false }
        kernel.unbind(pid: pid)
        wantsCommit = true
        log.write(.info, "trace unbound", ["pid": .integer(pid)])
        return true
    }

    /// Adds someone who wants a line for everything that happens.
    func follow(_ follower: Follower) {
        followers.append(follower)
        noteFollowers()
    }

    private func dropGoneFollowers() {
        guard followers.contains(where: { !$0.exchange.isOpen }) else { return }
        followers.removeAll { !$0.exchange.isOpen }
        noteFollowers()
    }

    private func noteFollowers() {
        intake.isFollowed = followers.contains(where: \.wantsFlows)
        kernel.setFlowsWanted(intake.isFollowed)
    }

    private func tell(_ sample: Sample, _ tuple: SampleTuple) {
        guard sample.kind != .bytes else { return }
        let service = services.name(sample.service)
        var isGone = false
        for follower in followers {
            guard case .flows(let wanted, let trace) = follower.interest, wanted == nil || wanted == service,
                trace == nil || trace == sample.traceID
            else { continue }
            if !follower.send(flowJSON(sample, tuple, service: service)) { isGone = true }
        }
        if isGone { dropGoneFollowers() }
    }

    private func flowJSON(_ sample: Sample, _ tuple: SampleTuple, service: String) -> JSONValue {
        let timed = sample.kind == .request || sample.kind == .connect
        let decision: JSONValue =
            sample.flags.contains(.probe)
            ? "probe" : sample.flags.contains(.wouldReject) ? "would_reject" : .null
        return [
            "time": .time(wallTime(sample.time)), "event": .string(sample.kind.label),
            "service": .string(service),
            "role": .string(sample.role.label), "workload": .string(workloadName(sample.workload)),
            "local": .string(AddressPort(address: tuple.localAddress, port: tuple.localPort).description),
            "remote": .string(AddressPort(address: tuple.remoteAddress, port: tuple.remotePort).description),
            "trace_id": .trace(sample.traceID), "protocol": .string(sample.wireProtocol.label),
            "code": timed ? .string(sample.status != 0 ? "\(sample.status)" : sample.outcome.label) : .null,
            "duration_seconds": timed ? .seconds(sample.duration) : .null,
            "sent_bytes": .integer(sample.sentBytes), "received_bytes": .integer(sample.receivedBytes),
            "decision": decision,
        ]
    }

    /// Often enough for the lease, and for those who watch whether the agent is alive.
    private var heartbeatInterval: UInt64 { min(configuration.breakers.lease / 5, 2_000_000_000) }

    private func heartbeat(_ now: UInt64) {
        kernel.setLease(until: now + configuration.breakers.lease)
        lastHeartbeat = now
        shared.beat(now)
    }

    /// Asks for the priority again that a long piece of work has cost it, unless it is busy most of the time:
    /// then others come first as well.
    private func favour(since before: UInt64, _ now: UInt64) {
        let used = MeshSystem.Thread.cpuTime()
        _ = MeshSystem.Thread.favour(realTime: used - cpuTime < (now - before) / 2)
        cpuTime = used
    }

    /// Nanoseconds since 1970.
    private func wallNow() -> UInt64 { MonotonicClock.now() &+ MonotonicClock.wallOffset() }

    /// The calendar time of a monotonic one.
    func wallTime(_ monotonic: UInt64) -> MeshSystem.WallTime {
        let nanoseconds = monotonic &+ MonotonicClock.wallOffset()
        return MeshSystem.WallTime(
            seconds: Int64(nanoseconds / 1_000_000_000), nanoseconds: UInt32(nanoseconds % 1_000_000_000))
    }

    // MARK: - Configuration

    /// Has the configuration read, on a thread of its own: decisions do not wait for a disk, for ten thousand
    /// services to be parsed, or for a file that somebody is writing.
    private func reload() {
        guard let path = options.configuration else {
            log.write(.warning, "nothing to reload: the agent was started without --config")
            return
        }
        if isLoading {
            loadsAgain = true
            log.write(
                .info, "the configuration is being read; it will be once more after that",
                ["path": .string(path)])
            return
        }
        isLoading = true
        let mailbox = shared.mailbox
        do throws(SystemError) {
            _ = try MeshSystem.Thread.spawn(name: "reload") {
                let result = Result { () throws(ConfigurationFailure) in try loadConfiguration(path) }
                mailbox.post(.loaded(result))
            }
        } catch {
            isLoading = false
            failedToReload(error)
        }
    }

    /// Puts a configuration that was read into force.
    private func loaded(_ result: Result<Configuration, ConfigurationFailure>) {
        isLoading = false
        defer {
            if loadsAgain {
                loadsAgain = false
                reload()
            }
        }
        do {
            let fresh = try result.get()
            if fresh.listen != configuration.listen || fresh.cgroup != configuration.cgroup {
                log.write(.warning, "\"listen\" and \"cgroup\" change only with a restart; kept as they were")
            }
            if traffic.needsRestart(for: fresh) {
                log.write(
                    .warning, "\"histogram\" and \"maxSeries\" change only with a restart; kept as they were")
            }
            drainAll()
            try apply(fresh)
            configurationLoaded = .now()
            configurationError = nil
            log.write(
                .info, "configuration reloaded",
                [
                    "path": .string(options.configuration ?? ""),
                    "services": .integer(services.configuredCount),
                ])
            Heap.trim()
        } catch {
            failedToReload(error)
        }
    }

    private func failedToReload(_ error: any Error) {
        let text = "\(error)"
        configurationError = text
        for line in text.split(separator: "\n") {
            log.write(
                .error, "configuration not reloaded, the old one stays", ["error": .string(String(line))])
        }
    }

    /// Makes a configuration the one in force, or leaves the old one in force and says why.
    private func apply(_ fresh: Configuration) throws(SystemError) {
        let before = services
        do {
            try install(fresh)
        } catch {
            intake.services = before
            // What was changed already goes back; the maps had room for it before.
            try? install(configuration)
            throw error
        }
        configuration = fresh
        heartbeat(MonotonicClock.now())
        caretaker?.follow(fresh.interfaces)
    }

    /// Names keep their IDs, and nothing that is still wanted is taken away in between.
    private func install(_ wanted: Configuration) throws(SystemError) {
        guard let (ids, removed) = intake.services.configure(wanted.services) else {
            throw SystemError(
                "apply", "the configuration", errno: ENOSPC, reason: "reloads have used up all service IDs",
                hint: "restart the agent")
        }
        kernel.setNextService(services.next)
        try kernel.reserve(service: ids.max() ?? 0)
        // The breakers first: a destination must not be a service's before its policy is in force.
        var policies: [(service: UInt32, policy: BreakerPolicy)] = []
        for (service, id) in zip(wanted.services, ids) where service.breaker != nil {
            policies.append((id, BreakerPolicy(service.breaker)))
        }
        let changes = intake.configure(
            policies, share: wanted.breakers.maxOpenShare, at: MonotonicClock.now())
        if let inherited {
            restoreBreakers(inherited)
            self.inherited = nil
            // What the earlier agent decided and did not come to keep: again, before anything is written.
            isCatchingUp = true
            decideAll()
            isCatchingUp = false
        }
        for (slot, transitions) in changes {
            settle(slot, transitions, sample: nil, endedBy: .reload)
            let breaker = intake.breakers.slots[slot]
            record(
                BreakerEvent(
                    time: wallNow(), kind: .reload, service: services.name(breaker.service),
                    to: breaker.breaker.state, reason: .reload))
        }
        for slot in intake.breakers.slots.indices { settle(slot, [], sample: nil) }
        // An agent that was killed may have counted one that it did not come to write.
        setEnforcing(enforcing)
        StartStep.reached("breakers-written")
        try kernel.apply(wanted, ids: ids)
        for id in removed { log.write(.info, "service removed", ["service": .string(services.name(id))]) }
    }
}
