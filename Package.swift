// swift-tools-version:6.0
// The build: C headers that the kernel side and Swift share, pure logic, thin layers over the
// system, and two executables. There are no package dependencies, on purpose (see CONTRIBUTING.md).
import PackageDescription

let package = Package(
    name: "MeshAgent",
    products: [
        .executable(name: "mesh-agent", targets: ["mesh-agent"]),
        .executable(name: "meshctl", targets: ["meshctl"]),
    ],
    targets: [
        // What the kernel side and Swift both compile.
        .target(name: "CMeshABI"),
        // libbpf, linked statically so that the binaries run on any node.
        .target(
            name: "CLibBPF",
            linkerSettings: [
                .linkedLibrary(":libbpf.a"), .linkedLibrary(":libelf.a"), .linkedLibrary(":libz.a"),
            ]),
        // The system calls and constants that Swift's Glibc module leaves out. Its libz is the one above:
        // named twice, SwiftPM would put it before libbpf, which then does not find it.
        .target(name: "CMeshSystem"),

        .target(name: "MeshCore", dependencies: ["CMeshABI"]),
        .target(name: "MeshSystem", dependencies: ["CMeshSystem"]),
        .target(
            name: "BPFRuntime", dependencies: ["CLibBPF", "CMeshABI", "MeshSystem"],
            plugins: ["BPFObject"]),
        // What the agent and meshctl both do with the maps.
        .target(name: "MeshMaps", dependencies: ["MeshCore", "MeshSystem", "BPFRuntime", "CMeshABI"]),
        .target(
            name: "MeshAgent", dependencies: ["MeshCore", "MeshSystem", "MeshMaps", "BPFRuntime", "CMeshABI"]),
        .target(name: "MeshCTL", dependencies: ["MeshCore", "MeshSystem", "MeshMaps", "BPFRuntime"]),
        .executableTarget(name: "mesh-agent", dependencies: ["MeshAgent"]),
        .executableTarget(name: "meshctl", dependencies: ["MeshCTL"]),

        // Compiles bpf/mesh.bpf.c and embeds the object in BPFRuntime.
        .executableTarget(name: "embed-object"),
        .plugin(name: "BPFObject", capability: .buildTool(), dependencies: ["embed-object"]),

        .testTarget(name: "MeshCoreTests", dependencies: ["MeshCore"]),
        .testTarget(name: "MeshSystemTests", dependencies: ["MeshSystem"]),
        .testTarget(name: "BPFRuntimeTests", dependencies: ["BPFRuntime"]),
        .testTarget(name: "MeshAgentTests", dependencies: ["MeshAgent"]),
        .testTarget(name: "MeshCTLTests", dependencies: ["MeshCTL"]),
        // Everything that parses bytes from outside, against hostile ones: see `make fuzz`.
        .testTarget(
            name: "FuzzTests", dependencies: ["MeshAgent", "MeshCTL", "MeshCore", "CMeshABI"],
            exclude: ["Corpus"]),
    ],
    swiftLanguageModes: [.v6]
)
