// Answers of the control API as an agent gives them: one node that is well, and one that is not.

enum Fixture {
    /// 2026-01-02T03:04:05Z, when all of it was asked.
    static let now = 1_767_323_045.0

    static let status = """
        {"version":"0.1.0","pid":1234,"kernel":"6.18.44","abi_version":1,"started_at":"2026-01-01T23:51:05Z",
         "uptime_seconds":11580,"config":{"path":"/etc/mesh-agent/config.json","loaded_at":"2026-01-01T23:51:05.250Z",
         "error":null},"privileges":{"capabilities":["CAP_NET_ADMIN","CAP_PERFMON","CAP_BPF"],
         "no_new_privileges":true,"calls_filtered":true,"calls_refused":0},"cgroup":"/","hooks":[
         {"name":"connect4","where":"cgroup /","attached":true,"detail":""},
         {"name":"connect6","where":"cgroup /","attached":true,"detail":""},
         {"name":"sock_ops","where":"cgroup /","attached":true,"detail":""}],
         "interfaces":[{"name":"lo","mode":"tcx"},{"name":"eth0","mode":"clsact"}],
         "pins":{"directory":"/sys/fs/bpf/mesh-agent","error":null,"takeover":true},
         "enforcement":{"checks":2316,"faults":2,"repairs":2,"broken":[],"proven":true,"unproven_reason":null},
         "lease":{"seconds":10.0,"age_seconds":0.4,"valid":true},
         "services":{"configured":3,"discovered":12,"discovery_limit":1000},
         "breakers":{"enforce":2,"observe":1,"open":0,"half_open":0,"overridden":0,"open_limit":1,"held_closed":0,"unenforced_requests":0},
         "connections_active":128,"samples":{"received":1234567,"lost":[{"stage":"ring","count":0}]},
         "series":{"used":120,"limit":20000,"dropped":0},
         "stamps":{"sent_ok":1000,"sent_no_room":2,"sent_out_of_scope":30,"received_ok":900,"received_out_of_scope":1}}
        """

    static let troubledStatus = """
        {"version":"0.1.0","pid":1234,"kernel":"6.18.44","abi_version":1,"started_at":"2026-01-01T23:51:05Z",
         "uptime_seconds":11580,"config":{"path":"/etc/mesh-agent/config.json","loaded_at":"2026-01-01T23:51:05.250Z",
         "error":"/etc/mesh-agent/config.json:7: services[0].breaker.openFor: \\"5\\" needs a unit"},
         "privileges":{"capabilities":[],"no_new_privileges":false,"calls_filtered":false,"calls_refused":1},
         "cgroup":"/","hooks":[
         {"name":"connect4","where":"cgroup /","attached":true,"detail":""},
         {"name":"connect6","where":"cgroup /","attached":false,"detail":"operation not permitted"}],
         "interfaces":[],"pins":{"directory":null,"error":"cannot mount the bpf file system: operation not permitted","takeover":false},
         "enforcement":{"checks":2316,"faults":3,"repairs":0,"broken":[
         {"part":"cgroup","what":"connect6","where":"cgroup /","fault":"somebody detached it",
          "error":"cannot attach mesh_connect6 to cgroup /: operation not permitted"},
         {"part":"pin","what":"pins","where":"/sys/fs/bpf/mesh-agent","fault":"31 are gone","error":"no"}],
         "proven":false,"unproven_reason":"cannot make a socket in the cgroup /: device or resource busy"},
         "lease":{"seconds":10.0,"age_seconds":14.2,"valid":false},
         "services":{"configured":3,"discovered":1000,"discovery_limit":1000},
         "breakers":{"enforce":2,"observe":1,"open":1,"half_open":0,"overridden":1,"open_limit":1,"held_closed":1,"unenforced_requests":2},
         "connections_active":128,"samples":{"received":1234567,"lost":[{"stage":"ring","count":31},{"stage":"storage","count":0}]},
         "series":{"used":20000,"limit":20000,"dropped":7},
         "stamps":{"sent_ok":0,"sent_no_room":0,"sent_out_of_scope":0,"received_ok":0,"received_out_of_scope":0}}
        """

    static let services = """
        {"services":[
         {"name":"payments","id":1,"kind":"configured","role":"client","rate_per_second":1234.5,"error_ratio":0.123,
          "p50_seconds":0.0012,"p90_seconds":0.0348,"p99_seconds":0.25,"requests_total":1234567,"errors_total":9876,
          "breaker":{"state":"open","mode":"enforce","override":null}},
         {"name":"inventory","id":2,"kind":"configured","role":"client","rate_per_second":12.34,"error_ratio":0.0004,
          "p50_seconds":0.00085,"p90_seconds":0.0009996,"p99_seconds":1.25,"requests_total":45678,"errors_total":18,
          "breaker":{"state":"half_open","mode":"observe","override":null}},
         {"name":"a-service-with-a-name-that-goes-on-and-on.default.svc.cluster.local","id":3,"kind":"configured",
          "role":"client","rate_per_second":0.5,"error_ratio":0.02,"p50_seconds":0.01,"p90_seconds":0.02,
          "p99_seconds":0.03,"requests_total":99,"errors_total":2,
          "breaker":{"state":"closed","mode":"enforce","override":{"state":"close","expires_at":"2026-01-02T03:13:15Z"}}},
         {"name":"*:8080","id":1001,"kind":"discovered","role":"server","rate_per_second":0,"error_ratio":0,
          "p50_seconds":null,"p90_seconds":null,"p99_seconds":null,"requests_total":0,"errors_total":0,"breaker":null}]}
        """

    static let payments = breaker(
        "payments", "open", "enforce", "failure_rate", openUntil: "\"2026-01-02T03:04:08.200Z\"",
        window: (340, 211, 3, 12),
        attempts: "{\"admitted\":812,\"rejected\":3456,\"probe\":4,\"would_reject\":0}")

    static let overridden = breaker(
        "search", "closed", "enforce", "override",
        override: "{\"state\":\"close\",\"actor\":\"root (pid 4321)\",\"reason\":\"false alarm\","
            + "\"since\":\"2026-01-02T03:03:05Z\",\"expires_at\":\"2026-01-02T03:13:15Z\"}")

    static let observed = breaker(
        "inventory", "half_open", "observe", "deadline", window: (20, 1, 0, 0),
        attempts: "{\"admitted\":100,\"rejected\":0,\"probe\":2,\"would_reject\":17}", probeShare: 0.1,
        successes: 3)

    static let held = breaker("ledger", "closed", "enforce", "consecutive_failures", heldClosed: true)

    static var breakers: String {
        "{\"breakers\":[\([payments, overridden, observed, held].joined(separator: ","))]}"
    }

    static var shown: String { payments.dropLast() + ",\"history\":[\(eventList.joined(separator: ","))]}" }

    static let eventList = [
        """
        {"time":"2026-01-02T03:00:00.001Z","kind":"transition","service":"payments","from":"closed","to":"open",\
        "reason":"failure_rate","actor":"agent","text":null,"expires_at":null}
        """,
        """
        {"time":"2026-01-02T03:00:05Z","kind":"override","service":"payments","from":"open","to":"closed",\
        "reason":"override","actor":"root (pid 4321)","text":"false alarm","expires_at":"2026-01-02T03:13:15Z"}
        """,
        """
        {"time":"2026-01-02T03:02:00Z","kind":"override_end","service":"payments","from":"closed","to":"closed",\
        "reason":"override_expired","actor":"agent","text":null,"expires_at":null}
        """,
        """
        {"time":"2026-01-02T03:03:00Z","kind":"override_end","service":"payments","from":"open","to":"closed",\
        "reason":"override","actor":"alice (pid 77)","text":null,"expires_at":null}
        """,
        """
        {"time":"2026-01-02T03:03:10Z","kind":"held_closed","service":"payments","from":"closed","to":"closed",\
        "reason":"slow_calls","actor":"agent","text":null,"expires_at":null}
        """,
        """
        {"time":"2026-01-02T03:03:20Z","kind":"reload","service":"payments","from":"closed","to":"closed",\
        "reason":"reload","actor":"agent","text":null,"expires_at":null}
        """,
    ]

    static var events: String { "{\"events\":[\(eventList.joined(separator: ","))]}" }

    static let flows = """
        {"connections":[
         {"service":"payments","role":"client","workload":"shop.service","local":"10.0.0.1:43210","remote":"10.0.0.5:8443",
          "trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","protocol":"http","age_seconds":12.2,"pending":true,"adopted":false,
          "sent_bytes":1234,"received_bytes":5678901},
         {"service":"*:8080","role":"server","workload":"web.service","local":"[fd00::1]:8080","remote":"[fd00::2]:50000",
          "trace_id":null,"protocol":"tcp","age_seconds":93784,"pending":false,"adopted":true,
          "sent_bytes":0,"received_bytes":12}]}
        """

    static let flowEvents = [
        """
        {"time":"2026-01-02T03:04:05.123Z","event":"request","service":"payments","role":"client",\
        "workload":"shop.service","local":"10.0.0.1:43210","remote":"10.0.0.5:8443",\
        "trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","protocol":"http","code":"503","duration_seconds":0.0123,\
        "sent_bytes":100,"received_bytes":200,"decision":"probe"}
        """,
        """
        {"time":"2026-01-02T03:04:06.000Z","event":"close","service":"payments","role":"client",\
        "workload":"shop.service","local":"10.0.0.1:43210","remote":"10.0.0.5:8443","trace_id":null,\
        "protocol":"http","code":null,"duration_seconds":null,"sent_bytes":0,"received_bytes":0,"decision":null}
        """,
    ]

    static let traces = """
        {"bindings":[{"pid":4321,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","since":"2026-01-02T03:03:05Z"}]}
        """

    static func breaker(
        _ service: String, _ state: String, _ mode: String, _ reason: String, openUntil: String = "null",
        override: String = "null", window: (Int, Int, Int, Int) = (0, 0, 0, 0),
        attempts: String = "{\"admitted\":0,\"rejected\":0,\"probe\":0,\"would_reject\":0}",
        probeShare: Double = 0,
        successes: Int = 0, heldClosed: Bool = false
    ) -> String {
        let (requests, failures, slow, row) = window
        let total = Double(max(1, requests))
        return """
            {"service":"\(service)","id":1,"state":"\(state)","mode":"\(mode)","reason":"\(reason)",\
            "since":"2026-01-02T03:00:53Z","open_until":\(openUntil),"probe_share":\(probeShare),\
            "probe_successes":\(successes),"override":\(override),"window":{"seconds":10,"requests":\(requests),\
            "failures":\(failures),"failure_ratio":\(Double(failures) / total),"slow":\(slow),\
            "slow_ratio":\(Double(slow) / total),"consecutive_failures":\(row)},"attempts":{"connect":\(attempts),\
            "request":{"admitted":5,"rejected":6,"probe":7,"would_reject":8}},"held_closed":\(heldClosed)}
            """
    }
}
