// The form of the agent's state file: a header that says whose state it is, then commits, each of which
// holds with all of its rows or not at all. What the rows say is in StateRows.swift.

/// Whose state a file holds.
public struct StateOwner: Equatable, Sendable {
    /// The random number of the maps that the state belongs to.
    public var instance: UInt64
    /// The version of those maps' layout: positions are those of its ring buffer. A file may be of another.
    public var layout: UInt32
    /// The boot in which its times count: the bytes of /proc/sys/kernel/random/boot_id.
    public var boot: Boot

    /// An identity of a boot.
    public struct Boot: Equatable, Sendable {
        fileprivate let high: UInt64
        fileprivate let low: UInt64

        /// From the text of /proc/sys/kernel/random/boot_id: 32 hexadecimal digits with dashes among them.
        /// Nil if it is none.
        public init?(_ text: String) {
            guard let digits = TraceID(String(text.filter { $0 != "-" && $0 != "\n" })) else { return nil }
            (high, low) = (digits.high, digits.low)
        }
    }

    /// The owner of a state.
    public init(instance: UInt64, layout: UInt32, boot: Boot) {
        self.instance = instance
        self.layout = layout
        self.boot = boot
    }
}

/// Where a commit stands: in the log, and in the ring buffer.
public struct StateCommit: Equatable, Sendable {
    /// Goes up by one from commit to commit of a file.
    public var sequence: UInt64
    /// The ring buffer's position up to which records are counted in this state, in bytes.
    public var counted: UInt64
    /// The position up to which breakers have seen them; never less than `counted`.
    public var decided: UInt64

    /// The place of one that only adds rows.
    public var next: StateCommit {
        StateCommit(sequence: sequence &+ 1, counted: counted, decided: decided)
    }

    /// A commit's place.
    public init(sequence: UInt64, counted: UInt64, decided: UInt64) {
        self.sequence = sequence
        self.counted = counted
        self.decided = decided
    }
}

/// Why a state file is of no use.
public enum StateLogError: Error, Equatable, CustomStringConvertible {
    /// It was written by another version of the agent, which has another form.
    case version(UInt64)
    /// It belongs to other maps.
    case instance
    /// It is from before the machine was last started.
    case boot
    /// It is not what was written.
    case damaged(at: Int, what: String)

    /// The middle of a sentence: why.
    public var description: String {
        switch self {
        case .version(let version):
            "it has form \(version), and this agent reads form \(StateLog.version)"
        case .instance: "it belongs to other maps than those that are pinned"
        case .boot: "it is from before the machine was started"
        case .damaged(let offset, let what): "it is damaged at byte \(offset): \(what)"
        }
    }
}

/// A state file that was checked.
///
/// All of it is 64-bit words in the machine's own byte order, because it never leaves the machine. The header
/// is a magic number, the version, the instance, two words of the boot ID, the maps' layout, and the checksum of these. A commit
/// is the number of words of its rows, its sequence, the two positions, the checksum of the rows, the checksum
/// of these, and the rows. Rows are written before the head that makes a commit of them.
public struct StateLog: Sendable {
    /// The version of this form and of the rows' (StateRows.swift): another is not read.
    public static let version: UInt64 = 2

    /// The version of the layout of the maps that the positions are of.
    public let layout: UInt32
    /// The last commit that is complete.
    public let last: StateCommit
    /// How many bytes the header and the complete commits have. What follows is a commit whose writer was
    /// stopped in the middle.
    public let end: Int
    private let words: [UInt64]
    private let commits: [Range<Int>]

    static let headerWords = 7
    static let commitWords = 6
    static let commitBytes = commitWords * 8
    private static let magic: UInt64 = 0x0A31_4554_4154_534D  // "MSTATE1\n"

    /// Checks a file. A last commit that is not all there is left out: that is what a SIGKILL leaves.
    /// - Throws: What is wrong with it.
    public init(_ bytes: [UInt8], of owner: StateOwner) throws(StateLogError) {
        let count = bytes.count / 8
        let words = [UInt64](unsafeUninitializedCapacity: count) { words, initialized in
            UnsafeMutableRawBufferPointer(words).copyBytes(from: bytes.prefix(count * 8))
            initialized = count
        }
        guard count >= StateLog.headerWords else {
            throw .damaged(at: bytes.count, what: "it ends within its header")
        }
        guard words[0] == StateLog.magic, stateChecksum(words[..<6]) == words[6] else {
            throw .damaged(at: 0, what: "the header is not one")
        }
        guard words[1] == StateLog.version else { throw .version(words[1]) }
        guard words[3] == owner.boot.high, words[4] == owner.boot.low else { throw .boot }
        guard words[2] == owner.instance else { throw .instance }

        var commits: [Range<Int>] = []
        var last: StateCommit?
        var place = StateLog.headerWords
        while count - place >= StateLog.commitWords {
            let rows = place + StateLog.commitWords
            // The head is written after the rows, and this is its last word.
            if words[rows - 1] == 0 { break }
            guard stateChecksum(words[place..<rows - 1]) == words[rows - 1] else {
                throw .damaged(at: place * 8, what: "the head of a commit is not what was written")
            }
            let length = words[place]
            guard length <= UInt64(count - rows) else { break }
            let commit = StateCommit(
                sequence: words[place + 1], counted: words[place + 2], decided: words[place + 3])
            let end = rows + Int(length)
            guard stateChecksum(words[rows..<end]) == words[place + 4] else {
                throw .damaged(at: rows * 8, what: "the rows of a commit are not what was written")
            }
            guard last == nil || commit.sequence == last!.sequence &+ 1 else {
                throw .damaged(at: place * 8, what: "a commit is missing")
            }
            commits.append(rows..<end)
            last = commit
            place = end
        }
        guard let last else { throw .damaged(at: bytes.count, what: "it ends before its first commit does") }
        self.last = last
        layout = UInt32(truncatingIfNeeded: words[5])
        self.words = words
        self.commits = commits
        end = place * 8
    }

    /// Hands out the rows, oldest first: of several with one key, the last one holds.
    /// - Throws: What `body` throws, or that a row is none.
    public func replay(_ body: (StateRow) throws(StateLogError) -> Void) throws(StateLogError) {
        for commit in commits {
            var place = commit.lowerBound
            while place < commit.upperBound {
                let length = Int(words[place] >> 8)
                guard length < commit.upperBound - place,
                    let row = StateRow(
                        kind: UInt8(truncatingIfNeeded: words[place]),
                        words[(place + 1)..<(place + 1 + length)])
                else { throw .damaged(at: place * 8, what: "a row makes no sense") }
                do {
                    try body(row)
                } catch .damaged(_, let what) {
                    // Whoever reads rows does not know where they are.
                    throw .damaged(at: place * 8, what: what)
                }
                place += 1 + length
            }
        }
    }

    /// The bytes with which a file begins.
    public static func header(of owner: StateOwner) -> [UInt8] {
        var words = [magic, version, owner.instance, owner.boot.high, owner.boot.low, UInt64(owner.layout)]
        words.append(stateChecksum(words[...]))
        return words.withUnsafeBytes { Array($0) }
    }
}

/// The checksum of words that come in parts. Whatever changes within a single word changes it: each step is a
/// bijection.
struct StateChecksum {
    // Two at a time, because each step waits for the one before.
    private var first: UInt64 = 0x9E37_79B9_7F4A_7C15
    private var second: UInt64 = 0xC2B2_AE3D_27D4_EB4F
    private var count = 0

    /// Adds words.
    mutating func add(_ words: UnsafeBufferPointer<UInt64>) {
        var place = 0
        if count % 2 == 1 && !words.isEmpty {
            second = step(second, words[0])
            place = 1
        }
        while place + 1 < words.count {
            first = step(first, words[place])
            second = step(second, words[place + 1])
            place += 2
        }
        if place < words.count { first = step(first, words[place]) }
        count += words.count
    }

    /// That of all words so far.
    var value: UInt64 { step(step(first, second), UInt64(count)) }
}

func stateChecksum(_ words: UnsafeBufferPointer<UInt64>) -> UInt64 {
    var sum = StateChecksum()
    sum.add(words)
    return sum.value
}

func stateChecksum(_ words: ArraySlice<UInt64>) -> UInt64 {
    words.withUnsafeBufferPointer { stateChecksum($0) }
}

@inline(__always)
private func step(_ sum: UInt64, _ word: UInt64) -> UInt64 {
    let mixed = sum ^ word
    return (mixed << 29 | mixed >> 35) &* 0xD6E8_FEB8_6659_FD93
}
