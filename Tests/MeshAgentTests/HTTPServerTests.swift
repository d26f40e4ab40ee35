// The HTTP server over real loopback and UNIX sockets: what it answers, and that no client, however
// slow, large, many or malformed, harms it or another client.
import Foundation
import Glibc
import MeshCore
import MeshSystem
import Testing

@testable import MeshAgent

private func milliseconds(_ count: UInt64) -> UInt64 { count * 1_000_000 }

// One at a time: several tell by the clock.
@Suite(.serialized) struct HTTPServerTests {
    @Test func answersOverTCPAndUNIXOnOneConnectionAgainAndAgain() throws {
        let test = try HTTPTestServer()
        for client in [try test.client(), try HTTPTestClient(path: test.path)] {
            for _ in 0..<3 {
                let response = try client.get("/hello")
                #expect(response.status == 200 && response.text == "hello\n")
                #expect(response.headers["content-type"] == "text/plain; charset=utf-8")
                #expect(response.headers["connection"] == nil)
                #expect(response.headers["date"]?.hasSuffix(" GMT") == true)
            }
            #expect(try client.get("/echo", method: "PUT", body: "some body").text == "some body")
            #expect(
                try client.get("/hello", headers: "Connection: close\r\n").headers["connection"] == "close")
            #expect(try client.isAtEnd())
        }
    }

    @Test func oldClientsAreToldWhetherTheConnectionStays() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        #expect(try client.response().headers["connection"] == "keep-alive")
        client.send("GET /hello HTTP/1.0\r\n\r\n")
        #expect(try client.response().headers["connection"] == "close")
        #expect(try client.isAtEnd())
    }

    @Test func headHasTheHeadersOfGetAndNoBody() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        let get = try client.get("/compressible")
        let head = try client.get("/compressible", method: "HEAD")
        #expect(head.status == 200 && head.body.isEmpty)
        #expect(head.headers["content-length"] == "10000" && get.body.count == 10000)
        #expect(try client.get("/stream", method: "HEAD").headers["transfer-encoding"] == "chunked")
        let exchange = try #require(test.exchanges.take())
        #expect(try client.get("/missing", method: "HEAD").status == 404)
        #expect(!exchange.isOpen && !exchange.send([1]))
        // Nothing was sent in between that a later response would be read from.
        #expect(try client.get("/hello").text == "hello\n")
    }

    @Test func tellsUnknownPathsFromMethodsThatAPathDoesNotTake() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        #expect(try client.get("/missing").status == 404)
        #expect(try client.get("/hello/", method: "POST").status == 404)
        let response = try client.get("/hello", method: "POST", body: "x")
        #expect(response.status == 405 && response.headers["allow"] == "GET, HEAD")
        #expect(response.text == "This path takes only GET, HEAD.\n")
        #expect(try client.get("/echo", method: "BREW").headers["allow"] == "PUT")
        #expect(try client.get("/hello").status == 200)
    }

    @Test func knowsWhoAsksOverUNIX() throws {
        let test = try HTTPTestServer()
        let own = try HTTPTestClient(path: test.path).get("/who/a%20b%2Fc")
        #expect(own.text == "a b/c \(getpid()) \(geteuid()) \(getegid())\n")
        #expect(try test.client().get("/who/x").text == "x nobody\n")
    }

    @Test func compressesWhatMayBeForThoseWhoAsk() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        let response = try client.get("/compressible", headers: "Accept-Encoding: deflate, gzip;q=0.5\r\n")
        #expect(response.headers["content-encoding"] == "gzip")
        #expect(response.headers["vary"] == "Accept-Encoding")
        #expect(response.body.count < 200)
        #expect(gunzip(response.body, capacity: 20000) == Array(HTTPTestServer.large[..<10000]))
        let plain = try client.get("/compressible", headers: "Accept-Encoding: gzip;q=0\r\n")
        #expect(plain.headers["content-encoding"] == nil && plain.headers["vary"] == "Accept-Encoding")
        #expect(plain.body.count == 10000)
        #expect(try client.get("/hello", headers: "Accept-Encoding: gzip\r\n").text == "hello\n")
    }

    @Test func pipelinedRequestsAreAnsweredInOrder() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        let names = (0..<500).map { "n\($0)" }
        client.send(names.map { "GET /who/\($0) HTTP/1.1\r\nHost: h\r\n\r\n" }.joined())
        for name in names {
            #expect(try client.response().text == "\(name) nobody\n")
        }
        // A deferred one holds those behind it back, but is not overtaken.
        client.send("GET /deferred HTTP/1.1\r\nHost: h\r\n\r\nGET /hello HTTP/1.1\r\nHost: h\r\n\r\n")
        try #require(test.exchanges.take()).reply(.respond(.text("deferred")))
        #expect(try client.response().text == "deferred\n")
        #expect(try client.response().text == "hello\n")
    }

    @Test func aRequestMayArriveByteByByteAndItsClientHalfClose() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        for byte in "PUT /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".utf8
        {
            client.send([byte])
        }
        #expect(try client.read(through: "\r\n\r\n") == "HTTP/1.1 100 Continue\r\n\r\n")
        client.send("ok")
        client.endInput()
        #expect(try client.response().text == "ok")
        #expect(try client.isAtEnd())
    }

    // MARK: Deferred replies and streams

    @Test func deferredRepliesComeFromOtherThreads() async throws {
        let test = try HTTPTestServer()
        let clients = try (0..<8).map { _ in try test.client() }
        for (index, client) in clients.enumerated() {
            client.send("GET /deferred?\(index) HTTP/1.1\r\nHost: h\r\n\r\n")
        }
        let exchanges = try clients.map { _ in try #require(test.exchanges.take()) }
        await withTaskGroup(of: Void.self) { group in
            for exchange in exchanges.reversed() {
                group.addTask {
                    #expect(exchange.isOpen && exchange.reply(.deferred))
                    #expect(exchange.reply(.respond(.text("answer \(exchange.request.query[0].name)"))))
                    #expect(!exchange.reply(.respond(.text("another"))))
                }
            }
        }
        for (index, client) in clients.enumerated() {
            #expect(try client.response().text == "answer \(index)\n")
            #expect(try client.get("/hello").text == "hello\n")
        }
        #expect(exchanges.allSatisfy { !$0.isOpen })
    }

    @Test func aReplyForAClientThatLeftGoesNowhere() throws {
        let test = try HTTPTestServer()
        for resets in [true, false] {
            var client: HTTPTestClient? = try HTTPTestClient(path: test.path)
            client!.send("GET /deferred HTTP/1.1\r\nHost: h\r\n\r\n")
            let exchange = try #require(test.exchanges.take())
            if resets { client!.reset() }
            client = nil
            try until { !exchange.isOpen }
            #expect(!exchange.reply(.respond(.text("late"))))
        }
        #expect(try test.client().get("/hello").status == 200)
    }

    @Test func aHandlerThatNeverRepliesIsAnsweredFor() throws {
        var timeouts = HTTPTimeouts()
        timeouts.handler = milliseconds(50)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client()
        let response = try client.get("/deferred")
        #expect(response.status == 504 && response.text == "The agent did not answer in time.\n")
        #expect(try client.isAtEnd())
        #expect(try #require(test.exchanges.take()).reply(.respond(.text("late"))) == false)
    }

    @Test func streamsArriveAsTheyAreSent() throws {
        let test = try HTTPTestServer()
        for client in [try test.client(), try HTTPTestClient(path: test.path)] {
            client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
            let head = try client.head()
            #expect(head.headers["transfer-encoding"] == "chunked" && head.headers["content-length"] == nil)
            #expect(try client.chunk() == "first\n")
            let exchange = try #require(test.exchanges.take())
            for line in ["one\n", "two\n"] {
                #expect(exchange.send(Array(line.utf8)))
                #expect(try client.chunk() == line)
            }
            #expect(!exchange.reply(.respond(.text("too late"))) && exchange.isOpen)
            #expect(exchange.send([]) && exchange.send(Array("last\n".utf8)))
            exchange.finish()
            #expect(try client.chunk() == "last\n")
            #expect(try client.chunk() == nil)
            #expect(!exchange.send([1]) && !exchange.reply(.respond(.text("no"))))
            #expect(try client.get("/hello").text == "hello\n")
        }
    }

    @Test func aDeferredRequestMayBecomeAStream() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        client.send("GET /deferred HTTP/1.0\r\n\r\n")
        let exchange = try #require(test.exchanges.take())
        #expect(exchange.reply(.stream(HTTPResponse(body: Array("a".utf8)), dropped: [])))
        #expect(exchange.send(Array("b".utf8)))
        exchange.finish()
        // HTTP/1.0 knows no chunks: the connection's end is the stream's.
        let head = try client.head()
        #expect(head.headers["connection"] == "close" && head.headers["transfer-encoding"] == nil)
        #expect(try client.readToEnd() == Array("ab".utf8))
    }

    @Test func aStreamThatBeganIsNotAnsweredAnew() throws {
        let test = try HTTPTestServer()
        let client = try test.client()
        client.send("GET /contradiction HTTP/1.1\r\nHost: h\r\n\r\n")
        #expect(try client.head().headers["transfer-encoding"] == "chunked")
        #expect(try client.chunk() == "line\n")
        #expect(try client.chunk() == nil)
        #expect(try client.get("/hello").text == "hello\n")
    }

    @Test func aStreamEndsWithItsClient() throws {
        let test = try HTTPTestServer()
        var client: HTTPTestClient? = try HTTPTestClient(path: test.path)
        client!.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        #expect(try client!.head().status == 200)
        let exchange = try #require(test.exchanges.take())
        client = nil
        try until { !exchange.send(Array("x".utf8)) }
    }

    @Test func aStreamReaderThatCannotKeepUpIsDroppedAndTold() throws {
        let test = try HTTPTestServer(streamLimit: 100_000)
        let slow = try test.client(receiveBuffer: 4096)
        let quick = try test.client()
        for client in [slow, quick] {
            client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
            #expect(try client.head().status == 200)
            #expect(try client.chunk() == "first\n")
        }
        let exchanges = [try #require(test.exchanges.take()), try #require(test.exchanges.take())]
        let line = Array((String(repeating: "y", count: 9_999) + "\n").utf8)
        var sent = 0
        while exchanges[0].send(line) {
            sent += 1
            #expect(exchanges[1].send(line))
            var got = 0
            while got < line.count { got += try #require(try quick.chunk()).utf8.count }
            try #require(sent < 5000, "the slow reader is never dropped")
        }
        #expect(!exchanges[0].send(line))
        // What had been accepted still arrives, whole, and then why there is no more.
        var text = ""
        while let chunk = try slow.chunk() { text += chunk }
        #expect(text.utf8.count == sent * line.count + "dropped\n".utf8.count)
        #expect(text.hasSuffix("y\ndropped\n"))
        #expect(try slow.isAtEnd())
        #expect(exchanges[1].send(line))
    }

    @Test func noMoreIsHeldForAStreamThanItsLimit() throws {
        let test = try HTTPTestServer(streamLimit: 1000)
        let client = try test.client()
        client.send("GET /deferred HTTP/1.1\r\nHost: h\r\n\r\n")
        let exchange = try #require(test.exchanges.take())
        #expect(exchange.send([UInt8](repeating: 1, count: 600)))
        #expect(!exchange.send([UInt8](repeating: 1, count: 1001)))
        #expect(!exchange.send([1]))
    }

    // MARK: Slow, half and broken clients

    @Test func aSlowReaderDelaysNobody() throws {
        let test = try HTTPTestServer(outputLimit: 128 << 20)
        let slow = try (0..<4).map { _ in try test.client(receiveBuffer: 4096) }
        for client in slow { client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n") }
        let lengths = try slow.map { try $0.head().headers["content-length"] }
        #expect(lengths == Array(repeating: "16777216", count: 4))
        let other = try test.client()
        for _ in 0..<20 {
            let started = MonotonicClock.now()
            #expect(try other.get("/hello").status == 200)
            #expect(MonotonicClock.now() - started < milliseconds(1000))
        }
        // A reader that goes on reading gets it all.
        #expect(try slow[3].read(count: HTTPTestServer.large.count) == HTTPTestServer.large)
    }

    @Test func aReaderThatStopsIsCutOff() throws {
        var timeouts = HTTPTimeouts()
        timeouts.write = milliseconds(100)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client(receiveBuffer: 4096)
        client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        #expect(try client.head().status == 200)
        var reset = pollfd(fd: client.socket, events: 0, revents: 0)
        #expect(poll(&reset, 1, 5000) == 1 && reset.revents & Int16(POLLERR) != 0)
    }

    @Test func whatSlowReadersMakeTheServerHoldIsBounded() throws {
        let test = try HTTPTestServer(outputLimit: 33 << 20)
        let slow = try (0..<3).map { _ in try test.client(receiveBuffer: 4096) }
        for client in slow {
            client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
            #expect(try client.head().status == 200)
        }
        // Two fit. For the third, the one that is the slowest had to go.
        #expect(throws: HTTPTestClient.Failure.self) { try slow[0].read(count: HTTPTestServer.large.count) }
        #expect(try slow[1].read(count: HTTPTestServer.large.count).count == HTTPTestServer.large.count)
        #expect(try slow[2].read(count: HTTPTestServer.large.count).count == HTTPTestServer.large.count)
    }

    @Test func anAnswerThatIsTooLongSaysSo() throws {
        let test = try HTTPTestServer(outputLimit: 5 << 20)
        let client = try test.client()
        let plain = try client.get("/repetitive")
        #expect(plain.status == 406)
        #expect(
            String(decoding: plain.body, as: UTF8.self).contains(
                "has 8 MiB, and the server sends 5 MiB at most: ask for it with `Accept-Encoding: gzip`"))
        #expect(try client.get("/repetitive", headers: "Accept-Encoding: gzip\r\n").status == 200)
        #expect(try client.get("/large").status == 500)
        #expect(try client.get("/hello").status == 200)
    }

    @Test(arguments: [
        ("", ""), ("\r\n", ""), ("GET /hel", "408"), ("GET /hello HTTP/1.1\r\nHost: h\r\nA", "408"),
        ("PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf", "408"),
    ])
    func halfRequestsTimeOut(text: String, status: String) throws {
        var timeouts = HTTPTimeouts()
        timeouts.idle = milliseconds(60)
        timeouts.request = milliseconds(100)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client()
        client.send(text)
        let started = MonotonicClock.now()
        let answer = String(decoding: try client.readToEnd(), as: UTF8.self)
        #expect(MonotonicClock.now() - started >= milliseconds(50))
        #expect(answer.dropFirst("HTTP/1.1 ".count).prefix(3) == status)
        #expect(answer.isEmpty == status.isEmpty)
    }

    @Test func tricklingDoesNotExtendTheTimeForHeaders() throws {
        var timeouts = HTTPTimeouts()
        timeouts.idle = milliseconds(100)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client()
        client.send("GET /hello HTTP/1.1\r\nHost: h\r\n")
        let started = MonotonicClock.now()
        var readable = pollfd(fd: client.socket, events: Int16(POLLIN), revents: 0)
        while poll(&readable, 1, 10) == 0 {
            try #require(MonotonicClock.now() - started < milliseconds(3000))
            client.send("A: b\r\n")
        }
        #expect(try client.response().status == 408)
    }

    @Test func aBusyConnectionIsNotIdle() throws {
        var timeouts = HTTPTimeouts()
        timeouts.idle = milliseconds(150)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client()
        let started = MonotonicClock.now()
        while MonotonicClock.now() - started < milliseconds(400) {
            #expect(try client.get("/hello").status == 200)
            usleep(20_000)
        }
    }

    @Test(arguments: [
        ("GET /\(String(repeating: "a", count: 9000)) HTTP/1.1\r\n", 414),
        ("GET /hello HTTP/1.1\r\nHost: h\r\nA: \(String(repeating: "b", count: 20000))\r\n\r\n", 431),
        ("GET /hello HTTP/1.1\r\nHost: h\r\n" + String(repeating: "A: b\r\n", count: 101), 431),
        (
            "PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
                + String(repeating: "c", count: 1_000_000), 413
        ),
        ("PUT /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        ("PUT /echo HTTP/1.1\r\nHost: h\r\nExpect: magic\r\n\r\n", 417),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}", 400), ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (String(repeating: "not http at all ", count: 5000), 414), ("GET /hello\r\n", 400),
    ])
    func refusesWhatIsNoRequest(text: String, status: Int) throws {
        let test = try HTTPTestServer()
        for client in [try test.client(), try HTTPTestClient(path: test.path)] {
            client.send(text)
            // The reason arrives even though the client sent more than was read.
            let response = try client.response()
            #expect(response.status == status)
            #expect(response.headers["connection"] == "close" && response.text.hasSuffix(".\n"))
            client.endInput()
            #expect(try client.isAtEnd())
        }
    }

    @Test func randomBytesAndResetsDoNoHarm() throws {
        let test = try HTTPTestServer()
        var state: UInt64 = 7
        for round in 0..<300 {
            let client = try round % 2 == 0 ? test.client() : HTTPTestClient(path: test.path)
            let bytes = (0..<(round * 7)).map { _ in
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return UInt8(state >> 56)
            }
            client.send(round % 3 == 0 ? Array("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".utf8) + bytes : bytes)
            if round % 5 != 0 { client.reset() }
        }
        #expect(try test.client().get("/hello").text == "hello\n")
    }

    @Test func aClientThatPipelinesWithoutReadingIsHeldBack() throws {
        var timeouts = HTTPTimeouts()
        timeouts.write = milliseconds(150)
        let test = try HTTPTestServer(timeouts: timeouts)
        let client = try test.client(receiveBuffer: 4096)
        let request = Array("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".utf8)
        // Ends when the server resets: it took only as much as fits into socket buffers.
        let burst = (0..<2000).flatMap { _ in request }
        let sent = (0..<500).reduce(0) { sum, _ in sum + client.send(burst) }
        #expect(sent < 16 << 20)
        #expect(try test.client().get("/hello").status == 200)
    }

    // MARK: Many clients

    @Test func servesTwoThousandConnectionsAtOnce() throws {
        let test = try HTTPTestServer(maxConnections: 4096)
        let clients = try (0..<2000).map { _ in try test.client() }
        for _ in 0..<2 {
            for client in clients { client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n") }
            #expect(try clients.count { try $0.response().text == "hello\n" } == 2000)
        }
    }

    @Test func oneTooManyTakesThePlaceOfTheOneThatIdledLongest() throws {
        let test = try HTTPTestServer(maxConnections: 3)
        let clients = try (0..<3).map { _ in try test.client() }
        for client in clients { #expect(try client.get("/hello").status == 200) }
        #expect(try clients[0].get("/hello").status == 200)
        let fourth = try test.client()
        #expect(try fourth.get("/hello").status == 200)
        #expect(try clients[1].isAtEnd())
        #expect(try clients[2].get("/hello").status == 200)
        #expect(try clients[0].get("/hello").status == 200)
        // The other service's connections are counted apart.
        #expect(try HTTPTestClient(path: test.path).get("/hello").status == 200)
    }

    @Test func oneTooManyIsToldSoWhenAllWaitForAnswers() throws {
        let test = try HTTPTestServer(maxConnections: 2)
        let busy = try (0..<2).map { _ in try test.client() }
        for client in busy { client.send("GET /deferred HTTP/1.1\r\nHost: h\r\n\r\n") }
        let exchanges = [try #require(test.exchanges.take()), try #require(test.exchanges.take())]
        let third = try test.client()
        let response = try third.response()
        #expect(response.status == 503 && response.headers["connection"] == "close")
        #expect(try third.isAtEnd())
        for exchange in exchanges { #expect(exchange.reply(.respond(.text("done")))) }
        for client in busy { #expect(try client.response().text == "done\n") }
        #expect(try test.client().get("/hello").status == 200)
    }

    @Test func survivesRunningOutOfDescriptors() async {
        // In a process of its own: the limit is one for all threads.
        await #expect(processExitsWith: .success) {
            let test = try HTTPTestServer()
            var limit = rlimit()
            getrlimit(__rlimit_resource_t(7), &limit)
            let established = try test.client()
            #expect(try established.get("/hello").status == 200)
            // Descriptors that came from tests beside this one lie anywhere: all that are free are taken, and five
            // given back. An odd number: each connection takes two, so one is left that cannot be accepted.
            limit.rlim_cur = min(limit.rlim_cur, 4096)
            setrlimit(__rlimit_resource_t(7), &limit)
            var taken: [Int32] = []
            while case let descriptor = dup(0), descriptor >= 0 { taken.append(descriptor) }
            for descriptor in taken.suffix(5) { close(descriptor) }
            // Client and server share the limit: the clients take the last descriptors.
            var clients: [HTTPTestClient] = []
            var report: String?
            for _ in 0..<10 where report == nil {
                while let client = try? test.client() { clients.append(client) }
                report = test.reports.take(within: 0.5)
                // Another thread had one for a moment, and the number was even: take one for good.
                if report == nil {
                    _ = clients.popLast()
                    _ = dup(0)
                }
            }
            #expect(report?.contains("open files") == true)
            try #require(!clients.isEmpty)
            // Those that are connected are served, without spinning on those that are not.
            #expect(try established.get("/hello").status == 200)
            var before = timespec()
            var after = timespec()
            clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before)
            usleep(150_000)
            clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after)
            let used = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1_000_000
            #expect(used < 50)
            // And once there are descriptors again, so is everybody.
            let last = clients.removeLast()
            clients = []
            #expect(try last.get("/hello").status == 200)
            #expect(try test.client().get("/hello").status == 200)
        }
    }

    @Test func stoppingClosesEverything() throws {
        let test = try HTTPTestServer()
        let idle = try test.client()
        #expect(try idle.get("/hello").status == 200)
        let waiting = try HTTPTestClient(path: test.path)
        waiting.send("GET /deferred HTTP/1.1\r\nHost: h\r\n\r\n")
        let exchange = try #require(test.exchanges.take())
        test.server.stop()
        test.server.stop()
        #expect(try idle.isAtEnd())
        #expect(try waiting.isAtEnd())
        #expect(!exchange.reply(.respond(.text("late"))))
    }
}

/// Waits up to five seconds for something that another thread does.
private func until(_ condition: () -> Bool) throws {
    let deadline = MonotonicClock.now() + milliseconds(5000)
    while !condition() {
        try #require(MonotonicClock.now() < deadline, "it did not happen within five seconds")
        usleep(1000)
    }
}
