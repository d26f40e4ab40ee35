// Build tool: compiles an eBPF program and writes a Swift file that holds the object as a base64
// string literal. A literal of 300,000 integers takes the compiler most of a minute; a string nothing.
import Glibc

/// Says why on standard error and ends.
func fail(_ message: String) -> Never {
    perror("embed-object: \(message)")
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
    var words = ([program] + arguments).map { strdup($0) } + [nil]
    defer { words.forEach { free($0) } }
    var pid = pid_t()
    guard posix_spawn(&pid, program, nil, nil, &words, environ) == 0 else { fail("cannot run \(program)") }
    var status: Int32 = 0
    guard waitpid(pid, &status, 0) == pid, status == 0 else { fail("\(program) failed") }
}

/// RFC 4648, 4.
func base64(_ bytes: [UInt8]) -> String {
    let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    var text: [UInt8] = []
    for start in stride(from: 0, to: bytes.count, by: 3) {
        let group = bytes[start..<min(start + 3, bytes.count)]
        let word = group.reduce(0) { $0 << 8 | UInt32($1) } << UInt32(8 * (3 - group.count))
        for place in 0..<4 {
            let digit = digits[Int(word >> UInt32(18 - 6 * place) & 63)]
            text.append(place <= group.count ? digit : UInt8(ascii: "="))
        }
    }
    return String(decoding: text, as: UTF8.self)
}

func read(_ path: String) -> [UInt8] {
    guard let file = fopen(path, "r") else { fail("cannot read \(path)") }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    while case let byte = getc(file), byte != EOF { bytes.append(UInt8(byte)) }
    return bytes
}

func write(_ text: String, _ path: String) {
    guard let file = fopen(path, "w"), fputs(text, file) >= 0, fclose(file) == 0 else {
        fail("cannot write \(path)")
    }
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
write(
    """
    // Made by embed-object from bpf/mesh.bpf.c at build time.
    let \(option("name")): StaticString = "\(base64(read(stripped)))"

    """, option("output"))
