// How other threads reach one that waits in a poller: messages in order, and a descriptor that
// becomes readable when there are any.
import Glibc
import MeshSystem
import Synchronization

/// A queue into a thread's poll loop.
final class Mailbox<Message: Sendable>: Sendable {
    private let waiting = Mutex<[Message]>([])
    private let wake: EventCounter

    init() throws(SystemError) {
        wake = try EventCounter()
    }

    /// Readable while messages wait.
    var descriptor: Int32 { wake.descriptor }

    /// Leaves a message. Any thread.
    /// - Parameter limit: With so many waiting already it is not left.
    /// - Returns: Whether it was left.
    @discardableResult
    func post(_ message: Message, limit: Int = .max) -> Bool {
        let before = waiting.withLock { messages in
            let count = messages.count
            if count < limit { messages.append(message) }
            return count
        }
        // Who takes one takes all, so the first one's signal is enough.
        if before == 0 { wake.signal() }
        return before < limit
    }

    /// Waits until there are messages, and takes them. For a thread that waits for nothing else.
    func wait() -> [Message] {
        var wanted = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while poll(&wanted, 1, -1) < 0 {}
        return take()
    }

    /// Takes all messages, oldest first. The owning thread.
    func take() -> [Message] {
        wake.drain()
        return waiting.withLock { messages in
            defer { messages = [] }
            return messages
        }
    }
}
