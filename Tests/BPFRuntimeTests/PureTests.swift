// What of the runtime needs no kernel: base64, the gist of a load log, judging a kernel's release.
import CLibBPF
import Foundation
import MeshSystem
import Testing

@testable import BPFRuntime

@Suite struct PureTests {
    @Test(arguments: 0..<70) func base64(count: Int) {
        let bytes = (0..<count).map { _ in UInt8.random(in: 0...255) }
        #expect(decode(Data(bytes).base64EncodedString()) == bytes)
    }

    @Test(arguments: ["A", "AA", "AAA", "A===", "====", "AA=A", "AA A", "A\nAA", "AAA\u{e9}", "AA==AA=="])
    func notBase64(text: String) {
        #expect(decode(text) == nil)
    }

    private func decode(_ text: String) -> [UInt8]? {
        var text = text
        return text.withUTF8 { decodeBase64($0) }
    }

    @Test func verifierLog() {
        let log = """
            and the end of a line that was cut
            libbpf: prog 'mesh_connect4': BPF program load failed: Permission denied
            libbpf: prog 'mesh_connect4': -- BEGIN PROG LOAD LOG --
            0: R1=ctx() R10=fp0
            0: (79) r0 = *(u64 *)(r1 +4096)
            invalid bpf_context access off=4096 size=8
            processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0
            -- END PROG LOAD LOG --
            libbpf: prog 'mesh_connect4': failed to load: -13
            libbpf: failed to load object 'mesh'

            """
        #expect(
            LoadLog.digest(log)
                == LoadLog.Digest(
                    program: "mesh_connect4", reason: "invalid bpf_context access off=4096 size=8",
                    details: [
                        "and the end of a line that was cut", "0: R1=ctx() R10=fp0",
                        "0: (79) r0 = *(u64 *)(r1 +4096)", "invalid bpf_context access off=4096 size=8",
                    ]))
    }

    @Test func otherLog() {
        let log = """
            libbpf: Error in bpf_create_map_xattr(ring):Invalid argument(-22). Retrying without BTF.
            libbpf: map 'ring': failed to create: Invalid argument(-22)
            libbpf: failed to load object 'mesh'
            """
        #expect(
            LoadLog.digest(log)
                == LoadLog.Digest(
                    program: nil, reason: "map 'ring': failed to create: Invalid argument(-22)",
                    details: [
                        "map 'ring': failed to create: Invalid argument(-22)", "failed to load object 'mesh'",
                    ]))
        #expect(LoadLog.digest("") == LoadLog.Digest(program: nil, reason: nil, details: []))
    }

    @Test func lackOfRightsNeedsNoLog() {
        let digest = LoadLog.Digest(program: nil, reason: "Couldn't load trivial BPF program.", details: [])
        #expect(
            loadError("x", EPERM, digest).description
                == "cannot load x: operation not permitted; "
                + "run this as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
    }

    @Test func longLog() {
        let log = (1...100).map { "line \($0)\n" }.joined()
        let digest = LoadLog.digest(log)
        #expect(digest.reason == "line 100")
        #expect(digest.details == (89...100).map { "line \($0)" })
    }

    @Test(arguments: [
        ("6.1.0-18-amd64", true, "6.1.0-18-amd64", ""), ("7.0", true, "7.0", ""),
        ("6.0.19", false, "6.0.19", "use kernel 6.1 or newer"),
        ("5.15.0", false, "5.15.0", "use kernel 6.1 or newer"),
        ("odd", false, "cannot make out the version in \"odd\"", "use kernel 6.1 or newer"),
    ]) func kernelVersion(release: String, ok: Bool, detail: String, remedy: String) {
        #expect(
            KernelProbe.checkVersion(ofRelease: release)
                == ProbeResult(name: "kernel", ok: ok, required: true, detail: detail, remedy: remedy))
    }

    @Test(
        arguments: [
            (Capabilities(rawValue: ~0), Capabilities([.bpf, .netAdmin, .perfmon, .sysNice])),
            ([.bpf, .netAdmin, .perfmon], [.bpf, .netAdmin, .perfmon]), ([.sysNice], [.sysNice]),
            ([.netAdmin, .sysAdmin, .netBindService], [.netAdmin, .sysAdmin]),
            ([.bpf, .netAdmin, .sysAdmin], [.bpf, .netAdmin, .sysAdmin]), ([], []),
        ] as [(Capabilities, Capabilities)]) func keptPrivileges(held: Capabilities, kept: Capabilities)
    {
        #expect(KernelProbe.wanted(of: held) == kept)
    }

    @Test(
        arguments: [
            (Capabilities([.bpf, .netAdmin, .perfmon]), "the capabilities needed are there"),
            ([.sysAdmin, .netAdmin], "the capabilities needed are there"),
            ([.bpf], "missing CAP_NET_ADMIN, CAP_PERFMON"), ([.sysAdmin], "missing CAP_NET_ADMIN"),
            ([], "missing CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF"),
        ] as [(Capabilities, String)]) func privileges(held: Capabilities, detail: String)
    {
        let result = KernelProbe.checkPrivileges(held)
        #expect(result.detail == detail)
        #expect(result.ok == !detail.hasPrefix("missing"))
        #expect(
            result.sentence
                == (result.ok
                    ? "privileges: \(detail)"
                    : "privileges: \(detail); run this as root, or give it these capabilities"))
    }
}
