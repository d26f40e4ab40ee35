// Names of workloads, from paths as they are in the field.
import Testing

@testable import MeshCore

private let id = "3f1c9e0a7b52d846aa10ff23c4d5e6f7089a1b2c3d4e5f60718293a4b5c6d7e8"
private let other = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
private let uid = "8d7f1c2e-4b3a-4c5d-9e8f-0a1b2c3d4e5f"
private let uidUnderscored = "8d7f1c2e_4b3a_4c5d_9e8f_0a1b2c3d4e5f"
private let staticUID = "0123456789abcdef0123456789abcdef"

struct WorkloadNameTests {
    @Test(arguments: [
        // The root, and paths from outside a cgroup namespace.
        ("/", "root"), ("", "root"), ("/..", "root"), ("/../../system.slice/ssh.service", "ssh.service"),
        // systemd units.
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service (deleted)", "nginx.service"),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/init.scope", "init.scope"), ("/system.slice", "system.slice"),
        ("/system.slice/docker.service/buildkit/r1x", "docker.service"),
        ("/system.slice/systemd-udevd.service/udev", "systemd-udevd.service"),
        (
            "/system.slice/run-r0f1e2d3c4b5a69788796a5b4c3d2e1f0.scope",
            "run-r0f1e2d3c4b5a69788796a5b4c3d2e1f0.scope"
        ),
        (
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
            "systemd-nspawn@web.service"
        ),
        (
            "/system.slice/dbus-:1.2-org.freedesktop.problems@0.service",
            "dbus-:1.2-org.freedesktop.problems@0.service"
        ),
        // Users.
        ("/user.slice", "user.slice"), ("/user.slice/user-1000.slice", "user/1000"),
        ("/user.slice/user-1000.slice/session-3.scope", "user/1000"),
        ("/user.slice/user-0.slice/session-c17.scope", "user/0"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user/1000"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service",
            "user/1000/syncthing.service"
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-firefox-2345.scope",
            "user/1000/app-gnome-firefox-2345.scope"
        ),
        // Docker, podman, containerd, CRI-O, LXC.
        ("/system.slice/docker-\(id).scope", "docker/3f1c9e0a7b52"),
        ("/docker/\(id)", "docker/3f1c9e0a7b52"),
        ("/docker/\(id)/init.scope", "docker/3f1c9e0a7b52"),
        ("/system.slice/docker-\(id).scope/system.slice/nginx.service", "docker/3f1c9e0a7b52"),
        ("/system.slice/docker-\(id).scope/docker/\(other)", "docker/b0b1b2b3b4b5"),
        ("/machine.slice/libpod-\(id).scope", "podman/3f1c9e0a7b52"),
        ("/machine.slice/libpod-\(id).scope/container", "podman/3f1c9e0a7b52"),
        ("/machine.slice/libpod-conmon-\(id).scope", "podman-conmon/3f1c9e0a7b52"),
        ("/libpod_parent/libpod-\(id)", "podman/3f1c9e0a7b52"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-\(id).scope/container",
            "podman/3f1c9e0a7b52"
        ),
        ("/system.slice/nerdctl-\(id).scope", "containerd/3f1c9e0a7b52"),
        ("/system.slice/cri-containerd-\(id).scope", "containerd/3f1c9e0a7b52"),
        ("/system.slice/crio-\(id).scope", "crio/3f1c9e0a7b52"),
        ("/lxc.payload.web/system.slice/nginx.service", "lxc/web"), ("/lxc/web/init.scope", "lxc/web"),
        // Kubernetes, systemd driver.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\(uidUnderscored).slice/"
                + "cri-containerd-\(id).scope", "pod/\(uid)/3f1c9e0a7b52"
        ),
        (
            "/kubepods.slice/kubepods-pod\(uidUnderscored).slice/crio-\(id).scope/container",
            "pod/\(uid)/3f1c9e0a7b52"
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod\(uidUnderscored).slice/docker-\(id).scope",
            "pod/\(uid)/3f1c9e0a7b52"
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\(uidUnderscored).slice",
            "pod/\(uid)"
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\(staticUID).slice/cri-containerd-\(id).scope",
            "pod/\(staticUID)/3f1c9e0a7b52"
        ),
        ("/kubepods.slice/kubepods-burstable.slice", "kubepods-burstable.slice"),
        // In kind: a node that is a container.
        (
            "/system.slice/docker-\(other).scope/kubelet.slice/kubelet-kubepods.slice/"
                + "kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod\(uidUnderscored).slice/"
                + "cri-containerd-\(id).scope", "pod/\(uid)/3f1c9e0a7b52"
        ),
        ("/system.slice/docker-\(other).scope/system.slice/kubelet.service", "docker/b0b1b2b3b4b5"),
        // Kubernetes, cgroupfs driver.
        ("/kubepods/burstable/pod\(uid)/\(id)", "pod/\(uid)/3f1c9e0a7b52"),
        ("/kubepods/pod\(uid)/\(id)", "pod/\(uid)/3f1c9e0a7b52"),
        ("/kubepods/besteffort/pod\(staticUID)/\(id)", "pod/\(staticUID)/3f1c9e0a7b52"),
        ("/kubepods/besteffort/pod\(uid)/crio-\(id)", "pod/\(uid)/3f1c9e0a7b52"),
        ("/kubepods/burstable/pod\(uid)", "pod/\(uid)"), ("/kubepods", "kubepods"),
        // The drivers of kubelet and containerd at odds.
        (
            "/system.slice/containerd.service/kubepods-burstable-pod\(uidUnderscored).slice:cri-containerd:\(id)",
            "pod/\(uid)/3f1c9e0a7b52"
        ),
        ("/system.slice:docker:\(id)", "docker/3f1c9e0a7b52"),
        // What only looks like one of these.
        ("/mesh-test/client", "mesh-test/client"), ("/docker/notanid", "docker/notanid"),
        ("/system.slice/docker-0123.scope", "docker-0123.scope"), ("/kubepods/podcast", "kubepods/podcast"),
        ("//a///b/", "a/b"), ("/a:b:c", "a:b:c"), ("/größe", "größe"),
    ])
    func namesAreThoseOfPeople(path: String, name: String) {
        #expect(WorkloadName.name(cgroupPath: path) == name)
    }

    @Test func longPathsLoseTheirBeginning() {
        let path = "/" + String(repeating: "a", count: 500) + "/end"
        let name = WorkloadName.name(cgroupPath: path)
        #expect(name.utf8.count == 128 && name.hasPrefix("...aaa") && name.hasSuffix("a/end"))
        let exact = String(repeating: "b", count: 128)
        #expect(WorkloadName.name(cgroupPath: "/" + exact) == exact)
        // Never through the middle of a character.
        for padding in 0..<4 {
            let name = WorkloadName.name(
                cgroupPath: String(repeating: "🙂", count: 90) + String(repeating: "x", count: padding))
            #expect((125...128).contains(name.utf8.count))
            #expect(name.dropFirst(3).allSatisfy { $0 == "🙂" || $0 == "x" })
        }
    }

    @Test func hostilePathsAreOnlyNames() {
        var random = SplitMix64(seed: 5)
        let pieces = [
            "/", ":", "-", ".scope", ".slice", "pod", "user-", "..", id, uid, "a", "\n", "\"", "🙂", "lxc",
            " (deleted)",
        ]
        for _ in 0..<5_000 {
            let path = (0..<Int.random(in: 0...12, using: &random)).map { _ in
                pieces.randomElement(using: &random) ?? ""
            }
            let name = WorkloadName.name(cgroupPath: path.joined())
            #expect(!name.isEmpty && name.utf8.count <= 128)
        }
    }
}

struct WorkloadTableTests {
    @Test func cgroupsOfOneNameHaveOneIndex() {
        var table = WorkloadTable(limit: 3)
        #expect(table.index(ofCgroup: 10) == nil)
        #expect(table.add(cgroup: 10, path: "/system.slice/a.service") == 1)
        #expect(table.add(cgroup: 11, path: "/system.slice/a.service/sub") == 1)
        #expect(table.add(cgroup: 12, path: "/system.slice/b.service") == 2)
        #expect(table.add(cgroup: 13, path: "/system.slice/c.service") == 0, "past the limit")
        #expect(table.add(cgroup: 14, path: "/other") == 0, "the same name as other")
        #expect(table.names == ["other", "a.service", "b.service"])
        #expect(table.index(ofCgroup: 11) == 1)
        #expect(Set(table.cgroups) == [10, 11, 12, 13, 14])
        #expect(table.generation == 0)
    }

    @Test func whatIsLongGoneMakesRoom() {
        var table = WorkloadTable(limit: 3)
        var requests = SeriesTable(bounds: [], maxSeries: 10)
        var connections = ConnectionTable(bounds: [], maxSeries: 10)
        table.add(cgroup: 1, path: "/a")
        table.add(cgroup: 2, path: "/b")
        for workload: UInt32 in 1...2 {
            requests.record(
                SeriesKey(service: 1, workload: workload, role: .client), duration: 1, traceID: nil,
                wallTime: 0)
            connections.record(Sample(kind: .connect, role: .client, service: 1), workload: workload)
        }
        connections.record(Sample(kind: .close, role: .client, service: 1), workload: 1)
        func sweep(_ time: UInt64) {
            table.sweep(idleSince: time, requests: &requests, connections: &connections)
        }

        table.remove(cgroup: 1, at: 100)
        table.remove(cgroup: 2, at: 100)
        sweep(99)
        #expect(requests.count == 2 && connections.count == 2 && table.generation == 0)
        sweep(100)
        #expect(requests.count == 0)
        #expect(connections.count == 1 && connections.key(0).workload == 2, "its connection is still open")
        #expect(table.names == ["other", "", "b"] && table.generation == 1)
        // The index is used again; the name that stayed is found again.
        #expect(table.add(cgroup: 3, path: "/c") == 1)
        #expect(table.add(cgroup: 4, path: "/b") == 2)
        #expect(table.names == ["other", "c", "b"])
        connections.record(Sample(kind: .close, role: .client, service: 1), workload: 2)
        sweep(1_000)
        #expect(connections.count == 1 && table.names == ["other", "c", "b"])
        // `other` is never idle.
        table.add(cgroup: 5, path: "/d")
        table.remove(cgroup: 5, at: 100)
        sweep(1_000)
        #expect(table.names[0] == "other")
    }
}
