// All that the agent has attached: programs at the cgroup and on interfaces, and what is pinned. It follows
// the interfaces that come and go, and looks after everything. Much of that waits for locks of the kernel that
// others hold (rtnl, cgroup_mutex), so once all is attached it is left to a thread of its own: Caretaker.swift.
import BPFRuntime
import CMeshABI
import Glibc
import MeshCore
import MeshMaps
import MeshSystem

/// A hook and whether its program is attached, for `meshctl status`.
struct KernelHook: Sendable {
    let name: String
    let place: String
    let isAttached: Bool
    let detail: String
}

/// How a program sits on an interface.
enum InterfaceMode: String, Sendable {
    case tcx
    case clsact
}

/// What is attached, as last seen.
struct AttachmentReport: Sendable {
    /// The cgroup hooks.
    var hooks: [KernelHook] = []
    /// The interfaces that rejected requests can be reset on.
    var interfaces: [(name: String, mode: InterfaceMode)] = []
    /// Why something is not pinned; nil if all is.
    var pinError: SystemError?
    /// What was found missing of what enforces.
    var faults = FaultBook()
    /// Whether the last look found that the canary was refused.
    var isProven = false
    /// Why nothing is proven; nil if something is, or could be.
    var unprovenReason: SystemError?
}

/// The programs where they are attached. Used by the thread that makes it, then by the caretaker's alone, and
/// when that has ended by the first one again.
final class Attachments: @unchecked Sendable {
    typealias Programs = (
        cgroup: [(name: String, program: LoadedProgram)], ingress: LoadedProgram, egress: LoadedProgram
    )

    /// The cgroup as a path below the root of cgroup2, and in the file system.
    private let path: String
    private let directory: String
    private let programs: Programs
    /// Where the canary is refused, and where that is counted.
    private let breakers: BPFMap
    private let attempts: BPFMap
    private let pins: PinDirectory?
    /// The maps and programs that are pinned; nil if nothing could be.
    private let pinSet: PinSet?
    /// Why something is not pinned; nil if all is.
    private(set) var pinError: SystemError?
    /// The pins and marks that this agent wants, so that the others can go; nil once they went.
    private var wantedLinks: Set<String>? = []
    private let netns = NetworkNamespace.current
    private let filterHandle: UInt32
    private let forceClsact = getenv("MESH_AGENT_FORCE_CLSACT") != nil

    /// The cgroup that the programs are attached to, and why they are not, if that is so.
    private var cgroupID: UInt64 = 0
    private var cgroupTrouble: String?
    private var cgroupLinks: [Attachment] = []
    private var canary: Canary?
    /// Why there is no canary, and why it could not be tried; nil if there is one, and if it could.
    private var canaryError: SystemError?
    private var tryError: SystemError?
    private var unprovenReason: SystemError? { canaryError ?? tryError }
    /// As the log was told.
    private var toldUnproven: SystemError?
    private var isProven = false
    private var isCanaryKnownBroken = false

    private var links: LinkMonitor
    /// The names that are configured.
    private var wanted: [String] = []
    /// What happened to interfaces, and has not been acted on.
    private var pending: ArraySlice<LinkEvent> = []
    /// By their numbers.
    private var interfaces: [Int32: InterfaceAttachment] = [:]

    private var faults = FaultBook()
    /// When the last look began, in monotonic nanoseconds.
    private(set) var lastLook: UInt64 = 0

    /// Knows what to attach; nothing is, yet.
    /// - Parameters:
    ///   - cgroup: As a path below the root of cgroup2, and in the file system.
    ///   - pinError: Why nothing can be pinned; nil if it can.
    init(
        cgroup: (path: String, directory: String), programs: Programs, breakers: consuming BPFMap,
        attempts: consuming BPFMap, pins: PinDirectory?, pinSet: PinSet?, pinError: SystemError?,
        filterHandle: UInt32
    ) throws(SystemError) {
        (path, directory) = cgroup
        self.programs = programs
        self.breakers = breakers
        self.attempts = attempts
        (self.pins, self.pinSet, self.pinError, self.filterHandle) = (pins, pinSet, pinError, filterHandle)
        links = try LinkMonitor()
    }

    /// Readable while something happened to interfaces that `readEvents` has not taken in.
    var descriptor: Int32 { links.descriptor }

    // MARK: - Attaching

    /// Attaches the cgroup programs, in the place of an earlier agent's.
    func attachToCgroup() throws(SystemError) {
        let id = try Attachments.id(ofCgroup: directory)
        // Those of a cgroup that is gone.
        while let link = cgroupLinks.popLast() { link.remove() }
        for (index, hook) in programs.cgroup.enumerated() {
            cgroupLinks.append(
                try attach(hook.program, at: PinPlace(cgroup: id), target: id) {
                    [directory] program throws(SystemError) in
                    try BPFLink.cgroup(program, path: directory)
                })
            StartStep.reached(CgroupHook.all[index].program)
        }
        cgroupID = id
        do throws(SystemError) {
            canary = try Canary(cgroup: directory, isInside: isInside)
            canaryError = nil
        } catch {
            (canary, canaryError) = (nil, error)
        }
    }

    /// Whether the agent is in the cgroup that the programs are attached to.
    private var isInside: Bool {
        if path == "/" { return true }
        guard let text = try? readText("/proc/self/cgroup"),
            let line = text.split(separator: "\n").first(where: { $0.hasPrefix("0::") })
        else { return false }
        return "\(line.dropFirst(3))/".hasPrefix(path + "/")
    }

    private static func id(ofCgroup path: String) throws(SystemError) -> UInt64 {
        var status = stat()
        guard stat(path, &status) == 0 else { throw SystemError("look at", "the cgroup \(path)") }
        return UInt64(status.st_ino)
    }

    /// Puts a program in the place of an earlier agent's; where there is none, attaches it.
    private func attach(
        _ program: LoadedProgram, at place: PinPlace, target: UInt64, make: @escaping Attachment.Make
    ) throws(SystemError) -> Attachment {
        let pin = pins?.link(program.program.name, place)
        if let pin { wantedLinks?.insert(pin) }
        let made = try Attachment(program, target: target, pin: pin, make: make)
        pinError = pinError ?? made.pinError
        return made
    }

    /// Removes what an earlier agent attached and this one does not want: interfaces and cgroups that are
    /// gone, or not configured any more.
    /// - Returns: What could not be removed.
    func sweep() -> [SystemError] {
        guard let pins, let wanted = wantedLinks.take() else { return [] }
        var failures: [SystemError] = []
        pins.removeSpare()
        pins.removeOtherPrograms()
        for link in pins.links where !wanted.contains(link) {
            do throws(SystemError) { try pins.remove(link: link) } catch { failures.append(error) }
        }
        return failures
    }

    /// Detaches everything, what begins connections first, and removes the maps.
    func detach() {
        while let link = cgroupLinks.popLast() { link.remove() }
        for attachment in interfaces.values { attachment.remove() }
        interfaces = [:]
        _ = try? pins?.removeAll()
    }

    /// Leaves everything as it is for the next agent. What is not pinned ends with this one.
    func keep() {
        for attachment in interfaces.values where pins != nil { attachment.keep() }
    }

    /// Why the agent does not enforce what it should, as last seen; nil if it does.
    var reason: String? { faults.reason }

    /// What status and metrics say of it, as last seen.
    var report: AttachmentReport {
        var report = AttachmentReport()
        report.hooks = hooks
        report.interfaces = interfaces.values.filter { $0.trouble == nil }.map { ($0.link.name, $0.mode) }
            .sorted { $0.name < $1.name }
        report.pinError = pinError
        report.faults = faults
        report.isProven = isProven
        report.unprovenReason = unprovenReason
        return report
    }

    private var hooks: [KernelHook] {
        programs.cgroup.enumerated().map { index, hook in
            let isThere = index < cgroupLinks.count
            let trouble = cgroupTrouble ?? (isThere ? cgroupLinks[index].trouble : nil)
            return KernelHook(
                name: hook.name, place: "cgroup \(path)", isAttached: isThere && trouble == nil,
                detail: trouble ?? "")
        }
    }

    // MARK: - Looking after what is attached

    /// Looks whether everything is attached and pinned as it was, mends what is not, and tells of it.
    /// - Parameters:
    ///   - log: Is told what is new.
    ///   - goesOn: Is asked every now and then; if it says no, the look ends, and nothing comes of it.
    func look(tellingOf log: Log, while goesOn: () -> Bool = { true }) {
        lastLook = MonotonicClock.now()
        guard let found = check(tellingOf: log, while: goesOn) else { return }
        for news in faults.note(found) {
            switch news {
            case .repaired(let fault):
                tell(log, .warning, "something of what enforces was missing, and was repaired", fault)
            case .broken(let fault):
                tell(log, .error, "something of what enforces is missing, and cannot be repaired", fault)
            case .over(let fault):
                tell(log, .info, "what was missing of what enforces is missing no longer", fault)
            }
        }
        if let error = unprovenReason, error != toldUnproven {
            log.write(
                .info, "that connects are refused cannot be tried, and so is not proven",
                ["error": .string(error.description)])
        }
        toldUnproven = unprovenReason
    }

    private func tell(_ log: Log, _ level: LogLevel, _ message: String, _ fault: Fault) {
        log.write(
            level, message,
            [
                "part": .string(fault.part.rawValue), "what": .string(fault.what),
                "where": .string(fault.place), "fault": .string(fault.fault),
                "error": fault.error.map { .string($0.description) } ?? .null,
            ])
    }

    private func check(tellingOf log: Log, while goesOn: () -> Bool) -> [Fault]? {
        var faults = checkCgroup()
        // An interface that went is no fault.
        readEvents(tellingOf: log)
        for attachment in present {
            guard goesOn() else { return nil }
            guard let found = attachment.check() else { continue }
            faults.append(
                Fault(
                    part: .interface, what: attachment.mode.rawValue,
                    place: "interface \(attachment.link.name)", fault: found.fault, error: found.error))
        }
        if let fault = checkPins() { faults.append(fault) }
        if let fault = checkCanary() { faults.append(fault) }
        return faults
    }

    /// Those whose interface has not gone meanwhile.
    private var present: [InterfaceAttachment] {
        let gone = Set(
            pending.compactMap { event in
                if case .removed(let link) = event { link.index } else { nil }
            })
        return interfaces.values.filter { !gone.contains($0.link.index) }
    }

    /// Tries whether a connect is refused. If somebody else's program takes that back, the agent's are attached
    /// anew, once, to be the last to decide.
    private func checkCanary() -> Fault? {
        isProven = false
        tryError = nil
        // Hooks that are not attached are told of already.
        guard let canary, !hooks.contains(where: { !$0.isAttached }) else { return nil }
        func look() throws(SystemError) -> (hook: String, fault: String)? {
            // Its ID is far from those of services, and what is mapped counts as resident: so not by mapping.
            try canary.check { until throws(SystemError) in
                var breaker = mesh_breaker()
                breaker.mode = UInt8(MESH_MODE_ENFORCE.rawValue)
                breaker.override_state = UInt8(MESH_OVERRIDE_OPEN.rawValue)
                breaker.override_until_ns = until
                try breakers.update(ServiceTable.canary, breaker)
            } refused: { () throws(SystemError) in
                let tally = try attempts.lookup(ServiceTable.canary, as: mesh_attempts.self)
                return tally?.count.0.1 ?? 0
            }
        }
        func fault(_ found: (hook: String, fault: String), _ error: SystemError?) -> Fault {
            Fault(
                part: .canary, what: "canary", place: "\(found.hook) of cgroup \(path)",
                fault: found.fault, error: error)
        }
        do throws(SystemError) {
            guard let found = try look() else {
                isProven = true
                isCanaryKnownBroken = false
                return nil
            }
            let refusal = SystemError(
                "refuse", "connects", errno: EPERM, reason: "attaching anew did not help",
                hint: "see what else is attached to this cgroup and those above it: bpftool cgroup tree")
            if isCanaryKnownBroken { return fault(found, refusal) }
            for (hook, link) in zip(programs.cgroup, cgroupLinks) where hook.name.hasPrefix("connect") {
                do throws(SystemError) { try link.renew() } catch { return fault(found, error) }
            }
            isProven = try look() == nil
            isCanaryKnownBroken = !isProven
            return fault(found, isProven ? nil : refusal)
        } catch {
            tryError = error
            return nil
        }
    }

    private func checkCgroup() -> [Fault] {
        func fault(_ what: String, _ fault: String, _ error: SystemError?) -> Fault {
            Fault(part: .cgroup, what: what, place: "cgroup \(path)", fault: fault, error: error)
        }
        cgroupTrouble = nil
        do throws(SystemError) {
            // A cgroup of the same path is another one, if somebody removed it and made it anew.
            guard try Attachments.id(ofCgroup: directory) != cgroupID else {
                return zip(programs.cgroup, cgroupLinks).compactMap { hook, link in
                    return link.check().map { fault(hook.name, $0.fault, $0.error) }
                }
            }
            try attachToCgroup()
            return [fault("all hooks", "the cgroup was removed and made anew", nil)]
        } catch {
            cgroupTrouble = "the cgroup was removed; \(error.description)"
            return [fault("all hooks", "the cgroup was removed", error)]
        }
    }

    /// Where nothing could be pinned at the start, nothing is missed.
    private func checkPins() -> Fault? {
        guard let pins, let pinSet else { return nil }
        let there = present.filter { !$0.isGone }
        let missing =
            pinSet.missing + cgroupLinks.count(where: \.isPinMissing)
            + there.reduce(0) { $0 + $1.missingPins }
        pinError = nil
        if missing == 0 { return nil }
        do throws(SystemError) {
            try pinSet.restore()
            for link in cgroupLinks { try link.restorePin() }
            for attachment in there { try attachment.restorePins() }
        } catch { pinError = error }
        return Fault(
            part: .pin, what: "pins", place: pins.path, fault: "\(missing) are gone", error: pinError)
    }

    // MARK: - Following interfaces

    /// Attaches to the interfaces of these names, now and later; `auto` is all. What that takes is done by `step`.
    func follow(_ names: [String]) {
        wanted = names
        pending += links.links.map { .changed($0) }
    }

    /// Takes in which interfaces came, changed or went. What that takes is done by `step`.
    func readEvents(tellingOf log: Log) {
        do {
            pending += try links.events()
        } catch {
            log.write(.error, "cannot follow network interfaces", ["error": .string(error.description)])
        }
    }

    /// Does what one event takes.
    /// - Returns: Whether something has changed; nil if there was none.
    func step(tellingOf log: Log) -> Bool? {
        switch pending.popFirst() {
        case nil: return nil
        case .removed(let link):
            return remove(link, isGone: true, log, "interface left")
        case .added(let link), .changed(let link):
            // Many are gone, or renamed, before their turn comes: then that is told further on.
            guard links[link.index] == link else { return false }
            guard wanted.contains("auto") || wanted.contains(link.name) else {
                return remove(link, isGone: false, log, "detached from interface")
            }
            return attach(to: link, log)
        }
    }

    private func remove(_ link: Link, isGone: Bool, _ log: Log, _ message: String) -> Bool {
        guard let attachment = interfaces.removeValue(forKey: link.index) else { return false }
        if isGone { attachment.discard() } else { attachment.remove() }
        log.write(.info, message, ["interface": .string(link.name)])
        return true
    }

    private func attach(to link: Link, _ log: Log) -> Bool {
        if let present = interfaces[link.index] {
            present.link = link
            return true
        }
        do throws(SystemError) {
            interfaces[link.index] = try attach(to: link)
            log.write(.info, "attached to interface", ["interface": .string(link.name)])
            return true
        } catch {
            // It may be gone again already; its removal will be told.
            if error.errno != ENODEV {
                log.write(
                    .warning, "rejected requests cannot be reset on an interface",
                    ["interface": .string(link.name), "error": .string(error.description)])
            }
            return false
        }
    }

    private func attach(to link: Link) throws(SystemError) -> InterfaceAttachment {
        defer { StartStep.reached("interface-attached") }
        let place = PinPlace(netns: netns, interface: link.index)
        if !forceClsact {
            // Only the host's end of a pod's veth sees a local client's packets come in.
            let ways =
                link.kind == "veth"
                ? [(programs.egress, .egress), (programs.ingress, .ingress)]
                : [(programs.egress, TrafficDirection.egress)]
            var links: [Attachment] = []
            do {
                for (program, direction) in ways {
                    links.append(
                        try attach(program, at: place, target: UInt64(link.index)) {
                            program throws(SystemError) in
                            try BPFLink.tcx(program, interface: link.index, direction)
                        })
                }
                return InterfaceAttachment(link, links: links)
            } catch {
                // Half an attachment is none, and its pin would outlive the interface.
                for link in links { link.remove() }
                guard error.errno == EINVAL else { throw error }
            }
        }
        let marks = pins.map { [$0.filterMark(place), $0.qdiscMark(place)] } ?? []
        wantedLinks?.formUnion(marks)
        return try InterfaceAttachment(link, marks: marks) { [unowned self] owns throws(SystemError) in
            try filter(link, marks, owns: owns)
        }
    }

    /// Attaches with filters. The marks come before what they stand for, so that nothing is ever left without.
    private func filter(_ link: Link, _ marks: [String], owns: Bool) throws(SystemError) -> TCFilter {
        let isFirst = !marks.contains(where: exists)
        var mayOwn = owns
        if let mark = marks.first, let qdisc = marks.last {
            mayOwn = owns || exists(qdisc)
            do throws(SystemError) {
                try PinDirectory.mark(mark)
                let hasQdisc = try TCFilter.hasQdisc(interface: link.index)
                if !mayOwn && !hasQdisc {
                    try PinDirectory.mark(qdisc)
                    mayOwn = true
                }
            } catch { pinError = pinError ?? error }
            StartStep.reached("filter-marked")
        }
        do throws(SystemError) {
            var filter = try TCFilter(interface: link.index, handle: filterHandle, madeQdisc: mayOwn)
            try filter.attach(programs.egress.program, .egress)
            if link.kind == "veth" { try filter.attach(programs.ingress.program, .ingress) }
            StartStep.reached("filter-attached")
            return filter
        } catch {
            // Nothing is there for the marks to stand for; but an earlier agent's filters may be.
            if isFirst || error.errno == ENODEV { for mark in marks { rmdir(mark) } }
            throw error
        }
    }
}
