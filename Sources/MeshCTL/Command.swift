// What the commands are called, take and do, in words. Parsing, help and the shells' completions
// are all made from these descriptions.

/// What a shell can offer where a value is wanted.
enum Completion: Equatable {
    case nothing
    case files
    case choices([String])
    /// The names of all services, asked from the agent.
    case services
    /// The names of the services that have a breaker, asked from the agent.
    case breakers
    /// The names of the commands.
    case commands
}

/// An option: `--name`, `--name VALUE`.
struct Option: Equatable {
    let name: String
    var short: Character?
    /// What its value is called in the help; nil: it takes none.
    var value: String?
    let summary: String
    var completion = Completion.nothing
    var isRequired = false
}

/// An argument that is known by its place.
struct Operand: Equatable {
    enum Count { case one, optional, any }

    let name: String
    let count: Count
    var completion = Completion.nothing
}

/// A command, or a group of commands that share their first word.
struct Command: Equatable {
    /// What `run` does for a command; a group has none.
    enum Action {
        case status, services, flows, top, events, doctor, completion, help
        case breakerList, breakerShow, breakerOpen, breakerClose, breakerAuto
        case traceList, traceBind, traceUnbind
        case complete
    }
    struct Example: Equatable {
        let line: String
        let does: String
    }

    let path: [String]
    let action: Action?
    let summary: String
    var details: [String] = []
    var operands: [Operand] = []
    var options: [Option] = []
    var examples: [Example] = []
    /// Not for people: in no help and no completion.
    var isHidden = false

    /// `breaker open`.
    var name: String { path.joined(separator: " ") }
}

/// All commands and what they have in common.
enum Catalog {
    static let defaultControl = "/run/mesh-agent/control.sock"

    static let globals: [Option] = [
        Option(
            name: "control", value: "PATH", summary: "the agent's control socket (\(defaultControl))",
            completion: .files),
        Option(
            name: "output", short: "o", value: "FORMAT", summary: "table (for people) or json (for programs)",
            completion: .choices(["table", "json"])),
        Option(name: "help", short: "h", summary: "show help, for a command too"),
        Option(name: "version", summary: "show the version"),
    ]

    private static let service = Operand(name: "SERVICE", count: .one, completion: .breakers)
    private static let reason = Option(
        name: "reason", value: "TEXT", summary: "why; required, and kept in the audit log", isRequired: true)
    private static let duration = Option(
        name: "for", value: "TIME", summary: "when it ends by itself, such as 90s, 10m, 2h (15m)",
        completion: .choices(["1m", "5m", "15m", "1h"]))
    private static let follow = Option(name: "follow", summary: "keep running and show what comes, until Ctrl-C")

    static let commands: [Command] = [
        Command(
            path: ["status"], action: .status, summary: "the agent, its kernel hooks, lease and losses, on a screen",
            details: [
                "Each problem is listed below the figures with what to do about it. The exit code is 0 as long as "
                    + "the agent answers."
            ],
            examples: [
                .init(line: "meshctl status", does: "is all well on this node?"),
                .init(line: "meshctl status -o json | jq .lease.valid", does: "the same, for a script"),
            ]),
        Command(
            path: ["services"], action: .services,
            summary: "every service with rate, errors, latency and breaker state",
            details: [
                "One row for each service and role: `client` is this node calling it, `server` is this node "
                    + "serving it. Latency is time to first byte. Rates, errors and percentiles are of recent "
                    + "traffic; REQUESTS and FAILED count since the agent started."
            ],
            examples: [
                .init(line: "meshctl services", does: "who is called, how often, how well"),
                .init(
                    line: "meshctl services -o json | jq '.services[] | select(.error_ratio > 0.01)'",
                    does: "those with more than 1% errors"),
            ]),
        Command(path: ["breaker"], action: nil, summary: "look at circuit breakers, or force one"),
        Command(
            path: ["breaker", "list"], action: .breakerList, summary: "every breaker: state, why, window, override",
            details: [
                "REQUESTS, FAILED and SLOW are of the breaker's sliding window. REJECTED counts since the agent "
                    + "started; for a breaker in mode observe it is what would have been rejected."
            ],
            examples: [.init(line: "meshctl breaker list", does: "what is open, and why")]),
        Command(
            path: ["breaker", "show"], action: .breakerShow,
            summary: "one breaker with its window, attempts and history", operands: [service],
            examples: [.init(line: "meshctl breaker show payments", does: "who did what to it, and when")]),
        Command(
            path: ["breaker", "open"], action: .breakerOpen, summary: "force a breaker open: reject every attempt",
            details: [
                "The override beats automation until it ends by itself or by `meshctl breaker auto`. It ends on "
                    + "time even if the agent dies. A breaker in mode observe rejects nothing, overridden or not."
            ],
            operands: [service], options: [reason, duration],
            examples: [
                .init(
                    line: "meshctl breaker open payments --reason 'INC-1234: failing over'",
                    does: "reject every attempt for 15 minutes"),
                .init(
                    line: "meshctl breaker open payments --reason 'database move' --for 1h",
                    does: "the same for an hour"),
            ]),
        Command(
            path: ["breaker", "close"], action: .breakerClose, summary: "force a breaker closed: reject nothing",
            details: [
                "The override beats automation until it ends by itself or by `meshctl breaker auto`. It ends on "
                    + "time even if the agent dies."
            ],
            operands: [service], options: [reason, duration],
            examples: [
                .init(
                    line: "meshctl breaker close payments --reason 'false alarm, see INC-1234' --for 10m",
                    does: "let everything through for ten minutes")
            ]),
        Command(
            path: ["breaker", "auto"], action: .breakerAuto, summary: "end an override: back to automation",
            operands: [service],
            examples: [.init(line: "meshctl breaker auto payments", does: "let the breaker decide again")]),
        Command(
            path: ["flows"], action: .flows, summary: "connections and requests with their trace IDs",
            details: [
                "Without --follow: the connections that are open now. With --follow: connects, accepts, requests "
                    + "and closes as they happen."
            ],
            options: [
                follow,
                Option(name: "service", value: "S", summary: "only of this service", completion: .services),
                Option(name: "trace", value: "ID", summary: "only with this trace ID, 32 hex digits"),
            ],
            examples: [
                .init(line: "meshctl flows --follow --service payments", does: "its requests as they end"),
                .init(
                    line: "meshctl flows --follow --trace 4bf92f3577b34da6a3ce929d0e0e4736",
                    does: "where a trace goes"),
            ]),
        Command(path: ["trace"], action: nil, summary: "which process's connections carry which trace ID"),
        Command(
            path: ["trace", "list"], action: .traceList, summary: "the processes that are bound to a trace ID",
            examples: [.init(line: "meshctl trace list", does: "every binding")]),
        Command(
            path: ["trace", "bind"], action: .traceBind, summary: "stamp a process's new connections with one trace ID",
            details: ["Without --trace the agent makes up a fresh ID, and says which."],
            options: [
                Option(name: "pid", value: "PID", summary: "the process; required", isRequired: true),
                Option(name: "trace", value: "ID", summary: "32 hex digits, not all zero (a fresh one)"),
            ],
            examples: [
                .init(
                    line: "meshctl trace bind --pid $$ --trace 4bf92f3577b34da6a3ce929d0e0e4736",
                    does: "stamp what this shell connects to")
            ]),
        Command(
            path: ["trace", "unbind"], action: .traceUnbind, summary: "back to a fresh trace ID for each connection",
            options: [Option(name: "pid", value: "PID", summary: "the process; required", isRequired: true)],
            examples: [.init(line: "meshctl trace unbind --pid $$", does: "end this shell's binding")]),
        Command(
            path: ["top"], action: .top, summary: "live table of services, the busiest first",
            details: [
                "On a terminal it redraws until q or Ctrl-C. Anywhere else it prints a frame for each interval. "
                    + "REJECTED/S counts what breakers rejected since the frame before."
            ],
            options: [
                Option(name: "once", summary: "print one frame and end"),
                Option(name: "interval", value: "TIME", summary: "between frames, such as 500ms, 2s (1s)"),
                Option(name: "count", value: "N", summary: "end after N frames"),
            ],
            examples: [
                .init(line: "meshctl top", does: "watch"),
                .init(line: "meshctl top --interval 5s --count 12 > minute.txt", does: "a minute, for later"),
            ]),
        Command(
            path: ["events"], action: .events, summary: "breaker transitions and overrides, with who and why",
            options: [follow],
            examples: [
                .init(line: "meshctl events", does: "the recent ones"),
                .init(line: "meshctl events --follow -o json", does: "one JSON object a line, as they happen"),
            ]),
        Command(
            path: ["doctor"], action: .doctor, summary: "what this kernel can do, what is missing, what to do about it",
            details: [
                "Needs no agent. The exit code is 0 when nothing that the agent requires is missing, else 1. Run "
                    + "it as root: much cannot be tried otherwise."
            ],
            options: [
                Option(
                    name: "config", value: "FILE", summary: "the configuration to check (\(defaultConfig))",
                    completion: .files)
            ],
            examples: [.init(line: "sudo meshctl doctor", does: "before the first start, or when something fails")]),
        Command(
            path: ["completion"], action: .completion, summary: "a completion script for a shell",
            operands: [Operand(name: "SHELL", count: .one, completion: .choices(["bash", "zsh", "fish"]))],
            examples: [
                .init(line: "source <(meshctl completion bash)", does: "in ~/.bashrc"),
                .init(line: "meshctl completion zsh > ~/.zfunc/_meshctl", does: "with ~/.zfunc in $fpath"),
                .init(line: "meshctl completion fish > ~/.config/fish/completions/meshctl.fish", does: "for fish"),
            ]),
        Command(
            path: ["help"], action: .help, summary: "help, in general or for a command",
            operands: [Operand(name: "COMMAND", count: .any, completion: .commands)],
            examples: [.init(line: "meshctl help breaker open", does: "the same as: meshctl breaker open --help")]),
        Command(
            path: ["__complete"], action: .complete, summary: "names for the shells' completions",
            operands: [Operand(name: "KIND", count: .one, completion: .choices(["services", "breakers"]))],
            isHidden: true),
    ]

    static let defaultConfig = "/etc/mesh-agent/config.json"

    /// The commands that people see.
    static let visible = commands.filter { !$0.isHidden }

    /// The command or group with exactly this path.
    static func command(_ path: [String]) -> Command? { commands.first { $0.path == path } }

    /// The visible commands directly below a path.
    static func children(of path: [String]) -> [Command] {
        visible.filter { $0.path.count == path.count + 1 && Array($0.path.dropLast()) == path }
    }
}
