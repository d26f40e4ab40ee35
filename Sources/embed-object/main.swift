// Build tool: writes a Swift file that holds a binary file as a base64 string literal. A literal of
// 300,000 integers takes the compiler most of a minute; a string takes nothing.
import Foundation

let arguments = CommandLine.arguments
guard arguments.count == 4 else {
    FileHandle.standardError.write(Data("usage: embed-object INPUT NAME OUTPUT.swift\n".utf8))
    exit(2)
}
do {
    let bytes = try Data(contentsOf: URL(fileURLWithPath: arguments[1]))
    let source = """
        // Made by embed-object from bpf/mesh.bpf.c at build time.
        let \(arguments[2]): StaticString = "\(bytes.base64EncodedString())"

        """
    try source.write(toFile: arguments[3], atomically: true, encoding: .utf8)
} catch {
    FileHandle.standardError.write(Data("embed-object: \(arguments[1]): \(error.localizedDescription)\n".utf8))
    exit(1)
}
