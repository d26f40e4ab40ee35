// The places of an instance, and locks, without a kernel to pin in.
import Foundation
import MeshSystem
import Testing

@testable import BPFRuntime

@Suite struct InstanceTests {
    @Test func theUsualOneHasTheDirectoryItself() {
        let instance = Instance(control: "/run/mesh-agent/control.sock")
        #expect(instance.pins == "/sys/fs/bpf/mesh-agent")
        #expect(instance.lock == instance.control + ".lock")
        #expect(instance.filterHandle == 0x4d41)
    }

    @Test func othersHaveOneInItByTheirPath() {
        let one = Instance(control: "/no/such_place/a.sock")
        #expect(one.pins == "/sys/fs/bpf/mesh-agent/_no_such_place_a_sock_52688805")
        // The bpf file system keeps dots to itself; the hash tells these two apart.
        let other = Instance(control: "/no/such.place/a_sock")
        #expect(other.pins.hasPrefix("/sys/fs/bpf/mesh-agent/_no_such_place_a_sock_"))
        #expect(other.pins != one.pins)
        #expect(one.filterHandle != other.filterHandle)
    }

    @Test func aPathIsTheSameHoweverItIsGiven() throws {
        let directory = NSTemporaryDirectory() + "instance-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: directory + "/real", withIntermediateDirectories: true)
        try FileManager.default.createSymbolicLink(
            atPath: directory + "/link", withDestinationPath: directory + "/real")
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let real = Instance(control: directory + "/real/a.sock")
        #expect(Instance(control: directory + "/link/a.sock") == real)
        #expect(Instance(control: directory + "/real/../link/a.sock") == real)
    }

    @Test func pinsMayBeElsewhere() {
        let instance = Instance(control: "/run/mesh-agent/control.sock", pins: "/sys/fs/bpf/elsewhere")
        #expect(instance.pins == "/sys/fs/bpf/elsewhere")
        #expect(instance.filterHandle != 0x4d41)
    }

    @Test func aPinsPlaceIsRead() {
        let place = PinPlace(netns: 4_026_531_840, interface: 7)
        #expect(place.text == "4026531840-7")
        let parsed = PinPlace.parse(place.text[...])
        #expect(parsed?.netns == 4_026_531_840 && parsed?.interface == 7)
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "a-1"] { #expect(PinPlace.parse(text[...]) == nil) }
    }

    @Test func aLockIsHeldUntilItIsReleased() throws {
        // Attempting makes the directory, for this user alone.
        let directory = NSTemporaryDirectory() + "lock-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let path = directory + "/lock"
        func holder() throws -> Int32? {
            switch try FileLock.attempt(path) {
            case .taken: return nil
            case .held(let pid): return pid
            }
        }
        switch try FileLock.attempt(path) {
        case .held: Issue.record("nobody holds it")
        case .taken(let lock):
            #expect(try holder() == getpid())
            withExtendedLifetime(lock) {}
        }
        #expect(!FileManager.default.fileExists(atPath: path))
        #expect(try holder() == nil)
    }
}
