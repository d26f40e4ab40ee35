// The agent's command line.
import BPFRuntime
import MeshCore

/// What `mesh-agent run` was told.
public struct AgentOptions: Sendable {
    /// `--config FILE`; nil observes the whole machine and breaks nothing.
    public var configuration: String?
    /// `--control PATH`.
    public var control = AgentOptions.defaultControl
    /// `--pins DIR`; nil is the control socket's usual one.
    public var pins: String?
    /// `--keep`: a clean end leaves everything enforced, for the next agent to take over.
    public var keep = false
    /// `--listen ADDR:PORT`; nil takes the configuration's.
    public var listen: AddressPort?
    /// Whether system calls are filtered; not with `--no-seccomp`.
    public var filtersCalls = true
    /// `--log-format`.
    public var logFormat = Log.Format.text
    /// `--log-level`.
    public var logLevel = LogLevel.info

    /// Where the control socket is unless told otherwise.
    public static let defaultControl = Instance.defaultControl

    /// Which instance of the agent this is.
    var instance: Instance { Instance(control: control, pins: pins) }

    /// The command line's description: help, completions and parsing are made from it.
    static let program = ArgumentProgram(
        "mesh-agent",
        summary:
            "mesh-agent gives this node's services latency figures, trace IDs and circuit breakers, from the kernel.",
        commands: [
            ArgumentCommand(
                ["run"], summary: "run the agent in the foreground",
                details: [
                    "With no configuration it observes the whole machine and breaks nothing. TERM and INT stop it "
                        + "cleanly; HUP reloads the configuration, and a bad file keeps the old one. It is ready when "
                        + "/readyz answers 200.",
                    "Programs, maps and links are pinned: when the agent is killed, breakers and overrides hold until "
                        + "their deadlines, and the next agent takes over. A clean end removes everything, unless "
                        + "--keep is given.",
                ],
                options: [
                    ArgumentOption(
                        "config", value: "FILE", values: .file, summary: "the configuration (JSON)"),
                    ArgumentOption(
                        "control", value: "PATH", values: .file,
                        summary: "the control socket (default \(defaultControl))"),
                    ArgumentOption(
                        "listen", value: "ADDR:PORT",
                        summary: "where metrics are served (default 127.0.0.1:9464, or the configuration's)"),
                    ArgumentOption(
                        "no-seccomp",
                        summary: "do not filter the agent's system calls, to look for a fault in it"),
                    ArgumentOption(
                        "pins", value: "DIR", values: .file,
                        summary:
                            "where to pin (default \(Instance.root), or a directory in it for another PATH)"),
                    ArgumentOption(
                        "keep", summary: "leave everything enforced at the end, for the next agent"),
                    ArgumentOption(
                        "log-format", value: "FORMAT", values: .choice(Log.Format.allCases.map(\.rawValue)),
                        summary: "json or text (default text)"),
                    ArgumentOption(
                        "log-level", value: "LEVEL", values: .choice(LogLevel.allCases.map(\.label)),
                        summary: "the least important lines that are written (default info)"),
                ],
                examples: [
                    .init("mesh-agent run", does: "observe this machine"),
                    .init(
                        "mesh-agent run --config /etc/mesh-agent/config.json --log-format json",
                        does: "run as a service does"),
                ]),
            ArgumentCommand(
                ["check"], summary: "say whether a configuration is good",
                details: [
                    "Exits with 0, or with 2 and a line FILE:LINE: path.to.key: what is wrong for each mistake."
                ],
                options: [
                    ArgumentOption(
                        "config", value: "FILE", values: .file, isRequired: true,
                        summary: "the configuration (JSON)")
                ],
                examples: [
                    .init(
                        "mesh-agent check --config /etc/mesh-agent/config.json", does: "check before a reload"
                    )
                ]),
        ])

    init(_ arguments: Arguments) throws(ArgumentError) {
        configuration = arguments["config"]
        if let path = arguments["control"] { control = path }
        pins = arguments["pins"]
        keep = arguments.has("keep")
        if let text = arguments["listen"] {
            do {
                listen = try AddressPort(text)
            } catch {
                throw ArgumentError(description: "--listen: \(error.description)")
            }
        }
        filtersCalls = !arguments.has("no-seccomp")
        if let name = arguments["log-format"], let format = Log.Format(rawValue: name) { logFormat = format }
        if let name = arguments["log-level"], let level = LogLevel.allCases.first(where: { $0.label == name })
        {
            logLevel = level
        }
    }
}
