// What the commands are called, take and do, in words. Parsing, help and the shells' completions
// are all made from these descriptions.

import BPFRuntime
import MeshCore

/// All commands and what they have in common.
enum Catalog {
    static let defaultControl = Instance.defaultControl

    private static let control = ArgumentOption(
        "control", value: "PATH", values: .file, summary: "the agent's control socket (\(defaultControl))")
    private static let output = ArgumentOption(
        "output", short: "o", value: "FORMAT", values: .choice(["table", "json"]),
        summary: "table (for people) or json (for programs)")

    private static let services = ArgumentValues.command("meshctl __complete services")
    private static let service = ArgumentOperand("SERVICE", values: .command("meshctl __complete breakers"))
    private static let reason = ArgumentOption(
        "reason", value: "TEXT", isRequired: true, summary: "why; it is kept in the audit log")
    private static let duration = ArgumentOption(
        "for", value: "TIME", summary: "when it ends by itself, such as 90s, 10m, 2h (15m)")
    private static let follow = ArgumentOption(
        "follow", summary: "keep running and show what comes, until Ctrl-C")

    private static let pins = ArgumentOption(
        "pins", value: "DIR", values: .file,
        summary: "where the agent pins what outlives it, if it has --pins; asked when none runs")

    private static let withoutAgent =
        "Works where no agent runs, too, on what the last one left in the kernel, and says so. The next agent "
        + "takes over what was done. Needs root."

    static let commands: [ArgumentCommand] = [
        ArgumentCommand(
            ["status"], summary: "the agent, its kernel hooks, lease and losses, on a screen",
            details: [
                "Each problem is listed below the figures with what to do about it. The exit code is 0 as long as "
                    + "the agent answers. Where none runs, it is 3, and what goes on without it is shown: what "
                    + "is attached, what is rejected, and until when."
            ],
            options: [pins],
            examples: [
                .init("meshctl status", does: "is all well on this node?"),
                .init("meshctl status -o json | jq .lease.valid", does: "the same, for a script"),
            ]),
        ArgumentCommand(
            ["services"], summary: "every service with rate, errors, latency and breaker state",
            details: [
                "One row for each service and role: `client` is this node calling it, `server` is this node "
                    + "serving it. Latency is time to first byte. Rates, errors and percentiles are of recent "
                    + "traffic; REQUESTS and FAILED count since the agent started."
            ],
            examples: [
                .init("meshctl services", does: "who is called, how often, how well"),
                .init(
                    "meshctl services -o json | jq '.services[] | select(.error_ratio > 0.01)'",
                    does: "those with more than 1% errors"),
            ]),
        ArgumentCommand(
            ["breaker", "list"], summary: "every breaker: state, why, window, override",
            details: [
                "REQUESTS, FAILED and SLOW are of the breaker's sliding window. REJECTED counts since the agent "
                    + "started; for a breaker in mode observe it is what would have been rejected.",
                withoutAgent,
            ],
            options: [pins],
            examples: [.init("meshctl breaker list", does: "what is open, and why")]),
        ArgumentCommand(
            ["breaker", "show"], summary: "one breaker with its window, attempts and history",
            details: [withoutAgent], options: [pins], operands: [service],
            examples: [.init("meshctl breaker show payments", does: "who did what to it, and when")]),
        ArgumentCommand(
            ["breaker", "open"], summary: "force a breaker open: reject every attempt",
            details: [
                "The override beats automation until it ends by itself or by `meshctl breaker auto`. It ends on "
                    + "time even if the agent dies. A breaker in mode observe rejects nothing, overridden or not.",
                withoutAgent,
            ],
            options: [reason, duration, pins], operands: [service],
            examples: [
                .init(
                    "meshctl breaker open payments --reason 'INC-1234: failing over'",
                    does: "reject every attempt for 15 minutes"),
                .init(
                    "meshctl breaker open payments --reason 'database move' --for 1h",
                    does: "the same for an hour"),
            ]),
        ArgumentCommand(
            ["breaker", "close"], summary: "force a breaker closed: reject nothing",
            details: [
                "The override beats automation until it ends by itself or by `meshctl breaker auto`. It ends on "
                    + "time even if the agent dies.",
                withoutAgent,
            ],
            options: [reason, duration, pins], operands: [service],
            examples: [
                .init(
                    "meshctl breaker close payments --reason 'false alarm, see INC-1234' --for 10m",
                    does: "let everything through for ten minutes")
            ]),
        ArgumentCommand(
            ["breaker", "auto"], summary: "end an override: back to automation",
            details: [withoutAgent], options: [pins], operands: [service],
            examples: [.init("meshctl breaker auto payments", does: "let the breaker decide again")]),
        ArgumentCommand(
            ["flows"], summary: "connections and requests with their trace IDs",
            details: [
                "Without --follow: the connections that are open now. With --follow: connects, accepts, requests "
                    + "and closes as they happen."
            ],
            options: [
                follow,
                ArgumentOption("service", value: "S", values: services, summary: "only of this service"),
                ArgumentOption("trace", value: "ID", summary: "only with this trace ID, 32 hex digits"),
            ],
            examples: [
                .init("meshctl flows --follow --service payments", does: "its requests as they end"),
                .init(
                    "meshctl flows --follow --trace 4bf92f3577b34da6a3ce929d0e0e4736",
                    does: "where a trace goes"),
            ]),
        ArgumentCommand(
            ["trace", "list"], summary: "the processes that are bound to a trace ID",
            examples: [.init("meshctl trace list", does: "every binding")]),
        ArgumentCommand(
            ["trace", "bind"], summary: "stamp a process's new connections with one trace ID",
            details: ["Without --trace the agent makes up a fresh ID, and says which."],
            options: [
                ArgumentOption("pid", value: "PID", isRequired: true, summary: "the process"),
                ArgumentOption("trace", value: "ID", summary: "32 hex digits, not all zero (a fresh one)"),
            ],
            examples: [
                .init(
                    "meshctl trace bind --pid $$ --trace 4bf92f3577b34da6a3ce929d0e0e4736",
                    does: "stamp what this shell connects to")
            ]),
        ArgumentCommand(
            ["trace", "unbind"], summary: "back to a fresh trace ID for each connection",
            options: [ArgumentOption("pid", value: "PID", isRequired: true, summary: "the process")],
            examples: [.init("meshctl trace unbind --pid $$", does: "end this shell's binding")]),
        ArgumentCommand(
            ["top"], summary: "live table of services, the busiest first",
            details: [
                "On a terminal it redraws until q or Ctrl-C. Anywhere else it prints a frame for each interval. "
                    + "REJECTED/S counts what breakers rejected since the frame before."
            ],
            options: [
                ArgumentOption("once", summary: "print one frame and end"),
                ArgumentOption("interval", value: "TIME", summary: "between frames, such as 500ms, 2s (1s)"),
                ArgumentOption("count", value: "N", summary: "end after N frames"),
            ],
            examples: [
                .init("meshctl top", does: "watch"),
                .init("meshctl top --interval 5s --count 12 > minute.txt", does: "a minute, for later"),
            ]),
        ArgumentCommand(
            ["events"], summary: "breaker transitions and overrides, with who and why",
            options: [follow],
            examples: [
                .init("meshctl events", does: "the recent ones"),
                .init("meshctl events --follow -o json", does: "one JSON object a line, as they happen"),
            ]),
        ArgumentCommand(
            ["cleanup"], summary: "remove what an agent that is gone left in the kernel",
            details: [
                "An agent that was killed, or that ended with --keep, leaves its programs, maps and links for the "
                    + "next one. This removes them, with the control socket and the state. It refuses while the "
                    + "agent runs, and touches nothing of others. Needs root."
            ],
            options: [
                ArgumentOption(
                    "pins", value: "DIR", values: .file, summary: "where they are, if the agent had --pins"),
                ArgumentOption(
                    "all", summary: "of every instance below \(Instance.root), but for those that run"),
            ],
            examples: [
                .init("sudo meshctl cleanup", does: "after kill -9, to be rid of it"),
                .init("sudo meshctl cleanup --all", does: "of agents beside the usual one, too"),
            ]),
        ArgumentCommand(
            ["doctor"], summary: "what this kernel can do, what is missing, what to do about it",
            details: [
                "Needs no agent. The exit code is 0 when nothing that the agent requires is missing, else 1. Run "
                    + "it as root: much cannot be tried otherwise."
            ],
            options: [
                ArgumentOption(
                    "config", value: "FILE", values: .file,
                    summary: "the configuration to check (\(defaultConfig))")
            ],
            examples: [.init("sudo meshctl doctor", does: "before the first start, or when something fails")]),
        ArgumentCommand(
            ["completion"], summary: "a completion script for a shell",
            operands: [ArgumentOperand("SHELL", values: .choice(["bash", "zsh", "fish"]))],
            examples: [
                .init("source <(meshctl completion bash)", does: "in ~/.bashrc"),
                .init("meshctl completion zsh > ~/.zfunc/_meshctl", does: "with ~/.zfunc in $fpath"),
                .init("meshctl completion fish > ~/.config/fish/completions/meshctl.fish", does: "for fish"),
            ]),
        ArgumentCommand(
            ["help"], summary: "help, in general or for a command",
            operands: [
                ArgumentOperand("COMMAND", count: .any, values: .command("meshctl __complete commands"))
            ],
            examples: [.init("meshctl help breaker open", does: "the same as: meshctl breaker open --help")]),
    ]

    static let defaultConfig = "/etc/mesh-agent/config.json"

    /// What a shell calls for words: not for people, so it is in no help and no completion.
    static let completer = ArgumentProgram(
        "meshctl __complete", summary: "Prints the words that a shell may offer.", options: [control],
        commands: ["services", "breakers", "commands"].map {
            ArgumentCommand([$0], summary: "the names of the \($0) that there are")
        })

    static let program = ArgumentProgram(
        "meshctl", summary: "Looks at this node's mesh agent, and forces its circuit breakers.",
        options: [control, output], commands: commands)

    /// What the overview adds about the exit codes.
    static let exitCodes = "Exit codes: 0 done, 1 the agent says no, 2 wrong usage, 3 no agent there.\n"

    /// The words that may follow a path, each once.
    static func words(after path: [String]) -> [String] {
        var words: [String] = []
        for command in commands where command.path.count > path.count && command.path.starts(with: path) {
            let word = command.path[path.count]
            if !words.contains(word) { words.append(word) }
        }
        return words
    }

    /// How much of a command line, right or wrong, is the name of a command or a group.
    static func commandPath(in arguments: [String]) -> [String] {
        var path: [String] = []
        for argument in arguments where words(after: path).contains(argument) { path.append(argument) }
        return path
    }
}
