// The file that grows by commits: all of one is there, or none of it.
import Foundation
import MeshSystem
import Testing

struct StateFileTests {
    private let scratch: ScratchDirectory
    private var path: String { scratch.path + "/state" }

    init() throws { scratch = try ScratchDirectory() }

    private func content() throws -> String { try readText(path) }
    private func names() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: scratch.path).sorted()
    }

    private func write(_ head: String, _ rest: String) throws -> StateFile {
        try replacing(path, head, rest)
    }

    private func replacing(_ path: String, _ head: String, _ rest: String) throws -> StateFile {
        var file = try StateFile(replacing: path, with: Array(head.utf8))
        try append(rest, to: &file)
        try file.putInPlace()
        return file
    }

    private func append(_ text: String, to file: inout StateFile) throws {
        var result: Result<Void, SystemError> = .success(())
        Array(text.utf8).withUnsafeBytes { bytes in
            result = Result { () throws(SystemError) in try file.append(bytes) }
        }
        try result.get()
    }

    @Test func growsAndIsReplaced() throws {
        var file = try write("one ", "two")
        #expect(try content() == "one two")
        #expect(file.count == 7)
        try append(" three", to: &file)
        try append(" four", to: &file)
        #expect(try content() == "one two three four")
        #expect(file.count == 18)
        #expect(try names() == ["state"])
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        #expect(mode == 0o600)

        // One that was left by a process that was stopped while it wrote is in nobody's way.
        try "half".write(toFile: path + ".new", atomically: false, encoding: .utf8)
        let fresh = try write("anew", "")
        #expect(fresh.count == 4)
        #expect(try content() == "anew")
        #expect(try names() == ["state"])
        try append("!", to: &file)
        #expect(try content() == "anew", "what was replaced is another file")
    }

    @Test func anotherProcessGoesOn() throws {
        _ = try write("", "one two thr")
        var file = try StateFile(extending: path, to: 8)
        #expect(try content() == "one two ")
        try append("three", to: &file)
        #expect(try content() == "one two three")
        file.truncate(to: 99)
        #expect(file.count == 13)
        file.truncate(to: 3)
        try append("!", to: &file)
        #expect(try content() == "one!")
    }

    @Test func whatIsBeyondTheEndIsNoPartOfIt() throws {
        var file = try write("one", "")
        func put(_ text: String, beyond offset: Int) throws {
            var result: Result<Void, SystemError> = .success(())
            Array(text.utf8).withUnsafeBytes { bytes in
                result = Result { () throws(SystemError) in try file.write(bytes, beyond: offset) }
            }
            try result.get()
        }
        try put("four", beyond: 3)
        #expect(file.count == 3)
        #expect(try content() == "one\0\0\0four")
        try put("two", beyond: 0)
        file.grow(by: 7)
        #expect(try content() == "onetwofour")
        #expect(file.count == 10)
    }

    @Test func whatIsNotPutInPlaceGoes() throws {
        _ = try write("old", "")
        do {
            let fresh = try StateFile(replacing: path, with: Array("new".utf8))
            #expect(fresh.count == 3)
            #expect(try content() == "old")
            #expect(try names() == ["state", "state.new"])
        }
        #expect(try content() == "old")
        #expect(try names() == ["state"])
    }

    @Test func saysWhatItCannot() throws {
        do {
            _ = try replacing(scratch.path + "/none/state", "", "")
            Issue.record("there is no such directory")
        } catch {
            #expect((error as? SystemError)?.errno == ENOENT)
        }
        #expect(throws: SystemError.self) { _ = try StateFile(extending: path, to: 0) }
        // In the place of a directory: what was begun goes.
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        do {
            _ = try write("1", "")
            Issue.record("a directory was replaced")
        } catch {
            #expect((error as? SystemError)?.errno == EISDIR)
        }
        #expect(try names() == ["state"])
    }
}
