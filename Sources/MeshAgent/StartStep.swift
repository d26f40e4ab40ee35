// The steps of a start, at each of which a test can end the agent: what was enforced must be enforced then,
// and the next start must work.
import Glibc
import MeshMaps

/// The steps of a start by name, in their order. Not every start takes each of them.
enum StartStep {
    /// All of them. `MESH_AGENT_STOP_AT=list` prints them.
    static let names: [String] =
        [
            "locked", "listening", "maps-loaded", "maps-copied", "maps-marked", "maps-placed", "inherited",
            "restored",
            "breakers-written", "endpoints-written", "leased", "link-made", "filter-marked",
            "filter-attached",
            "interface-attached",
        ] + CgroupHook.all.map(\.program) + ["layout-changed", "swept", "ready"]

    private static let stopAt = getenv("MESH_AGENT_STOP_AT").map { String(cString: $0) }

    /// Whether the steps are to be printed, and nothing else done.
    static var isListWanted: Bool { stopAt == "list" }

    /// Ends the process, as SIGKILL does, if a test wants that at this step.
    static func reached(_ name: String) {
        guard let stopAt else { return }
        precondition(names.contains(name), "\(name) is one of the steps")
        if name == stopAt { raise(SIGKILL) }
    }
}
