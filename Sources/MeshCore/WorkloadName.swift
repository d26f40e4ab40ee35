// Names a workload by the path of its cgroup, the way people name it: unit, container, pod.

/// Turns cgroup paths into workload names.
public enum WorkloadName {
    /// How many bytes a name has at most; what is longer loses its beginning.
    public static let maximumLength = 128

    /// The name of the workload in a cgroup.
    ///
    /// - A container in a pod: `pod/UID/CONTAINER`, the UID with dashes as the API server writes it, the
    ///   container's ID cut to 12 digits. A pod's own cgroup: `pod/UID`.
    /// - Any other container: its runtime and ID, `docker/0123456789ab`, `podman/…`, `containerd/…`, `crio/…`;
    ///   `lxc/NAME`.
    /// - A systemd unit: its name, `nginx.service`. A user's: `user/1000/NAME`, and all login sessions of
    ///   a user together `user/1000`.
    /// - The root: `root`. Anything else: the path without its first slash.
    ///
    /// The innermost container wins, and a container over units; of units the outermost, because what is
    /// below it is its own affair.
    ///
    /// - Parameter cgroupPath: The path below the mount of cgroup2, as in `/proc/PID/cgroup`.
    public static func name(cgroupPath: String) -> String {
        let path = cgroupPath.hasSuffix(" (deleted)") ? cgroupPath.dropLast(10) : cgroupPath[...]
        let parts = path.split(separator: "/").filter { $0 != ".." && $0 != "." }
        if parts.isEmpty { return "root" }
        let name = container(parts) ?? unit(parts) ?? parts.joined(separator: "/")
        return bounded(name)
    }

    private static func bounded(_ name: String) -> String {
        guard name.utf8.count > maximumLength else { return name }
        var length = 3
        let kept = name.unicodeScalars.reversed().prefix { scalar in
            length += UTF8.width(scalar)
            return length <= maximumLength
        }
        return "..." + String(name.unicodeScalars.suffix(kept.count))
    }

    // MARK: - Containers

    private static func container(_ parts: [Substring]) -> String? {
        for index in parts.indices.reversed() {
            let parents = parts[..<index]
            // containerd that was told the systemd way by someone who speaks cgroupfs: SLICE:RUNTIME:ID.
            let fields = parts[index].split(separator: ":")
            if fields.count == 3, let id = containerID(fields[2]) {
                return inPod(pod(parents + [fields[0]]), id) ?? runtime(fields[1]) + "/" + id
            }
            if parts[index].hasSuffix(".scope"), let (runtime, id) = scope(parts[index].dropLast(6)) {
                return inPod(pod(parents), id) ?? runtime + "/" + id
            }
            if let id = containerID(parts[index]) {
                let parent = parents.last ?? "container"
                return inPod(pod(parents), id) ?? runtime(parent) + "/" + id
            }
            if let (runtime, id) = scope(parts[index]) {
                return inPod(pod(parents), id) ?? runtime + "/" + id
            }
            for prefix in ["lxc.payload.", "lxc.monitor."] where parts[index].hasPrefix(prefix) {
                return "lxc/" + parts[index].dropFirst(prefix.count)
            }
            if parents.last == "lxc" { return "lxc/" + parts[index] }
            if let uid = podUID(parts[index]) { return "pod/" + uid }
        }
        return nil
    }

    private static func inPod(_ uid: String?, _ container: String) -> String? {
        uid.map { "pod/" + $0 + "/" + container }
    }

    /// `RUNTIME-ID`, as in the scopes that the runtimes make.
    private static func scope(_ name: Substring) -> (runtime: String, id: String)? {
        guard let dash = name.lastIndex(of: "-"), let id = containerID(name[name.index(after: dash)...])
        else { return nil }
        return (runtime(name[..<dash]), id)
    }

    private static func runtime(_ name: Substring) -> String {
        switch name {
        case "cri-containerd", "nerdctl": "containerd"
        case "libpod", "libpod_parent", "libpod-payload": "podman"
        case "libpod-conmon": "podman-conmon"
        default: String(name)
        }
    }

    /// The first 12 digits of a container's ID, which has 64, all hexadecimal.
    private static func containerID(_ text: Substring) -> String? {
        let digits = text.utf8
        guard digits.count == 64 && digits.allSatisfy(isHex) else { return nil }
        return String(text.prefix(12))
    }

    /// The innermost pod's UID among the parts.
    private static func pod(_ parts: ArraySlice<Substring>) -> String? {
        for part in parts.reversed() {
            if let uid = podUID(part) { return uid }
        }
        return nil
    }

    /// The UID in `podUID` or `kubepods…-podUID.slice`, where systemd's way has underscores for dashes. A
    /// static pod's UID has none.
    private static func podUID(_ part: Substring) -> String? {
        var text = part
        if text.hasSuffix(".slice") {
            text = text.dropLast(6)
            guard let pod = text.lastIndex(of: "-"), text.contains("kubepods") else { return nil }
            text = text[text.index(after: pod)...]
        }
        guard text.hasPrefix("pod") else { return nil }
        let uid = String(text.dropFirst(3).map { $0 == "_" ? "-" : $0 })
        let digits = uid.utf8.filter { $0 != UInt8(ascii: "-") }
        return digits.count == 32 && digits.allSatisfy(isHex) ? uid : nil
    }

    private static func isHex(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x46, 0x61...0x66: true
        default: false
        }
    }

    // MARK: - Units

    /// What systemd makes cgroups for, slices aside.
    private static let unitSuffixes = [".service", ".scope", ".socket", ".mount", ".swap"]

    private static func unit(_ parts: [Substring]) -> String? {
        let units = parts.filter { part in unitSuffixes.contains { part.hasSuffix($0) } }
        let userSlice = parts.first { $0.hasPrefix("user-") && $0.hasSuffix(".slice") }
        guard let userSlice else {
            return (units.first ?? parts.last { $0.hasSuffix(".slice") }).map(String.init)
        }
        let user = "user/" + userSlice.dropFirst(5).dropLast(6)
        // The sessions and the user's manager are the user.
        let own = units.first { !$0.hasPrefix("session-") && !$0.hasPrefix("user@") && $0 != "init.scope" }
        return own.map { user + "/" + $0 } ?? user
    }
}
