// Completion scripts: right for their shells, and offering what fits.
import Foundation
import Testing

@testable import MeshCTL

@Suite struct CompletionTests {
    /// Runs a program to its end; nil when there is no such program here.
    private func run(_ arguments: [String]) throws -> (code: Int32, output: String)? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = pipe
        try process.run()
        let output = pipe.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return process.terminationStatus == 127
            ? nil : (process.terminationStatus, String(decoding: output, as: UTF8.self))
    }

    /// A directory with a script in it.
    private func script(_ shell: String) throws -> (Scratch, path: String) {
        let scratch = Scratch()
        let outcome = meshctl(["completion", shell])
        #expect(outcome.code == 0 && outcome.errors == "")
        let path = scratch.path + "/script"
        try outcome.output.write(toFile: path, atomically: true, encoding: .utf8)
        return (scratch, path)
    }

    @Test("The shells find nothing wrong with their scripts", arguments: ["bash", "zsh", "fish"])
    func syntax(shell: String) throws {
        let (scratch, path) = try script(shell)
        defer { withExtendedLifetime(scratch) {} }
        let checked = try run([shell, shell == "fish" ? "--no-execute" : "-n", path])
        // bash is everywhere; the others are checked where they are.
        if shell == "bash" { #expect(checked != nil) }
        if let checked {
            #expect(checked.code == 0, "\(checked.output)")
            #expect(checked.output == "")
        }
    }

    private static let lines: [(line: String, offered: [String])] = [
        (
            "meshctl ",
            [
                "status", "services", "breaker", "flows", "trace", "top", "events", "cleanup", "doctor",
                "completion", "help",
            ]
        ),
        ("meshctl s", ["status", "services"]),
        ("meshctl breaker ", ["list", "show", "open", "close", "auto"]),
        ("meshctl --control /x breaker o", ["open"]),
        (
            "meshctl breaker open ",
            ["payments", "[::1]:80", "*:8080", "--control", "/none"].prefix(3).map { $0 }
        ),
        ("meshctl breaker open p", ["payments"]),
        ("meshctl breaker open [::1]:", ["80"]),
        ("meshctl breaker open payments ", []),
        ("meshctl breaker open payments --r", ["--reason"]),
        (
            "meshctl breaker open payments --reason x --",
            ["--control", "--output", "--help", "--version", "--reason", "--for", "--pins"]
        ),
        ("meshctl breaker open --reason ", []),
        ("meshctl -o ", ["table", "json"]),
        ("meshctl status --output=j", ["json"]),
        ("meshctl flows --service pay", ["payments"]),
        ("meshctl completion ", ["bash", "zsh", "fish"]),
        ("meshctl nonsense ", []),
    ]

    @Test("What bash offers", arguments: lines)
    func bash(line: String, offered: [String]) throws {
        let (scratch, path) = try script("bash")
        defer { withExtendedLifetime(scratch) {} }
        let program = """
            source \(path)
            meshctl() { printf '%s\\n' payments '[::1]:80' '*:8080'; }
            cd /
            COMP_LINE=$1
            COMP_POINT=${#1}
            _meshctl
            printf '%s\\n' "${COMPREPLY[@]}"
            """
        let result = try #require(try run(["bash", "-c", program, "bash", line]))
        #expect(result.code == 0)
        #expect(result.output.split(separator: "\n").map(String.init) == offered)
    }

    @Test("Names come from the agent that --control names")
    func names() throws {
        let (scratch, path) = try script("bash")
        defer { withExtendedLifetime(scratch) {} }
        let program = """
            source \(path)
            meshctl() { echo "$*" | tr ' ' _; }
            COMP_LINE='meshctl --control /a/b breaker show '
            COMP_POINT=${#COMP_LINE}
            _meshctl
            printf '%s\\n' "${COMPREPLY[@]}"
            """
        #expect(try run(["bash", "-c", program])?.output == "__complete_breakers_--control_/a/b\n")
    }

    @Test("The names that are offered: sorted, each once, harmless; none without an agent")
    func complete() {
        let hostile = Fixture.services.replacingOccurrences(of: "inventory", with: "x\\u001b[2J")
            .replacingOccurrences(of: "*:8080", with: "payments")
        let (services, _) = meshctl([]) { _ in .json(hostile) }
        #expect(services.code == 2)
        let server = TestServer { asked in .json(asked.target == "/v1/services" ? hostile : Fixture.breakers)
        }
        #expect(
            meshctl(["__complete", "services", "--control", server.path]).output
                == "a-service-with-a-name-that-goes-on-and-on.default.svc.cluster.local\npayments\n")
        #expect(
            meshctl(["__complete", "breakers", "--control", server.path])
                == Outcome(code: 0, output: "inventory\nledger\npayments\nsearch\n", errors: ""))
        server.stop()
        #expect(
            meshctl(["__complete", "services", "--control", server.path])
                == Outcome(code: 0, output: "", errors: ""))
        #expect(meshctl(["__complete", "commands"]).output.hasPrefix("status\nservices\nbreaker\n"))
    }
}
