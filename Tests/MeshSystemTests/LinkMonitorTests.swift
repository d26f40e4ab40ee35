// Interfaces that come and go, in a network namespace of the test's own.
import CMeshSystem
import Foundation
import Testing

@testable import MeshSystem

@Suite(.enabled(if: mayUseKernel, "needs root")) struct LinkMonitorTests {
    @Test func comeChangeGo() throws {
        let (before, events, after) = try inNewNetworkNamespace {
            var monitor = try LinkMonitor()
            let before = monitor.links
            let socket = try RouteSocket()
            try createPair(socket, 10, 11)
            try setUp(socket, index: 10)
            try delete(socket, index: 10)
            var poller = try Poller()
            try poller.add(monitor.descriptor, token: 1, .readable)
            var events: [LinkEvent] = []
            while !events.contains(where: { $0.isRemoval(of: 11) })
                || !events.contains(where: { $0.isRemoval(of: 10) })
            {
                guard try poller.wait(timeout: milliseconds(5000)) == 1 else { break }
                events += try monitor.events()
            }
            return (before, events, monitor.links)
        }
        let lo = Link(index: 1, name: "lo", kind: "", isUp: false, isLoopback: true)
        #expect(before == [lo])
        #expect(after == [lo])
        let a = Link(index: 10, name: "mesh10", kind: "veth", isUp: false, isLoopback: false)
        let b = Link(index: 11, name: "mesh11", kind: "veth", isUp: false, isLoopback: false)
        var up = a
        up.isUp = true
        // A device that is up goes down before it goes. Which end comes and goes first is the kernel's affair.
        let expected: [LinkEvent] = [
            .added(b), .added(a), .changed(up), .changed(a), .removed(a), .removed(b),
        ]
        #expect(events.map { "\($0)" }.sorted() == expected.map { "\($0)" }.sorted())
    }

    /// More notifications than the socket holds: the kernel drops some, and nothing is missed.
    @Test func overflowIsMadeGood() throws {
        let pairs: Int32 = 300
        let (events, after) = try inNewNetworkNamespace {
            var monitor = try LinkMonitor()
            var size: Int32 = 4096
            setsockopt(monitor.descriptor, SOL_SOCKET, SO_RCVBUF, &size, 4)
            let socket = try RouteSocket()
            // These still fit into the queue, and are gone by the time they are told.
            try createPair(socket, 10, 11)
            try delete(socket, index: 10)
            for pair in 0..<pairs { try createPair(socket, 100 + 2 * pair, 101 + 2 * pair) }
            try setUp(socket, index: 100)
            return (try monitor.events(), monitor.links)
        }
        #expect(after.count == 1 + 2 * Int(pairs))
        #expect(after.first { $0.index == 100 }?.isUp == true)
        let added = events.filter { if case .added(let link) = $0 { link.index >= 100 } else { false } }
        #expect(added.count == 2 * Int(pairs))
        // They would be here, had nothing been lost.
        #expect(events.count == added.count)
    }

    @Test func refusalsAreExplained() throws {
        let error = try inNewNetworkNamespace { () -> SystemError? in
            let socket = try RouteSocket()
            do throws(SystemError) {
                try delete(socket, index: 4711)
                return nil
            } catch {
                return error
            }
        }
        #expect(error?.errno == ENODEV)
        #expect(error?.description == "cannot delete interface 4711: no such device")
    }
}

extension LinkEvent {
    func isRemoval(of index: Int32) -> Bool {
        if case .removed(let link) = self { link.index == index } else { false }
    }
}

private func createPair(_ socket: borrowing RouteSocket, _ first: Int32, _ second: Int32) throws(SystemError)
{
    var head = ifinfomsg()
    head.ifi_index = first
    var request = NetlinkRequest(Int(RTM_NEWLINK), flags: NLM_F_CREATE | NLM_F_EXCL, head)
    request.add(Int(IFLA_IFNAME), text: "mesh\(first)")
    request.add(Int(IFLA_LINKINFO)) { info in
        info.add(Int(IFLA_INFO_KIND), text: "veth")
        info.add(Int(IFLA_INFO_DATA)) { data in
            var peer = ifinfomsg()
            peer.ifi_index = second
            data.add(1 /* VETH_INFO_PEER */) { attribute in
                attribute.append(peer)
                attribute.add(Int(IFLA_IFNAME), text: "mesh\(second)")
            }
        }
    }
    try socket.execute(request, "create", "interface \(first)")
}

private func setUp(_ socket: borrowing RouteSocket, index: Int32) throws(SystemError) {
    var head = ifinfomsg()
    head.ifi_index = index
    head.ifi_flags = UInt32(IFF_UP)
    head.ifi_change = UInt32(IFF_UP)
    try socket.execute(NetlinkRequest(Int(RTM_NEWLINK), head), "set up", "interface \(index)")
}

private func delete(_ socket: borrowing RouteSocket, index: Int32) throws(SystemError) {
    var head = ifinfomsg()
    head.ifi_index = index
    try socket.execute(NetlinkRequest(Int(RTM_DELLINK), head), "delete", "interface \(index)")
}
