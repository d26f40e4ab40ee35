// The live table: frames on a terminal's alternate screen, or one after another anywhere else.

import Glibc
import MeshCore
import MeshSystem

/// What `top` shows at one moment.
struct Frame {
    let status: Status
    let services: [ServiceRow]
    let breakers: [Breaker]
    /// When it was taken: nanoseconds on the monotonic clock.
    let taken: UInt64

    init(status: JSONValue, services: JSONValue, breakers: JSONValue, taken: UInt64) throws(Failure) {
        self.status = try Status(Answer(status))
        self.services = try Answer(services).list("services") { row throws(Failure) in try ServiceRow(row) }
        self.breakers = try Answer(breakers).list("breakers") { row throws(Failure) in try Breaker(row) }
        self.taken = taken
    }

    /// The frame's lines: the agent in one, then the services, the busiest first.
    /// - Parameter previous: The frame before, from which rates of rejection are counted.
    func lines(after previous: Frame?, on page: Page) -> [String] {
        var lines = [header(on: page), ""]
        guard !services.isEmpty else { return lines + Views.services([], on: page) }
        var table = Table([
            .left("SERVICE", minimum: 16, cut: 16), .left("ROLE", minimum: 6), .right("RATE", minimum: 7),
            .right("ERRORS", minimum: 6), .right("P50", minimum: 6), .right("P90", minimum: 6, drop: 1),
            .right("P99", minimum: 6), .right("REJECTED/S", minimum: 10, drop: 0),
            .left("BREAKER", minimum: 9),
        ])
        let order = services.sorted { ($1.rate, $0.name, $0.role) < ($0.rate, $1.name, $1.role) }
        for row in order {
            table.add([
                Cell(row.name), Cell(row.role), Cell(Format.rate(row.rate)), Views.errors(row),
                Views.latency(row.p50, page), Views.latency(row.p90, page), Views.latency(row.p99, page),
                rejections(row, since: previous), Views.breaker(row.breaker),
            ])
        }
        let rows = table.lines(on: page)
        // A full screen ends with how much there is below it.
        guard let height = page.height, lines.count + rows.count > height else { return lines + rows }
        let room = max(1, height - lines.count - 1)
        lines += rows.prefix(room)
        return lines + [page.paint(Format.count(Double(rows.count - room), "more row") + " below", .dim)]
    }

    private func header(on page: Page) -> String {
        let problems = StatusView.problems(of: status).count
        var parts: [(String, Style)] = [
            ("mesh-agent \(status.version.harmless) up \(Format.age(status.uptime))", .bold),
            (status.lease.valid ? "lease valid" : "lease EXPIRED", status.lease.valid ? .green : .red),
            ("\(Format.count(status.breakers.open)) open", status.breakers.open > 0 ? .red : .plain),
            (
                "\(Format.count(status.breakers.halfOpen)) half_open",
                status.breakers.halfOpen > 0 ? .yellow : .plain
            ),
            ("\(Format.count(status.connections)) connections", .plain),
        ]
        if problems > 0 {
            let text = Format.count(Double(problems), "problem") + ": meshctl status"
            parts.insert((text, .red), at: 1)
        }
        // What does not fit is left out from the end.
        var (line, used) = ("", 0)
        for (text, style) in parts {
            let gap = line.isEmpty ? "" : "  "
            if let width = page.width, used + gap.count + text.columns > width { break }
            line += gap + page.paint(text, style)
            used += gap.count + text.columns
        }
        return line
    }

    /// How many attempts a second were rejected, or by a breaker in mode observe would have been.
    private func rejections(_ row: ServiceRow, since previous: Frame?) -> Cell {
        guard row.role == "client", let previous, taken > previous.taken,
            let now = rejected(row.name), let before = previous.rejected(row.name), now >= before
        else { return "-" }
        let rate = (now - before) / (Double(taken - previous.taken) / 1e9)
        return Cell(Format.rate(rate), rate > 0 ? .red : .plain)
    }

    private func rejected(_ service: String) -> Double? {
        guard let breaker = breakers.first(where: { $0.service == service }) else { return nil }
        return breaker.mode == "observe" ? breaker.wouldReject : breaker.rejected
    }
}

/// `meshctl top`.
struct Top {
    struct Options: Equatable {
        /// Nanoseconds between frames.
        var interval: UInt64 = 1_000_000_000
        /// How many frames; nil: until somebody stops it.
        var count: Int?
        /// Print one frame as it is, also on a terminal.
        var once = false
    }

    let run: Run
    let options: Options

    func perform() throws(Failure) {
        if run.console.isTerminal, !run.json, !options.once {
            try live()
        } else {
            try plain()
        }
    }

    private func fetch() throws(Failure) -> (frame: Frame, json: JSONValue) {
        // A screen that stands still for long is worse than a frame that says why.
        var client = run.client
        client.timeout = 2_000_000_000
        let status = try client.call("GET", "/v1/status")
        let services = try client.call("GET", "/v1/services")
        let breakers = try client.call("GET", "/v1/breakers")
        let frame = try Frame(
            status: status, services: services, breakers: breakers, taken: MonotonicClock.now())
        return (
            frame,
            [
                "status": status, "services": services["services"] ?? .null,
                "breakers": breakers["breakers"] ?? .null,
            ]
        )
    }

    /// Frames one after another, for files and pipes.
    private func plain() throws(Failure) {
        var previous: Frame?
        var shown = 0
        var next = MonotonicClock.now()
        while true {
            let (frame, json) = try fetch()
            if run.json {
                try run.console.print([json.serialized()])
            } else {
                var page = run.console.page()
                page.height = nil
                let lines = frame.lines(after: previous, on: page)
                try run.console.print((shown > 0 ? [""] : []) + lines)
            }
            previous = frame
            shown += 1
            if shown == options.count { return }
            next += options.interval
            let now = MonotonicClock.now()
            guard next > now else { continue }
            var pause = timespec(
                tv_sec: Int((next - now) / 1_000_000_000), tv_nsec: Int((next - now) % 1_000_000_000))
            nanosleep(&pause, nil)
        }
    }

    /// Frames over one another, until q, a signal, or the count.
    private func live() throws(Failure) {
        var latest = try fetch().frame
        var previous: Frame?
        var trouble: Failure?
        var shown = 0
        do {
            let signals = try SignalDescriptor([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH])
            var poller = try Poller(capacity: 4)
            try poller.add(signals.descriptor, token: 0, .readable)
            let screen = Screen(console: run.console)
            // A file as standard input cannot be waited for, and has no keys.
            if screen.hasKeys { try poller.add(run.console.input, token: 1, .readable) }
            var next = MonotonicClock.now()
            while true {
                try draw(latest, after: previous, trouble)
                shown += 1
                if shown == options.count { return }
                next = max(next + options.interval, MonotonicClock.now())
                var due = false
                while !due {
                    let now = MonotonicClock.now()
                    guard next > now else { break }
                    for index in 0..<(try poller.wait(timeout: next - now)) where poller[index].token == 1 {
                        if screen.key() == UInt8(ascii: "q") { return }
                    }
                    while let signal = signals.next() {
                        switch signal {
                        case SIGWINCH: try draw(latest, after: previous, trouble)
                        case SIGTSTP:
                            screen.leave()
                            kill(getpid(), SIGSTOP)
                            screen.enter()
                            due = true
                        default: return
                        }
                    }
                }
                do {
                    let frame = try fetch().frame
                    (previous, latest, trouble) = (latest, frame, nil)
                } catch {
                    // The agent may come back: a restart is when people watch.
                    trouble = error
                }
            }
        } catch let failure as Failure {
            throw failure
        } catch {
            throw .output("\(error)")
        }
    }

    private func draw(_ frame: Frame, after previous: Frame?, _ trouble: Failure?) throws(Failure) {
        var page = run.console.page()
        var lines: [String] = []
        switch trouble {
        case .noAgent(let text), .noAgentRuns(let text), .refused(let text, _):
            lines = Views.prose(text, on: page).map { page.paint($0, .red) } + [""]
        default: break
        }
        page.height = page.height.map { max(4, $0 - lines.count) }
        lines += frame.lines(after: previous, on: page)
        // From the top left, each line clears what was to its right, the last one what was below.
        try run.console.write("\u{1B}[H" + lines.joined(separator: "\u{1B}[K\r\n") + "\u{1B}[K\u{1B}[J")
    }
}

/// The alternate screen of a terminal, with keys that arrive one by one. Leaving restores all.
private struct Screen: ~Copyable {
    let console: Console
    /// Whether keys can be read at all.
    let hasKeys: Bool
    private let before: termios

    init(console: Console) {
        self.console = console
        var settings = termios()
        hasKeys = isatty(console.input) == 1 && tcgetattr(console.input, &settings) == 0
        before = settings
        enter()
    }

    deinit { leave() }

    func enter() {
        if hasKeys {
            var settings = before
            settings.c_lflag &= ~tcflag_t(ICANON | ECHO)
            tcsetattr(console.input, TCSANOW, &settings)
        }
        try? console.write("\u{1B}[?1049h\u{1B}[?25l")
    }

    func leave() {
        try? console.write("\u{1B}[?25h\u{1B}[?1049l")
        if hasKeys {
            var settings = before
            tcsetattr(console.input, TCSANOW, &settings)
        }
    }

    /// The key that was pressed; a terminal that is gone counts as q.
    func key() -> UInt8 {
        var key: UInt8 = 0
        return read(console.input, &key, 1) == 1 ? key : UInt8(ascii: "q")
    }
}
