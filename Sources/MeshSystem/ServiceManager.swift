// What a service tells the service manager that started it: sd_notify(3), without its library.
import CMeshSystem
import Glibc

/// The service manager, if there is one and it wants to be told.
public enum ServiceManager {
    /// Something that a service may tell.
    public enum Message: String, Sendable {
        /// It serves.
        case ready = "READY=1"
        /// It is about to end.
        case stopping = "STOPPING=1"
        /// It is not stuck.
        case alive = "WATCHDOG=1"
    }

    /// Tells it, and never waits. Without a service manager that asked for it, this does nothing.
    public static func tell(_ message: Message) {
        guard let path = getenv("NOTIFY_SOCKET") else { return }
        if message == .alive && getenv("WATCHDOG_USEC") == nil { return }
        // Nobody can be told that the one who should be told cannot be reached; it acts on silence.
        _ = mesh_send_to(path, message.rawValue)
    }
}
