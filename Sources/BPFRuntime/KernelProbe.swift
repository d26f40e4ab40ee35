// What this kernel can do, found out by trying: for `meshctl doctor`, and for one line of reason when the
// agent cannot start. Nothing is attached anywhere.
import CLibBPF
import Glibc
import MeshSystem

/// One thing that the agent needs or likes, and whether it is there.
public struct ProbeResult: Equatable, Sendable {
    /// What was looked at.
    public var name: String
    /// Whether it is there.
    public var ok: Bool
    /// Whether the agent cannot run without it.
    public var required: Bool
    /// What was found.
    public var detail: String
    /// What to do about it if it is not there; empty otherwise.
    public var remedy: String

    /// The result as one line for people.
    public var sentence: String { "\(name): \(detail)" + (remedy.isEmpty ? "" : "; \(remedy)") }
}

/// Looks at the running kernel.
public enum KernelProbe {
    /// Tries everything. Takes some tens of milliseconds.
    /// - Parameter cgroup: The cgroup2 directory that the agent will attach to; nil for the root.
    /// - Returns: The results, those on which others depend first. The agent can run if all that are
    ///   `required` are `ok`.
    public static func run(cgroup: String?) -> [ProbeResult] {
        LoadLog.start()
        // What the probes provoke libbpf to say is expected, and not for the next load error.
        defer { _ = LoadLog.take() }
        let privileges = checkPrivileges((try? Capabilities.effective()) ?? [])
        var results = [
            privileges, checkVersion(ofRelease: Kernel.release()), checkTypes(), checkCgroup(cgroup),
            checkJIT(), checkPins(),
        ]
        if privileges.ok {
            results += checkPrograms() + checkMaps() + checkHelpers() + [checkIterator(), checkTCX()]
        }
        return results
    }

    // MARK: Around eBPF

    /// What it takes to load, attach and read.
    private static let needed: Capabilities = [.bpf, .netAdmin, .perfmon]
    /// What CAP_SYS_ADMIN stands for, as it did before they were split from it.
    private static let split: Capabilities = [.bpf, .perfmon]

    /// Of the capabilities that a process holds, those that an agent has a use for: what it needs, and
    /// `CAP_SYS_NICE` for decisions in time.
    public static func wanted(of held: Capabilities) -> Capabilities {
        let wanted: Capabilities = [needed, .sysNice]
        return held.intersection(held.isSuperset(of: split) ? wanted : wanted.union(.sysAdmin))
    }

    static func checkPrivileges(_ held: Capabilities) -> ProbeResult {
        let missing = needed.subtracting(held.contains(.sysAdmin) ? held.union(split) : held)
        return ProbeResult(
            name: "privileges", ok: missing.isEmpty, required: true,
            detail: missing.isEmpty
                ? "the capabilities needed are there" : "missing " + missing.names.joined(separator: ", "),
            remedy: missing.isEmpty ? "" : "run this as root, or give it these capabilities")
    }

    /// The oldest kernel that the agent runs on.
    static let floor = (major: 6, minor: 1)

    static func checkVersion(ofRelease release: String) -> ProbeResult {
        let found = Kernel.version(ofRelease: release)
        let ok = found.map { $0 >= floor } ?? false
        return ProbeResult(
            name: "kernel", ok: ok, required: true,
            detail: found == nil ? "cannot make out the version in \"\(release)\"" : release,
            remedy: ok ? "" : "use kernel \(floor.major).\(floor.minor) or newer")
    }

    private static func checkTypes() -> ProbeResult {
        let path = "/sys/kernel/btf/vmlinux"
        let ok = access(path, R_OK) == 0
        return ProbeResult(
            name: "kernel type information", ok: ok, required: true,
            detail: ok ? path : "\(path): \(SystemError.text(errno))",
            remedy: ok ? "" : "use a kernel built with CONFIG_DEBUG_INFO_BTF, and mount /sys")
    }

    private static func checkCgroup(_ path: String?) -> ProbeResult {
        do throws(SystemError) {
            let path = if let path { path } else { try Mount.cgroup2() }
            guard try Mount.isCgroup2(path) else {
                throw SystemError("use", path, errno: EINVAL, reason: "it is not in a cgroup2 file system")
            }
            return ProbeResult(name: "cgroup2", ok: true, required: true, detail: path, remedy: "")
        } catch {
            return ProbeResult(
                name: "cgroup2", ok: false, required: true,
                detail: error.advising(nil).description,
                remedy: error.hint ?? "give the path of a cgroup2 directory that exists")
        }
    }

    private static func checkJIT() -> ProbeResult {
        let path = "/proc/sys/net/core/bpf_jit_enable"
        let value = try? readText(path, limit: 64)
        let ok = value.map { !$0.hasPrefix("0") } ?? false
        return ProbeResult(
            name: "eBPF compiler", ok: ok, required: false,
            detail: value == nil
                ? "cannot read \(path)" : (ok ? "on" : "off: each packet costs several times more"),
            remedy: ok ? "" : "switch it on: sysctl net.core.bpf_jit_enable=1")
    }

    private static func checkPins() -> ProbeResult {
        let path = "/sys/fs/bpf"
        let isMounted = (try? Mount.isBPF(path)) == true
        // The agent mounts it where it may.
        let mayMount = ((try? Capabilities.effective()) ?? []).contains(.sysAdmin)
        let ok = isMounted ? access(path, W_OK) == 0 : mayMount
        return ProbeResult(
            name: "bpf file system", ok: ok, required: false,
            detail: ok
                ? (isMounted ? path : "not mounted yet: the agent will")
                : "not mounted at \(path), or read-only: what is enforced may end with the agent",
            remedy: ok ? "" : "mount it at boot: mount -t bpf bpf \(path)")
    }

    // MARK: eBPF

    private static let programTypes: [(bpf_prog_type, String)] = [
        (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "cgroup_sock_addr"), (BPF_PROG_TYPE_CGROUP_SOCK, "cgroup_sock"),
        (BPF_PROG_TYPE_SOCK_OPS, "sock_ops"), (BPF_PROG_TYPE_CGROUP_SKB, "cgroup_skb"),
        (BPF_PROG_TYPE_SCHED_CLS, "sched_cls"),
    ]

    private static func checkPrograms() -> [ProbeResult] {
        programTypes.map { type, name in
            feature(
                "program type \(name)", libbpf_probe_bpf_prog_type(type, nil),
                "CONFIG_CGROUP_BPF and CONFIG_NET_CLS_ACT")
        }
    }

    private static func checkMaps() -> [ProbeResult] {
        let types: [(bpf_map_type, String)] = [
            (BPF_MAP_TYPE_SK_STORAGE, "sk_storage"), (BPF_MAP_TYPE_RINGBUF, "ringbuf"),
            (BPF_MAP_TYPE_LPM_TRIE, "lpm_trie"), (BPF_MAP_TYPE_LRU_HASH, "lru_hash"),
        ]
        return types.map { type, name in
            feature("map type \(name)", libbpf_probe_bpf_map_type(type, nil), "CONFIG_BPF_SYSCALL")
        }
    }

    private static func checkHelpers() -> [ProbeResult] {
        let helpers: [(bpf_prog_type, bpf_func_id, String)] = [
            (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_FUNC_sk_storage_get, "sk_storage_get"),
            (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_FUNC_set_retval, "set_retval"),
            (BPF_PROG_TYPE_CGROUP_SOCK, BPF_FUNC_sk_storage_get, "sk_storage_get"),
            (BPF_PROG_TYPE_SOCK_OPS, BPF_FUNC_sk_storage_get, "sk_storage_get"),
            (BPF_PROG_TYPE_SOCK_OPS, BPF_FUNC_reserve_hdr_opt, "reserve_hdr_opt"),
            (BPF_PROG_TYPE_CGROUP_SKB, BPF_FUNC_sk_storage_get, "sk_storage_get"),
            (BPF_PROG_TYPE_CGROUP_SKB, BPF_FUNC_skc_to_tcp_sock, "skc_to_tcp_sock"),
            (BPF_PROG_TYPE_CGROUP_SKB, BPF_FUNC_ringbuf_reserve, "ringbuf_reserve"),
            (BPF_PROG_TYPE_CGROUP_SKB, BPF_FUNC_loop, "loop"),
            (BPF_PROG_TYPE_SCHED_CLS, BPF_FUNC_sk_storage_get, "sk_storage_get"),
            (BPF_PROG_TYPE_SCHED_CLS, BPF_FUNC_skb_change_tail, "skb_change_tail"),
            (BPF_PROG_TYPE_SCHED_CLS, BPF_FUNC_clone_redirect, "clone_redirect"),
        ]
        return helpers.map { type, function, helper in
            let program = programTypes.first { $0.0 == type }!.1
            return feature(
                "helper bpf_\(helper) in \(program)",
                libbpf_probe_bpf_helper(type, function, nil),
                "the options that distributions build eBPF with")
        }
    }

    private static func feature(_ name: String, _ outcome: Int32, _ options: String) -> ProbeResult {
        ProbeResult(
            name: name, ok: outcome == 1, required: true,
            detail: outcome == 1
                ? "there" : outcome == 0 ? "not there" : "cannot tell: \(SystemError.text(-outcome))",
            remedy: outcome == 1 ? "" : "use a kernel \(floor.major).\(floor.minor) or newer with \(options)")
    }

    private static func checkIterator() -> ProbeResult {
        let name = "socket storage iterator"
        do throws(SystemError) {
            let type = libbpf_find_vmlinux_btf_id("bpf_sk_storage_map", BPF_TRACE_ITER)
            guard type > 0 else { throw SystemError("find", name, errno: -type) }
            _ = try BPFProgram.load(
                pass, type: BPF_PROG_TYPE_TRACING, attachType: BPF_TRACE_ITER, name: "probe_iterator",
                typeID: UInt32(type))
            return ProbeResult(name: name, ok: true, required: true, detail: "there", remedy: "")
        } catch {
            return ProbeResult(
                name: name, ok: false, required: true, detail: error.reason,
                remedy: "use a kernel \(floor.major).\(floor.minor) or newer with CONFIG_DEBUG_INFO_BTF")
        }
    }

    private static func checkTCX() -> ProbeResult {
        let name = "tcx"
        do throws(SystemError) {
            let program = try BPFProgram.load(
                pass, type: BPF_PROG_TYPE_SCHED_CLS, attachType: BPFLink.attachType(.ingress),
                name: "probe_tcx")
            // An interface that cannot be: a kernel that knows tcx looks for it, an older one does not.
            _ = try BPFLink.tcx(program, interface: .max, .ingress)
            return ProbeResult(name: name, ok: true, required: false, detail: "there", remedy: "")
        } catch {
            let ok = error.errno == ENODEV
            return ProbeResult(
                name: name, ok: ok, required: false,
                detail: ok ? "there" : "not there (\(error.reason)); clsact filters are used instead",
                remedy: "")
        }
    }

    /// `return 0`: r0 = 0; exit.
    private static let pass: [UInt64] = [0xb7, 0x95]
}
