// The doctor: what it finds around the kernel, on a machine that is made for each case.
import Foundation
import MeshCore
import Testing

@testable import BPFRuntime
@testable import MeshCTL

@Suite struct DoctorTests {
    private let scratch = Scratch()

    /// Examines a machine with a configuration file and whatever is at the control socket.
    private func checks(
        config: String, control: String? = nil, probe: @escaping (String?) -> [ProbeResult] = { _ in [] }
    ) throws -> [String: Check] {
        let path = scratch.path + "/config.json"
        try config.write(toFile: path, atomically: true, encoding: .utf8)
        let doctor = Doctor(
            config: path, control: control ?? scratch.path + "/none", isRoot: true, probe: probe)
        return Dictionary(uniqueKeysWithValues: doctor.examine().map { ($0.name, $0) })
    }

    /// A TCP listener on a free port of 127.0.0.1 that says one thing to everybody; ends with the process.
    private func listener(saying text: String) throws -> UInt16 {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let result = withUnsafeMutablePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, length) == 0 && listen(listener, 8) == 0
                    && getsockname(listener, $0, &length) == 0
            }
        }
        #expect(result)
        Foundation.Thread.detachNewThread {
            while true {
                let connection = accept(listener, nil, nil)
                guard connection >= 0 else { return }
                var bytes = [UInt8](repeating: 0, count: 1024)
                _ = read(connection, &bytes, bytes.count)
                _ = text.withCString { write(connection, $0, strlen($0)) }
                close(connection)
            }
        }
        return UInt16(bigEndian: name.sin_port)
    }

    @Test("A machine on which nothing runs yet")
    func fresh() throws {
        let port = try listener(saying: "")
        let checks = try checks(config: "{\"listen\":\"127.0.0.2:\(port)\"}")
        #expect(
            checks["config file"]
                == Check(
                    group: "configuration", name: "config file", ok: true, required: true,
                    detail: "\(scratch.path)/config.json: 0 services, 0 breakers", remedy: nil))
        #expect(
            checks["control socket"]
                == Check(
                    group: "agent", name: "control socket", ok: true, required: true,
                    detail: "\(scratch.path)/none is free: no agent runs there", remedy: nil))
        #expect(checks["metrics port"]?.ok == true)
        #expect(checks["metrics port"]?.detail == "127.0.0.2:\(port) is free")
    }

    @Test("A configuration that is wrong, and one that is not there")
    func configuration() throws {
        let wrong = try #require(try checks(config: "{\n  \"lisen\": 1\n}")["config file"])
        #expect(!wrong.ok && wrong.required)
        #expect(wrong.detail.hasPrefix("\(scratch.path)/config.json:2: lisen: "))
        #expect(
            wrong.remedy
                == "correct it; `mesh-agent check --config \(scratch.path)/config.json` lists every mistake")
        let missing = Doctor(
            config: scratch.path + "/nowhere.json", control: scratch.path + "/none", isRoot: true,
            probe: { _ in [] }
        ).examine()[0]
        #expect(
            !missing.ok
                && missing.detail == "cannot open \(scratch.path)/nowhere.json: no such file or directory")
    }

    @Test("The control socket: an agent, one that died, something else")
    func control() throws {
        let agent = TestServer { _ in .json(Fixture.status) }
        let alive = try checks(config: "{}", control: agent.path)["control socket"]
        #expect(alive?.ok == true)
        #expect(alive?.detail == "an agent answers at \(agent.path): version 0.1.0, pid 1234, up 3h13m")
        agent.stop()
        let stale = try checks(config: "{}", control: agent.path)["control socket"]
        #expect(stale?.ok == true)
        #expect(
            stale?.detail
                == "\(agent.path) was left behind by an agent that is gone; the next one takes it over")
        let other = TestServer { _ in Reply(raw: "hello\n") }
        defer { other.stop() }
        let foreign = try checks(config: "{}", control: other.path)["control socket"]
        #expect(foreign?.ok == false && foreign?.required == true)
        #expect(foreign?.detail.contains("does not answer as a mesh-agent does") == true)
    }

    @Test("What the agent that runs may do")
    func privileges() throws {
        for (answer, ok) in [(Fixture.status, true), (Fixture.troubledStatus, false)] {
            let agent = TestServer { _ in .json(answer) }
            defer { agent.stop() }
            let check = try #require(try checks(config: "{}", control: agent.path)["agent's privileges"])
            #expect(check.ok == ok && !check.required && (check.remedy == nil) == ok)
        }
        #expect(try checks(config: "{}")["agent's privileges"] == nil)
    }

    @Test("The metrics port: an agent's, or another program's")
    func port() throws {
        let agent = try listener(
            saying: "HTTP/1.1 200 OK\r\n\r\n# HELP mesh_agent_build_info x\nmesh_agent_build_info 1\n")
        let held = try checks(config: "{\"listen\":\"127.0.0.1:\(agent)\"}")["metrics port"]
        #expect(held?.ok == true && held?.detail == "127.0.0.1:\(agent) is held by a mesh-agent")
        let other = try listener(saying: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        let taken = try checks(config: "{\"listen\":\"127.0.0.1:\(other)\"}")["metrics port"]
        #expect(taken?.ok == false && taken?.detail == "127.0.0.1:\(other) is taken by another program")
        #expect(
            taken?.remedy
                == "stop it (`ss -ltnp 'sport = :\(other)'` names it), or choose another \"listen\"")
        let foreign = try checks(config: "{\"listen\":\"192.0.2.1:9464\"}")["metrics port"]
        #expect(foreign?.ok == false && foreign?.remedy == "choose an address that this machine has")
    }

    @Test("The kernel's results are passed on, for the cgroup that is configured")
    func kernel() throws {
        let result = ProbeResult(name: "tcx", ok: false, required: false, detail: "not there", remedy: "")
        let asked = Box()
        let found = try checks(config: "{\"cgroup\":\"/sys/fs/cgroup/x\"}") { cgroup in
            asked.value = cgroup
            return [result]
        }
        #expect(asked.value == "/sys/fs/cgroup/x")
        #expect(
            found["tcx"]
                == Check(
                    group: "kernel", name: "tcx", ok: false, required: false, detail: "not there", remedy: nil
                ))
    }

    @Test("As JSON: whether all is well, and each check")
    func json() throws {
        let value = try JSONValue.parse(Array(DoctorView.json(ViewTests.checks).utf8))
        #expect(value["ok"] == false && value["checks"]?.array?.count == 4)
        #expect(
            value["checks"]?[1] == [
                "group": "kernel", "name": "tcx", "ok": false, "required": false,
                "detail": "not there; clsact filters are used instead", "remedy": "kernel 6.6 has it",
            ])
        let optional = try JSONValue.parse(Array(DoctorView.json(Array(ViewTests.checks[...1])).utf8))
        #expect(optional["ok"] == true)
    }

    @Test("The whole command: its exit code is what the checks say")
    func command() throws {
        let path = scratch.path + "/config.json"
        try "{\"lisen\":1}".write(toFile: path, atomically: true, encoding: .utf8)
        let outcome = meshctl(["doctor", "--config", path, "--control", scratch.path + "/none"])
        #expect(outcome.code == 1 && outcome.errors == "")
        #expect(outcome.output.contains("✗ config file  \(path):1: lisen: "))
        #expect(outcome.output.contains("kernel\n  "))
    }
}

/// What a closure was given.
private final class Box {
    var value: String?
}
