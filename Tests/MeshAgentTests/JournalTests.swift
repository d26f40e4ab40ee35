// The state as the agent keeps it: what one agent has written, the next one is; and what becomes of a file that
// cannot be read or written.
import CMeshABI
import Foundation
import MeshCore
import MeshSystem
import Testing

@testable import MeshAgent

/// A machine without a cgroup: every workload is unknown.
private final class NoCgroups: CgroupTree {
    func isCgroup(_ id: UInt64) -> Bool { false }
    func path(ofCgroup id: UInt64) -> String? { nil }
}

private let owner = StateOwner(
    instance: 77, layout: 3, boot: StateOwner.Boot("0b1fbd5b-2a0c-4a1b-9f1d-5b6b8a0e7c11")!)

private final class Scratch {
    let path = "/tmp/mesh-journal-\(getpid())-\(UInt64.random(in: 0...UInt64.max))"
    var state: String { path + "/state" }
    init() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }

    func journal(_ owner: StateOwner = owner) -> Journal {
        Journal(path: state, owner: owner, log: Log(format: .text, level: .error))
    }

    var bytes: [UInt8] { (try? readFile(state, limit: 1 << 30)) ?? [] }
    var files: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted() }
}

/// What an engine keeps, without the kernel.
private struct Agent {
    var intake: Intake
    var history = History()
    var now: UInt64 = 5_000_000_000_000

    init() {
        intake = Intake(
            workloads: WorkloadDirectory(NoCgroups()), breakers: BreakerBook(share: 1),
            traffic: Traffic(Configuration()))
    }

    mutating func configure() throws {
        let services = ["web", "api", "db"].map { name in
            Configuration.Service(
                name: name, endpoints: [], breaker: name == "db" ? nil : Configuration.Breaker())
        }
        guard let (ids, _) = intake.services.configure(services) else { throw SystemError("configure") }
        _ = intake.configure(
            zip(services, ids).compactMap { service, id in service.breaker.map { (id, BreakerPolicy($0)) } },
            share: 1, at: now)
    }

    /// - Parameters:
    ///   - rows: How many rows are added between two calls of `meanwhile`.
    ///   - meanwhile: What is decided while the state is written.
    mutating func commit(
        to journal: Journal, _ position: UInt64, _ scope: StateScope = .changes, rows: Int = 1000,
        meanwhile: (inout Agent) -> Void = { _ in }
    ) {
        journal.commit(scope, at: now) { scope in
            intake.beginSave(scope)
            history.beginSave(scope)
            return (position, position + 8)
        } save: { writer in
            var limit = rows
            history.save(to: &writer, rows: &limit)
            let more = intake.save(to: &writer, rows: &limit)
            if more { meanwhile(&self) }
            return more
        }
    }

    /// Takes over from a file as the engine does.
    init(_ log: StateLog) throws {
        self.init()
        var bounds: [UInt64] = []
        try log.replay { row throws(StateLogError) in
            switch row {
            case .bounds(let found): bounds = found
            case .event(let number, let event): #expect(history.restore(event, number: number) == true)
            default: #expect(intake.restore(row, bounds: bounds) == true, "\(row)")
            }
        }
        intake.workloads.restored(at: now)
    }

    mutating func see(_ sample: mesh_sample) {
        decide(sample)
        count(sample)
    }

    mutating func decide(_ sample: mesh_sample) {
        withUnsafeBytes(of: sample) { record in
            guard !intake.decide(record), let left = intake.takeUnsettled() else { return }
            for transition in left.transitions {
                intake.traffic.recordTransition(service: sample.service, transition)
                history.append(BreakerEvent(transition, service: "\(sample.service)", wallOffset: 5))
                intake.traffic.recordReaction(transition.time % 1_000_000)
            }
        }
    }

    mutating func count(_ sample: mesh_sample) {
        withUnsafeBytes(of: sample) { record in
            _ = intake.count(record)
            _ = intake.takeWork()
            intake.endRun()
        }
    }

    /// All that is to be the same in the next agent.
    var contents: [String: String] {
        var found: [String: String] = [:]
        let (traffic, services) = (intake.traffic, intake.services)
        for row in 0..<traffic.requests.count {
            let key = traffic.requests.key(row)
            found["requests \(key)"] =
                "\(traffic.requests.sum(row)) \((0...traffic.requests.bounds.count).map { traffic.requests.bucket(row, $0) })"
        }
        for row in 0..<traffic.connections.count {
            let table = traffic.connections
            found["connections \(table.key(row))"] =
                "\(ConnectionTable.Counter.allCases.map { table.value(row, $0) }) \(table.sum(row)) "
                + "\((0...table.bounds.count).map { table.bucket(row, $0) })"
        }
        found["folded"] = "\(traffic.requests.dropped) \(traffic.connections.dropped)"
        found["counts"] = "\(intake.received) \(intake.malformed)"
        for (id, info) in services.byID { found["service \(id)"] = "\(info) \(services.isKnown(id))" }
        found["names"] = "\(services.idByName.sorted { $0.key < $1.key }) \(services.discoveredCount)"
        for id in services.byID.keys {
            found["totals \(id)"] = "\(traffic.totals(id, .client)) \(traffic.totals(id, .server))"
        }
        for (key, count) in traffic.transitions { found["transitions \(key)"] = "\(count)" }
        found["reactions"] = "\(traffic.reactions)"
        for slot in intake.breakers.slots {
            found["breaker \(slot.service)"] =
                "\(slot.breaker.memory) \(String(describing: slot.breaker.override)) \(slot.admittedConnects) "
                + "\(slot.admittedRequests)"
        }
        found["workloads"] = "\(intake.workloads.names)"
        found["history"] = "\(history.recent)"
        for service in ["1", "2", "3"] { found["history \(service)"] = "\(history.events(of: service))" }
        return found
    }
}

private func sample(_ random: inout SplitMix64, at time: UInt64) -> mesh_sample {
    var sample = mesh_sample()
    sample.kind = UInt8.random(in: 1...6, using: &random)
    sample.role = UInt8.random(in: 1...2, using: &random)
    sample.protocol = UInt8.random(in: 0...2, using: &random)
    sample.outcome = Int.random(in: 0..<3, using: &random) == 0 ? UInt8.random(in: 0...5, using: &random) : 0
    sample.status = [0, 200, 404, 503].randomElement(using: &random)!
    sample.service = UInt32.random(in: 0...3, using: &random)
    sample.workload = UInt64.random(in: 1...3, using: &random)
    sample.time_ns = time
    sample.duration_ns = UInt64.random(in: 0...3_000_000_000, using: &random)
    sample.sent_bytes = Int32.random(in: -10...1000, using: &random)
    // Mostly as most are, a request like the one before; but not where that would keep breakers closed.
    if (sample.role == 2 || sample.service == 3) && Int.random(in: 0..<4, using: &random) > 0 {
        (sample.kind, sample.protocol, sample.outcome) = (1, 1, 0)
        (sample.status, sample.workload) = (200, 1)
    }
    return sample
}

@Test func theNextAgentIsWhatTheOneBeforeWas() throws {
    var random = SplitMix64(seed: 11)
    let scratch = try Scratch()
    var agent = Agent()
    try agent.configure()
    var journal = scratch.journal()
    for round in 0..<60 {
        for _ in 0..<Int.random(in: 0...60, using: &random) {
            agent.now += UInt64.random(in: 0...100_000_000, using: &random)
            agent.see(sample(&random, at: agent.now))
        }
        if round % 7 == 0 {
            let override = BreakerOverride(
                forced: .close, actor: "root", reason: "round \(round)", since: agent.now,
                expiresAt: agent.now + 1_000_000_000)
            for change in agent.intake.breakers.force(1, override, at: agent.now) ?? [] {
                agent.intake.traffic.recordTransition(service: 2, change)
            }
        }
        if round % 7 == 3 { _ = agent.intake.breakers.release(1, at: agent.now) }
        _ = agent.intake.services.discovered(
            id: ServiceTable.firstDiscovered + UInt32(round), role: .client,
            address: IPAddress(high: 0, low: 7),
            port: UInt16(round))
        if round == 40 { journal.rewrite() }
        agent.commit(to: journal, UInt64(round) * 8)

        let found = scratch.journal().read()
        let log = try #require(found)
        #expect(log.last.counted == UInt64(round) * 8 && log.last.decided == UInt64(round) * 8 + 8)
        var next = try Agent(log)
        next.now = agent.now
        try next.configure()
        #expect(next.contents == agent.contents, "round \(round)")
        // Now and then it is the next one that goes on.
        if round % 5 == 4 {
            agent = next
            journal = scratch.journal()
        }
    }
    #expect(agent.history.recent.count > 5)
    #expect(scratch.files == ["state"])
}

/// What is decided while the state is written is not in it: it is of one moment, whatever is written first.
@Test func decisionsGoOnWhileTheStateIsWritten() throws {
    var random = SplitMix64(seed: 21)
    let scratch = try Scratch()
    var agent = Agent()
    try agent.configure()
    let journal = scratch.journal()
    var (decided, meanwhile) = (0, 0)
    for round in 0..<80 {
        var late: [mesh_sample] = []
        for _ in 0..<30 {
            agent.now += UInt64.random(in: 0...100_000_000, using: &random)
            agent.see(sample(&random, at: agent.now))
        }
        if round % 9 == 0 { journal.rewrite() }
        if round % 4 == 3 {
            let override = BreakerOverride(
                forced: .open, actor: "root", reason: "round \(round)", since: agent.now,
                expiresAt: agent.now + 300_000_000)
            _ = agent.intake.breakers.force(0, override, at: agent.now)
        }
        let before = agent.contents
        let transitions = agent.intake.traffic.transitions
        agent.commit(to: journal, UInt64(round) * 8, rows: 1) { agent in
            for _ in 0..<3 {
                agent.now += UInt64.random(in: 0...50_000_000, using: &random)
                late.append(sample(&random, at: agent.now))
                agent.decide(late.last!)
            }
        }
        decided += late.count
        if agent.intake.traffic.transitions != transitions { meanwhile += 1 }

        let found = scratch.journal().read()
        let log = try #require(found)
        #expect(log.last.counted == UInt64(round) * 8)
        var next = try Agent(log)
        next.now = agent.now
        try next.configure()
        #expect(next.contents == before, "round \(round)")
        // The records that were decided are counted afterwards, as they are in the engine.
        for sample in late { agent.count(sample) }
    }
    #expect(decided > 1000 && meanwhile > 20)
}

/// What is decided can be kept without what is counted: that stays as it was, and so does its place.
@Test func decisionsAreKeptAlone() throws {
    var random = SplitMix64(seed: 22)
    let scratch = try Scratch()
    let journal = scratch.journal()
    var agent = Agent()
    try agent.configure()
    for _ in 0..<40 { agent.see(sample(&random, at: agent.now)) }
    agent.commit(to: journal, 800)
    let counted = agent.contents
    let late = (0..<40).map { _ in sample(&random, at: agent.now) }
    for sample in late { agent.decide(sample) }
    let decided = agent.contents
    for sample in late { agent.count(sample) }
    agent.commit(to: journal, 1600, .decisions)

    let found = scratch.journal().read()
    let log = try #require(found)
    #expect(log.last.counted == 800 && log.last.decided == 1608)
    var next = try Agent(log)
    next.now = agent.now
    try next.configure()
    #expect(next.contents == decided && decided != counted)
    for sample in late { next.count(sample) }
    #expect(next.contents == agent.contents)
    // The next one of all has what was left out.
    agent.commit(to: journal, 1600)
    var last = try Agent(StateLog(scratch.bytes, of: owner))
    last.now = agent.now
    try last.configure()
    #expect(last.contents == agent.contents)
    // A first one is of everything, whatever was asked for.
    let other = try Scratch()
    agent.commit(to: other.journal(), 1600, .decisions)
    let log2 = try StateLog(other.bytes, of: owner)
    #expect(log2.last.counted == 1600)
}

@Test func aLongCommitIsWrittenInParts() throws {
    let scratch = try Scratch()
    let journal = scratch.journal()
    var agent = Agent()
    let services = (0..<3000).map {
        Configuration.Service(name: "service-\($0)", endpoints: [], breaker: .init())
    }
    let configured = agent.intake.services.configure(services)
    let (ids, _) = try #require(configured)
    _ = agent.intake.configure(ids.map { ($0, BreakerPolicy()) }, share: 1, at: agent.now)
    for round in 0..<60_000 {
        agent.history.append(
            BreakerEvent(
                time: UInt64(round), kind: .reload, service: "service-\(round % 3000)", to: .closed,
                reason: .reload))
    }
    agent.commit(to: journal, 8, rows: 100)
    #expect(journal.commits == 1 && journal.bytes == scratch.bytes.count && journal.bytes > 10 << 17)
    #expect(scratch.files == ["state"])
    let next = try Agent(StateLog(scratch.bytes, of: owner))
    #expect(next.history.recent.map(\.time) == Array(59_000..<60_000))
    for service in [0, 1, 2999] {
        #expect(
            next.history.events(of: "service-\(service)").map(\.time)
                == agent.history.events(of: "service-\(service)").map(\.time))
        #expect(next.history.events(of: "service-\(service)").count == 20)
    }
    #expect(next.intake.services.idByName == agent.intake.services.idByName)
}

@Test func aBreakerThatIsConfiguredNoMoreIsOff() throws {
    let scratch = try Scratch()
    var agent = Agent()
    try agent.configure()
    var failure = mesh_sample()
    (failure.kind, failure.role, failure.service, failure.status) = (1, 1, 1, 500)
    for _ in 0..<5 {
        failure.time_ns = agent.now
        agent.see(failure)
    }
    #expect(agent.intake.breakers.slots[0].breaker.state == .open)
    agent.commit(to: scratch.journal(), 8)
    let found = scratch.journal().read()
    var next = try Agent(#require(found))
    _ = next.intake.configure([(2, BreakerPolicy())], share: 1, at: agent.now)
    let gone = next.intake.breakers.slot(of: 1)
    let slot = try next.intake.breakers.slots[#require(gone)]
    #expect(slot.breaker.state == .closed && slot.breaker.policy.mode == .off && slot.admittedRequests == 5)
}

@Test func otherBucketsBeginAnew() throws {
    let scratch = try Scratch()
    var agent = Agent()
    try agent.configure()
    var random = SplitMix64(seed: 12)
    for _ in 0..<100 { agent.see(sample(&random, at: agent.now)) }
    agent.commit(to: scratch.journal(), 8)
    var configuration = Configuration()
    configuration.buckets = [1]
    var traffic = Traffic(configuration)
    var bounds: [UInt64] = []
    let found = scratch.journal().read()
    try #require(found).replay { row throws(StateLogError) in
        if case .bounds(let found) = row { bounds = found }
        switch row {
        case .requests, .connections, .totals, .transitions, .reaction:
            #expect(traffic.restore(row, bounds: bounds) == true)
        default: break
        }
    }
    #expect(traffic.requests.count == 0)
    #expect(traffic.connections.active == agent.intake.traffic.connections.active)
    #expect(traffic.totals(1, .client) == agent.intake.traffic.totals(1, .client))
}

@Test func nothingIsWrittenWhereNothingChanged() throws {
    let scratch = try Scratch()
    let journal = scratch.journal()
    var agent = Agent()
    agent.commit(to: journal, 0)
    let before = scratch.bytes
    agent.commit(to: journal, 0)
    #expect(scratch.bytes == before && journal.commits == 1)
    // That records were discarded has to be known, too.
    agent.commit(to: journal, 8)
    #expect(journal.commits == 2)
    let log = try StateLog(scratch.bytes, of: owner)
    #expect(log.last.counted == 8 && log.end == scratch.bytes.count)
}

@Test func theFileIsWrittenAnewWhenItHasGrown() throws {
    let scratch = try Scratch()
    let journal = scratch.journal()
    var agent = Agent()
    try agent.configure()
    var random = SplitMix64(seed: 13)
    var largest = 0
    var shrank = 0
    for round in 0..<4000 {
        for _ in 0..<20 { agent.see(sample(&random, at: agent.now)) }
        agent.commit(to: journal, UInt64(round) * 8)
        if journal.bytes < largest { shrank += 1 }
        largest = max(largest, journal.bytes)
    }
    #expect(shrank > 0 && largest < 2 << 20)
    #expect(journal.bytes == scratch.bytes.count)
    var next = try Agent(StateLog(scratch.bytes, of: owner))
    next.now = agent.now
    try next.configure()
    #expect(next.contents == agent.contents)
}

@Test func whatIsOfNoUseIsPutAside() throws {
    let scratch = try Scratch()
    var agent = Agent()
    try agent.configure()
    agent.commit(to: scratch.journal(), 8)
    let good = scratch.bytes

    var flipped = good
    flipped[good.count - 9] ^= 4
    for (what, owner) in [
        (flipped, owner), (Array(good[..<20]), owner), ([], owner),
        (
            good,
            StateOwner(
                instance: 78, layout: 3, boot: owner.boot)
        ),
    ] {
        try Data(what).write(to: URL(fileURLWithPath: scratch.state))
        #expect(scratch.journal(owner).read() == nil)
        #expect(scratch.files == ["state.bad"])
        #expect(try readFile(scratch.state + ".bad", limit: 1 << 30) == what)
    }
    #expect(scratch.journal().read() == nil, "nothing there is nothing wrong")
    #expect(scratch.files == ["state.bad"])
}

@Test func aCommitThatWasCutOffIsNot() throws {
    let scratch = try Scratch()
    let journal = scratch.journal()
    var agent = Agent()
    try agent.configure()
    agent.commit(to: journal, 8)
    let contents = agent.contents
    let first = scratch.bytes.count
    var random = SplitMix64(seed: 14)
    for _ in 0..<20 { agent.see(sample(&random, at: agent.now)) }
    agent.commit(to: journal, 16)
    for length in [first, first + 5, scratch.bytes.count - 1] {
        try Data(scratch.bytes[..<length]).write(to: URL(fileURLWithPath: scratch.state + ".cut"))
        let log = try StateLog(readFile(scratch.state + ".cut", limit: 1 << 30), of: owner)
        var next = try Agent(log)
        next.now = agent.now
        try next.configure()
        #expect(next.contents == contents && log.last.counted == 8)
    }
}

@Test func aFileThatCannotBeWrittenIsTriedAgain() throws {
    let scratch = try Scratch()
    let journal = Journal(
        path: scratch.path + "/later/state", owner: owner, log: Log(format: .text, level: .error))
    var agent = Agent()
    try agent.configure()
    agent.commit(to: journal, 8)
    #expect(journal.error != nil && journal.failures == 1 && journal.commits == 0 && journal.bytes == 0)
    agent.commit(to: journal, 16)
    #expect(journal.failures == 1, "not before its time")
    agent.now += 1_000_000_000
    agent.commit(to: journal, 16)
    #expect(journal.failures == 2)

    try FileManager.default.createDirectory(
        atPath: scratch.path + "/later", withIntermediateDirectories: false)
    var random = SplitMix64(seed: 15)
    for _ in 0..<20 { agent.see(sample(&random, at: agent.now)) }
    agent.now += 1_000_000_000
    agent.commit(to: journal, 24)
    #expect(journal.error == nil && journal.commits == 1)
    // All of it, not only what has changed since.
    var next = try Agent(StateLog(readFile(scratch.path + "/later/state", limit: 1 << 30), of: owner))
    next.now = agent.now
    try next.configure()
    #expect(next.contents == agent.contents)
    journal.remove()
    #expect(try FileManager.default.contentsOfDirectory(atPath: scratch.path + "/later") == [])
}

@Test func bindingsComeBackToTheSameProcessOnly() throws {
    let bindings = TraceBindings()
    let trace = try #require(TraceID(high: 1, low: 2))
    let pid = UInt32(getpid())
    let descriptor = try bindings.bind(pid: pid, trace: trace, at: 5)
    #expect(descriptor != nil)
    var writer = StateWriter()
    var limit = 5
    bindings.beginSave(.changes)
    bindings.save(to: &writer, rows: &limit)
    var rows: [StateRow] = []
    let bytes = StateLog.header(of: owner) + writer.finish(StateCommit(sequence: 1, counted: 0, decided: 0))
    try StateLog(bytes, of: owner).replay { row throws(StateLogError) in rows.append(row) }
    guard case .binding(pid, let saved?) = rows.first, rows.count == 1 else {
        Issue.record("\(rows)")
        return
    }
    #expect(saved.trace == trace && saved.since == 5)

    let next = TraceBindings()
    #expect(next.restore(pid: pid, saved) != nil)
    #expect(next.bindings[pid]?.since == 5 && next.bindings[pid]?.trace == trace)
    var other = saved
    other.started += 1
    #expect(TraceBindings().restore(pid: pid, other) == nil, "another process of that ID")
    #expect(TraceBindings().restore(pid: UInt32(Int32.max), saved) == nil)

    _ = bindings.unbind(pid: pid)
    writer.clear()
    bindings.beginSave(.changes)
    bindings.save(to: &writer, rows: &limit)
    #expect(limit == 3)
    rows = []
    let ended = StateLog.header(of: owner) + writer.finish(StateCommit(sequence: 1, counted: 0, decided: 0))
    try StateLog(ended, of: owner).replay { row throws(StateLogError) in rows.append(row) }
    #expect(rows == [.binding(pid: pid, nil)])
}
