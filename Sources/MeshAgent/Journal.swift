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

    /// Looks whether the next agent will find the file. If somebody has removed it, all is written anew.
    func look() {
        guard file?.isAtPath == false else { return }
        file = nil
        log.write(
            .warning, "the state was removed, and is written anew", ["file": .string(path)])
    }

    /// Writes what has changed, or all of it where the file is to be written anew.
    /// - Parameters:
    ///   - scope: What of it. Where that is what decisions have changed, the place up to which records are counted
    ///     stays that of the commit before.
    ///   - begin: Begins to save so much, and says how far the records of the ring buffer are counted by now, and
    ///     how far breakers have seen them.
    ///   - save: Adds some rows, and says whether there are more. It may go on deciding.
    func commit(
        _ scope: StateScope, at now: UInt64,
        begin: (StateScope) -> (counted: UInt64, decided: UInt64), save: (inout StateWriter) -> Bool
    ) {
        if let failure, now < failure.retryAt { return }
        if self.bytes > 2 * compactBytes + Journal.room { file = nil }
        let scope = file == nil ? .everything : scope
        var place = begin(scope)
        if scope == .decisions, let last { place.counted = last.counted }
        if var open = file.take() {
            do throws(SystemError) {
                try write(to: &open, place, isNeeded: place != (last?.counted, last?.decided), save)
                file = consume open
            } catch {
                // It may be the log itself that takes the room: back to its beginning, and write all of it anew.
                open.truncate(to: compactBytes)
                return commit(.everything, at: now, begin: begin, save: save)
            }
        } else {
            do throws(SystemError) {
                var fresh = try StateFile(replacing: path, with: StateLog.header(of: owner))
                try write(to: &fresh, place, isNeeded: true, save)
                try fresh.putInPlace()
                compactBytes = fresh.count
                file = consume fresh
            } catch {
                return failed(error, at: now)
            }
        }
        if failure != nil {
            failure = nil
            log.write(.info, "the state is kept again", ["file": .string(path)])
        }
    }

    /// Writes a commit, in parts if it is long; nothing if it has no rows and is not needed.
    private func write(
        to file: inout StateFile, _ place: (counted: UInt64, decided: UInt64), isNeeded: Bool,
        _ save: (inout StateWriter) -> Bool
    ) throws(SystemError) {
        writer.clear()
        while save(&writer) {
            if writer.wantsFlush { try flush(to: &file) }
        }
        if writer.isEmpty && !isNeeded { return }
        if writer.hasFlushed { try flush(to: &file) }
        let commit = StateCommit(
            sequence: (last?.sequence ?? 0) + 1, counted: place.counted, decided: place.decided)
        let length = writer.length
        try file.write(writer.finish(commit), beyond: 0)
        file.grow(by: length)
        last = commit
        commits += 1
    }

    private func flush(to file: inout StateFile) throws(SystemError) {
        let (bytes, offset) = writer.flush()
        try file.write(bytes, beyond: offset)
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
