// Each fault is counted and told once, until it is mended or over.
import Glibc
import MeshSystem
import Testing

@testable import MeshAgent

@Suite struct FaultBookTests {
    private let error = SystemError("attach", "it", errno: EPERM)

    private func fault(
        _ part: Fault.Part = .cgroup, _ what: String = "connect4", _ error: SystemError? = nil
    ) -> Fault {
        Fault(part: part, what: what, place: "cgroup /", fault: "somebody detached it", error: error)
    }

    private func counts(_ book: FaultBook, _ part: Fault.Part) -> [UInt64] {
        let index = Fault.Part.allCases.firstIndex(of: part)!
        return [book.found[index], book.repaired[index]]
    }

    @Test func nothingIsWrong() {
        var book = FaultBook()
        #expect(book.note([]) == [])
        #expect(book.checks == 1 && book.reason == nil && book.broken == [])
    }

    @Test func mendedAtOnce() {
        var book = FaultBook()
        #expect(
            book.note([fault(), fault(.interface, "tcx")]) == [
                .repaired(fault()), .repaired(fault(.interface, "tcx")),
            ])
        #expect(counts(book, .cgroup) == [1, 1] && counts(book, .interface) == [1, 1])
        #expect(book.reason == nil && book.broken == [])
        // The same once more is another fault.
        #expect(book.note([fault()]) == [.repaired(fault())])
        #expect(counts(book, .cgroup) == [2, 2])
    }

    @Test func brokenUntilItIsMended() {
        var book = FaultBook()
        let broken = fault(.cgroup, "connect4", error)
        #expect(book.note([broken]) == [.broken(broken)])
        #expect(book.note([broken]) == [])
        #expect(book.broken == [broken] && counts(book, .cgroup) == [1, 0])
        #expect(book.reason == "connect4 at cgroup /: somebody detached it; \(error.description)")
        // Another one beside it is told.
        let other = fault(.cgroup, "connect6", error)
        #expect(book.note([broken, other]) == [.broken(other)])
        #expect(book.note([fault(), other]) == [.repaired(fault())])
        #expect(counts(book, .cgroup) == [2, 1] && book.broken == [other])
    }

    @Test func overByItself() {
        var book = FaultBook()
        let broken = fault(.interface, "clsact", error)
        _ = book.note([broken])
        #expect(book.note([]) == [.over(broken)])
        #expect(book.note([]) == [])
        #expect(counts(book, .interface) == [1, 0] && book.reason == nil)
        #expect(book.checks == 3)
    }

    @Test func pinsAreNoReason() {
        var book = FaultBook()
        _ = book.note([fault(.pin, "pins", error)])
        #expect(book.reason == nil && book.broken.count == 1)
        _ = book.note([fault(.pin, "pins", error), fault(.cgroup, "connect4", error)])
        #expect(book.reason?.hasPrefix("connect4 at cgroup /") == true)
    }
}
