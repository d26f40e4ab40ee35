// The agent's entry: understands the command line, checks what the machine must offer, starts the
// servers and the engine, and turns every failure into a line that says what to do.
import BPFRuntime
import Glibc
import MeshCore
import MeshSystem

/// Runs mesh-agent.
/// - Parameter arguments: The command line without the program's name.
/// - Returns: The exit code: 0 done, 1 it could not start or go on, 2 wrong usage or configuration.
public func runMeshAgent(arguments: [String]) -> Int32 {
    do {
        let parsed = try AgentOptions.program.parse(arguments)
        switch parsed.request {
        case .help:
            print(AgentOptions.program.help(parsed.command), terminator: "")
            return 0
        case .version:
            print("mesh-agent \(meshVersion)")
            return 0
        case .run:
            let options = try AgentOptions(parsed)
            return parsed.command == ["check"] ? check(options) : run(options)
        }
    } catch {
        complain("mesh-agent: \(error.description)")
        complain("see 'mesh-agent --help'")
        return 2
    }
}

private func complain(_ line: String) {
    let bytes = Array("\(line)\n".utf8)
    _ = bytes.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
}

/// Why a configuration could not be had.
enum ConfigurationFailure: Error, CustomStringConvertible {
    case unreadable(SystemError)
    case wrong(ConfigurationErrors)

    var description: String {
        switch self {
        case .unreadable(let error): error.description
        case .wrong(let errors): errors.description
        }
    }
}

/// Reads and checks a configuration file.
func loadConfiguration(_ path: String) throws(ConfigurationFailure) -> Configuration {
    let bytes: [UInt8]
    do {
        bytes = try readSettledFile(path, limit: JSONNode.maximumBytes)
    } catch {
        // Root without CAP_DAC_OVERRIDE is a user like others.
        let isNotOurs = error.errno == EACCES
        throw .unreadable(
            isNotOurs
                ? error.advising("let user \(geteuid()) read it: the agent keeps no right to all files")
                : error)
    }
    do {
        return try Configuration.parse(bytes: bytes, file: path)
    } catch {
        throw .wrong(error)
    }
}

private func check(_ options: AgentOptions) -> Int32 {
    guard let path = options.configuration else { return 2 }
    do {
        let configuration = try loadConfiguration(path)
        let endpoints = configuration.services.reduce(0) { $0 + $1.endpoints.count }
        print("\(path): \(configuration.services.count) services, \(endpoints) endpoints: good")
        return 0
    } catch {
        complain(error.description)
        return 2
    }
}

private func run(_ options: AgentOptions) -> Int32 {
    if StartStep.isListWanted {
        for name in StartStep.names { print(name) }
        return 0
    }
    Heap.returnLargeBlocks()
    let log = Log(format: options.logFormat, level: options.logLevel)
    do {
        // The limit before the right to raise it is gone. All else comes after, so that what is opened at
        // the start is opened with the rights that a reload will have.
        _ = try? ResourceLimits.raiseOpenFiles(to: 65_536)
        // So is mounting: where it cannot be done, the pins say so.
        try? Mount.ensureBPF()
        try Privileges.reduce(to: KernelProbe.wanted(of: .effective()))
    } catch {
        log.write(.error, error.description)
        return 1
    }
    var configuration = Configuration()
    if let path = options.configuration {
        do {
            configuration = try loadConfiguration(path)
        } catch {
            complain(error.description)
            return 2
        }
    }
    do {
        try start(options, configuration, log)
        return 0
    } catch {
        log.write(.error, error.description)
        for line in error.details { log.write(.error, line) }
        return 1
    }
}

private func start(_ options: AgentOptions, _ configuration: Configuration, _ log: Log) throws(SystemError) {
    // Before any thread is made, so that all of them leave the signals to the engine.
    let signals = try SignalDescriptor()
    signal(SIGPIPE, SIG_IGN)
    let instance = options.instance
    let pins = PinDirectory(instance)
    try KernelSide.checkMachine(configuration, pins)
    // Two agents would each count every request, and each write what the other enforces.
    let lock = try takeLock(instance, signals)
    defer { withExtendedLifetime(lock) {} }
    StartStep.reached("locked")
    let control = try Listener.unix(path: options.control)
    let address = options.listen ?? configuration.listen
    let metrics = try Listener.tcp(address: address.address.description, port: address.port)
    StartStep.reached("listening")
    let isTakeover = pins.hasMaps
    let kernel: KernelSide
    do throws(SystemError) {
        kernel = try KernelSide(configuration: configuration, instance: instance)
    } catch {
        if !isTakeover { _ = try? pins.removeAll() }
        throw error
    }
    do throws(SystemError) {
        try serve(options, configuration, log, signals, kernel, control, metrics, address)
    } catch {
        // What an earlier agent enforced goes on; what this one began does not.
        if kernel.isTakeover { kernel.attachments.keep() } else { kernel.attachments.detach() }
        throw error
    }
}

/// How long an agent waits for the one before it to end: a rolling update starts the next while it does.
private let lockPatience: UInt64 = 10_000_000_000

/// Makes this the only agent of its instance.
private func takeLock(
    _ instance: Instance, _ signals: borrowing SignalDescriptor
) throws(SystemError) -> FileLock {
    let deadline = MonotonicClock.now() + lockPatience
    while true {
        var holder: Int32?
        switch try FileLock.attempt(instance.lock) {
        case .taken(let lock): return lock
        case .held(let pid): holder = pid
        }
        let isTold = signals.next() != nil
        guard !isTold, MonotonicClock.now() < deadline else {
            throw SystemError(
                "use", instance.control, errno: isTold ? EINTR : EADDRINUSE,
                reason: "another agent\(holder.map { " (pid \($0))" } ?? "") has it",
                hint: "stop it first, or choose another path with --control")
        }
        usleep(10_000)
    }
}

private func serve(
    _ options: AgentOptions, _ configuration: Configuration, _ log: Log,
    _ signals: consuming SignalDescriptor,
    _ kernel: KernelSide, _ control: consuming Listener, _ metrics: consuming Listener, _ address: AddressPort
) throws(SystemError) {
    let log = try log.onThread()
    defer { log.flush() }
    let shared = try SharedState(listenAddress: address.description)
    let server = try HTTPServer(
        services: [
            // Its requests have no bodies; that bounds what many hostile clients can make it hold.
            HTTPService(
                listener: metrics, router: metricsRouter(shared), limits: HTTPLimits(body: 0),
                maxConnections: 1024)
        ],
        report: { log.write(.warning, $0) })
    // A thread of its own: overrides do not wait for whoever scrapes.
    let commands = try ControlServer(path: options.control, control) { listener throws(SystemError) in
        let service = HTTPService(
            listener: listener, router: controlRouter(shared, log: log), maxConnections: 256,
            errorResponse: { status, text in
                .json(["error": .string(text), "suggestion": nil], status: status)
            })
        let server = try HTTPServer(
            services: [service], isFavoured: true, report: { log.write(.warning, $0) })
        return (server, service)
    }
    let engine = try Engine(
        options: options, configuration: configuration, kernel: kernel, signals: signals,
        shared: shared, commands: commands, log: log)
    defer {
        server.stop()
        commands.stop()
    }
    try engine.run()
}
