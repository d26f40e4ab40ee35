// Runs a check over the files of a corpus and what mutation makes of them. The inputs depend on SEED alone
// (1 unless the environment says otherwise), so that what failed fails again; INPUTS says how many there are.
// `make fuzz` takes a million each, `swift test` a few thousand.
import Foundation
import MeshCore
import Synchronization
import Testing

/// An invariant that did not hold.
struct Broken: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// Throws unless a condition holds. The input is in the report that comes of it.
func holds(_ condition: Bool, _ what: @autoclosure () -> String) throws {
    if !condition { throw Broken(what()) }
}

/// One corpus and what is made of it.
struct Fuzzer {
    private static let environment = ProcessInfo.processInfo.environment
    private static let seed = environment["SEED"].flatMap(UInt64.init) ?? 1
    /// Set where nothing else runs in this process, so that its memory can be looked at.
    private static let inputs = environment["INPUTS"].flatMap(Int.init)
    private static let directory = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    /// Inputs do not grow past this by splicing.
    private static let longestInput = 64 << 10
    /// An input that takes this many seconds hangs. No input takes a thousandth of it.
    private static let patience = 60
    /// How much resident memory may grow over a run. Tables that fill up to their limits do so in the first
    /// tenth, which does not count.
    private static let growth = 48 << 20

    let name: String
    private let corpus: [[UInt8]]
    private let words: [String]
    private let count: Int
    private let refuses: Bool

    /// A fuzzer over the files in `Corpus/NAME`.
    /// - Parameters:
    ///   - short: How many inputs there are unless INPUTS says.
    ///   - words: What mutation puts in, beside random bytes.
    ///   - refuses: Whether there are inputs that are not accepted.
    init(_ name: String, short: Int, words: [String], refuses: Bool = true) throws {
        self.name = name
        self.refuses = refuses
        self.words = words
        let place = Fuzzer.directory.appendingPathComponent("Corpus/\(name)")
        corpus = try FileManager.default.contentsOfDirectory(atPath: place.path).sorted().map {
            Array(try Data(contentsOf: place.appendingPathComponent($0)))
        }
        count = Fuzzer.inputs ?? short
        try #require(!corpus.isEmpty)
    }

    /// Runs `check` on every input: the corpus as it is, then mutations.
    /// - Parameter check: Throws `Broken` if an invariant does not hold; returns whether the input was one
    ///   that is accepted. Its generator is the input's own.
    func run(_ check: (_ input: [UInt8], _ random: inout SplitMix64) throws -> Bool) throws {
        let trace = Trace(name)
        let progress = Progress(name, seed: Fuzzer.seed, patience: Fuzzer.patience)
        defer { progress.end() }
        var accepted = 0
        var before = 0
        for index in 0..<count + corpus.count {
            progress.reached(index)
            var random = SplitMix64(seed: Fuzzer.seed &* 0xD129_0DDB_53C4_3E49 &+ UInt64(index))
            let input = index < corpus.count ? corpus[index] : mutation(&random)
            // A trap ends the process: then this file is the input.
            trace.write(input)
            do {
                if try check(input, &random) { accepted += 1 }
            } catch {
                Issue.record(
                    """
                    \(name): \(error); SEED=\(Fuzzer.seed), input \(index): \
                    \(String(decoding: input, as: UTF8.self).debugDescription), kept in \(trace.path). \
                    Mend it, and add it to Tests/FuzzTests/Corpus/\(name)
                    """)
                return
            }
            if index == count / 10 { before = residentBytes() }
        }
        trace.remove()
        // Otherwise only one side of the parser was exercised.
        #expect(accepted > count / 100, "\(name): \(accepted) of \(count) inputs were accepted")
        #expect(
            !refuses || accepted < count - count / 100,
            "\(name): \(accepted) of \(count) inputs were accepted")
        guard Fuzzer.inputs != nil else { return }
        let grown = residentBytes() - before
        #expect(grown < Fuzzer.growth, "\(name): resident memory grew by \(grown) bytes")
        print("\(name): \(count) inputs, \(accepted) accepted, resident memory \(grown / 1024) KiB larger")
    }

    private func mutation(_ random: inout SplitMix64) -> [UInt8] {
        var input = corpus[Int.random(in: 0..<corpus.count, using: &random)]
        if Int.random(in: 0..<4, using: &random) == 0 {
            input = random.spliced(input, corpus[Int.random(in: 0..<corpus.count, using: &random)])
        }
        return Array(random.mutated(input, words: words).prefix(Fuzzer.longestInput))
    }

    private func residentBytes() -> Int {
        let fields = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ")
        return fields.flatMap { Int($0[1]) }.map { $0 * Int(getpagesize()) } ?? 0
    }
}

/// A file that holds the input under way.
private final class Trace {
    let path: String
    private let file: Int32

    init(_ name: String) {
        path = NSTemporaryDirectory() + "/mesh-fuzz-\(name)-\(getpid())"
        file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0o600)
    }

    deinit { close(file) }

    func write(_ input: [UInt8]) {
        _ = pwrite(file, input, input.count, 0)
        ftruncate(file, off_t(input.count))
    }

    func remove() { unlink(path) }
}

/// Ends the process, with a word on why, when one input takes too long.
private final class Progress: Sendable {
    private let index = Atomic<Int>(0)
    private let isDone = Atomic<Bool>(false)

    init(_ name: String, seed: UInt64, patience: Int) {
        Thread.detachNewThread { [self] in
            var (last, since) = (-1, 0)
            while !isDone.load(ordering: .relaxed) {
                sleep(1)
                let now = index.load(ordering: .relaxed)
                (last, since) = now == last ? (last, since + 1) : (now, 0)
                if since < patience { continue }
                FileHandle.standardError.write(
                    Data("\(name): input \(now) takes more than \(patience) s; SEED=\(seed)\n".utf8))
                abort()
            }
        }
    }

    func reached(_ input: Int) { index.store(input, ordering: .relaxed) }
    func end() { isDone.store(true, ordering: .relaxed) }
}
