// The configuration file: defaults, every key, and every mistake with its line and path.

import Testing

@testable import MeshCore

private func parse(_ text: String) throws(ConfigurationErrors) -> Configuration {
    try Configuration.parse(bytes: Array(text.utf8), file: "config.json")
}

private func mistakes(_ text: String) -> [String] {
    do throws(ConfigurationErrors) {
        _ = try parse(text)
        return []
    } catch {
        return error.errors.map(\.description)
    }
}

/// A document with one service whose breaker is the given text.
private func document(breaker: String) -> String {
    "{\"services\": [{\"name\": \"s\", \"endpoints\": [\"10.0.0.1:80\"], \"breaker\": \(breaker)}]}"
}

private func breaker(_ text: String) throws -> Configuration.Breaker {
    try #require(try parse(document(breaker: text)).services.first?.breaker)
}

private let second: UInt64 = 1_000_000_000

@Suite struct ConfigurationTests {
    /// The example of the design, as users copy it.
    static let example = """
        {
          "listen": "127.0.0.1:9464",
          "cgroup": "auto",
          "interfaces": ["auto"],
          "exempt": ["10.96.0.1/32"],
          "stamp": { "enabled": true, "destinations": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128"] },
          "histogram": { "buckets": [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10] },
          "limits": { "maxSeries": 20000, "maxDiscoveredServices": 1000 },
          "breakers": { "maxOpenShare": 0.5, "lease": "10s" },
          "services": [
            {
              "name": "payments",
              "endpoints": ["10.0.0.0/24:8443", "[fd00::1]:8443", "127.0.0.1:9001"],
              "breaker": {
                "mode": "enforce",
                "window": "10s", "minimumRequests": 20,
                "failureRate": 0.5, "consecutiveFailures": 5, "failureStatuses": ["5xx"],
                "slowCallDuration": "250ms", "slowCallRate": 0.5,
                "openFor": "5s", "maxOpenFor": "60s",
                "probe": { "ratio": 0.01, "interval": "1s", "successes": 3, "ramp": "10s" },
                "established": "reset"
              }
            }
          ]
        }
        """

    @Test func exampleIsTheDefaults() throws {
        let configuration = try parse(Self.example)
        var expected = Configuration()
        expected.exempt = [try Network("10.96.0.1")]
        var breaker = Configuration.Breaker()
        breaker.slowCallDuration = 250_000_000
        expected.services = [
            Configuration.Service(
                name: "payments",
                endpoints: try ["10.0.0.0/24:8443", "[fd00::1]:8443", "127.0.0.1:9001"].map {
                    try Endpoint($0)
                },
                breaker: breaker)
        ]
        #expect(configuration == expected)
    }

    @Test func everyPrefix() {
        let bytes = Array(Self.example.utf8)
        for count in 0..<bytes.count {
            #expect(throws: ConfigurationErrors.self) {
                try Configuration.parse(bytes: Array(bytes.prefix(count)), file: "f")
            }
        }
    }

    @Test func defaults() throws {
        let configuration = Configuration()
        #expect(try parse("{}") == configuration)
        #expect(configuration.listen.description == "127.0.0.1:9464")
        #expect(configuration.cgroup == nil)
        #expect(configuration.interfaces == ["auto"])
        #expect(configuration.exempt == [])
        #expect(configuration.stamp.enabled)
        #expect(
            configuration.stamp.destinations.map(\.description) == [
                "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1",
            ])
        #expect(
            configuration.buckets == [
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
            ])
        #expect(configuration.limits.maxSeries == 20_000)
        #expect(configuration.limits.maxDiscoveredServices == 1000)
        #expect(configuration.breakers.maxOpenShare == 0.5)
        #expect(configuration.breakers.lease == 10 * second)
        #expect(configuration.services == [])
        let policy = try breaker("{}")
        #expect(policy == Configuration.Breaker())
        #expect(policy.mode == .enforce)
        #expect(policy.window == 10 * second)
        #expect(policy.minimumRequests == 20)
        #expect(policy.failureRate == 0.5)
        #expect(policy.consecutiveFailures == 5)
        #expect(policy.failureStatuses.classMask == 1 << 5)
        #expect(policy.slowCallDuration == nil)
        #expect(policy.slowCallRate == 0.5)
        #expect(policy.openFor == 5 * second)
        #expect(policy.maxOpenFor == 60 * second)
        #expect(policy.probe.ratio == 0.01)
        #expect(policy.probe.interval == second)
        #expect(policy.probe.successes == 3)
        #expect(policy.probe.ramp == 10 * second)
        #expect(policy.established == .reset)
    }

    @Test func everyKey() throws {
        let configuration = try parse(
            """
            {"listen": "[::]:9000", "cgroup": "kubepods.slice", "interfaces": ["auto", "wg0"],
             "exempt": ["10.96.0.1", "fd00::/64", "10.96.0.1/32"],
             "stamp": {"enabled": false, "destinations": []}, "histogram": {"buckets": [0.1, 1]},
             "limits": {"maxSeries": 100, "maxDiscoveredServices": 0}, "breakers": {"maxOpenShare": 1, "lease": "1s"},
             "services": [{"name": "a", "endpoints": ["[::1]:1"]}, {"name": "b", "endpoints": ["[::1]:2"], "breaker": null}]}
            """)
        #expect(configuration.listen.description == "[::]:9000")
        #expect(configuration.cgroup == "kubepods.slice")
        #expect(configuration.interfaces == ["auto", "wg0"])
        #expect(configuration.exempt.map(\.description) == ["10.96.0.1", "fd00::/64"])
        #expect(!configuration.stamp.enabled)
        #expect(configuration.stamp.destinations == [])
        #expect(configuration.buckets == [0.1, 1])
        #expect(configuration.limits.maxSeries == 100)
        #expect(configuration.limits.maxDiscoveredServices == 0)
        #expect(configuration.breakers.maxOpenShare == 1)
        #expect(configuration.breakers.lease == second)
        #expect(configuration.services.map(\.name) == ["a", "b"])
        #expect(configuration.services.map(\.breaker) == [nil, nil])
        let policy = try breaker(
            """
            {"mode": "observe", "window": "1m", "minimumRequests": 1, "failureRate": 1, "consecutiveFailures": 0,
             "failureStatuses": ["4XX", 503, "500", 503], "slowCallDuration": "1.5s", "slowCallRate": 0.25,
             "openFor": "100ms", "maxOpenFor": "100ms",
             "probe": {"ratio": 0, "interval": "10ms", "successes": 1, "ramp": "0s"}, "established": "drain"}
            """)
        #expect(policy.mode == .observe)
        #expect(policy.window == 60 * second)
        #expect(policy.minimumRequests == 1)
        #expect(policy.failureRate == 1)
        #expect(policy.consecutiveFailures == 0)
        #expect(policy.slowCallDuration == 1_500_000_000)
        #expect(policy.slowCallRate == 0.25)
        #expect(policy.openFor == 100_000_000)
        #expect(policy.maxOpenFor == 100_000_000)
        #expect(policy.probe.ratio == 0)
        #expect(policy.probe.interval == 10_000_000)
        #expect(policy.probe.successes == 1)
        #expect(policy.probe.ramp == 0)
        #expect(policy.established == .drain)
        #expect(try breaker("{\"mode\": \"off\"}").mode == .off)
        #expect(
            try breaker("{\"consecutiveFailures\": null, \"slowCallDuration\": null}").consecutiveFailures
                == 0)
    }

    @Test func statuses() throws {
        let policy = try breaker("{\"failureStatuses\": [\"4xx\", 503, \"500\", 503]}")
        let set = policy.failureStatuses
        let inside = (0...1000).filter { set.contains(UInt16($0)) }
        #expect(inside == Array(400...499) + [500, 503])
        #expect(set.classMask == 1 << 4 | 1 << 5)
        let none = try breaker("{\"failureStatuses\": []}").failureStatuses
        #expect(none.classMask == 0)
        #expect(!none.contains(500))
        let serverErrors = Configuration.StatusSet.serverErrors
        #expect((0...1000).filter { serverErrors.contains(UInt16($0)) } == Array(500...599))
        #expect(!serverErrors.contains(65535))
    }

    @Test(
        arguments: [
            ("{\"openFor\": \"2m\"}", 120, 120), ("{\"maxOpenFor\": \"3s\"}", 3, 3),
            ("{\"maxOpenFor\": \"10s\"}", 5, 10),
            ("{\"openFor\": \"10s\"}", 10, 60), ("{\"openFor\": \"10s\", \"maxOpenFor\": \"10s\"}", 10, 10),
        ] as [(String, UInt64, UInt64)])
    func openTimesGiveWay(text: String, openFor: UInt64, maxOpenFor: UInt64) throws {
        let policy = try breaker(text)
        #expect(policy.openFor == openFor * second)
        #expect(policy.maxOpenFor == maxOpenFor * second)
    }
}

@Suite struct ConfigurationMistakeTests {
    private static let wrongDocuments: [(String, [String])] = [
        ("", ["config.json:1: (document): the document is empty"]),
        ("{\n\"listen\": 1,\n}", ["config.json:3: (document): a comma before \"}\"; remove it"]),
        ("{\n\"a\": 1,\n\"a\": 2}", ["config.json:3: (document): the key \"a\" is already on line 2"]),
        ("[]", ["config.json:1: (document): must be an object, not an array"]),
        ("\n\nnull", ["config.json:3: (document): must be an object, not null"]),
        (
            "{\n\"servces\": []}",
            ["config.json:2: servces: unknown key; did you mean \"services\"?"]
        ),
        (
            "{\"limits\": {\"x y\\n\": 1}}",
            [
                "config.json:1: limits.\"x y\\n\": unknown key; the keys here are maxSeries, maxDiscoveredServices"
            ]
        ),
        (
            "{\"listen\": \"localhost:80\",\n\"cgroup\": \"a/../b\",\n\"interfaces\": [\"auto\", \"a b\", \"auto\", 1]}",
            [
                "config.json:1: listen: \"localhost:80\" has no valid IP address before the port",
                "config.json:2: cgroup: must not have \"..\" in its path",
                "config.json:3: interfaces[1]: \"a b\" is not an interface's name, which has 1 to 15 bytes, no space and"
                    + " no \"/\"",
                "config.json:3: interfaces[2]: \"auto\" is listed twice",
                "config.json:3: interfaces[3]: must be an interface's name or \"auto\", not a number",
            ]
        ),
        (
            "{\"listen\": 9464}",
            ["config.json:1: listen: must be an address such as \"127.0.0.1:9464\", not a number"]
        ),
        (
            "{\"listen\": \"1.2.3.4:0\"}",
            ["config.json:1: listen: \"1.2.3.4:0\" needs a port from 1 to 65535"]
        ),
        ("{\"cgroup\": \"\"}", ["config.json:1: cgroup: must be \"auto\" or a path of 1 to 4000 bytes"]),
        ("{\"cgroup\": \"a\\u0000\"}", ["config.json:1: cgroup: must not have control characters"]),
        (
            "{\"exempt\": [\n\"10.0.0.1/8\",\ntrue]}",
            [
                "config.json:2: exempt[0]: \"10.0.0.1/8\" has bits set past the first 8; did you mean 10.0.0.0/8?",
                "config.json:3: exempt[1]: must be a network such as \"10.0.0.0/8\", not true",
            ]
        ),
        (
            "{\"stamp\": {\"enabled\": \"yes\", \"destinations\": {}}}",
            [
                "config.json:1: stamp.enabled: must be true or false, not a string",
                "config.json:1: stamp.destinations: must be an array of networks, not an object",
            ]
        ),
        (
            "{\"histogram\": {\"buckets\": [0, 0.1, 0.1, 0.05, \"1\", 2]}}",
            [
                "config.json:1: histogram.buckets[0]: must be more than 0, not 0",
                "config.json:1: histogram.buckets[2]: must be more than the bound before it, which is 0.1",
                "config.json:1: histogram.buckets[3]: must be more than the bound before it, which is 0.1",
                "config.json:1: histogram.buckets[4]: must be a number of seconds, not a string",
            ]
        ),
        (
            "{\"histogram\": {\"buckets\": []}}",
            ["config.json:1: histogram.buckets: must have at least one bound"]
        ),
        (
            "{\"histogram\": {\"buckets\": [\((1...65).map(String.init).joined(separator: ","))]}}",
            ["config.json:1: histogram.buckets: may have at most 64 bucket bounds in seconds, not 65"]
        ),
        (
            "{\"limits\": {\"maxSeries\": 99, \"maxDiscoveredServices\": 10001}}",
            [
                "config.json:1: limits.maxSeries: must be a whole number from 100 to 1000000, not 99",
                "config.json:1: limits.maxDiscoveredServices: must be a whole number from 0 to 10000, not 10001",
            ]
        ),
        (
            "{\"limits\": {\"maxSeries\": 100.5, \"maxDiscoveredServices\": null}}",
            [
                "config.json:1: limits.maxSeries: must be a whole number from 100 to 1000000, not 100.5",
                "config.json:1: limits.maxDiscoveredServices: must be a whole number from 0 to 10000, not null",
            ]
        ),
        (
            "{\"breakers\": {\"maxOpenShare\": 1.1, \"lease\": \"999ms\"}}",
            [
                "config.json:1: breakers.maxOpenShare: must be a number from 0 to 1, not 1.1",
                "config.json:1: breakers.lease: must be from 1s to 5m, not 999ms",
            ]
        ),
        ("{\"services\": {}}", ["config.json:1: services: must be an array of services, not an object"]),
        (
            "{\"services\": [\n{},\n3,\n{\"name\": \"\", \"endpoints\": []}]}",
            [
                "config.json:2: services[0].name: is missing",
                "config.json:2: services[0].endpoints: is missing",
                "config.json:3: services[1]: must be an object, not a number",
                "config.json:4: services[2].name: must have 1 to 200 bytes, not 0",
                "config.json:4: services[2].endpoints: must have at least one endpoint such as \"10.0.0.1:8443\"",
            ]
        ),
    ]

    @Test(arguments: wrongDocuments) func documents(text: String, expected: [String]) {
        #expect(mistakes(text) == expected)
    }

    private static let nameTable: [(String, String?)] = [
        ("payments", nil), ("zahlungen für müller", nil), (String(repeating: "x", count: 200), nil),
        ("a:b", nil),
        ("[x]:80", nil), ("*:x", nil), ("*:0", nil), ("other things", nil), ("10.0.0.5", nil),
        (String(repeating: "x", count: 201), "must have 1 to 200 bytes, not 201"),
        (String(repeating: "é", count: 101), "must have 1 to 200 bytes, not 202"),
        ("a\\nb", "must not have control characters"), ("a\\u007f", "must not have control characters"),
        ("a\\u0085", "must not have control characters"), ("a\\u2028", "must not have control characters"),
        ("other", "\"other\" stands for what lies past the discovery limit; choose another name"),
        ("*:8080", "\"*:8080\" is how discovered services are named; choose another name"),
        ("10.0.0.5:80", "\"10.0.0.5:80\" is how discovered services are named; choose another name"),
        ("[fd00::1]:80", "\"[fd00::1]:80\" is how discovered services are named; choose another name"),
    ]

    @Test(arguments: nameTable) func names(name: String, message: String?) {
        let found = mistakes("{\"services\": [{\"name\": \"\(name)\", \"endpoints\": [\"10.0.0.1:80\"]}]}")
        #expect(found == (message.map { ["config.json:1: services[0].name: \($0)"] } ?? []))
    }

    @Test func sharedNamesAndEndpoints() {
        let text = """
            {"services": [
              {"name": "a", "endpoints": ["10.0.0.1:80",
                                          "10.0.0.0/24:80"]},
              {"name": "a", "endpoints": ["10.0.0.1:81", "10.0.0.1:81"]},
              {"name": "b", "endpoints": ["10.0.0.1/32:80", "[::ffff:10.0.0.0/120]:80"]},
              {"endpoints": ["10.0.0.1:81", "10.0.0.1"]}
            ]}
            """
        #expect(
            mistakes(text) == [
                "config.json:4: services[1].name: \"a\" is already the service on line 2",
                "config.json:4: services[1].endpoints[1]: 10.0.0.1:81 is already on line 4",
                "config.json:5: services[2].endpoints[0]: 10.0.0.1:80 belongs to service \"a\" on line 2 already, and cannot"
                    + " belong to service \"b\" too",
                "config.json:5: services[2].endpoints[1]: 10.0.0.0/24:80 belongs to service \"a\" on line 3 already, and"
                    + " cannot belong to service \"b\" too",
                "config.json:6: services[3].name: is missing",
                "config.json:6: services[3].endpoints[0]: 10.0.0.1:81 belongs to service \"a\" on line 4 already, and cannot"
                    + " belong to the unnamed service too",
                "config.json:6: services[3].endpoints[1]: \"10.0.0.1\" has no port; write ADDRESS:PORT, such as 10.0.0.1:8443",
            ])
    }

    private static let duration = "write it like \"250ms\", \"10s\" or \"1m30s\""
    private static let wrongBreakers: [(String, String)] = [
        ("3", ": must be an object, not a number"),
        (
            "{\"mode\": \"enfroce\"}",
            ".mode: must be \"enforce\" or \"observe\" or \"off\", not \"enfroce\"; did you mean \"enforce\"?"
        ),
        ("{\"mode\": true}", ".mode: must be \"enforce\" or \"observe\" or \"off\", not true"),
        ("{\"established\": \"x\"}", ".established: must be \"reset\" or \"drain\", not \"x\""),
        ("{\"window\": 10}", ".window: must be a duration such as \"10s\", not a number"),
        ("{\"window\": \"10\"}", ".window: \"10\" needs a unit; \(duration)"),
        ("{\"window\": \"999ms\"}", ".window: must be from 1s to 10m, not 999ms"),
        ("{\"window\": \"11m\"}", ".window: must be from 1s to 10m, not 11m"),
        ("{\"minimumRequests\": 0}", ".minimumRequests: must be a whole number from 1 to 1000000, not 0"),
        ("{\"failureRate\": 0}", ".failureRate: must be a number above 0 and up to 1, not 0"),
        ("{\"failureRate\": -0.5}", ".failureRate: must be a number above 0 and up to 1, not -0.5"),
        ("{\"failureRate\": \"50%\"}", ".failureRate: must be a number above 0 and up to 1, not a string"),
        ("{\"slowCallRate\": 1.5}", ".slowCallRate: must be a number above 0 and up to 1, not 1.5"),
        ("{\"slowCallDuration\": \"0s\"}", ".slowCallDuration: must be from 1us to 1h, not 0s"),
        ("{\"slowCallDuration\": false}", ".slowCallDuration: must be a duration such as \"10s\", not false"),
        (
            "{\"consecutiveFailures\": -1}",
            ".consecutiveFailures: must be a whole number from 0 to 1000000, not -1"
        ),
        ("{\"openFor\": \"1ms\"}", ".openFor: must be from 10ms to 1h, not 1ms"),
        ("{\"maxOpenFor\": \"2h\"}", ".maxOpenFor: must be from 10ms to 1h, not 2h"),
        (
            "{\"openFor\": \"10s\", \"maxOpenFor\": \"5s\"}",
            ".openFor: must not be longer than maxOpenFor: 10s is more than 5s"
        ),
        ("{\"opneFor\": \"10s\"}", ".opneFor: unknown key; did you mean \"openFor\"?"),
        (
            "{\"failureStatuses\": \"5xx\"}",
            ".failureStatuses: must be an array of HTTP statuses, not a string"
        ),
        (
            "{\"failureStatuses\": [\"6xx\"]}",
            ".failureStatuses[0]: \"6xx\" is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\""
        ),
        (
            "{\"failureStatuses\": [\"5x\"]}",
            ".failureStatuses[0]: \"5x\" is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\""
        ),
        (
            "{\"failureStatuses\": [600]}",
            ".failureStatuses[0]: \"600\" is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\""
        ),
        (
            "{\"failureStatuses\": [199]}",
            ".failureStatuses[0]: \"199\" is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\""
        ),
        (
            "{\"failureStatuses\": [503.5]}",
            ".failureStatuses[0]: \"503.5\" is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\""
        ),
        (
            "{\"failureStatuses\": [null]}",
            ".failureStatuses[0]: must be an HTTP status such as 503 or \"5xx\", not null"
        ),
        ("{\"probe\": []}", ".probe: must be an object, not an array"),
        ("{\"probe\": {\"ratio\": 2}}", ".probe.ratio: must be a number from 0 to 1, not 2"),
        ("{\"probe\": {\"interval\": \"1ms\"}}", ".probe.interval: must be from 10ms to 1h, not 1ms"),
        ("{\"probe\": {\"successes\": 0}}", ".probe.successes: must be a whole number from 1 to 1000, not 0"),
        ("{\"probe\": {\"ramp\": \"61m\"}}", ".probe.ramp: must be from 0s to 1h, not 61m"),
        ("{\"probe\": {\"ration\": 1}}", ".probe.ration: unknown key; did you mean \"ratio\"?"),
    ]

    @Test(arguments: wrongBreakers) func breakers(text: String, message: String) {
        #expect(mistakes(document(breaker: text)) == ["config.json:1: services[0].breaker\(message)"])
    }

    @Test func allMistakesInTheOrderOfTheFile() {
        let text = """
            {"limits": {"maxSeries": 1},
             "services": [{"breaker": {"openFor": "x", "window":
                 "1ms"}, "name": 3}],
             "listen": "x"}
            """
        #expect(
            mistakes(text) == [
                "config.json:1: limits.maxSeries: must be a whole number from 100 to 1000000, not 1",
                "config.json:2: services[0].endpoints: is missing",
                "config.json:2: services[0].breaker.openFor: \"x\" is not a duration; \(Self.duration)",
                "config.json:3: services[0].name: must be a name, not a number",
                "config.json:3: services[0].breaker.window: must be from 1s to 10m, not 1ms",
                "config.json:4: listen: \"x\" has no port; write ADDRESS:PORT, such as 127.0.0.1:9464",
            ])
    }

    @Test func tooMany() {
        let service = "{\"name\": \"s\", \"endpoints\": [\"10.0.0.1:80\"]}"
        let services = Array(repeating: service, count: 20_001).joined(separator: ",")
        #expect(
            mistakes("{\"services\": [\(services)]}") == [
                "config.json:1: services: may have at most 20000 services, not 20001"
            ])
        let wrong = Array(repeating: "1", count: 1500).joined(separator: ",")
        let found = mistakes("{\"exempt\": [\(wrong)]}")
        #expect(found.count == 1001)
        #expect(found.last == "config.json:1: (document): has 500 more mistakes, which are not listed")
    }

    @Test func tooManyEndpoints() throws {
        let text = """
            {"services": [{"name": "a", "endpoints": ["10.0.0.1:80", "10.0.0.2:80"]},
                          {"name": "b", "endpoints": ["10.0.0.3:80"]}]}
            """
        let bytes = Array(text.utf8)
        #expect(throws: Never.self) { try Configuration.parse(bytes: bytes, file: "f", maximumEndpoints: 3) }
        let message = "may have at most 2 endpoints in all, not 3"
        let error = ConfigurationError(file: "f", line: 1, path: "services", message: message)
        #expect(throws: ConfigurationErrors(errors: [error])) {
            try Configuration.parse(bytes: bytes, file: "f", maximumEndpoints: 2)
        }
    }

    @Test func thousandsOfServices() throws {
        let services = (0..<2000).map { service in
            let endpoints = (0..<10).map { "\"10.\(service >> 8).\(service & 255).\($0):80\"" }
            return
                "{\"name\": \"s\(service)\", \"endpoints\": [\(endpoints.joined(separator: ","))], \"breaker\": {}}"
        }
        let configuration = try parse("{\"services\": [\(services.joined(separator: ",\n"))]}")
        #expect(configuration.services.count == 2000)
        #expect(configuration.services[1999].name == "s1999")
        #expect(configuration.services[1999].endpoints[9].description == "10.7.207.9:80")
    }
}
