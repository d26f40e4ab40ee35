// What was found missing of what enforces, what became of it, and what is missing now. Pure bookkeeping, so
// that each fault is counted and told once, however often it is looked at.
import MeshCore
import MeshSystem

/// Something that was not as the agent left it.
struct Fault: Equatable {
    /// What the parts of the metric are.
    enum Part: String, CaseIterable {
        /// Programs at the cgroup.
        case cgroup
        /// Programs on an interface.
        case interface
        /// What outlives the agent.
        case pin
        /// What is enforced, tried out.
        case canary
    }

    let part: Part
    /// What is missing: `connect4`, `tcx`.
    let what: String
    /// Where: `cgroup /`, `interface eth0`.
    let place: String
    /// What was found, as a sentence about it.
    let fault: String
    /// Why it could not be mended; nil if it was.
    let error: SystemError?

    /// Whether it is about the same thing.
    func isSame(as other: Fault) -> Bool {
        part == other.part && what == other.what && place == other.place
    }

    /// All of it, for people.
    var sentence: String {
        "\(what) at \(place): \(fault)" + (error.map { "; \($0.description)" } ?? "")
    }
}

/// The faults of an agent's life.
struct FaultBook {
    /// What is to be told of a fault.
    enum News: Equatable {
        /// It was found, and mended.
        case repaired(Fault)
        /// It was found, and cannot be mended.
        case broken(Fault)
        /// What could not be mended is as it should be, by somebody else's doing, or is not there any more.
        case over(Fault)
    }

    /// Faults found, each once until it is over.
    private(set) var found = [UInt64](repeating: 0, count: Fault.Part.allCases.count)
    /// Faults that the agent mended.
    private(set) var repaired = [UInt64](repeating: 0, count: Fault.Part.allCases.count)
    /// What is missing now.
    private(set) var broken: [Fault] = []
    /// How often was looked.
    private(set) var checks: UInt64 = 0

    /// Takes in all that one check found.
    mutating func note(_ faults: [Fault]) -> [News] {
        checks += 1
        var news: [News] = []
        for fault in faults {
            let part = Fault.Part.allCases.firstIndex(of: fault.part)!
            let isKnown = broken.contains { $0.isSame(as: fault) }
            if !isKnown { found[part] += 1 }
            if fault.error == nil {
                repaired[part] += 1
                news.append(.repaired(fault))
            } else if !isKnown {
                news.append(.broken(fault))
            }
        }
        for fault in broken where !faults.contains(where: { $0.isSame(as: fault) }) {
            news.append(.over(fault))
        }
        broken = faults.filter { $0.error != nil }
        return news
    }

    /// Why the agent does not enforce what it should, as a sentence; nil if it does. What is not pinned is
    /// enforced all the same, for as long as the agent runs.
    var reason: String? { broken.first { $0.part != .pin }?.sentence }
}
