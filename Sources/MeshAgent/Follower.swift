// Who follows what happens, over the control socket: `meshctl flows --follow`, `events --follow`.
import MeshCore

/// One client that is sent a line for each event or flow.
struct Follower {
    enum Interest {
        case events
        /// Only of a service, or of a trace, where given.
        case flows(service: String?, trace: TraceID?)
    }

    let exchange: HTTPExchange
    let interest: Interest

    var wantsFlows: Bool {
        if case .flows = interest { return true }
        return false
    }

    var wantsEvents: Bool { !wantsFlows }

    /// Sends one JSON line; false once the client is gone or was too slow.
    @discardableResult
    func send(_ json: JSONValue) -> Bool {
        var line = json.bytes()
        line.append(UInt8(ascii: "\n"))
        return exchange.send(line)
    }
}
