// Build tool: compiles an eBPF program and writes a Swift file that holds the object as a base64
// string literal. A literal of 300,000 integers takes the compiler most of a minute; a string nothing.
import Foundation

/// Says why on standard error and ends.
func fail(_ message: String) -> Never {
    FileHandle.standardError.write(Data("embed-object: \(message)\n".utf8))
    exit(1)
}

/// The value of an option. The plugin gives all of them.
func option(_ name: String) -> String {
    let arguments = CommandLine.arguments
    guard let place = arguments.firstIndex(of: "--" + name), place + 1 < arguments.count else {
        fail("--\(name) is missing")
    }
    return arguments[place + 1]
}

/// Runs a program; what it prints goes where the build's output goes.
func run(_ program: String, _ arguments: [String]) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: program)
    process.arguments = arguments
    do {
        try process.run()
    } catch {
        fail("cannot run \(program): \(error.localizedDescription)")
    }
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { fail("\(program) failed") }
}

#if arch(x86_64)
    let architecture = "x86_64-linux-gnu"
#elseif arch(arm64)
    let architecture = "aarch64-linux-gnu"
#else
    #error("MeshAgent is built for x86-64 and arm64")
#endif

let object = option("work") + "/mesh.bpf.o"
let stripped = option("work") + "/mesh.stripped.o"
run(
    option("clang"),
    [
        "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-std=gnu11", "-ffreestanding",
        "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
        "-I\(option("include"))", "-idirafter", "/usr/include/\(architecture)",
        "-c", option("source"), "-o", object,
    ])
// The types (BTF) stay; only what a debugger would want goes.
run(option("objcopy"), ["--strip-debug", object, stripped])
do {
    let bytes = try Data(contentsOf: URL(fileURLWithPath: stripped))
    let source = """
        // Made by embed-object from bpf/mesh.bpf.c at build time.
        let \(option("name")): StaticString = "\(bytes.base64EncodedString())"

        """
    try source.write(toFile: option("output"), atomically: true, encoding: .utf8)
} catch {
    fail(error.localizedDescription)
}
