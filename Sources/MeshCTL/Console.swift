// Where meshctl prints, and what that place can show: a terminal's size, colours, characters.

import Glibc

/// How the output may look.
struct Page {
    /// Columns of the terminal; nil: not a terminal, so nothing is cut.
    var width: Int?
    /// Lines of the terminal; nil: not a terminal.
    var height: Int?
    var colour = false
    /// Only ASCII may be printed.
    var ascii = false

    /// The text in its style's colour.
    func paint(_ text: String, _ style: Style) -> String {
        guard colour, style != .plain, !text.isEmpty else { return text }
        return "\u{1B}[\(style.rawValue)m\(text)\u{1B}[0m"
    }
}

/// The standard streams of one run, with the environment that says how to use them.
struct Console: Sendable {
    let input: Int32
    let output: Int32
    let errors: Int32
    let variables: [String: String]

    /// The process's own.
    static func process() -> Console {
        var variables: [String: String] = [:]
        for name in ["NO_COLOR", "TERM", "LC_ALL", "LC_CTYPE", "LANG"] {
            if let value = getenv(name) { variables[name] = String(cString: value) }
        }
        return Console(
            input: STDIN_FILENO, output: STDOUT_FILENO, errors: STDERR_FILENO, variables: variables)
    }

    var isTerminal: Bool { isatty(output) == 1 }

    /// How the output may look now; a terminal's size is asked for anew each time.
    func page() -> Page {
        var page = Page(ascii: !isUTF8)
        guard isTerminal else { return page }
        var size = winsize()
        let known = ioctl(output, UInt(TIOCGWINSZ), &size) == 0
        page.width = known && size.ws_col > 0 ? Int(size.ws_col) : 80
        page.height = known && size.ws_row > 0 ? Int(size.ws_row) : 24
        page.colour = (variables["NO_COLOR"] ?? "").isEmpty && variables["TERM"] != "dumb"
        return page
    }

    /// Prints lines on standard output.
    func print(_ lines: [String]) throws(Failure) {
        try write(lines.map { $0 + "\n" }.joined())
    }

    /// Prints text as it is on standard output.
    func write(_ text: String) throws(Failure) {
        switch Self.write(text, to: output) {
        case 0: break
        case EPIPE: throw .outputClosed
        case let code: throw .output("cannot write the output: \(String(cString: strerror(code)))")
        }
    }

    /// Prints a line on standard error. There is nowhere to say that this failed.
    func complain(_ line: String) { _ = Self.write(line + "\n", to: errors) }

    /// The locale's encoding, by the variables' precedence.
    private var isUTF8: Bool {
        for name in ["LC_ALL", "LC_CTYPE", "LANG"] {
            guard let value = variables[name], !value.isEmpty else { continue }
            let lowered = value.lowercased()
            return lowered.hasSuffix("utf-8") || lowered.hasSuffix("utf8") || lowered.contains("utf-8@")
        }
        return false
    }

    /// Writes everything; the error number of what went wrong, or 0.
    private static func write(_ text: String, to descriptor: Int32) -> Int32 {
        var text = text
        return text.withUTF8 { bytes in
            var written = 0
            while written < bytes.count {
                let count = Glibc.write(descriptor, bytes.baseAddress! + written, bytes.count - written)
                if count > 0 {
                    written += count
                } else if count < 0, errno == EAGAIN {
                    var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    _ = poll(&wait, 1, -1)
                } else if count < 0, errno != EINTR {
                    return errno
                }
            }
            return 0
        }
    }
}
