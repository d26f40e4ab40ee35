// One instance of the agent and its places: the control socket by whose path it is known, the lock beside
// it, and the directory of its pins.
import MeshSystem

/// An instance of the agent. The agent and meshctl find the same places from the same control path.
public struct Instance: Equatable, Sendable {
    /// Where the control socket is unless told otherwise.
    public static let defaultControl = "/run/mesh-agent/control.sock"
    /// What all instances pin is below this.
    public static let root = "/sys/fs/bpf/mesh-agent"

    /// The control socket's absolute path.
    public let control: String
    /// The directory of its pins.
    public let pins: String

    /// The instance of a control path.
    /// - Parameter pins: The directory of its pins, where it is not the usual one.
    public init(control path: String, pins directory: String? = nil) {
        control = absolutePath(path)
        if let directory {
            pins = absolutePath(directory)
        } else if control == absolutePath(Instance.defaultControl) {
            pins = Instance.root
        } else {
            pins = "\(Instance.root)/\(Instance.name(control))"
        }
    }

    /// The file that a live agent, or whoever works in its place, holds locked.
    public var lock: String { control + ".lock" }

    /// The file of what the agent knows, for the next one.
    public var state: String { control + ".state" }

    /// The handle of its traffic control filters: an agent beside it has others.
    public var filterHandle: UInt32 { Instance.filterHandle(pins: pins) }

    static func filterHandle(pins: String) -> UInt32 {
        pins == root ? TCFilter.defaultHandle : hash(pins) | 1
    }

    /// A path as a name in the bpf file system, which keeps dots to itself. The hash tells those apart that
    /// would look the same.
    static func name(_ path: String) -> String {
        let digits = String(hash(path), radix: 16)
        let kept = path.utf8.map { byte -> UInt8 in
            switch byte {
            case 0x30...0x39, 0x41...0x5a, 0x61...0x7a, 0x2d: byte
            default: 0x5f
            }
        }
        return String(decoding: kept, as: UTF8.self) + "_" + String(repeating: "0", count: 8 - digits.count)
            + digits
    }

    /// FNV-1a, 32 bits.
    static func hash(_ text: String) -> UInt32 {
        text.utf8.reduce(0x811c_9dc5) { ($0 ^ UInt32($1)) &* 0x0100_0193 }
    }
}
