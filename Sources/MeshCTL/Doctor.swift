// Looks at everything the agent will need, without an agent: what the kernel can do, the
// configuration, the control socket, the metrics port.

import BPFRuntime
import Glibc
import MeshCore
import MeshSystem

/// One thing that was looked at.
struct Check: Equatable {
    /// What it belongs to: `kernel`, `configuration`, `agent`.
    let group: String
    let name: String
    let ok: Bool
    /// Whether the agent cannot work without it.
    let required: Bool
    let detail: String
    /// What to do about it; nil where nothing is to be done.
    let remedy: String?
}

extension Run {
    /// `meshctl doctor`: 0 when nothing required is missing.
    func doctor() throws(Failure) -> Int32 {
        let doctor = Doctor(
            config: arguments["config"], control: client.path, isRoot: geteuid() == 0)
        let checks = doctor.examine()
        let isWell = checks.allSatisfy { $0.ok || !$0.required }
        try console.print(json ? [DoctorView.json(checks)] : DoctorView.lines(checks, on: console.page()))
        return isWell ? ExitCode.done : ExitCode.refused
    }
}

/// The views of `meshctl doctor`.
enum DoctorView {
    static func lines(_ checks: [Check], on page: Page) -> [String] {
        var lines: [String] = []
        var group = ""
        var width = 0
        for check in checks {
            if check.group != group {
                if !group.isEmpty { lines.append("") }
                group = check.group
                width = checks.filter { $0.group == group }.map(\.name.columns).max() ?? 0
                lines.append(page.paint(group, .bold))
            }
            let style: Style = check.ok ? .green : check.required ? .red : .yellow
            let mark = check.ok ? (page.ascii ? "ok" : "✓") : (page.ascii ? "NO" : "✗")
            let note = check.ok || check.required ? "" : " (optional)"
            let label = "  " + page.paint(mark, style) + " " + check.name.padded(to: width) + "  "
            let indent = 2 + mark.columns + 1 + width + 2
            for (index, line) in wrap(check.detail + note, indent, page).enumerated() {
                let start = index == 0 ? label : String(repeating: " ", count: indent)
                lines.append(line.isEmpty ? start.trimmedEnd : start + line)
            }
            if !check.ok, let remedy = check.remedy {
                let arrow = page.ascii ? "-> " : "→ "
                for (index, line) in wrap(remedy, indent + arrow.columns, page).enumerated() {
                    let start = String(repeating: " ", count: indent)
                    lines.append(start + (index == 0 ? arrow : "".padded(to: arrow.columns)) + line)
                }
            }
        }
        let missing = checks.count { !$0.ok && $0.required }
        let lesser = checks.count { !$0.ok && !$0.required }
        let verdict: String
        if missing > 0 {
            verdict = page.paint(
                Format.count(Double(missing), "requirement") + " missing: the agent cannot work", .red)
        } else if lesser > 0 {
            verdict = page.paint(
                "the agent can work, with \(Format.count(Double(lesser), "limitation"))", .yellow)
        } else {
            verdict = page.paint("the agent has all that it needs", .green)
        }
        return lines + ["", verdict]
    }

    static func json(_ checks: [Check]) -> String {
        let value: JSONValue = [
            "ok": .bool(checks.allSatisfy { $0.ok || !$0.required }),
            "checks": .array(
                checks.map { check in
                    [
                        "group": .string(check.group), "name": .string(check.name), "ok": .bool(check.ok),
                        "required": .bool(check.required), "detail": .string(check.detail),
                        "remedy": check.ok ? .null : check.remedy.map(JSONValue.string) ?? .null,
                    ]
                }),
        ]
        return value.serialized(pretty: true)
    }

    private static func wrap(_ text: String, _ indent: Int, _ page: Page) -> [String] {
        page.width.map { text.harmless.wrapped(to: max(20, $0 - indent)) } ?? [text.harmless]
    }
}

extension String {
    fileprivate var trimmedEnd: String {
        var result = self
        while result.last == " " { result.removeLast() }
        return result
    }
}

/// Makes the checks.
struct Doctor {
    /// The configuration that was named; nil: the usual place, where there need not be one.
    let config: String?
    let control: String
    let isRoot: Bool
    /// Looks at the kernel, given the cgroup2 directory that the agent will attach to (nil: the root).
    var probe: (String?) -> [ProbeResult] = KernelProbe.run(cgroup:)

    func examine() -> [Check] {
        let (file, configuration) = configurationCheck()
        let (agent, status) = controlCheck()
        return kernelChecks(configuration) + [file, agent] + privilegesChecks(status)
            + [portCheck(configuration.listen, agentAnswers: status != nil)]
    }

    // MARK: kernel

    private func kernelChecks(_ configuration: Configuration) -> [Check] {
        var cgroup = configuration.cgroup
        if let path = cgroup, !path.hasPrefix("/"), let root = try? Mount.cgroup2() {
            cgroup = "\(root)/\(path)"
        }
        return probe(cgroup).map { result in
            Check(
                group: "kernel", name: result.name, ok: result.ok, required: result.required,
                detail: result.detail, remedy: result.remedy.isEmpty ? nil : result.remedy)
        }
    }

    // MARK: configuration

    /// Whether the configuration can be read and is right; and it, or what holds without one.
    private func configurationCheck() -> (Check, Configuration) {
        let path = config ?? Catalog.defaultConfig
        let defaults = Configuration()
        func check(_ ok: Bool, _ detail: String, _ remedy: String? = nil) -> Check {
            Check(
                group: "configuration", name: "config file", ok: ok, required: true, detail: detail,
                remedy: remedy)
        }
        let bytes: [UInt8]
        do {
            bytes = try readFile(path, limit: JSONNode.maximumBytes)
        } catch {
            if error.errno == ENOENT, config == nil {
                let detail = "none at \(path): the agent observes the whole machine and breaks nothing"
                return (check(true, detail), defaults)
            }
            let remedy =
                error.errno == EACCES && !isRoot
                ? "run this as root, for example with sudo" : "make it readable"
            return (check(false, "\(error)", remedy), defaults)
        }
        do {
            let configuration = try Configuration.parse(bytes: bytes, file: path)
            let breakers = configuration.services.count { $0.breaker != nil }
            let detail =
                "\(path): \(Format.count(Double(configuration.services.count), "service")), "
                + Format.count(Double(breakers), "breaker")
            return (check(true, detail), configuration)
        } catch {
            let more = error.errors.count - 1
            let detail = (error.errors.first?.description ?? path) + (more > 0 ? " (and \(more) more)" : "")
            return (
                check(false, detail, "correct it; `mesh-agent check --config \(path)` lists every mistake"),
                defaults
            )
        }
    }

    // MARK: the agent

    /// What is at the control socket, and what the agent there says of itself.
    private func controlCheck() -> (Check, status: Status?) {
        func check(_ ok: Bool, required: Bool, _ detail: String, _ remedy: String? = nil) -> Check {
            Check(
                group: "agent", name: "control socket", ok: ok, required: required, detail: detail,
                remedy: remedy)
        }
        do {
            _ = try FileDescriptor(connectingTo: control, timeout: 1_000_000_000)
        } catch {
            switch error.errno {
            case ENOENT:
                return (check(true, required: true, "\(control) is free: no agent runs there"), nil)
            case ECONNREFUSED:
                let detail = "\(control) was left behind by an agent that is gone; the next one takes it over"
                return (check(true, required: true, detail), nil)
            case EACCES, EPERM:
                let detail = "\(control) is not for this user"
                return (
                    check(false, required: false, detail, "run this as root, for example with sudo"), nil
                )
            default:
                return (check(false, required: true, "\(error)", "choose another path with --control"), nil)
            }
        }
        do {
            let answer = try ControlClient(path: control).call("GET", "/v1/status")
            let status = try Status(Answer(answer))
            let detail =
                "an agent answers at \(control): version \(status.version), pid \(Format.plain(status.pid)), "
                + "up \(Format.age(status.uptime))"
            return (check(true, required: true, detail), status)
        } catch {
            let detail: String
            switch error {
            case .noAgent(let text), .noAgentRuns(let text), .refused(let text, _): detail = text
            default: detail = "something listens at \(control) that gives no status"
            }
            return (
                check(false, required: true, detail, "stop what listens there, or choose another --control"),
                nil
            )
        }
    }

    /// Whether the agent that runs has given up what it does not need.
    private func privilegesChecks(_ status: Status?) -> [Check] {
        guard let privileges = status?.privileges else { return [] }
        let remedy: String? =
            if privileges.refused > 0 {
                "see its log for the number of the call, and report it"
            } else if !privileges.filtered {
                "start it without --no-seccomp, on a kernel with CONFIG_SECCOMP_FILTER"
            } else {
                nil
            }
        return [
            Check(
                group: "agent", name: "agent's privileges", ok: remedy == nil, required: false,
                detail: StatusView.text(privileges), remedy: remedy)
        ]
    }

    /// Whether the metrics port is free, or taken by an agent.
    private func portCheck(_ listen: AddressPort, agentAnswers: Bool) -> Check {
        let place = "\(listen)"
        func check(_ ok: Bool, _ detail: String, _ remedy: String? = nil) -> Check {
            Check(
                group: "agent", name: "metrics port", ok: ok, required: true, detail: detail, remedy: remedy)
        }
        do {
            _ = try Listener.tcp(address: "\(listen.address)", port: listen.port, backlog: 1)
            let more = agentAnswers ? "; the agent that runs listens elsewhere" : ""
            return check(true, "\(place) is free\(more)")
        } catch {
            guard error.errno == EADDRINUSE else { return check(false, "\(error)", error.hint) }
            guard !MetricsProbe.isAgent(at: listen) else {
                return check(true, "\(place) is held by a mesh-agent")
            }
            return check(
                false, "\(place) is taken by another program",
                "stop it (`ss -ltnp 'sport = :\(listen.port)'` names it), or choose another \"listen\"")
        }
    }
}

/// Asks a TCP port whether an agent's metrics are behind it.
private enum MetricsProbe {
    static func isAgent(at place: AddressPort) -> Bool {
        guard let socket = connect(to: place) else { return false }
        socket.setTimeouts(receive: 2_000_000_000, send: 2_000_000_000)
        let request = Array("GET /metrics HTTP/1.1\r\nHost: \(place)\r\nConnection: close\r\n\r\n".utf8)
        guard case .bytes(request.count)? = try? request.withUnsafeBytes({ try socket.send($0) }) else {
            return false
        }
        var decoder = ResponseDecoder()
        var content: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 64 * 1024)
        // What is looked for may be anywhere in it, and agents with many series have much to say.
        while content.count < 16 << 20, !decoder.isComplete {
            guard case .bytes(let count)? = try? buffer.withUnsafeMutableBytes({ try socket.read(into: $0) }),
                (try? decoder.push(buffer.prefix(count))) != nil
            else { break }
            content += decoder.takeBody()
        }
        return String(decoding: content, as: UTF8.self).contains("mesh_agent_build_info")
    }

    /// A connection, unless it takes more than a second.
    private static func connect(to place: AddressPort) -> FileDescriptor? {
        let isIPv4 = place.address.isIPv4
        let made = socket(isIPv4 ? AF_INET : AF_INET6, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard made >= 0 else { return nil }
        let file = FileDescriptor(owning: made)
        // For connect(), the limit on sending is the one that counts.
        file.setTimeouts(receive: nil, send: 1_000_000_000)
        var v4 = sockaddr_in()
        var v6 = sockaddr_in6()
        let result: Int32
        if let ipv4 = place.address.ipv4 {
            v4.sin_family = sa_family_t(AF_INET)
            v4.sin_port = place.port.bigEndian
            v4.sin_addr.s_addr = ipv4.bigEndian
            result = withUnsafePointer(to: &v4) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(made, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        } else {
            v6.sin6_family = sa_family_t(AF_INET6)
            v6.sin6_port = place.port.bigEndian
            withUnsafeMutableBytes(of: &v6.sin6_addr) { target in
                withUnsafeBytes(of: place.address.bytes) { target.copyMemory(from: $0) }
            }
            result = withUnsafePointer(to: &v6) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(made, $0, socklen_t(MemoryLayout<sockaddr_in6>.size))
                }
            }
        }
        guard result == 0 else { return nil }
        return file
    }
}
