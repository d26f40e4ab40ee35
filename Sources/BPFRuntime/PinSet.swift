// The maps and programs of an agent at work, held open so that their pins can be made anew: somebody may
// remove one, or unmount the file system that they are in. Links are looked after by those who attached them.
import CLibBPF
import Glibc
import MeshSystem

/// What an agent has pinned in `maps/`.
public final class PinSet {
    private let pins: PinDirectory
    /// Keeps others from working on the pins.
    private var lock: FileDescriptor
    private var items: [Item] = []

    private final class Item {
        /// Below the directory of the maps.
        let name: String
        let file: FileDescriptor

        init(_ name: String, duplicating descriptor: Int32) throws(SystemError) {
            self.name = name
            file = try FileDescriptor(duplicating: descriptor)
        }
    }

    /// A set with nothing in it yet.
    /// - Parameter lock: What `PinDirectory.lock()` gave.
    public init(_ pins: PinDirectory, lock: consuming FileDescriptor) {
        self.pins = pins
        self.lock = lock
    }

    /// Adds a map that is pinned.
    public func add(_ map: borrowing BPFMap) throws(SystemError) {
        items.append(try Item(PinDirectory.pin(of: map.name, in: "."), duplicating: map.descriptor))
    }

    /// Adds a program that is pinned.
    public func add(_ program: borrowing BPFProgram) throws(SystemError) {
        let name = "\(PinDirectory.programs(with: "."))/\(PinDirectory.pin(of: program))"
        items.append(try Item(name, duplicating: program.descriptor))
    }

    /// How many of the pins are not there any more.
    public var missing: Int { items.count { !exists("\(pins.mapDirectory)/\($0.name)") } }

    /// Pins what is not pinned any more.
    /// - Throws: If it cannot be, since there is no bpf file system, say; what could be pinned is.
    public func restore() throws(SystemError) {
        try pins.prepare(mayMount: false)
        if !isLocked { lock = try pins.lock() }
        // As at a start, a set is there as a whole or not at all.
        let isGone = !pins.hasMaps
        if isGone { try pins.makeSpare() }
        let directory = isGone ? pins.spareDirectory : pins.mapDirectory
        try PinDirectory.mark(PinDirectory.programs(with: directory))
        var failure: SystemError?
        for item in items where !exists("\(directory)/\(item.name)") {
            let result = bpf_obj_pin(item.file.descriptor, "\(directory)/\(item.name)")
            if result != 0 {
                failure = failure ?? SystemError("pin", "\(pins.mapDirectory)/\(item.name)", errno: -result)
            }
        }
        if let failure { throw failure }
        if isGone { try pins.putSpareInPlace() }
    }

    /// Whether what is locked is what is there now.
    private var isLocked: Bool {
        var (held, found) = (stat(), stat())
        return fstat(lock.descriptor, &held) == 0 && stat(pins.path, &found) == 0
            && held.st_dev == found.st_dev && held.st_ino == found.st_ino
    }
}
