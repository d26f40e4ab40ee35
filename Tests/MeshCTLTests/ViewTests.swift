// What the commands print, letter by letter: tables and views at the widths that matter.
import Foundation
import MeshCore
import Testing

@testable import MeshCTL

@Suite struct ViewTests {
    static let statusCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            agent        mesh-agent 0.1.0, pid 1234, up 3h13m
            kernel       6.18.44, ABI 1, cgroup /
            privileges   CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF; no new ones; system calls filtered, 0 refused
            config       /etc/mesh-agent/config.json, loaded 2026-01-01 23:51:05Z
            hooks        3 of 3 attached: connect4, connect6, sock_ops
            interfaces   lo (tcx), eth0 (clsact)
            pins         /sys/fs/bpf/mesh-agent, taken over from an earlier agent
            lease        valid, renewed 0.4s ago, lasts 10s
            services     3 configured, 12 discovered (at most 1,000)
            breakers     2 enforce, 1 observe; 0 open, 0 half_open (at most 1), 0 overridden
            connections  128 active
            samples      1,234,567 received, none lost
            series       120 of 20,000, 0 dropped
            stamps       sent 1,000, no room 2, out of scope 30; received 900, out of scope 1

            no problems
            """
        ),
        (
            80,
            """
            agent        mesh-agent 0.1.0, pid 1234, up 3h13m
            kernel       6.18.44, ABI 1, cgroup /
            privileges   CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF; no new ones; system calls
                         filtered, 0 refused
            config       /etc/mesh-agent/config.json, loaded 2026-01-01 23:51:05Z
            hooks        3 of 3 attached: connect4, connect6, sock_ops
            interfaces   lo (tcx), eth0 (clsact)
            pins         /sys/fs/bpf/mesh-agent, taken over from an earlier agent
            lease        valid, renewed 0.4s ago, lasts 10s
            services     3 configured, 12 discovered (at most 1,000)
            breakers     2 enforce, 1 observe; 0 open, 0 half_open (at most 1), 0 overridden
            connections  128 active
            samples      1,234,567 received, none lost
            series       120 of 20,000, 0 dropped
            stamps       sent 1,000, no room 2, out of scope 30; received 900, out of scope
                         1

            no problems
            """
        ),
    ]

    @Test("The status of a node that is well", arguments: statusCases)
    func status(width: Int?, expected: String) throws {
        let status = try Status(answer(Fixture.status))
        #expect(text(StatusView.lines(status, on: page(width))) == expected)
    }

    static let troubledCases: [(width: Int?, expected: String)] = [
        (
            120,
            """
            agent        mesh-agent 0.1.0, pid 1234, up 3h13m
            kernel       6.18.44, ABI 1, cgroup /
            privileges   none; execve() may bring more; system calls not filtered
            config       /etc/mesh-agent/config.json, loaded 2026-01-01 23:51:05Z
            hooks        1 of 2 attached: connect4
            interfaces   none
            pins         none
            lease        EXPIRED, renewed 14s ago, lasts 10s
            services     3 configured, 1,000 discovered (at most 1,000)
            breakers     2 enforce, 1 observe; 1 open, 0 half_open (at most 1), 1 overridden
            connections  128 active
            samples      1,234,567 received, 31 lost at ring
            series       20,000 of 20,000, 7 dropped
            stamps       sent 0, no room 0, out of scope 0; received 0, out of scope 0

            11 problems
            ! The lease is over: the kernel admits everything, whatever automatic breakers say.
              The agent is stopped or starved. See its log and its CPU limit, and whether pid 1234 runs.
            ! Hook connect6 is not attached at cgroup /: operation not permitted
              What it sees and enforces is missing. Run `meshctl doctor`, then restart the agent.
            ! Not everything is pinned: cannot mount the bpf file system: operation not permitted
              All works, but what is enforced ends when the agent does. Mount the bpf file system at /sys/fs/bpf where the agent can
              write to it, then restart the agent.
            ! The last reload was refused: /etc/mesh-agent/config.json:7: services[0].breaker.openFor: "5" needs a unit
              The configuration loaded at 2026-01-01 23:51:05Z is still in force. Correct the file, then: kill -HUP 1234
            ! 1 system call refused to the agent: a fault in it, or somebody else's code.
              See its log for the last one's number, and report it. To run without the filter: mesh-agent run --no-seccomp.
            ! 1 breaker held closed that would be open: the limit of 1 open at once is reached.
              If so many fail, suspect this node or its network first. To let more open: breakers.maxOpenShare.
            ! 31 samples lost at ring: the counts are short by these.
              The agent could not keep up. Give it more CPU, and watch mesh_agent_samples_lost_total.
            ! 7 series were over the limit and went to workload="other".
              Raise limits.maxSeries above 20,000, or name fewer services.
            ! The cap of 1,000 discovered services is reached: new destinations count as `other`.
              Raise limits.maxDiscoveredServices, or name services by prefix.
            ! No interface has the tc hooks: rejected requests on established connections go through.
              Check "interfaces" in the configuration, and run `meshctl doctor`.
            ! 2 rejected requests on established connections went through: no tc hook was on their way.
              See which interfaces have it above, and whether another program's filter decides before it. connect() is refused all
              the same.
            """
        )
    ]

    @Test("The status says what is wrong and what to do", arguments: troubledCases)
    func troubled(width: Int?, expected: String) throws {
        let status = try Status(answer(Fixture.troubledStatus))
        #expect(text(StatusView.lines(status, on: page(width))) == expected)
    }

    static let servicesCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            SERVICE                                                              KIND        ROLE      RATE  ERRORS    P50     P90    P99   REQUESTS  FAILED  BREAKER
            *:8080                                                               discovered  server     0/s       -      -       -      -          0       0  -
            a-service-with-a-name-that-goes-on-and-on.default.svc.cluster.local  configured  client   0.5/s      2%   10ms    20ms   30ms         99       2  closed (override)
            inventory                                                            configured  client  12.3/s   <0.1%  850µs     1ms   1.3s     45,678      18  half_open (observe)
            payments                                                             configured  client  1.2k/s   12.3%  1.2ms  34.8ms  250ms  1,234,567   9,876  open
            """
        ),
        (
            120,
            """
            SERVICE                 KIND        ROLE      RATE  ERRORS    P50     P90    P99   REQUESTS  FAILED  BREAKER
            *:8080                  discovered  server     0/s       -      -       -      -          0       0  -
            a-service-with-a-name…  configured  client   0.5/s      2%   10ms    20ms   30ms         99       2  closed (override)
            inventory               configured  client  12.3/s   <0.1%  850µs     1ms   1.3s     45,678      18  half_open (observe)
            payments                configured  client  1.2k/s   12.3%  1.2ms  34.8ms  250ms  1,234,567   9,876  open
            """
        ),
        (
            80,
            """
            SERVICE                ROLE      RATE  ERRORS    P50    P99  BREAKER
            *:8080                 server     0/s       -      -      -  -
            a-service-with-a-nam…  client   0.5/s      2%   10ms   30ms  closed (override)
            inventory              client  12.3/s   <0.1%  850µs   1.3s  half_open (observe)
            payments               client  1.2k/s   12.3%  1.2ms  250ms  open
            """
        ),
    ]

    @Test("Services: all, then cut, then without what matters least", arguments: servicesCases)
    func services(width: Int?, expected: String) throws {
        let rows = try answer(Fixture.services).list("services") { row throws(Failure) in try ServiceRow(row)
        }
        #expect(text(Views.services(rows, on: page(width))) == expected)
    }

    static let breakersCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            SERVICE    STATE      MODE     WHY           SINCE  REQUESTS  FAILED  SLOW  REJECTED  OVERRIDE
            inventory  half_open  observe  deadline      3m12s        20      5%    0%        25  -
            ledger     closed     enforce  held_closed   3m12s         0       -     -         6  -
            payments   open       enforce  failure_rate  3m12s       340   62.1%  0.9%     3,462  -
            search     closed     enforce  override      3m12s         0       -     -         6  close for 9m10s by root (pid 4321)
            """
        ),
        (
            80,
            """
            SERVICE    STATE      MODE     WHY           SINCE  FAILED  OVERRIDE
            inventory  half_open  observe  deadline      3m12s      5%  -
            ledger     closed     enforce  held_closed   3m12s       -  -
            payments   open       enforce  failure_rate  3m12s   62.1%  -
            search     closed     enforce  override      3m12s       -  close for 9m10s by …
            """
        ),
    ]

    @Test("Breakers", arguments: breakersCases)
    func breakers(width: Int?, expected: String) throws {
        let breakers = try answer(Fixture.breakers).list("breakers") { row throws(Failure) in try Breaker(row)
        }
        #expect(text(Views.breakers(breakers, on: page(width), now: Fixture.now)) == expected)
    }

    static let singleCases: [(json: String, expected: String)] = [
        (
            Fixture.shown,
            """
            payments  open  (enforce)
            why          failure_rate, since 2026-01-02 03:00:53Z (3m12s ago)
            until        2026-01-02 03:04:08Z (in 3.2s), then half_open
            override     none
            window       340 requests in 10s: 211 failed (62.1%), 3 slow (0.9%), the last 12
                         failed in a row

            ATTEMPTS  ADMITTED  PROBES  REJECTED  WOULD REJECT
            connect        812       4     3,456             0
            request          5       7         6             8

            HISTORY
            2026-01-02 03:00:00Z  closed → open (failure_rate)
            2026-01-02 03:00:05Z  forced closed by root (pid 4321) until 2026-01-02 03:13:15Z: "false alarm"
            2026-01-02 03:02:00Z  override expired, now closed
            2026-01-02 03:03:00Z  override ended by alice (pid 77), now closed
            2026-01-02 03:03:10Z  held closed: too many breakers are open (slow_calls)
            2026-01-02 03:03:20Z  configuration reloaded by agent, now closed
            """
        ),
        (
            Fixture.overridden,
            """
            search  closed  (enforce)
            why          override, since 2026-01-02 03:00:53Z (3m12s ago)
            override     forced closed by root (pid 4321): "false alarm"
                         until 2026-01-02 03:13:15Z (9m10s left)
            window       no requests in the last 10s

            ATTEMPTS  ADMITTED  PROBES  REJECTED  WOULD REJECT
            connect          0       0         0             0
            request          5       7         6             8

            no history: it has been as it is since the agent started
            """
        ),
        (
            Fixture.observed,
            """
            inventory  half_open  (observe: nothing is rejected)
            why          deadline, since 2026-01-02 03:00:53Z (3m12s ago)
            probing      10% of attempts admitted, 3 successes
            override     none
            window       20 requests in 10s: 1 failed (5%), 0 slow (0%)

            ATTEMPTS  ADMITTED  PROBES  REJECTED  WOULD REJECT
            connect        100       2         0            17
            request          5       7         6             8

            no history: it has been as it is since the agent started
            """
        ),
        (
            Fixture.held,
            """
            ledger  closed  (enforce)
            why          consecutive_failures, since 2026-01-02 03:00:53Z (3m12s ago)
            held         its rules say open, but breakers.maxOpenShare of all breakers are
                         open: it stays closed
            override     none
            window       no requests in the last 10s

            ATTEMPTS  ADMITTED  PROBES  REJECTED  WOULD REJECT
            connect          0       0         0             0
            request          5       7         6             8

            no history: it has been as it is since the agent started
            """
        ),
    ]

    @Test("One breaker, with history, override, probes, or held closed", arguments: singleCases)
    func single(json: String, expected: String) throws {
        let breaker = try Breaker(answer(json))
        #expect(text(Views.breaker(breaker, on: page(80), now: Fixture.now)) == expected)
    }

    static let eventsCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            2026-01-02 03:00:00Z  payments              closed → open (failure_rate)
            2026-01-02 03:00:05Z  payments              forced closed by root (pid 4321) until 2026-01-02 03:13:15Z: "false alarm"
            2026-01-02 03:02:00Z  payments              override expired, now closed
            2026-01-02 03:03:00Z  payments              override ended by alice (pid 77), now closed
            2026-01-02 03:03:10Z  payments              held closed: too many breakers are open (slow_calls)
            2026-01-02 03:03:20Z  payments              configuration reloaded by agent, now closed
            """
        )
    ]

    @Test("Each kind of event", arguments: eventsCases)
    func events(width: Int?, expected: String) throws {
        let events = try answer(Fixture.events).list("events") { row throws(Failure) in try Event(row) }
        #expect(text(Views.events(events, on: page(width))) == expected)
    }

    static let flowsCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            SERVICE   ROLE    WORKLOAD      LOCAL           REMOTE           PROTO   AGE   SENT  RECEIVED  NOTES    TRACE
            payments  client  shop.service  10.0.0.1:43210  10.0.0.5:8443    http    12s  1.2kB     5.7MB  pending  4bf92f3577b34da6a3ce929d0e0e4736
            *:8080    server  web.service   [fd00::1]:8080  [fd00::2]:50000  tcp    1d2h     0B       12B  adopted  -
            """
        ),
        (
            120,
            """
            SERVICE   ROLE    WORKLOAD      LOCAL           REMOTE           PROTO   AGE   SENT  RECEIVED  NOTES    TRACE
            payments  client  shop.service  10.0.0.1:43210  10.0.0.5:8443    http    12s  1.2kB     5.7MB  pending  4bf92f3577b34da…
            *:8080    server  web.service   [fd00::1]:8080  [fd00::2]:50000  tcp    1d2h     0B       12B  adopted  -
            """
        ),
        (
            80,
            """
            SERVICE   ROLE    REMOTE           PROTO   AGE   SENT  RECEIVED  TRACE
            payments  client  10.0.0.5:8443    http    12s  1.2kB     5.7MB  4bf92f3577b34d…
            *:8080    server  [fd00::2]:50000  tcp    1d2h     0B       12B  -
            """
        ),
    ]

    @Test("Open connections", arguments: flowsCases)
    func flows(width: Int?, expected: String) throws {
        let rows = try answer(Fixture.flows).list("connections") { row throws(Failure) in try Connection(row)
        }
        #expect(text(Views.connections(rows, filtered: false, on: page(width))) == expected)
    }

    static let followedCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
            TIME           EVENT    ROLE    SERVICE               WORKLOAD              LOCAL                  REMOTE                 CODE       TOOK  DECISION      TRACE
            03:04:05.123Z  request  client  payments              shop.service          10.0.0.1:43210         10.0.0.5:8443          503      12.3ms  probe         4bf92f3577b34da6a3ce929d0e0e4736
            03:04:06.000Z  close    client  payments              shop.service          10.0.0.1:43210         10.0.0.5:8443          -             -  -             -
            """
        ),
        (
            80,
            """
            TIME           EVENT    ROLE    SERVICE       REMOTE                 CODE       TOOK  TRACE
            03:04:05.123Z  request  client  payments      10.0.0.5:8443          503      12.3ms  4bf92f3…
            03:04:06.000Z  close    client  payments      10.0.0.5:8443          -             -  -
            """
        ),
    ]

    @Test("Connections and requests as they happen", arguments: followedCases)
    func followed(width: Int?, expected: String) throws {
        let page = page(width)
        let table = Views.flowTable
        let layout = table.layout(on: page)
        let lines = try Fixture.flowEvents.map {
            table.line(Views.flow(try FlowEvent(answer($0)), page: page), layout, on: page)
        }
        #expect(text([table.heading(layout, on: page)] + lines) == expected)
    }

    static let tracesCases: [(width: Int?, expected: String)] = [
        (
            nil,
            """
             PID  TRACE                             SINCE
            4321  4bf92f3577b34da6a3ce929d0e0e4736  1m00s
            """
        )
    ]

    @Test("Bindings", arguments: tracesCases)
    func traces(width: Int?, expected: String) throws {
        let rows = try answer(Fixture.traces).list("bindings") { row throws(Failure) in try Binding(row) }
        #expect(text(Views.bindings(rows, on: page(width), now: Fixture.now)) == expected)
    }

    static let framesCases: [(width: Int?, expected: String)] = [
        (
            120,
            """
            mesh-agent 0.1.0 up 3h13m  11 problems: meshctl status  lease EXPIRED  1 open  0 half_open  128 connections

            SERVICE                                 ROLE       RATE  ERRORS     P50     P90     P99  REJECTED/S  BREAKER
            payments                                client   1.2k/s   12.3%   1.2ms  34.8ms   250ms           -  open
            inventory                               client   12.3/s   <0.1%   850µs     1ms    1.3s           -  half_open (observe)
            a-service-with-a-name-that-goes-on-an…  client    0.5/s      2%    10ms    20ms    30ms           -  closed (override)
            *:8080                                  server      0/s       -       -       -       -           -  -

            mesh-agent 0.1.0 up 3h13m  lease valid  0 open  0 half_open  128 connections

            SERVICE                                 ROLE       RATE  ERRORS     P50     P90     P99  REJECTED/S  BREAKER
            payments                                client   1.2k/s   12.3%   1.2ms  34.8ms   250ms       500/s  open
            inventory                               client   12.3/s   <0.1%   850µs     1ms    1.3s         0/s  half_open (observe)
            a-service-with-a-name-that-goes-on-an…  client    0.5/s      2%    10ms    20ms    30ms           -  closed (override)
            *:8080                                  server      0/s       -       -       -       -           -  -
            """
        ),
        (
            80,
            """
            mesh-agent 0.1.0 up 3h13m  11 problems: meshctl status  lease EXPIRED  1 open

            SERVICE             ROLE       RATE  ERRORS     P50     P99  BREAKER
            payments            client   1.2k/s   12.3%   1.2ms   250ms  open
            inventory           client   12.3/s   <0.1%   850µs    1.3s  half_open (observe)
            a-service-with-a-…  client    0.5/s      2%    10ms    30ms  closed (override)
            *:8080              server      0/s       -       -       -  -

            mesh-agent 0.1.0 up 3h13m  lease valid  0 open  0 half_open  128 connections

            SERVICE             ROLE       RATE  ERRORS     P50     P99  BREAKER
            payments            client   1.2k/s   12.3%   1.2ms   250ms  open
            inventory           client   12.3/s   <0.1%   850µs    1.3s  half_open (observe)
            a-service-with-a-…  client    0.5/s      2%    10ms    30ms  closed (override)
            *:8080              server      0/s       -       -       -  -
            """
        ),
    ]

    @Test("Frames of top: the busiest first, rates of rejection from the second on", arguments: framesCases)
    func frames(width: Int?, expected: String) throws {
        let first = try frame(Fixture.troubledStatus, Fixture.breakers, taken: 1)
        // 1,000 rejections more, two seconds later.
        let breakers = Fixture.breakers.replacingOccurrences(of: "3456", with: "4456")
        let second = try frame(Fixture.status, breakers, taken: 3)
        let lines =
            first.lines(after: nil, on: page(width)) + [""] + second.lines(after: first, on: page(width))
        #expect(text(lines) == expected)
    }

    static let doctorCases: [(width: Int?, expected: String)] = [
        (
            120,
            """
            kernel
              ✓ privileges               root
              ✗ tcx                      not there; clsact filters are used instead (optional)
                                         → kernel 6.6 has it
              ✗ kernel type information  /sys/kernel/btf/vmlinux: no such file or directory
                                         → use a kernel built with CONFIG_DEBUG_INFO_BTF, and mount /sys

            agent
              ✓ metrics port  127.0.0.1:9464 is free

            1 requirement missing: the agent cannot work
            """
        ),
        (
            80,
            """
            kernel
              ✓ privileges               root
              ✗ tcx                      not there; clsact filters are used instead
                                         (optional)
                                         → kernel 6.6 has it
              ✗ kernel type information  /sys/kernel/btf/vmlinux: no such file or directory
                                         → use a kernel built with CONFIG_DEBUG_INFO_BTF,
                                           and mount /sys

            agent
              ✓ metrics port  127.0.0.1:9464 is free

            1 requirement missing: the agent cannot work
            """
        ),
    ]

    @Test("The doctor says what is missing and what to do", arguments: doctorCases)
    func doctor(width: Int?, expected: String) throws {
        #expect(text(DoctorView.lines(Self.checks, on: page(width))) == expected)
    }

    static let checks = [
        Check(group: "kernel", name: "privileges", ok: true, required: true, detail: "root", remedy: nil),
        Check(
            group: "kernel", name: "tcx", ok: false, required: false,
            detail: "not there; clsact filters are used instead", remedy: "kernel 6.6 has it"),
        Check(
            group: "kernel", name: "kernel type information", ok: false, required: true,
            detail: "/sys/kernel/btf/vmlinux: no such file or directory",
            remedy: "use a kernel built with CONFIG_DEBUG_INFO_BTF, and mount /sys"),
        Check(
            group: "agent", name: "metrics port", ok: true, required: true, detail: "127.0.0.1:9464 is free",
            remedy: nil),
    ]

    @Test("Where only ASCII may be printed, nothing else is")
    func ascii() throws {
        let page = page(80, ascii: true)
        let services = try answer(Fixture.services).list("services") { row throws(Failure) in
            try ServiceRow(row)
        }
        let lines =
            DoctorView.lines(Self.checks, on: page) + Views.services(services, on: page)
            + Views.breaker(try Breaker(answer(Fixture.shown)), on: page, now: Fixture.now)
        #expect(lines.allSatisfy { $0.utf8.allSatisfy { (0x20..<0x7f).contains($0) } })
        #expect(lines.contains("  NO tcx                      not there; clsact filters are used instead"))
        #expect(
            lines.contains("a-service-with-a-nam~  client   0.5/s      2%   10ms   30ms  closed (override)"))
        #expect(lines.contains("2026-01-02 03:00:00Z  closed -> open (failure_rate)"))
    }

    @Test("States have their colours, and colours take no columns")
    func colours() throws {
        let page = page(80, colour: true)
        let rows = try answer(Fixture.services).list("services") { row throws(Failure) in try ServiceRow(row)
        }
        let lines = Views.services(rows, on: page)
        #expect(
            lines[4] == "payments               client  1.2k/s   \u{1B}[31m12.3%\u{1B}[0m  1.2ms  250ms  "
                + "\u{1B}[31mopen\u{1B}[0m")
        #expect(lines[3].hasSuffix("\u{1B}[33mhalf_open (observe)\u{1B}[0m"))
        #expect(lines[2].hasSuffix("\u{1B}[32mclosed (override)\u{1B}[0m"))
    }

    @Test("Nothing there is explained")
    func empty() {
        let wide = page(nil)
        #expect(Views.services([], on: wide)[0].hasPrefix("no services seen yet: no connection was made"))
        #expect(Views.breakers([], on: wide, now: 0)[0].hasPrefix("no breakers configured: give a service"))
        #expect(Views.events([], on: wide)[0].hasPrefix("no events yet: "))
        #expect(Views.connections([], filtered: false, on: wide)[0].hasPrefix("no open connections seen. "))
        #expect(Views.connections([], filtered: true, on: wide)[0].hasPrefix("no open connection fits: "))
        #expect(Views.bindings([], on: wide, now: 0)[0].hasPrefix("no process is bound to a trace ID. "))
        #expect(Views.services([], on: page(60)).allSatisfy { $0.count <= 60 })
    }

    @Test("A breaker that has never changed has no reason")
    func unchanged() throws {
        let json = Fixture.held.replacingOccurrences(
            of: "\"consecutive_failures\",\"since\"", with: "null,\"since\""
        )
        .replacingOccurrences(of: "\"held_closed\":true", with: "\"held_closed\":false")
        let breaker = try Breaker(answer(json))
        #expect(
            Views.breaker(breaker, on: page(nil), now: Fixture.now)[1]
                == "why          never changed, since 2026-01-02 03:00:53Z (3m12s ago)")
        #expect(
            Views.breakers([breaker], on: page(nil), now: Fixture.now)[1]
                == "ledger   closed  enforce  -    3m12s         0       -     -         6  -")
    }

    @Test("What a breaker's commands say they did")
    func done() throws {
        #expect(
            text(Views.overrideDone(try Breaker(answer(Fixture.overridden)), on: page(nil), now: Fixture.now))
                == """
                search is forced closed, until 2026-01-02 03:13:15Z (9m10s left)
                to end it: meshctl breaker auto search
                """)
        #expect(
            text(Views.overrideDone(try Breaker(answer(Fixture.payments)), on: page(nil), now: Fixture.now))
                == "payments is back to automatic: open")
    }

    @Test("No text from elsewhere reaches the terminal as a command")
    func hostileText() throws {
        let evil = "x\\u001b]0;owned\\u0007\\u202e\\n"
        let json = Fixture.breaker(evil, "open", "enforce", evil, openUntil: "\"\(evil)\"")
            .replacingOccurrences(
                of: "\"override\":null",
                with: """
                    "override":{"state":"open","actor":"\(evil)","reason":"\(evil)","since":"\(evil)","expires_at":"\(evil)"}
                    """)
        let event = """
            {"time":"\(evil)","kind":"\(evil)","service":"\(evil)","from":"\(evil)","to":"\(evil)","reason":"\(evil)",
            "actor":"\(evil)","text":"\(evil)","expires_at":"\(evil)"}
            """
        let flow = Fixture.flowEvents[0].replacingOccurrences(of: "shop.service", with: evil)
        let status = Fixture.troubledStatus.replacingOccurrences(of: "0.1.0", with: evil)
            .replacingOccurrences(of: "connect6", with: evil)
        let breaker = try Breaker(answer(json))
        let page = page(100)
        var lines = Views.breaker(breaker, on: page, now: 0) + Views.breakers([breaker], on: page, now: 0)
        lines += Views.overrideDone(breaker, on: page, now: 0)
        lines += Views.events([try Event(answer(event))], on: page)
        for kind in ["transition", "override", "override_end", "reload", "held_closed"] {
            lines += Views.events(
                [
                    try Event(
                        answer(
                            event.replacingOccurrences(
                                of: "\"kind\":\"\(evil)\"", with: "\"kind\":\"\(kind)\"")))
                ],
                on: page)
        }
        lines += Views.flow(try FlowEvent(answer(flow)), page: page).map(\.text)
        lines += StatusView.lines(try Status(answer(status)), on: page)
        lines += try frame(status, Fixture.breakers, taken: 1).lines(after: nil, on: page)
        for line in lines {
            for scalar in line.unicodeScalars {
                #expect(
                    scalar.value >= 0x20 && scalar.value != 0x7f && scalar.value != 0x202e,
                    "in \(line.debugDescription)")
            }
        }
        #expect(lines.contains { $0.contains("\u{FFFD}]0;owned\u{FFFD}") })
    }

    @Test("Numbers that no agent sends break nothing")
    func hostileNumbers() throws {
        for number in ["1e308", "-1e308", "-1", "1e18", "0.1e-300"] {
            let rows = Fixture.services.replacingOccurrences(of: "1234.5", with: number)
                .replacingOccurrences(of: "0.0012", with: number).replacingOccurrences(
                    of: "1234567", with: number)
            let status = Fixture.status.replacingOccurrences(of: "1234,", with: "\(number),")
                .replacingOccurrences(of: "11580", with: number).replacingOccurrences(of: "0.4", with: number)
            let services = try answer(rows).list("services") { row throws(Failure) in try ServiceRow(row) }
            #expect(Views.services(services, on: page(80)).count == 5)
            #expect(StatusView.lines(try Status(answer(status)), on: page(80)).count >= 14)
        }
    }

    @Test("A frame that is taller than the screen says how much is missing")
    func tall() throws {
        let frame = try frame(Fixture.status, Fixture.breakers, taken: 1)
        let lines = frame.lines(after: nil, on: page(80, height: 6))
        #expect(lines.count == 6)
        #expect(lines[3].hasPrefix("payments "))
        #expect(lines[5] == "2 more rows below")
        #expect(frame.lines(after: nil, on: page(80, height: 7)).count == 7)
        #expect(frame.lines(after: nil, on: page(80, height: 7)).last?.hasPrefix("*:8080") == true)
    }

    private func frame(_ status: String, _ breakers: String, taken seconds: UInt64) throws -> Frame {
        try Frame(
            status: answer(status).value, services: answer(Fixture.services).value,
            breakers: answer(breakers).value, taken: seconds * 1_000_000_000)
    }
}

@Suite struct RemainsViewTests {
    private static let now = Timestamp.seconds("2026-01-02T03:04:05Z")!

    private static func status(
        lease: String = #"{"ends_at": "2026-01-02T03:04:10.000Z", "valid": true}"#, state: String = "null"
    ) -> String {
        """
        {"agent": null, "last_agent": {"pid": 812, "seen_at": "2026-01-02T03:04:00.000Z"},
         "kernel": "6.18.44", "abi_version": 3,
         "hooks": [{"name": "connect4", "where": "cgroup /", "attached": true, "detail": ""},
                   {"name": "connect6", "where": "", "attached": false, "detail": ""}],
         "interfaces": [{"name": "eth0", "mode": "tcx"}, {"name": "lo", "mode": "clsact"}],
         "pins": {"directory": "/sys/fs/bpf/mesh-agent"}, "lease": \(lease),
         "services": {"configured": 2, "discovered": 14},
         "breakers": {"enforce": 2, "observe": 0, "open": 1, "half_open": 0, "overridden": 1, "rejecting": 1},
         "overrides": [{"service": "pay\\u001bments", "state": "open", "actor": "root (pid 1)", "reason": "x",
           "since": "2026-01-02T03:00:00.000Z", "expires_at": "2026-01-02T04:00:00.000Z"}],
         "state": {"path": "/run/mesh-agent/control.sock.state", "error": \(state)}}
        """
    }

    @Test("What goes on without an agent")
    func goesOn() throws {
        let lines = try RemainsView.lines(answer(Self.status()), on: page(nil), now: Self.now)
        #expect(
            text(lines) == """
                agent        NONE RUNS: the last one had pid 812, and was last seen 5s ago, at 2026-01-02 03:04:00Z
                kernel       6.18.44, ABI 3
                hooks        1 of 2 attached: connect4
                interfaces   eth0 (tcx), lo (clsact)
                pins         /sys/fs/bpf/mesh-agent
                lease        ends at 2026-01-02 03:04:10Z: from then on automatic breakers admit everything
                services     2 configured, 14 discovered
                breakers     2 enforce, 0 observe; 1 open, 0 half_open, 1 overridden; 1 reject now
                overrides    pay\u{FFFD}ments forced open by root (pid 1) until 2026-01-02 04:00:00Z

                To go on: start an agent, which takes all of this over. To be rid of it: meshctl cleanup.
                """)
    }

    @Test("A lease that is over, and a state of no use")
    func worse() throws {
        let worse = Self.status(
            lease: #"{"ends_at": "2026-01-02T03:00:00.000Z", "valid": false}"#, state: #""it is damaged""#)
        let lines = text(try RemainsView.lines(answer(worse), on: page(nil), now: Self.now))
        #expect(
            lines.contains("OVER since 2026-01-02 03:00:00Z: automatic breakers admit everything")
                && lines.contains("state        of no use, so names and reasons are not known: it is damaged")
        )
    }
}
