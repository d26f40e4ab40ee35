// The short way that most samples take, because but for their figures they are the one before: it counts what
// the long one does, whatever happens in between.
import CMeshABI
import MeshCore
import Testing

@testable import MeshAgent

/// Cgroups that come and go.
private final class Cgroups: CgroupTree {
    var gone: Set<UInt64> = []
    func isCgroup(_ id: UInt64) -> Bool { !gone.contains(id) }
    func path(ofCgroup id: UInt64) -> String? { "/workload-\(id)" }
}

private let second: UInt64 = 1_000_000_000
/// A configured service with a breaker, another one, one without, and one whose name is not known.
private let services: [UInt32] = [1, 2, 3, 9]

private func intake(_ cgroups: Cgroups, maxSeries: Int = 10_000) -> Intake {
    var configuration = Configuration()
    configuration.limits.maxSeries = maxSeries
    var intake = Intake(
        workloads: WorkloadDirectory(cgroups), breakers: BreakerBook(share: 1),
        traffic: Traffic(configuration))
    _ = intake.services.configure(
        ["web", "api", "db"].map { Configuration.Service(name: $0, endpoints: []) })
    configure(&intake, failure: 503, at: second)
    return intake
}

private func configure(_ intake: inout Intake, failure: UInt16, at now: UInt64) {
    var policy = BreakerPolicy()
    policy.window = 2 * second
    policy.openFor = second
    policy.probeSuccesses = 1
    policy.ramp = 0
    policy.slowCallDuration = 900_000
    policy.failureStatuses = Configuration.StatusSet()
    policy.failureStatuses.insert(failure)
    var patient = policy
    patient.failureRate = 0
    patient.consecutiveFailures = 0
    patient.slowCallRate = 0
    _ = intake.configure([(1, policy), (2, patient)], share: 1, at: now)
    for slot in intake.breakers.slots.indices { _ = intake.breakers.wordToWrite(slot) }
}

private func record(_ random: inout SplitMix64, trouble: Bool, at time: UInt64) -> mesh_flow {
    var flow = mesh_flow()
    flow.tuple.netns = time
    var sample = mesh_sample()
    let isRequest = Int.random(in: 0..<8, using: &random) > 0
    // Now and then of a kind or role that there is not.
    sample.kind = isRequest ? 1 : UInt8.random(in: 1...7, using: &random)
    sample.role = Int.random(in: 0..<100, using: &random) == 0 ? 3 : UInt8.random(in: 1...2, using: &random)
    sample.protocol = 1
    sample.outcome = trouble && Int.random(in: 0..<9, using: &random) == 0 ? 4 : 0
    let isUsual = Int.random(in: 0..<10, using: &random) > 0
    sample.status = isUsual ? 200 : [404, trouble ? 503 : 204, 0, 7_000].randomElement(using: &random)!
    sample.flags = isUsual ? 0 : [0, 1, 2, 4].randomElement(using: &random)!
    sample.service = services.randomElement(using: &random)!
    // One has no connection open, so that its rows go when its workload has gone, and those behind move.
    if sample.service == 1 && sample.kind != 1 { sample.kind = 6 }
    sample.retransmits = Int32.random(in: -1...2, using: &random)
    sample.workload = Int.random(in: 0..<20, using: &random) == 0 ? 12 : 11
    sample.time_ns = time
    sample.duration_ns = UInt64.random(in: 0...(trouble ? 1_000_000 : 800_000), using: &random)
    sample.sent_bytes = Int32.random(in: -10...1000, using: &random)
    sample.received_bytes = Int32.random(in: -10...1000, using: &random)
    sample.trace_id.15 = UInt8.random(in: 0...1, using: &random)
    if Int.random(in: 0..<200, using: &random) == 0 {
        // Nothing but zeros where all that it is would be.
        withUnsafeMutableBytes(of: &sample) { $0.storeBytes(of: 0, as: UInt64.self) }
    }
    flow.sample = sample
    return flow
}

/// All that an intake has counted.
private func counts(_ intake: Intake, at now: UInt64) -> [String] {
    var found = ["\(intake.received) \(intake.malformed) \(intake.sawUrgent)"]
    let (requests, connections) = (intake.traffic.requests, intake.traffic.connections)
    found.append("\(requests.dropped) \(connections.dropped)")
    for row in 0..<requests.count {
        let buckets = (0...requests.bounds.count).map {
            "\(requests.bucket(row, $0)) \(String(describing: requests.exemplar(row, $0)))"
        }
        found.append("\(requests.key(row)) \(requests.sum(row)) \(buckets)")
    }
    for row in 0..<connections.count {
        let counters = ConnectionTable.Counter.allCases.map { connections.value(row, $0) }
        found.append("\(connections.key(row)) \(counters) \(connections.sum(row))")
    }
    for service in services {
        for role in Sample.Role.allCases {
            found.append("\(intake.traffic.totals(service, role))")
            found.append("\(intake.traffic.summary(service, role, at: now))")
        }
    }
    for slot in intake.breakers.slots {
        found.append("\(slot.breaker.memory) \(slot.admittedConnects) \(slot.admittedRequests)")
    }
    return found
}

/// - Returns: How many records took the short way, past breakers and past counts.
private func compare(maxSeries: Int, seed: UInt64) throws -> (decided: Int, counted: Int) {
    var random = SplitMix64(seed: seed)
    let cgroups = Cgroups()
    var short = intake(cgroups, maxSeries: maxSeries)
    // So that these rows are taken where there are few.
    for service: UInt32 in 900..<902 {
        short.traffic.record(
            Sample(kind: .accept, role: .server, service: service), workload: 0, wallTime: 0, error: false,
            mayRepeat: false)
    }
    var long = short
    var (decided, counted) = (0, 0)
    var now = 1000 * second
    for number in 0..<60_000 {
        now += UInt64.random(in: 0...2_000_000, using: &random)
        // A run of samples is of any length, and there is none while something else is done.
        if number % 500 == 499 || Int.random(in: 0..<50, using: &random) == 0 { short.endRun() }
        // Longer than a window: what went wrong is forgotten, but for how often it did in a row.
        if Int.random(in: 0..<500, using: &random) == 0 { now += 3 * second }
        if number % 8_000 >= 7_000, number % 500 == 499 {
            // What is a failure is another now; so was a success before, or the other way round.
            let failure: UInt16 = number % 1_000 == 999 ? 503 : 200
            configure(&short, failure: failure, at: now)
            configure(&long, failure: failure, at: now)
        }
        if number % 7_000 == 6_999 {
            // Longer than series of workloads that are gone are kept, and rows move.
            cgroups.gone = [11]
            _ = (short.sweep(at: now), long.sweep(at: now))
            now += 400 * second
            _ = (short.sweep(at: now), long.sweep(at: now))
            cgroups.gone = []
        }
        // Somebody follows for a while, and each record has its connection's ends.
        let isFollowed = number / 1_000 % 6 == 5
        (short.isFollowed, long.isFollowed) = (isFollowed, isFollowed)
        try withUnsafeBytes(of: record(&random, trouble: number / 5_000 % 3 == 1, at: now)) { flow in
            let record = UnsafeRawBufferPointer(rebasing: flow[..<(isFollowed ? 112 : 64)])
            let found = try #require(SampleRecord(record))
            if let slot = short.breakers.slot(of: found.service), found.isOfClient {
                var copy = short.breakers
                decided += copy.recordAgain(found, slot: slot) ? 1 : 0
            }
            let left = !short.decide(record)
            let done = short.takeUnsettled()
            let change = Sample(record: record).flatMap { long.breakers.record($0) }
            long.sawUrgent = long.sawUrgent || change?.isUrgent == true
            try #require(left == (change?.isSettled == false))
            try #require(done?.transitions ?? [] == change?.transitions ?? [])
            if let done {
                try #require(
                    short.breakers.wordToWrite(done.slot)?.new == long.breakers.wordToWrite(done.slot)?.new)
            }
            var copy = short.traffic
            counted += copy.recordAgain(found, wallOffset: 0) ? 1 : 0
            long.traffic.forgetLast()
            try #require(short.count(record) == long.count(record))
            let work = (short.takeWork(), long.takeWork())
            try #require(work.0?.sample == work.1?.sample && work.0?.tuple == work.1?.tuple)
            try #require(!isFollowed || work.0?.tuple != nil || Sample(record: record) == nil)
        }
        guard number % 500 == 0 else { continue }
        short.endRun()
        try #require(counts(short, at: now) == counts(long, at: now), "\(number)")
    }
    short.endRun()
    try #require(counts(short, at: now) == counts(long, at: now))
    return (decided, counted)
}

@Test func theShortWayCountsWhatTheLongOneDoes() throws {
    let taken = try compare(maxSeries: 10_000, seed: 1)
    #expect(taken.decided > 5_000 && taken.counted > 20_000, "\(taken)")
}

/// Samples that are counted under `other` take the long way, where that is counted, too.
@Test func foldedSamplesTakeTheLongWay() throws {
    let taken = try compare(maxSeries: 5, seed: 2)
    #expect(taken.decided > 5_000 && taken.counted > 500, "\(taken)")
}
