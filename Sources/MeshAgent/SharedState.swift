// What the server's thread may know of the engine without asking it: whether it is ready and alive.
import MeshCore
import MeshSystem
import Synchronization

/// What other threads tell the engine.
enum EngineMessage: Sendable {
    /// A question, and how to answer it on the engine's thread.
    case ask(HTTPExchange, @Sendable (Engine, HTTPExchange) -> HTTPReply)
    /// The renderer has nothing to do any more.
    case rendered
    /// The configuration was read again.
    case loaded(Result<Configuration, ConfigurationFailure>)
    /// What is attached, as the caretaker last saw it.
    case attached(AttachmentReport)
}

/// State that threads share with the engine.
final class SharedState: Sendable {
    /// Questions for the engine.
    let mailbox: Mailbox<EngineMessage>
    /// Where metrics are served.
    let listenAddress: String
    private let ready = Atomic(false)
    private let lastBeat = Atomic<UInt64>(0)

    /// An engine that does not beat for this long is stuck.
    private static let patience: UInt64 = 30_000_000_000

    init(listenAddress: String) throws(SystemError) {
        mailbox = try Mailbox()
        self.listenAddress = listenAddress
    }

    /// Whether the programs are attached and the configuration is in force.
    var isReady: Bool { ready.load(ordering: .acquiring) }
    func setReady(_ value: Bool) { ready.store(value, ordering: .releasing) }

    /// Whether the engine still turns.
    var isAlive: Bool {
        let beat = lastBeat.load(ordering: .relaxed)
        return beat == 0 || MonotonicClock.now() < beat + SharedState.patience
    }
    func beat(_ now: UInt64) { lastBeat.store(now, ordering: .relaxed) }
}
