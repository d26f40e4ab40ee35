// `meshctl cleanup`: removes what a killed agent, or one that was told to keep it, left in the kernel.

import BPFRuntime
import Glibc
import MeshCore
import MeshSystem

/// The places whose remains go.
struct Cleanup {
    /// An instance that was looked for.
    struct Place: Equatable {
        let pins: String
        /// What was there, each as an item of a list.
        let removed: [String]
    }

    /// Removes an instance's links, filters, maps, socket and state.
    /// - Throws: If its agent runs, or something could not be removed.
    static func remove(_ instance: Instance) throws(Failure) -> Place {
        do throws(SystemError) {
            let pins = PinDirectory(instance)
            // Two locks: the agent may have been told to pin elsewhere.
            guard exists(directory(of: instance.control)) else {
                return Place(pins: instance.pins, removed: try removePins(pins))
            }
            switch try FileLock.attempt(instance.lock, waiting: FileLock.patience) {
            case .held(let pid):
                throw SystemError(
                    "clean up", instance.control, errno: EBUSY,
                    reason: "its agent runs" + (pid.map { " (pid \($0))" } ?? ""), hint: stopFirst)
            case .taken(let lock):
                let removed = try removePins(pins) + removeFiles(instance)
                withExtendedLifetime(lock) {}
                return Place(pins: instance.pins, removed: removed)
            }
        } catch {
            throw .refused(advising(error).description)
        }
    }

    /// Removes those of every instance; all that run are left, and told of.
    static func removeAll() -> (places: [Place], failures: [SystemError]) {
        var places: [Place] = []
        var failures: [SystemError] = []
        for pins in PinDirectory.all {
            do throws(SystemError) {
                places.append(Place(pins: pins.path, removed: try removePins(pins)))
            } catch {
                failures.append(advising(error))
            }
        }
        return (places, failures)
    }

    private static let stopFirst = "stop the agent first"

    private static func advising(_ error: SystemError) -> SystemError {
        error.errno == EWOULDBLOCK ? error.advising(stopFirst) : error.advisingUser
    }

    private static func removePins(_ pins: PinDirectory) throws(SystemError) -> [String] {
        guard pins.isThere else { return [] }
        let lock = try pins.lock()
        let removed = try pins.removeAll()
        withExtendedLifetime(lock) {}
        return removed
    }

    private static func removeFiles(_ instance: Instance) -> [String] {
        let directory = directory(of: instance.control)
        let name = String(instance.control.dropFirst(directory.count + 1))
        return directoryNames(directory).filter { $0 == name || $0.hasPrefix(name + ".state") }.compactMap {
            let path = "\(directory)/\($0)"
            return unlink(path) == 0 ? "file \(path)" : nil
        }
    }
}

extension Run {
    /// `meshctl cleanup`.
    func cleanup() throws(Failure) {
        var places: [Cleanup.Place]
        var failures: [SystemError] = []
        if arguments.has("all") {
            guard arguments["control"] == nil, arguments["pins"] == nil else {
                throw usage("--all stands for every instance: --control and --pins do not go with it")
            }
            (places, failures) = Cleanup.removeAll()
        } else {
            places = [try Cleanup.remove(Instance(control: client.path, pins: arguments["pins"]))]
        }
        if json {
            let value: JSONValue = [
                "instances": .array(
                    places.map { place in
                        ["pins": .string(place.pins), "removed": .array(place.removed.map { .string($0) })]
                    })
            ]
            try console.print([value.serialized(pretty: true)])
        } else {
            places.removeAll { $0.removed.isEmpty }
            if places.isEmpty, failures.isEmpty { try console.print(["nothing is left to clean up"]) }
            for place in places {
                try console.print(["removed from \(place.pins):"] + place.removed.map { "  \($0)" })
            }
        }
        if let failure = failures.first { throw .refused(failure.description) }
    }
}
