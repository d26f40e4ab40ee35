// The ring-buffer decoder: each field at its place in the C struct, and bytes that nobody promised.
import CMeshABI
import MeshCore
import Testing

struct SampleTests {
    static func bytes(of record: some BitwiseCopyable) -> [UInt8] {
        withUnsafeBytes(of: record) { Array($0) }
    }

    static var flow: mesh_flow {
        var flow = mesh_flow()
        flow.sample.kind = 1
        flow.sample.role = 2
        flow.sample.protocol = 1
        flow.sample.outcome = 4
        flow.sample.status = 503
        flow.sample.flags = 0x11
        flow.sample.service = 0x0102_0304
        flow.sample.retransmits = 7
        flow.sample.workload = 0x1122_3344_5566_7788
        flow.sample.time_ns = 1_000_000_007
        flow.sample.duration_ns = 123_456
        flow.sample.sent_bytes = 99
        flow.sample.received_bytes = -40
        withUnsafeMutableBytes(of: &flow.sample.trace_id) { raw in
            for index in raw.indices { raw[index] = UInt8(index + 1) }
        }
        withUnsafeMutableBytes(of: &flow.tuple.local_address) { raw in
            raw.copyBytes(from: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1])
        }
        withUnsafeMutableBytes(of: &flow.tuple.remote_address) { raw in
            raw[0] = 0xfd
            raw[15] = 1
        }
        flow.tuple.local_port = 40_000
        flow.tuple.remote_port = 8443
        flow.tuple.netns = 17
        return flow
    }

    static let expected = Sample(
        kind: .request, role: .server, wireProtocol: .http, outcome: .reset, status: 503,
        flags: Sample.Flags(rawValue: 0x11), service: 0x0102_0304, retransmits: 7,
        workload: 0x1122_3344_5566_7788, time: 1_000_000_007, duration: 123_456, sentBytes: 99,
        receivedBytes: -40,
        traceID: TraceID(high: 0x0102_0304_0506_0708, low: 0x090a_0b0c_0d0e_0f10))

    @Test func decodesEveryField() throws {
        let bytes = SampleTests.bytes(of: SampleTests.flow)
        bytes.withUnsafeBytes { raw in
            let head = UnsafeRawBufferPointer(rebasing: raw[..<64])
            #expect(Sample(record: head) == SampleTests.expected)
            #expect(Sample(record: raw) == SampleTests.expected)
            #expect(SampleTuple(record: head) == nil)
            let tuple = SampleTuple(record: raw)
            #expect(tuple?.localAddress.description == "10.0.0.1")
            #expect(tuple?.remoteAddress.description == "fd00::1")
            #expect(tuple?.localPort == 40_000)
            #expect(tuple?.remotePort == 8443)
            #expect(tuple?.netns == 17)
        }
    }

    @Test func decodesAtAnyAlignment() {
        let bytes = SampleTests.bytes(of: SampleTests.flow)
        for shift in 0..<9 {
            let moved = [UInt8](repeating: 0xff, count: shift) + bytes
            moved.withUnsafeBytes { raw in
                let record = UnsafeRawBufferPointer(rebasing: raw[shift...])
                #expect(Sample(record: record) == SampleTests.expected)
                #expect(SampleTuple(record: record)?.remotePort == 8443)
            }
        }
    }

    @Test func noTraceIDIsNil() {
        var sample = SampleTests.flow.sample
        sample.trace_id = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        let decoded = SampleTests.bytes(of: sample).withUnsafeBytes { Sample(record: $0) }
        #expect(decoded != nil && decoded?.traceID == nil)
    }

    @Test func decodesADiscovery() {
        var record = mesh_discovery()
        record.kind = UInt8(MESH_EVENT_DISCOVERED.rawValue)
        record.role = 1
        record.port = 6379
        record.service = 42
        withUnsafeMutableBytes(of: &record.address) { $0[15] = 1 }
        record.time_ns = 5
        let discovery = SampleTests.bytes(of: record).withUnsafeBytes { SampleDiscovery(record: $0) }
        #expect(discovery?.role == .client)
        #expect(discovery?.port == 6379)
        #expect(discovery?.service == 42)
        #expect(discovery?.address.description == "::1")
        #expect(discovery?.time == 5)
        record.role = 0
        #expect(SampleTests.bytes(of: record).withUnsafeBytes { SampleDiscovery(record: $0) } == nil)
        record.role = 1
        record.kind = 1
        #expect(SampleTests.bytes(of: record).withUnsafeBytes { SampleDiscovery(record: $0) } == nil)
    }

    /// The byte at an offset of an otherwise good sample, and whether that is still a sample.
    @Test(
        arguments: [
            (0, 0, false), (0, 1, true), (0, 6, true), (0, 7, false), (0, 255, false),
            (1, 0, false), (1, 1, true), (1, 2, true), (1, 3, false),
            (2, 0, true), (2, 2, true), (2, 3, false),
            (3, 0, true), (3, 5, true), (3, 6, false), (6, 0xff, true),
        ] as [(Int, UInt8, Bool)])
    func checksEnumerations(offset: Int, value: UInt8, good: Bool) {
        var bytes = SampleTests.bytes(of: SampleTests.flow.sample)
        bytes[offset] = value
        #expect((bytes.withUnsafeBytes { Sample(record: $0) } != nil) == good)
    }

    @Test(
        arguments: [(0, 0), (1, 0), (99, 0), (100, 100), (999, 999), (1000, 0), (65535, 0)]
            as [(UInt16, UInt16)])
    func aStatusOfOtherThanThreeDigitsIsNone(raw: UInt16, status: UInt16) {
        var sample = SampleTests.flow.sample
        sample.status = raw
        #expect(SampleTests.bytes(of: sample).withUnsafeBytes { Sample(record: $0) }?.status == status)
    }

    @Test func hostileBytesAreAnsweredWithNilOrASample() {
        var random = SplitMix64(seed: 3)
        var decoded = 0
        for length in 0...256 {
            for _ in 0..<40 {
                var bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
                // Half of them get enumerations that are nearly right.
                if Bool.random(using: &random) { for index in 0..<min(4, length) { bytes[index] &= 3 } }
                bytes.withUnsafeBytes { raw in
                    let sample = Sample(record: raw)
                    let discovery = SampleDiscovery(record: raw)
                    #expect(sample == nil || length == 64 || length == 112)
                    #expect(discovery == nil || length == 32)
                    #expect((SampleTuple(record: raw) != nil) == (length == 112))
                    decoded += sample == nil ? 0 : 1
                }
            }
        }
        #expect(decoded > 0)
        #expect(Sample(record: UnsafeRawBufferPointer(start: nil, count: 0)) == nil)
    }

    @Test(
        arguments: [
            (.request, .ok, 0, false), (.request, .ok, 200, false), (.request, .ok, 404, false),
            (.request, .ok, 429, true), (.request, .ok, 500, true), (.request, .ok, 599, true),
            (.request, .ok, 600, false), (.request, .ok, 999, false), (.request, .reset, 0, true),
            (.request, .aborted, 0, true), (.request, .timeout, 0, true), (.connect, .ok, 0, false),
            (.connect, .refused, 0, true), (.connect, .timeout, 0, true), (.connect, .unreachable, 0, true),
            (.close, .reset, 0, false), (.bytes, .aborted, 0, false), (.accept, .refused, 500, false),
            (.adopt, .refused, 0, false),
        ] as [(Sample.Kind, Sample.Outcome, UInt16, Bool)])
    func knowsAFailure(kind: Sample.Kind, outcome: Sample.Outcome, status: UInt16, failure: Bool) {
        var statuses = Configuration.StatusSet.serverErrors
        statuses.insert(429)
        let sample = Sample(kind: kind, role: .client, outcome: outcome, status: status)
        #expect(sample.isFailure(statuses) == failure)
    }

    @Test func tellsABreakerOnlyWhatItsAttemptsTell() {
        var policy = BreakerPolicy()
        policy.slowCallDuration = 100
        var sample = Sample(kind: .request, role: .client, outcome: .ok, status: 500, duration: 100)
        #expect(
            sample.breakerOutcome(policy)
                == BreakerOutcome(failure: true, slow: true, probe: false, connect: false, duration: 100))
        sample.duration = 99
        sample.status = 200
        sample.flags = .probe
        #expect(sample.breakerOutcome(policy) == BreakerOutcome(failure: false, probe: true, duration: 99))
        sample.kind = .connect
        sample.duration = 100
        #expect(
            sample.breakerOutcome(policy)
                == BreakerOutcome(failure: false, slow: false, probe: true, connect: true, duration: 100))
        for flag: Sample.Flags in [.exempt, .wouldReject, .unenforced] {
            sample.flags = flag
            #expect(sample.breakerOutcome(policy) == nil)
        }
        sample.flags = []
        for kind: Sample.Kind in [.accept, .adopt, .close, .bytes] {
            sample.kind = kind
            #expect(sample.breakerOutcome(policy) == nil)
        }
        sample.kind = .request
        sample.role = .server
        #expect(sample.breakerOutcome(policy) == nil)
    }
}
