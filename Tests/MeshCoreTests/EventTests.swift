// The events of breakers: their JSON, key by key, and the bounded history.
import Testing

@testable import MeshCore

struct EventTests {
    @Test func transitionsAsJSON() {
        let transition = BreakerTransition(
            from: .open, to: .halfOpen, reason: .deadline, time: 5_000_000_000)
        let event = BreakerEvent(transition, service: "pay\"ments", wallOffset: 1_700_000_000_123_456_789)
        #expect(event.time == 1_700_000_005_123_456_789)
        #expect(
            event.json.serialized()
                == #"{"time":"2023-11-14T22:13:25.123Z","kind":"transition","service":"pay\"ments","from":"open","#
                + #""to":"half_open","reason":"deadline","actor":"agent","text":null,"expires_at":null}"#)
    }

    @Test func overridesAsJSON() {
        let event = BreakerEvent(
            time: 0, kind: .override, service: "a", from: .closed, to: .open, reason: .override,
            actor: "root (pid 1234)", text: "drill\n", expiresAt: 900_000_000_000)
        #expect(
            event.json.serialized()
                == #"{"time":"1970-01-01T00:00:00.000Z","kind":"override","service":"a","from":"closed","to":"open","#
                + #""reason":"override","actor":"root (pid 1234)","text":"drill\n","#
                + #""expires_at":"1970-01-01T00:15:00.000Z"}"#)
    }

    @Test func theWordsAreThoseOfTheContract() {
        #expect(
            BreakerEvent.Kind.allCases.map(\.rawValue)
                == ["transition", "override", "override_end", "reload", "held_closed"])
        #expect(
            BreakerReason.allCases.map(\.rawValue) == [
                "failure_rate", "consecutive_failures", "slow_calls", "probe_failed", "ramp_failed",
                "deadline",
                "recovered", "override", "override_expired", "reload",
            ])
        #expect(BreakerState.allCases.map(\.label) == ["closed", "open", "half_open"])
        #expect(
            Sample.Outcome.allCases.map(\.label)
                == ["ok", "refused", "timeout", "unreachable", "reset", "aborted"])
        #expect(Sample.Role.allCases.map(\.label) == ["client", "server"])
        #expect(Sample.WireProtocol.allCases.map(\.label) == ["tcp", "http", "tls"])
        #expect(
            Sample.Kind.allCases.map(\.label) == ["request", "connect", "accept", "adopt", "close", "bytes"])
    }

    @Test func historyKeepsTheLatest() {
        var history = BreakerHistory(capacity: 3)
        #expect(history.events == [])
        for time: UInt64 in 1...7 {
            history.append(BreakerEvent(time: time, kind: .reload, service: "a", reason: .reload))
            #expect(history.total == time)
            #expect(history.events.map(\.time) == Array(max(time, 3) - 2...time).filter { $0 <= time })
        }
        #expect(history.events.map(\.time) == [5, 6, 7])
        var least = BreakerHistory(capacity: 0)
        least.append(BreakerEvent(time: 1, kind: .reload, service: "a", reason: .reload))
        least.append(BreakerEvent(time: 2, kind: .reload, service: "a", reason: .reload))
        #expect(least.events.map(\.time) == [2])
    }
}
