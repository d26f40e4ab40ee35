// The canary: a connect() of the agent's own to an address that is nobody's, through a breaker that is always
// forced open. That it is refused proves the way from a decision in the map to the errno that a process sees.
import BPFRuntime
import CMeshABI
import CMeshSystem
import Glibc
import MeshCore
import MeshSystem

/// Tries connects that have to be refused.
final class Canary {
    /// A refused connect of one family.
    private final class Try {
        let hook: String
        let socket: FileDescriptor

        init(_ hook: String, _ socket: consuming FileDescriptor) {
            self.hook = hook
            self.socket = socket
        }
    }

    /// How long the override stands that refuses: longer than it takes until it is renewed, and no longer, so
    /// that a dead agent leaves nothing. In nanoseconds.
    private static let term: UInt64 = 15_000_000_000
    /// An address of this host's own.
    private static let address = UInt32(MESH_CANARY_ADDRESS)

    private let tries: [Try]

    /// Makes the sockets. Which programs run is decided by the cgroup that a socket was made in, so they are
    /// made in the one that the programs are attached to, and used from wherever the agent is.
    /// - Parameters:
    ///   - cgroup: Its directory.
    ///   - isInside: Whether the agent itself is in it, or in one below.
    init(cgroup: String, isInside: Bool) throws(SystemError) {
        var sockets: [Int32] = [-1, -1]
        let made = isInside ? mesh_own_sockets(&sockets) : mesh_sockets_of_cgroup(cgroup, &sockets)
        guard made == 0 else {
            let number = errno
            let reason =
                switch number {
                case EBUSY: "no process may be in it, only in those below"
                case ETIMEDOUT: "no process runs in it, for it is frozen, or hardly gets a CPU"
                default: SystemError.text(number)
                }
            throw SystemError(
                "make a socket in", "the cgroup \(cgroup)", errno: number, reason: reason,
                hint: number == EROFS ? "restart the agent, which can do so at its start" : nil)
        }
        tries = zip(["connect4", "connect6"], sockets).filter { $0.1 >= 0 }
            .map { Try($0.0, FileDescriptor(owning: $0.1)) }
    }

    /// Tries once for each family.
    /// - Parameters:
    ///   - refuse: Forces the canary's breaker open until that time.
    ///   - refused: How many of its connects the kernel side counts as rejected.
    /// - Returns: The hook that failed, and how; nil if all were refused.
    /// - Throws: If it could not be tried.
    func check(
        refuse: (UInt64) throws(SystemError) -> Void, refused: () throws(SystemError) -> UInt64
    ) throws(SystemError) -> (hook: String, fault: String)? {
        try refuse(MonotonicClock.now() + Canary.term)
        for one in tries {
            let before = try refused()
            let result = connect(one)
            let isCounted = try refused() != before
            if isCounted && result == ECONNREFUSED { continue }
            // Security modules come before the hooks.
            if !isCounted && (result == EACCES || result == EPERM) {
                throw SystemError("try", "a connect", errno: result, reason: "another policy forbids it")
            }
            return (
                one.hook,
                isCounted
                    ? "a connect that it refused went on all the same (\(SystemError.text(result))): "
                        + "another program takes back what it decides"
                    : "a connect that it had to refuse did not come to it"
            )
        }
        return nil
    }

    /// Tries to connect, and is back where it was, whatever comes of it.
    /// - Returns: The errno; 0 for none.
    private func connect(_ one: Try) -> Int32 {
        let result: Int32
        if one.hook == "connect4" {
            var place = sockaddr_in()
            place.sin_family = sa_family_t(AF_INET)
            place.sin_port = in_port_t(MESH_CANARY_PORT).bigEndian
            place.sin_addr.s_addr = Canary.address.bigEndian
            result = Canary.connect(one.socket.descriptor, &place)
        } else {
            var place = sockaddr_in6()
            place.sin6_family = sa_family_t(AF_INET6)
            place.sin6_port = in_port_t(MESH_CANARY_PORT).bigEndian
            withUnsafeMutableBytes(of: &place.sin6_addr) { bytes in
                bytes.storeBytes(of: UInt16.max, toByteOffset: 10, as: UInt16.self)
                bytes.storeBytes(of: Canary.address.bigEndian, toByteOffset: 12, as: UInt32.self)
            }
            result = Canary.connect(one.socket.descriptor, &place)
        }
        // It does not wait: what has no answer at once has been let through.
        if result != ECONNREFUSED {
            var nowhere = sockaddr_storage()
            nowhere.ss_family = sa_family_t(AF_UNSPEC)
            _ = Canary.connect(one.socket.descriptor, &nowhere)
        }
        return result
    }

    private static func connect<Address>(_ socket: Int32, _ address: inout Address) -> Int32 {
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(socket, $0, socklen_t(MemoryLayout<Address>.size))
            }
        }
        return result == 0 ? 0 : errno
    }
}
