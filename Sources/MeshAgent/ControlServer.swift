// Serves the control socket, and puts it back where it belongs when somebody has removed it.
import MeshSystem

/// The server of the control API. Only the engine's thread uses it, once it runs.
final class ControlServer {
    private let path: String
    private let serve: (consuming Listener) throws(SystemError) -> (HTTPServer, HTTPService)
    private var server: HTTPServer
    private var service: HTTPService
    /// The one before: its clients, such as those who follow events, go on until the socket is lost again.
    private var before: HTTPServer?
    /// Why the socket is not where it belongs; nil if it is.
    private var error: SystemError?

    /// Whether clients find it.
    var isListening: Bool { service.isInPlace }

    /// What a look at the socket came to.
    enum Finding {
        /// It is as it was.
        case same
        /// It was gone, and is there again.
        case renewed
        /// It is gone, and cannot be made anew.
        case lost(SystemError)
    }

    /// Starts serving.
    /// - Parameter serve: Makes a server of a listener.
    init(
        path: String, _ listener: consuming Listener,
        serve: @escaping (consuming Listener) throws(SystemError) -> (HTTPServer, HTTPService)
    ) throws(SystemError) {
        self.path = path
        self.serve = serve
        (server, service) = try serve(listener)
    }

    /// Looks whether clients still find the socket; if not, listens there anew.
    func look() -> Finding {
        if service.isInPlace {
            error = nil
            return .same
        }
        let known = error
        do throws(SystemError) {
            let fresh = try serve(Listener.unix(path: path))
            before?.stop()
            before = server
            (server, service) = fresh
            error = nil
            return .renewed
        } catch {
            self.error = error
            return error == known ? .same : .lost(error)
        }
    }

    /// Ends it.
    func stop() {
        before?.stop()
        server.stop()
    }
}
