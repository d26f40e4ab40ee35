// Names and numbers of services across reloads and discovery.
import MeshCore
import Testing

@testable import MeshAgent

private func service(_ name: String) -> Configuration.Service { .init(name: name, endpoints: []) }

@Test func configuredServicesKeepTheirNumbers() throws {
    var table = ServiceTable()
    let firstResult = table.configure([service("a"), service("b"), service("c")])
    let first = try #require(firstResult)
    #expect(first.ids == [1, 2, 3])
    #expect(first.removed == [])

    let secondResult = table.configure([service("c"), service("d"), service("a")])
    let second = try #require(secondResult)
    #expect(second.ids == [3, 4, 1])
    #expect(second.removed == [2])
    #expect(table.id(named: "b") == nil)
    #expect(table.name(2) == "b", "its series go on under its name")

    let thirdResult = table.configure([service("b")])
    let third = try #require(thirdResult)
    #expect(third.ids == [2], "a service that comes back is the same one")
    #expect(third.removed == [1, 3, 4])
    #expect(table.configuredCount == 1)
}

@Test func numbersAreNotGivenTwice() throws {
    var table = ServiceTable()
    let room = Int(ServiceTable.canary) - 1
    let all = table.configure((0..<room).map { service("s\($0)") })
    #expect(all?.ids.count == room)
    let refused = table.configure([service("one more")])
    #expect(refused == nil)
    // The refused configuration has changed nothing.
    #expect(table.id(named: "s0") == 1)
    #expect(table.configuredCount == room)
}

@Test func discoveredServicesAreNamedByWhatTheyAre() throws {
    var table = ServiceTable()
    let base = ServiceTable.firstDiscovered
    // The canary's is between them and the configured ones, and nobody's.
    #expect(ServiceTable.canary + 1 == base && !ServiceTable.isDiscovered(ServiceTable.canary))
    var others = ServiceTable()
    let isTaken = others.restore(id: ServiceTable.canary, name: "it", isConfigured: true, isActive: true)
    #expect(!isTaken)
    let v4 = try IPAddress("10.0.0.5"), v6 = try IPAddress("fd00::1"), none = IPAddress(high: 0, low: 0)
    let fresh = [
        table.discovered(id: base, role: .client, address: v4, port: 8080),
        table.discovered(id: base + 1, role: .client, address: v6, port: 8080),
        table.discovered(id: base + 2, role: .server, address: none, port: 8080),
        table.discovered(id: base, role: .client, address: v4, port: 8080),
    ]
    #expect(fresh == [true, true, true, false])
    #expect(
        [base, base + 1, base + 2].map { table.name($0) } == ["10.0.0.5:8080", "[fd00::1]:8080", "*:8080"])
    #expect(table.discoveredCount == 3)
    #expect(table.id(named: "*:8080") == base + 2)
    #expect(table.name(0) == "other")
}

@Test func aConfiguredServiceTakesADiscoveredName() throws {
    var table = ServiceTable()
    let base = ServiceTable.firstDiscovered
    _ = table.discovered(id: base, role: .client, address: try IPAddress("10.0.0.5"), port: 80)
    let configuredResult = table.configure([service("10.0.0.5:80")])
    let configured = try #require(configuredResult)
    #expect(configured.ids == [1])
    #expect(table.id(named: "10.0.0.5:80") == 1)
    #expect(table.name(base) == "10.0.0.5:80")
}
