// The agent's own log: one line per event on standard error, as text or JSON. Requests are never
// logged, only what the agent does and decides.
import Glibc
import MeshCore
import MeshSystem
import Synchronization

/// How important a line is.
public enum LogLevel: Int, Sendable, CaseIterable, Comparable {
    /// For those who look for a fault in the agent.
    case debug
    /// What it does.
    case info
    /// What an operator should look at.
    case warning
    /// What does not work.
    case error

    /// As it is written in a line and on the command line.
    public var label: String {
        switch self {
        case .debug: "debug"
        case .info: "info"
        case .warning: "warning"
        case .error: "error"
        }
    }

    /// Orders by importance.
    public static func < (left: LogLevel, right: LogLevel) -> Bool { left.rawValue < right.rawValue }
}

/// Writes log lines. Each is one write(2), so that lines of several threads do not mix.
public struct Log: Sendable {
    /// What the writing thread gets.
    private enum Entry: Sendable {
        case line(MeshSystem.WallTime, LogLevel, String, [(key: String, value: JSONValue)])
        case event(MeshSystem.WallTime, BreakerEvent)
        case flush(Flush)
    }

    /// Told once everything before it is written.
    private final class Flush: Sendable {
        let done: EventCounter
        init(_ done: consuming EventCounter) { self.done = done }
    }

    /// A thread that writes, so that nobody else waits for a full pipe, or for JSON to be put together.
    private final class Writer: Sendable {
        let entries: Mailbox<Entry>
        /// Since the log last told of it.
        let dropped = Atomic<Int>(0)
        /// Ever.
        let lost = Atomic<UInt64>(0)
        /// More are dropped and counted: whoever reads the log has stopped.
        static let limit = 16_384

        init() throws(SystemError) { entries = try Mailbox() }

        func post(_ entry: Entry) {
            if !entries.post(entry, limit: Writer.limit) { drop() }
        }

        func drop() {
            dropped.add(1, ordering: .relaxed)
            lost.add(1, ordering: .relaxed)
        }
    }

    /// The two line formats.
    public enum Format: String, Sendable, CaseIterable {
        /// `2026-01-02T03:04:05.678Z info message key=value`
        case text
        /// One JSON object with `time`, `level`, `message` and the fields.
        case json
    }

    let format: Format
    let level: LogLevel
    /// Nil: who writes a line waits until it is written.
    private let writer: Writer?

    /// A log that drops what is less important than `level`.
    public init(format: Format, level: LogLevel) {
        self.format = format
        self.level = level
        writer = nil
    }

    private init(_ log: Log, writer: Writer) {
        format = log.format
        level = log.level
        self.writer = writer
    }

    /// The same log, written by a thread of its own from now on; it ends with the process.
    func onThread() throws(SystemError) -> Log {
        let writer = try Writer()
        _ = try MeshSystem.Thread.spawn(name: "log") { [self] in
            while true {
                for entry in writer.entries.wait() where !write(entry) { writer.drop() }
                let dropped = writer.dropped.exchange(0, ordering: .relaxed)
                let fields: [(key: String, value: JSONValue)] = [("lines", .integer(dropped))]
                if dropped > 0, !write(.line(.now(), .warning, Log.dropped, fields)) {
                    // Told when it can be.
                    writer.dropped.add(dropped, ordering: .relaxed)
                }
            }
        }
        return Log(self, writer: writer)
    }

    private static let dropped =
        "log lines were dropped: nobody read them in time, or they could not be written"

    /// How many lines were never written: nobody read them in time, or the disk is full.
    var linesDropped: UInt64 { writer?.lost.load(ordering: .relaxed) ?? 0 }

    /// Waits until what was logged so far is written, but not for ever: the reader may have stopped.
    func flush() {
        guard let writer, let counter = try? EventCounter() else { return }
        let flush = Flush(counter)
        guard writer.entries.post(.flush(flush)) else { return }
        var wanted = pollfd(fd: flush.done.descriptor, events: Int16(POLLIN), revents: 0)
        poll(&wanted, 1, 1000)
    }

    /// Writes one line.
    public func write(_ level: LogLevel, _ message: String, _ fields: KeyValuePairs<String, JSONValue> = [:])
    {
        write(level, message, fields.map { (key: $0.key, value: $0.value) })
    }

    private func write(_ level: LogLevel, _ message: String, _ fields: [(key: String, value: JSONValue)]) {
        guard level >= self.level else { return }
        submit(.line(.now(), level, message, fields))
    }

    private func submit(_ entry: Entry) {
        if let writer { writer.post(entry) } else { _ = write(entry) }
    }

    /// Returns whether it was written.
    private func write(_ entry: Entry) -> Bool {
        switch entry {
        case .line(let time, let level, let message, let fields): return write(time, level, message, fields)
        case .event(let time, let event): return write(time, event)
        case .flush(let flush):
            flush.done.signal()
            return true
        }
    }

    private func write(
        _ now: MeshSystem.WallTime, _ level: LogLevel, _ message: String,
        _ fields: [(key: String, value: JSONValue)]
    ) -> Bool {
        guard level >= self.level else { return true }
        let time = RFC3339.format(seconds: now.seconds, nanoseconds: now.nanoseconds)
        var line: [UInt8] = []
        switch format {
        case .json:
            var object: [(key: String, value: JSONValue)] = [
                ("time", .string(time)), ("level", .string(level.label)), ("message", .string(message)),
            ]
            object += fields
            JSONValue.object(object).append(to: &line)
        case .text:
            line += "\(time) \(level.label) ".utf8
            line += Log.singleLine(message).utf8
            for (key, value) in fields {
                line += " \(key)=".utf8
                if case .string(let text) = value, Log.isPlain(text) {
                    line += text.utf8
                } else {
                    value.append(to: &line)
                }
            }
        }
        line.append(UInt8(ascii: "\n"))
        return Log.emit(line)
    }

    /// Writes what happened to a breaker.
    func write(_ event: BreakerEvent) { submit(.event(.now(), event)) }

    private func write(_ time: MeshSystem.WallTime, _ event: BreakerEvent) -> Bool {
        var fields: [(key: String, value: JSONValue)] = [("service", .string(event.service))]
        if let from = event.from { fields.append(("from", .string(from.label))) }
        if let to = event.to { fields.append(("to", .string(to.label))) }
        fields += [("reason", .string(event.reason.rawValue)), ("actor", .string(event.actor))]
        if let text = event.text { fields.append(("text", .string(text))) }
        if let expiry = event.expiresAt { fields.append(("expires_at", .time(expiry))) }
        if event.isUntold { fields.append(("happened_at", .time(event.time))) }
        let isTrouble = event.to == .open || event.kind == .heldClosed
        let message =
            switch event.kind {
            case .transition: "breaker changed"
            case .override: "breaker overridden"
            case .overrideEnd: "override ended"
            case .reload: "breaker policy changed"
            case .heldClosed: "breaker held closed: too many are open"
            }
        return write(time, isTrouble ? .warning : .info, message, fields)
    }

    /// A line was cut off where the disk was full: the next one begins on a line of its own.
    private static let isTorn = Atomic(false)

    private static func emit(_ line: [UInt8]) -> Bool {
        let bytes = isTorn.load(ordering: .relaxed) ? [UInt8(ascii: "\n")] + line : line
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.write(STDERR_FILENO, $0.baseAddress, $0.count)
            }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { break }
            done += count
        }
        if done > 0 { isTorn.store(done < bytes.count, ordering: .relaxed) }
        return done == bytes.count
    }

    private static func isPlain(_ text: String) -> Bool {
        !text.isEmpty
            && text.utf8.allSatisfy {
                $0 > 0x20 && $0 < 0x7f && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "=")
            }
    }

    private static func singleLine(_ text: String) -> String {
        String(String.UnicodeScalarView(text.unicodeScalars.map { $0.value < 0x20 ? " " : $0 }))
    }
}
