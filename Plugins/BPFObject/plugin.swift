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
        let object = context.pluginWorkDirectoryURL.appending(path: "mesh.bpf.o")
        let stripped = context.pluginWorkDirectoryURL.appending(path: "mesh.stripped.o")
        let embedded = context.pluginWorkDirectoryURL.appending(path: "MeshObject.swift")

        // Every file under bpf/ is an input: an edit to any header rebuilds the object.
        let inputs =
            try FileManager.default.contentsOfDirectory(at: sources, includingPropertiesForKeys: nil)
            .filter { ["c", "h"].contains($0.pathExtension) }
            .sorted { $0.path < $1.path } + [header.appending(path: "mesh_abi.h")]

        #if arch(x86_64)
            let architecture = "x86_64-linux-gnu"
        #elseif arch(arm64)
            let architecture = "aarch64-linux-gnu"
        #else
            #error("MeshAgent is built for x86-64 and arm64")
        #endif

        return [
            .buildCommand(
                displayName: "Compiling mesh.bpf.c",
                executable: try context.tool(named: "clang").url,
                arguments: [
                    "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-std=gnu11", "-ffreestanding",
                    "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
                    "-I\(header.path)", "-idirafter", "/usr/include/\(architecture)",
                    "-c", sources.appending(path: "mesh.bpf.c").path, "-o", object.path,
                ],
                inputFiles: inputs, outputFiles: [object]),
            .buildCommand(
                displayName: "Stripping mesh.bpf.o",
                executable: try context.tool(named: "llvm-objcopy").url,
                arguments: ["--strip-debug", object.path, stripped.path],
                inputFiles: [object], outputFiles: [stripped]),
            .buildCommand(
                displayName: "Embedding mesh.bpf.o",
                executable: try context.tool(named: "embed-object").url,
                arguments: [stripped.path, "meshObject", embedded.path],
                inputFiles: [stripped], outputFiles: [embedded]),
        ]
    }
}
