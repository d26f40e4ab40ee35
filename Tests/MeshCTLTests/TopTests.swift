// The live table: frames for files, and a screen that is left as it was found.
import Foundation
import MeshCore
import Testing

@testable import MeshCTL

@Suite struct TopTests {
    @Sendable private static func agent(_ asked: Asked) -> Reply {
        switch asked.target {
        case "/v1/status": .json(Fixture.status)
        case "/v1/services": .json(Fixture.services)
        default: .json(Fixture.breakers)
        }
    }

    @Test("Frames one after another where there is no terminal")
    func plain() {
        let (once, asked) = meshctl(["top", "--once"], agent: Self.agent)
        #expect(once.code == 0 && once.errors == "")
        #expect(asked.map(\.target) == ["/v1/status", "/v1/services", "/v1/breakers"])
        let lines = once.output.split(separator: "\n", omittingEmptySubsequences: false)
        #expect(lines[0] == "mesh-agent 0.1.0 up 3h13m  lease valid  0 open  0 half_open  128 connections")
        #expect(lines[2].hasPrefix("SERVICE ") && lines[3].hasPrefix("payments ") && lines.count == 8)
        let (two, _) = meshctl(["top", "--count", "2", "--interval", "100ms"], agent: Self.agent)
        let frames = two.output.components(separatedBy: "mesh-agent 0.1.0")
        #expect(frames.count == 3 && frames[1].hasSuffix("\n\n"))
        #expect(!two.output.contains("\u{1B}"))
    }

    @Test("As JSON, a frame is one object on one line")
    func json() throws {
        let (outcome, _) = meshctl(
            ["top", "--count", "2", "--interval", "100ms", "-o", "json"], agent: Self.agent)
        let lines = outcome.output.split(separator: "\n")
        #expect(lines.count == 2 && lines[0] == lines[1])
        let frame = try JSONValue.parse(Array(lines[0].utf8))
        #expect(frame["status"] == (try JSONValue.parse(Array(Fixture.status.utf8))))
        #expect(frame["services"]?.array?.count == 4 && frame["breakers"]?.array?.count == 4)
    }

    @Test("No agent: exit code 3, and the screen was never taken")
    func noAgent() throws {
        let terminal = try Terminal(columns: 80, rows: 24)
        let console = Console(
            input: terminal.inner, output: terminal.inner, errors: terminal.inner, variables: [:])
        #expect(Meshctl(console: console).run(["--control", "/nonexistent/x", "top"]) == 3)
        #expect(
            terminal.read(until: "--control").hasPrefix(
                "meshctl: no agent: there is no socket at /nonexistent/x."))
    }

    @Test("On a terminal: the alternate screen, redrawn, left by q as it was found")
    func live() throws {
        let server = TestServer(Self.agent)
        defer { server.stop() }
        let terminal = try Terminal(columns: 80, rows: 24)
        let ended = DispatchSemaphore(value: 0)
        let code = Counter(100)
        let console = Console(
            input: terminal.inner, output: terminal.inner, errors: terminal.inner,
            variables: ["LANG": "C.UTF-8"])
        let path = server.path
        Foundation.Thread.detachNewThread {
            if Meshctl(console: console).run(["--control", path, "top", "--interval", "100ms"]) == 0 {
                _ = code.increment()
            }
            ended.signal()
        }
        let first = terminal.read(until: "\u{1B}[J")
        #expect(first.hasPrefix("\u{1B}[?1049h\u{1B}[?25l\u{1B}[H"))
        #expect(first.contains("payments            client   1.2k/s   \u{1B}[31m12.3%\u{1B}[0m   1.2ms"))
        #expect(!terminal.isAsBefore)
        let second = terminal.read(until: "\u{1B}[J")
        #expect(second.hasPrefix("\u{1B}[H") && !second.contains("\u{1B}[?1049h"))
        terminal.type("q")
        #expect(terminal.read(until: "\u{1B}[?1049l").hasSuffix("\u{1B}[?25h\u{1B}[?1049l"))
        ended.wait()
        #expect(code.increment() == 102, "it ends with exit code 0")
        #expect(terminal.isAsBefore)
    }

    @Test("An agent that goes away shows in the frame, and one that comes back too")
    func restart() throws {
        let calls = Counter(0)
        let server = TestServer { asked in
            // The first frame is whole, the second fails, all later ones are whole.
            calls.increment() == 4
                ? .json("{\"error\":\"stopping\",\"suggestion\":null}", status: "503 Unavailable")
                : Self.agent(asked)
        }
        defer { server.stop() }
        let terminal = try Terminal(columns: 80, rows: 24)
        let ended = DispatchSemaphore(value: 0)
        let console = Console(
            input: terminal.inner, output: terminal.inner, errors: terminal.inner, variables: [:])
        let path = server.path
        Foundation.Thread.detachNewThread {
            _ = Meshctl(console: console).run([
                "--control", path, "top", "--interval", "100ms", "--count", "3",
            ])
            ended.signal()
        }
        let all = terminal.read(until: "\u{1B}[?1049l")
        ended.wait()
        let frames = all.components(separatedBy: "\u{1B}[H")
        #expect(frames.count == 4)
        #expect(!frames[1].contains("stopping") && !frames[3].contains("stopping"))
        #expect(frames[2].hasPrefix("\u{1B}[31mstopping\u{1B}[0m") && frames[2].contains("payments"))
    }
}
