// Programs at their places, and whether they are still there: others may detach them, put their own in
// their place, or remove the pins. Boxes, because collections cannot hold what is not copyable.
import BPFRuntime
import Glibc
import MeshSystem

/// A loaded program, as those who attach it share it.
final class LoadedProgram {
    let program: BPFProgram
    /// The number by which the kernel lists it.
    let id: UInt32

    init(_ program: consuming BPFProgram) throws(SystemError) {
        id = try program.id()
        self.program = program
    }
}

/// What was found wrong with something attached.
struct AttachmentFault {
    let fault: String
    /// Why it could not be mended; nil if it was.
    let error: SystemError?
}

/// A program that a link keeps at a cgroup or an interface.
final class Attachment {
    typealias Make = (borrowing BPFProgram) throws(SystemError) -> BPFLink

    private let program: LoadedProgram
    /// The cgroup's ID or the interface's number.
    private let target: UInt64
    private let make: Make
    private var link: BPFLink?
    /// Where the link is to be pinned; nil if it is not.
    let pin: String?
    /// Why it is not pinned there, as far as is known.
    private(set) var pinError: SystemError?
    /// What is wrong, as last seen; nil if nothing is.
    private(set) var trouble: String?

    /// Puts a program in the place of an earlier agent's; where there is none, attaches it.
    init(
        _ program: LoadedProgram, target: UInt64, pin: String?, make: @escaping Make
    ) throws(SystemError) {
        (self.program, self.target, self.make, self.pin) = (program, target, make, pin)
        if let pin, let link = try BPFLink.pinned(at: pin) {
            do {
                try link.update(program.program)
                self.link = consume link
                return
            } catch {
                // What it was attached to is gone, and something of the same number there.
                guard error.errno == ENOLINK else { throw error }
                link.remove()
            }
        }
        try attach()
    }

    private func attach() throws(SystemError) {
        var made = try make(program.program)
        StartStep.reached("link-made")
        if let pin {
            do throws(SystemError) {
                try made.pin(at: pin)
                pinError = nil
            } catch {
                pinError = error
            }
        }
        link = consume made
    }

    /// Detaches the program.
    func remove() {
        if let link = link.take() { link.remove() }
    }

    /// Lets go of it: what it was attached to is gone.
    func discard() {
        if let link = link.take() { link.discard() }
    }

    /// Attaches it anew, so that it runs after what others attached since.
    func renew() throws(SystemError) {
        remove()
        try attach()
    }

    /// Looks whether it is as it was, and mends it if not.
    func check() -> AttachmentFault? {
        guard let fault = fault() else {
            trouble = nil
            return nil
        }
        do throws(SystemError) {
            try mend()
            trouble = nil
            return AttachmentFault(fault: fault, error: nil)
        } catch {
            trouble = "\(fault); \(error.description)"
            return AttachmentFault(fault: fault, error: error)
        }
    }

    private func fault() -> String? {
        switch link {
        case .none: return "it is not attached"
        case .some(let link):
            guard let state = try? link.state(), state.target == target else {
                return "somebody detached it"
            }
            return state.program == program.id ? nil : "somebody put another program in its place"
        }
    }

    private func mend() throws(SystemError) {
        switch link {
        case .some(let link):
            if (try? link.update(program.program)) != nil { return }
        case .none: break
        }
        try renew()
    }

    /// Whether the pin is gone that is to be there: not if there is no link for it, as on an interface that has
    /// just gone.
    var isPinMissing: Bool {
        guard let pin else { return false }
        switch link {
        case .none: return false
        case .some: return !exists(pin)
        }
    }

    /// Pins it if it is not pinned any more.
    func restorePin() throws(SystemError) {
        guard let pin, !exists(pin) else { return }
        try link?.pin(at: pin)
        pinError = nil
    }
}

/// The agent's programs on an interface: links, or filters on a kernel without tcx.
final class InterfaceAttachment {
    /// Makes the filters; told whether the qdisc is the agent's own.
    typealias Make = (Bool) throws(SystemError) -> TCFilter

    /// As last told: it may have been renamed.
    var link: Link
    let mode: InterfaceMode
    private let links: [Attachment]
    private var filter: TCFilter?
    private let make: Make?
    /// The marks of the filter, to be removed after it.
    private let marks: [String]
    private var filterTrouble: String?
    /// The last check found that the interface has gone, of which it is not told yet. What could not be attached to
    /// it again has no pins.
    private(set) var isGone = false

    init(_ link: Link, links: [Attachment]) {
        self.link = link
        mode = .tcx
        self.links = links
        filter = nil
        make = nil
        marks = []
    }

    init(_ link: Link, marks: [String], make: @escaping Make) throws(SystemError) {
        self.link = link
        mode = .clsact
        links = []
        self.marks = marks
        self.make = make
        filter = try make(false)
    }

    func remove() {
        for link in links { link.remove() }
        filter = nil
        for mark in marks { rmdir(mark) }
    }

    /// Lets go of it: the interface is gone, and its filters with it.
    func discard() {
        for link in links { link.discard() }
        keep()
        remove()
    }

    /// From now on it stays when the agent ends.
    func keep() { filter?.isKept = true }

    /// What is wrong, as last seen; nil if nothing is.
    var trouble: String? { filterTrouble ?? links.compactMap(\.trouble).first }

    /// Why a link is not pinned, as far as is known.
    var pinError: SystemError? { links.compactMap(\.pinError).first }

    /// Looks whether all is as it was, and mends what is not.
    /// - Returns: Nil if all is, and if the interface is gone.
    func check() -> AttachmentFault? {
        let faults =
            links.compactMap { $0.check() } + (mode == .clsact ? [checkFilter()].compactMap { $0 } : [])
        // Its going will be told.
        isGone = faults.contains { $0.error?.errno == ENODEV }
        if isGone { return nil }
        return faults.first { $0.error != nil } ?? faults.first
    }

    private func checkFilter() -> AttachmentFault? {
        guard let fault = filterFault() else {
            filterTrouble = nil
            return nil
        }
        do throws(SystemError) {
            let made = try make!(ownsQdisc)
            // It is in the place of the one before, and must not go with it.
            filter?.isKept = true
            filter = consume made
            filterTrouble = nil
            return AttachmentFault(fault: fault, error: nil)
        } catch {
            filterTrouble = "\(fault); \(error.description)"
            return AttachmentFault(fault: fault, error: error)
        }
    }

    private func filterFault() -> String? {
        let missing: [TrafficDirection]
        do throws(SystemError) { missing = try filter?.missing() ?? [] } catch { return error.description }
        return missing.isEmpty
            ? nil
            : "somebody removed the \(missing.map(\.rawValue).sorted().joined(separator: " and ")) filter"
    }

    /// How many of its pins and marks are gone.
    var missingPins: Int {
        links.count(where: \.isPinMissing) + wantedMarks.count { !exists($0) }
    }

    /// Makes those anew.
    func restorePins() throws(SystemError) {
        for link in links { try link.restorePin() }
        for mark in wantedMarks { try PinDirectory.mark(mark) }
    }

    /// The first mark is for the filters, the second for a qdisc that is the agent's own.
    private var wantedMarks: ArraySlice<String> {
        ownsQdisc ? marks[...] : marks.prefix(1)
    }

    private var ownsQdisc: Bool { filter?.ownsQdisc ?? false }
}
