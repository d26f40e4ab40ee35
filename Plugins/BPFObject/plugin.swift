// Build plugin: compiles bpf/mesh.bpf.c with the toolchain's own clang and embeds the object, so
// that `swift build` alone gives binaries that need no file beside them.
import Foundation
import PackagePlugin

@main
struct BPFObject: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: any Target) throws -> [Command] {
        let package = context.package.directoryURL
        let sources = package.appending(path: "bpf")
        let header = package.appending(path: "Sources/CMeshABI/include")
        let embedded = context.pluginWorkDirectoryURL.appending(path: "MeshObject.swift")

        // Every file under bpf/ is an input: an edit to any header rebuilds the object.
        let inputs =
            try FileManager.default.contentsOfDirectory(at: sources, includingPropertiesForKeys: nil)
            .filter { ["c", "h"].contains($0.pathExtension) }
            .sorted { $0.path < $1.path } + [header.appending(path: "mesh_abi.h")]

        // One command from C to Swift: an object file among the outputs would become a resource, and
        // the accessor that is generated for it would link Foundation into the agent.
        return [
            .buildCommand(
                displayName: "Embedding mesh.bpf.c",
                executable: try context.tool(named: "embed-object").url,
                arguments: [
                    "--clang", try context.tool(named: "clang").url.path,
                    "--objcopy", try context.tool(named: "llvm-objcopy").url.path,
                    "--include", header.path,
                    "--source", sources.appending(path: "mesh.bpf.c").path,
                    "--work", context.pluginWorkDirectoryURL.path,
                    "--name", "meshObject",
                    "--output", embedded.path,
                ],
                inputFiles: inputs, outputFiles: [embedded])
        ]
    }
}
