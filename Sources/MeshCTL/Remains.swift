// What an agent that does not run has left: programs that go on, maps that say what they do, and its state. Here
// meshctl reads them in the agent's place, and forces breakers as the agent would, so that the next one takes over
// what was done. Both locks of the agent are held meanwhile, so that none starts.

import BPFRuntime
import CMeshABI
import Glibc
import MeshCore
import MeshMaps
import MeshSystem

/// What can be asked of an agent, and of what one has left.
enum Question: Equatable {
    case status
    case breakers
    case breaker(String)
    case force(String, BreakerOverride.Forced, reason: String, seconds: Double)
    case auto(String)

    /// The call of the control API that asks it.
    var call: (method: String, target: String, body: JSONValue?) {
        func path(_ name: String) -> String { "/v1/breakers/" + percentEncoded(name) }
        switch self {
        case .status: return ("GET", "/v1/status", nil)
        case .breakers: return ("GET", "/v1/breakers", nil)
        case .breaker(let name): return ("GET", path(name), nil)
        case .force(let name, let forced, let reason, let seconds):
            let body: JSONValue = ["reason": .string(reason), "for_seconds": .number(seconds)]
            return ("POST", "\(path(name))/\(forced.label)", body)
        case .auto(let name): return ("POST", path(name) + "/auto", [:])
        }
    }

    /// Whether it changes something.
    fileprivate var changes: Bool {
        switch self {
        case .force, .auto: true
        default: false
        }
    }
}

extension SystemError {
    /// The same, with what this user can do where something is not permitted.
    var advisingUser: SystemError {
        switch (errno, geteuid()) {
        case (EACCES, 0): advising("if you trust what is in it, make it root's with mode 0700")
        case (EPERM, 0): advising("`meshctl doctor` tells what root lacks here")
        case (EACCES, _), (EPERM, _): advising("run meshctl as root, for example with sudo")
        default: self
        }
    }
}

/// An instance without its agent.
struct Remains: ~Copyable {
    /// A longer file is no agent's state.
    private static let stateLimit = 256 << 20

    private let instance: Instance
    private let pins: PinDirectory
    private let fileLock: FileLock?
    private let pinLock: FileDescriptor
    /// The control map's value as it was found.
    private let facts: mesh_control
    private let control: MappedArray
    private var maps: BreakerMaps
    private var log: StateLog?
    /// Why the state is of no use; nil if it is.
    private var logError: String?
    private var breakers: BreakersAtRest
    /// When the agent last wrote its state: a sign of life. In nanoseconds since 1970.
    private let lastSeen: UInt64?

    /// Opens what an agent has left; nil if that is nothing.
    /// - Throws: If an agent has it that does not listen, if this user may not, or if it has another layout.
    static func open(_ instance: Instance) throws(Failure) -> Remains? {
        let pins = PinDirectory(instance)
        guard pins.hasMaps else { return nil }
        do throws(SystemError) {
            return try Remains(instance, pins)
        } catch {
            switch error.errno {
            case EACCES, EPERM:
                throw .noAgent("no agent runs, and what it left cannot be used: \(error.advisingUser)")
            case EBUSY, EWOULDBLOCK: throw .noAgent(error.description)
            default: throw .refused(error.description)
            }
        }
    }

    private init(_ instance: Instance, _ pins: PinDirectory) throws(SystemError) {
        // Two locks: the agent may have been told to pin elsewhere.
        let fileLock = try Remains.lock(instance)
        let pinLock = try pins.lock()
        let facts = try mesh_control.pinned(in: pins.mapDirectory)
        guard facts.abi_version == MESH_ABI_VERSION else {
            throw SystemError(
                "use", pins.mapDirectory, errno: EINVAL,
                reason: "these maps have layout \(facts.abi_version), and this meshctl knows layout "
                    + "\(MESH_ABI_VERSION)",
                hint: "use the meshctl of the agent that left them, or start an agent")
        }
        func map(_ name: String) throws(SystemError) -> BPFMap {
            try BPFMap.pinned(at: PinDirectory.pin(of: name, in: pins.mapDirectory), name: name)
        }
        let control = try map(PinDirectory.control).mapped()
        var maps = try BreakerMaps(breakers: map("breakers"), attempts: map("attempts"))
        let words = try maps.words(below: facts.next_service)
        let found = Remains.read(instance, facts, words)
        var status = stat()
        let isThere = lstat(instance.state, &status) == 0

        self.instance = instance
        self.pins = pins
        self.fileLock = fileLock
        self.pinLock = pinLock
        self.facts = facts
        self.control = control
        self.maps = maps
        log = found.log
        logError = found.error
        breakers = found.breakers
        lastSeen =
            isThere
            ? UInt64(status.st_mtim.tv_sec) * 1_000_000_000 + UInt64(status.st_mtim.tv_nsec) : nil
    }

    /// Nil if there is no directory for it: then there is no agent of that socket either.
    private static func lock(_ instance: Instance) throws(SystemError) -> FileLock? {
        guard exists(directory(of: instance.control)) else { return nil }
        switch try FileLock.attempt(instance.lock, waiting: FileLock.patience) {
        case .taken(let lock): return lock
        case .held(let pid):
            throw SystemError(
                "ask the agent at", instance.control, errno: EBUSY,
                reason: "it\(pid.map { " (pid \($0))" } ?? "") does not listen: it starts, ends or hangs",
                hint: "try again, and see its log")
        }
    }

    /// Reads the state, which says more of what the maps hold, or why it cannot.
    private static func read(
        _ instance: Instance, _ facts: mesh_control, _ words: [UInt32: BreakerKernelWord]
    ) -> (log: StateLog?, error: String?, breakers: BreakersAtRest) {
        var problem: String
        do throws(SystemError) {
            let bytes = try readFile(instance.state, limit: stateLimit)
            let text = try readText("/proc/sys/kernel/random/boot_id")
            guard let boot = StateOwner.Boot(text) else {
                throw SystemError("read", "the boot's ID", errno: EINVAL)
            }
            let owner = StateOwner(instance: facts.instance, layout: facts.abi_version, boot: boot)
            do throws(StateLogError) {
                let log = try StateLog(bytes, of: owner)
                let breakers = try BreakersAtRest(words: words, leaseUntil: facts.lease_until_ns, state: log)
                return (log, nil, breakers)
            } catch {
                problem = "\(instance.state): \(error.description)"
            }
        } catch {
            problem = error.description
        }
        // Without a state there is nothing to replay that could be wrong.
        let breakers = try! BreakersAtRest(words: words, leaseUntil: facts.lease_until_ns, state: nil)
        return (nil, problem, breakers)
    }

    // MARK: - Answers

    /// Answers as the agent would; a member `agent` that is null tells that none did.
    mutating func answer(_ question: Question) throws(Failure) -> JSONValue {
        do throws(Refusal) {
            switch question {
            case .status: return status()
            case .breakers:
                return [
                    "agent": .null,
                    "breakers": .array(breakers.services.map { .object(breaker($0)) }),
                ]
            case .breaker(let name):
                let id = try breakers.service(named: name)
                let history = breakers.history(of: id).map(\.json)
                return .object(breaker(id) + [("history", .array(history))])
            case .force(let name, let forced, let reason, let seconds):
                let wish = try OverrideWish(reason: reason, seconds: seconds)
                return try force(name, (forced, wish))
            case .auto(let name): return try force(name, nil)
            }
        } catch {
            throw .refused(error.text, suggestion: error.suggestion)
        }
    }

    /// What somebody who asked should know besides the answer.
    func warning(_ question: Question) -> String {
        let now = MonotonicClock.now()
        var text = "no agent runs at \(instance.control)"
        if let lastSeen {
            text +=
                ", the last sign of one is of \(Format.time(RFC3339.format(seconds: Int64(lastSeen / 1_000_000_000))))"
        }
        text +=
            now < facts.lease_until_ns
            ? ". Automatic breakers go on rejecting until its lease ends, in "
                + "\(Format.age(Double(facts.lease_until_ns - now) / 1e9))"
            : ". Its lease is over, so automatic breakers admit everything"
        text += "; overrides hold until they expire"
        if question.changes { text += ", and the next agent takes them over" }
        if let logError { text += ". Names and reasons are not known: \(logError)" }
        return text
    }

    private func breaker(_ id: UInt32) -> [(key: String, value: JSONValue)] {
        let now = MonotonicClock.now()
        var attempts = maps.attempts(id)
        (attempts.connect.admitted, attempts.request.admitted) = breakers.admitted(id)
        let fields = breakers.breaker(id, at: now).json(
            service: breakers.name(of: id), id: id, attempts: attempts,
            wallOffset: MonotonicClock.wallOffset())
        return [("agent", .null), ("rejects", .bool(breakers.rejects(id, at: now)))] + fields
    }

    private func status() -> JSONValue {
        let now = MonotonicClock.now()
        let wallOffset = MonotonicClock.wallOffset()
        let ids = breakers.services
        let states = ids.map { breakers.breaker($0, at: now) }
        let attached = pins.attached
        let cgroups = attached.compactMap { item -> (program: String, id: UInt64)? in
            guard case .cgroup(let id) = item.place else { return nil }
            return (item.program, id)
        }
        return [
            "agent": .null,
            "last_agent": [
                "pid": .integer(facts.agent_tgid), "seen_at": lastSeen.map { .time($0) } ?? .null,
            ],
            "kernel": .string(Kernel.release()), "abi_version": .integer(facts.abi_version),
            "hooks": .array(
                CgroupHook.all.map { hook in
                    let id = cgroups.first { $0.program == hook.program }?.id
                    return [
                        "name": .string(hook.name),
                        "where": .string(id.map { "cgroup \(Remains.name(ofCgroup: $0))" } ?? ""),
                        "attached": .bool(id != nil), "detail": "",
                    ]
                }),
            "interfaces": .array(interfaces(attached)),
            "pins": ["directory": .string(pins.path)],
            "lease": [
                "ends_at": .time(facts.lease_until_ns &+ wallOffset),
                "valid": .bool(now < facts.lease_until_ns),
            ],
            "services": [
                "configured": .integer(breakers.configured), "discovered": .integer(breakers.discovered),
            ],
            "breakers": .object(
                states.counts + [("rejecting", .integer(ids.count { breakers.rejects($0, at: now) }))]),
            "overrides": .array(
                zip(ids, states).compactMap { id, breaker in
                    guard let override = breaker.override,
                        case .object(let fields) = override.json(wallOffset: wallOffset)
                    else { return nil }
                    return .object([("service", .string(breakers.name(of: id)))] + fields)
                }),
            "state": ["path": .string(instance.state), "error": logError.map { .string($0) } ?? .null],
        ]
    }

    /// The interfaces on which rejected requests are reset, each once.
    private func interfaces(_ attached: [PinDirectory.Attached]) -> [JSONValue] {
        attached.compactMap { item in
            guard case .interface(let netns, let number) = item.place, item.program != "mesh_tc_ingress"
            else {
                return nil
            }
            let name = try? NetworkNamespace.inside(netns) { () throws(SystemError) in
                var name = [CChar](repeating: 0, count: Int(IF_NAMESIZE))
                return if_indextoname(UInt32(number), &name).map { String(cString: $0) }
            }
            let mode = item.program == "clsact" ? "clsact" : "tcx"
            return ["name": .string((name ?? nil) ?? "number \(number)"), "mode": .string(mode)]
        }
    }

    /// The path of the root; any other is told by its ID, as nothing but a search of all would find its path.
    private static func name(ofCgroup id: UInt64) -> String {
        var status = stat()
        if let root = try? Mount.cgroup2(), stat(root, &status) == 0, UInt64(status.st_ino) == id {
            return "/"
        }
        return "ID \(id)"
    }

    // MARK: - Forcing

    /// Forces a breaker, or ends that. It is in the state before the kernel knows, as with an agent: no override is
    /// without who and why.
    private mutating func force(
        _ name: String, _ wish: (BreakerOverride.Forced, OverrideWish)?
    ) throws(Refusal) -> JSONValue {
        guard let log else {
            throw Refusal(
                status: 503,
                text: "without an agent and its state nothing can be forced: \(logError ?? "there is none"). "
                    + "Start an agent, or end all that is enforced with `meshctl cleanup`")
        }
        let id = try breakers.service(named: name)
        let now = MonotonicClock.now()
        let actor = actorName(userName(ofUID: geteuid()), uid: geteuid(), pid: getpid())
        guard
            let forced = breakers.force(
                id, wish, actor: actor, at: now, wallOffset: MonotonicClock.wallOffset())
        else { return .object(breaker(id)) }
        do throws(SystemError) {
            var writer = StateWriter()
            for row in forced.rows { writer.append(row) }
            var file = try StateFile(extending: instance.state, to: log.end)
            try file.append(writer.finish(log.last.next))
        } catch {
            throw Refusal(status: 500, text: "\(error.description). Nothing was changed")
        }
        var enforcing = breakers.mayReject
        maps.write(forced.word, inPlaceOf: forced.before, service: id, enforcing: &enforcing, control)
        // As the next agent will find it.
        do throws(SystemError) {
            let words = try maps.words(below: facts.next_service)
            (self.log, logError, breakers) = Remains.read(instance, facts, words)
        } catch {
            throw Refusal(status: 500, text: error.description)
        }
        return .object(breaker(id))
    }
}
