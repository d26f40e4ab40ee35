// How a run of meshctl ends when it does not end well, and the exit code that says so.

/// The exit codes, which scripts rely on.
enum ExitCode {
    static let done: Int32 = 0
    static let refused: Int32 = 1
    static let usage: Int32 = 2
    static let noAgent: Int32 = 3
}

/// Why a command could not be carried out.
enum Failure: Error, Equatable {
    /// The agent said no, or what was asked for cannot be done.
    case refused(String, suggestion: String? = nil)
    /// The command line is wrong; `see` is the command whose help tells how it is right.
    case usage(String, see: String)
    /// No agent answers, or something does that is not one.
    case noAgent(String)
    /// Nobody listens at the control socket, or there is none: no agent runs.
    case noAgentRuns(String)
    /// Standard output is broken, not just closed.
    case output(String)
    /// Whoever read standard output has gone: nothing to say, and to nobody.
    case outputClosed

    var exitCode: Int32 {
        switch self {
        case .refused, .output: ExitCode.refused
        case .usage: ExitCode.usage
        case .noAgent, .noAgentRuns: ExitCode.noAgent
        case .outputClosed: ExitCode.done
        }
    }
}
