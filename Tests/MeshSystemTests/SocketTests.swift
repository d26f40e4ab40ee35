// Listening and connecting, with the ways in which it goes wrong.
import CMeshSystem
import Foundation
import Testing

@testable import MeshSystem

@Suite struct SocketTests {
    @Test(arguments: [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
    func tcp(address: String, shown: String) throws {
        let listener = try Listener.tcp(address: address, port: 0)
        let port = listener.port
        #expect(port != 0)
        #expect(listener.address == "\(shown):\(port)")
        #expect(try listener.accept() == nil)
        do {
            _ = try Listener.tcp(address: address, port: port)
            Issue.record("two listeners on one port")
        } catch {
            #expect(error.errno == EADDRINUSE)
            #expect(
                error.description
                    == "cannot listen on \(shown):\(port): address already in use; "
                    + "stop the program that listens there, or choose another address or port")
        }
        let client = connect(address, port)
        #expect(client != nil)
        let accepted = try waitAndAccept(listener).release()
        #expect(fcntl(accepted, F_GETFL) & O_NONBLOCK != 0)
        #expect(fcntl(accepted, F_GETFD) == FD_CLOEXEC)
        close(accepted)
        if let client { close(client) }
    }

    @Test(arguments: ["", "localhost", "1.2.3", "[::1]", "1.2.3.4.5"])
    func noAddress(text: String) {
        do {
            _ = try Listener.tcp(address: text, port: 1)
            Issue.record("\(text) was taken for an address")
        } catch {
            #expect(error.errno == EINVAL)
            #expect(error.reason == "that is not an IP address")
        }
    }

    @Test func foreignAddress() {
        do {
            _ = try Listener.tcp(address: "203.0.113.1", port: 0)
            Issue.record("listens on an address that this machine does not have")
        } catch {
            #expect(error.errno == EADDRNOTAVAIL)
            #expect(error.hint == "choose an address that this machine has")
        }
    }

    @Test func unixSocketIsPrivateAndRemoved() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/run/control.sock"
        do {
            let listener = try Listener.unix(path: path)
            #expect(listener.address == path && listener.port == 0)
            #expect(try mode(path) == S_IFSOCK | 0o600)
            #expect(try mode(scratch.path + "/run") == S_IFDIR | 0o700)
            let client = try FileDescriptor(connectingTo: path, timeout: milliseconds(1000))
            let accepted = try waitAndAccept(listener)
            #expect(
                try accepted.peerCredentials() == PeerCredentials(pid: getpid(), uid: getuid(), gid: getgid())
            )
            let room = UnsafeMutableRawBufferPointer.allocate(byteCount: 8, alignment: 1)
            defer { room.deallocate() }
            client.setTimeouts(receive: milliseconds(10), send: nil)
            #expect(try client.read(into: room) == .wouldBlock)
        }
        #expect(throws: (any Error).self) { try mode(path) }
    }

    @Test func liveSocketIsNotTakenOver() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/control.sock"
        let listener = try Listener.unix(path: path)
        do {
            _ = try Listener.unix(path: path)
            Issue.record("took over a live socket")
        } catch {
            #expect(error.errno == EADDRINUSE)
            #expect(
                error.description
                    == "cannot listen on \(path): another agent answers at \(path); "
                    + "stop it first, or choose another path")
        }
        // And it still answers.
        _ = try FileDescriptor(connectingTo: path, timeout: milliseconds(1000))
        _ = listener.descriptor
    }

    @Test func staleSocketIsTakenOver() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/control.sock"
        // Bound, and its process gone without a trace but the path.
        let stale = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        let bound = withUnsafePointer(to: &name) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(stale, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        #expect(bound == 0)
        close(stale)
        do {
            _ = try FileDescriptor(connectingTo: path, timeout: milliseconds(1000))
            Issue.record("connected to a dead socket")
        } catch {
            #expect(error.errno == ECONNREFUSED)
            #expect(
                error.description
                    == "cannot connect to \(path): no agent is there; start it with `mesh-agent run`")
        }
        let listener = try Listener.unix(path: path)
        _ = try FileDescriptor(connectingTo: path, timeout: milliseconds(1000))
        _ = try waitAndAccept(listener)
    }

    /// A predecessor that ends late must not remove its successor's socket.
    @Test func onlyTheOwnPathIsRemoved() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/control.sock"
        do {
            let first = try Listener.unix(path: path)
            try FileManager.default.moveItem(atPath: path, toPath: path + ".old")
            try Data("x".utf8).write(to: URL(fileURLWithPath: path))
            _ = first.descriptor
        }
        #expect(FileManager.default.fileExists(atPath: path))
    }

    /// A link of one's own may be on the way, relative or not, but not be the directory itself. What others
    /// could change is in Tests/system/test_hostile_clients.py, for it takes other users.
    @Test(arguments: ["real", "./real", "../%/real", "/%"]) func aLinkOnTheWay(target: String) throws {
        let scratch = try ScratchDirectory()
        let name = scratch.path.split(separator: "/").last.map(String.init) ?? ""
        let real = target == "/%" ? scratch.path : scratch.path + "/real"
        try FileManager.default.createDirectory(
            atPath: scratch.path + "/real", withIntermediateDirectories: false,
            attributes: [.posixPermissions: 0o700])
        try FileManager.default.createSymbolicLink(
            atPath: scratch.path + "/link",
            withDestinationPath: target == "/%" ? scratch.path : target.replacing("%", with: name))
        let listener = try Listener.unix(path: scratch.path + "/link/below/control.sock")
        _ = try FileDescriptor(connectingTo: real + "/below/control.sock", timeout: milliseconds(1000))
        #expect(try mode(real + "/below") & 0o777 == 0o700)
        do {
            _ = try Listener.unix(path: scratch.path + "/link/control.sock")
            Issue.record("took a link for the directory")
        } catch {
            #expect(error.errno == ELOOP)
        }
        _ = listener.descriptor
    }

    @Test func linksThatGoRoundAreNotFollowedForEver() throws {
        let scratch = try ScratchDirectory()
        try FileManager.default.createSymbolicLink(
            atPath: scratch.path + "/round", withDestinationPath: "round")
        do {
            _ = try Listener.unix(path: scratch.path + "/round/below/control.sock")
            Issue.record("found a directory behind a link to itself")
        } catch {
            #expect(error.errno == ELOOP)
        }
    }

    @Test func somethingElseIsThere() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/control.sock"
        try Data("precious".utf8).write(to: URL(fileURLWithPath: path))
        do {
            _ = try Listener.unix(path: path)
            Issue.record("listens over a file")
        } catch {
            #expect(error.errno == EEXIST)
        }
        #expect(try readText(path) == "precious")
    }

    @Test(arguments: ["", String(repeating: "x", count: 108), "a\u{0}b"]) func badPath(path: String) {
        for attempt in [
            { _ = try Listener.unix(path: path) },
            { _ = try FileDescriptor(connectingTo: path, timeout: 1000) },
        ] {
            do {
                try attempt()
                Issue.record("took a bad path")
            } catch {
                #expect((error as? SystemError)?.errno == ENAMETOOLONG)
            }
        }
    }

    @Test func nobodyIsThere() {
        do {
            _ = try FileDescriptor(connectingTo: "/nowhere/control.sock", timeout: milliseconds(100))
            Issue.record("connected to nothing")
        } catch {
            #expect(error.errno == ENOENT)
        }
    }

    /// A full backlog: connecting waits no longer than it may.
    @Test func connectTimesOut() throws {
        let scratch = try ScratchDirectory()
        let path = scratch.path + "/control.sock"
        let listener = try Listener.unix(path: path, backlog: 0)
        let first = try FileDescriptor(connectingTo: path, timeout: milliseconds(1000))
        do {
            _ = try FileDescriptor(connectingTo: path, timeout: milliseconds(50))
            Issue.record("connected past the backlog")
        } catch {
            #expect(error.errno == EAGAIN)
            #expect(error.reason == "it did not answer in time")
        }
        _ = (listener.descriptor, first.descriptor)
    }

    private func mode(_ path: String) throws -> mode_t {
        var status = stat()
        guard lstat(path, &status) == 0 else { throw SystemError("look at", path) }
        return status.st_mode
    }

    private func waitAndAccept(_ listener: borrowing Listener) throws -> FileDescriptor {
        var poller = try Poller()
        try poller.add(listener.descriptor, token: 1, .readable)
        _ = try poller.wait(timeout: milliseconds(5000))
        guard let accepted = try listener.accept() else {
            throw SystemError("accept", errno: ETIMEDOUT)
        }
        return accepted
    }

    private func connect(_ address: String, _ port: UInt16) -> Int32? {
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(address, "\(port)", &hints, &found) == 0, let found else { return nil }
        defer { freeaddrinfo(found) }
        let made = socket(found.pointee.ai_family, Int32(SOCK_STREAM.rawValue), 0)
        return Foundation.connect(made, found.pointee.ai_addr, found.pointee.ai_addrlen) == 0 ? made : nil
    }
}
