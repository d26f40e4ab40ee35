// The agent's state on its way to the next agent: a file of commits beside the control socket (MeshCore's
// StateLog), written anew when it has grown. An agent that cannot write it goes on without.
import Glibc
import MeshCore
import MeshSystem

/// Writes the state. Only the engine's thread uses it.
final class Journal {
    /// The file is written anew when it has twice as many bytes as it then had, and this many more.
    private static let room = 1 << 20
    /// How long to wait before the next try when it cannot be written, in nanoseconds.
    private static let patience: UInt64 = 1_000_000_000
    /// A file longer than this is not read: the most series there can be take 20 MiB.
    private static let readLimit = 256 << 20

    private let path: String
    private let owner: StateOwner
    private let log: Log
    /// Nil until all of the state has been written, and again when that has to be done.
    private var file: StateFile?
    private var writer = StateWriter()
    private var last: StateCommit?
    /// How many bytes the file had when it was written anew.
    private var compactBytes = 0
    /// Why it could not be written, and when to try again.
    private var failure: (error: SystemError, retryAt: UInt64)?

    /// How many commits there were.
    private(set) var commits: UInt64 = 0
    /// How often it could not be written.
    private(set) var failures: UInt64 = 0

    /// Why the state is not kept; nil if it is.
    var error: SystemError? { failure?.error }
    /// How many bytes the file has.
    var bytes: Int { file?.count ?? 0 }

    /// A journal at a path. Nothing is written before the first commit.
    init(path: String, owner: StateOwner, log: Log) {
        self.path = path
        self.owner = owner
        self.log = log
    }

    /// What an agent before this one left; nil if there is nothing. What is of no use is put aside.
    func read() -> StateLog? {
        let bytes: [UInt8]
        do {
            bytes = try readFile(path, limit: Journal.readLimit)
        } catch {
            if error.errno != ENOENT { putAside(error.reason) }
            return nil
        }
        do {
            return try StateLog(bytes, of: owner)
        } catch {
            putAside(error.description)
            return nil
        }
    }

    /// Keeps a file that is of no use from being overwritten, for whoever wants to know why.
    func putAside(_ why: String) {
        let aside = path + ".bad"
        let isMoved = rename(path, aside) == 0
        log.write(
            .warning, "the state of the agent before is of no use: counts begin with what waits",
            ["file": .string(isMoved ? aside : path), "reason": .string(why)])
    }

    /// The next commit is of all rows: some are there no more.
    func rewrite() { file = nil }

    /// Writes what has changed, or all of it where the file is to be written anew.
    /// - Parameters:
    ///   - counted: How far the records of the ring buffer are in it.
    ///   - decided: How far breakers have seen them.
    ///   - fill: Adds the rows.
    func commit(
        counted: UInt64, decided: UInt64, at now: UInt64, _ fill: (StateScope, inout StateWriter) -> Void
    ) {
        if let failure, now < failure.retryAt { return }
        if self.bytes > 2 * compactBytes + Journal.room { file = nil }
        let scope = file == nil ? StateScope.everything : .changes
        writer.clear()
        fill(scope, &writer)
        if let last, scope == .changes, writer.isEmpty, last.counted == counted, last.decided == decided {
            return
        }
        let commit = StateCommit(
            sequence: (last?.sequence ?? 0) + 1, counted: counted, decided: decided)
        let bytes = writer.finish(commit)
        do throws(SystemError) {
            if scope == .everything {
                file = try StateFile(replacing: path, with: StateLog.header(of: owner), bytes)
                compactBytes = self.bytes
            } else {
                try file?.append(bytes)
            }
        } catch {
            if scope == .everything { return failed(error, at: now) }
            // It may be the log itself that takes the room: back to its beginning, and write all of it anew.
            file?.truncate(to: compactBytes)
            file = nil
            return self.commit(counted: counted, decided: decided, at: now, fill)
        }
        last = commit
        commits += 1
        if failure != nil {
            failure = nil
            log.write(.info, "the state is kept again", ["file": .string(path)])
        }
    }

    private func failed(_ error: SystemError, at now: UInt64) {
        failures += 1
        if failure == nil {
            log.write(
                .error, "the state cannot be kept: if the agent is killed, the next one knows less",
                ["error": .string(error.description), "hint": "make room in the control socket's directory"])
        }
        failure = (error, now + Journal.patience)
        // The rows that changed are told by their tables once.
        file = nil
    }

    /// Removes the file, when nothing is to be taken over.
    func remove() {
        file = nil
        unlink(path)
    }
}
