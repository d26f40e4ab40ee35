// The thread of all that is attached: it attaches to interfaces as they come, lets go of those that went, and
// looks after everything. All of that may wait for locks that others hold while they make and remove
// interfaces, network namespaces and cgroups, tens of milliseconds at a time; decisions do not wait with it.
import Glibc
import MeshSystem
import Synchronization

/// The caretaker, as the engine sees it: it is sent requests, and what it found comes back into the engine's
/// mailbox.
final class Caretaker {
    private enum Request: Sendable {
        /// These interfaces are configured now.
        case follow([String])
        /// Somebody wants to know whether the agent is ready.
        case ask(HTTPExchange)
        /// Nothing more is wanted.
        case end
    }

    /// How often is looked whether all is attached as it was; and how old the last look may be when somebody
    /// asks whether the agent is ready.
    private static let intervals: (usual: UInt64, asked: UInt64) = (5_000_000_000, 1_000_000_000)

    private enum Token: UInt64 {
        case mailbox = 1
        case links
    }

    /// The thread's own, but for the mailbox and the flag.
    private final class Work: @unchecked Sendable {
        let mailbox: Mailbox<Request>
        /// So that a look under way ends early.
        let isEnding = Atomic(false)
        private let attachments: Attachments
        private let log: Log
        private let report: @Sendable (AttachmentReport) -> Void
        private var poller: Poller
        /// Something has changed that was not reported.
        private var hasNews = false

        init(
            _ attachments: Attachments, log: Log, report: @escaping @Sendable (AttachmentReport) -> Void
        ) throws(SystemError) {
            (self.attachments, self.log, self.report) = (attachments, log, report)
            mailbox = try Mailbox()
            poller = try Poller()
            try poller.add(mailbox.descriptor, token: Token.mailbox.rawValue, .readable)
            try poller.add(attachments.descriptor, token: Token.links.rawValue, .readable)
        }

        /// Turns until it is told to end; each turn does one thing that may take long.
        func run() {
            while !isEnding.load(ordering: .acquiring) {
                for request in mailbox.take() { handle(request) }
                attachments.readEvents(tellingOf: log)
                if MonotonicClock.now() >= attachments.lastLook + Caretaker.intervals.usual {
                    look()
                } else if let isNew = attachments.step(tellingOf: log) {
                    hasNews = hasNews || isNew
                } else {
                    if hasNews { tell() }
                    wait()
                }
            }
        }

        private func wait() {
            let now = MonotonicClock.now()
            let due = attachments.lastLook + Caretaker.intervals.usual
            do throws(SystemError) {
                _ = try poller.wait(timeout: due > now ? due - now : 0)
            } catch {
                log.write(
                    .error, "the thread that looks after what is attached cannot wait",
                    ["error": .string(error.description)])
                usleep(100_000)
            }
        }

        private func handle(_ request: Request) {
            switch request {
            case .follow(let names): attachments.follow(names)
            case .ask(let exchange):
                if MonotonicClock.now() >= attachments.lastLook + Caretaker.intervals.asked { look() }
                let reason = attachments.reason
                exchange.reply(
                    .respond(reason.map { .text("not ready: \($0)", status: 503) } ?? .text("ready")))
            case .end: break
            }
        }

        private func look() {
            attachments.look(tellingOf: log) { !isEnding.load(ordering: .acquiring) }
            tell()
        }

        private func tell() {
            hasNews = false
            report(attachments.report)
        }
    }

    private let work: Work
    private var thread: MeshSystem.Thread?

    /// Starts the thread, which has the attachments to itself until `end`.
    /// - Parameter report: Is called on it after each look, and when interfaces have come or gone.
    init(
        _ attachments: Attachments, log: Log, report: @escaping @Sendable (AttachmentReport) -> Void
    ) throws(SystemError) {
        let work = try Work(attachments, log: log, report: report)
        self.work = work
        thread = try MeshSystem.Thread.spawn(name: "caretaker") { work.run() }
    }

    /// Says which interfaces are configured now; `auto` is all.
    func follow(_ names: [String]) { work.mailbox.post(.follow(names)) }

    /// Answers whether what is to be enforced is, looked at now or a moment ago.
    func answer(_ exchange: HTTPExchange) { work.mailbox.post(.ask(exchange)) }

    /// Ends the thread, and waits for it: no longer than for one thing that it is doing. Again, does nothing.
    func end() {
        work.isEnding.store(true, ordering: .releasing)
        work.mailbox.post(.end)
        thread.take()?.join()
    }
}
