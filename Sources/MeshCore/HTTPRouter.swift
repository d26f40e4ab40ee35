// Finds the handler of a path and method, and tells an unknown path from a method that it does not take.

/// A table of routes. Patterns are paths whose segments are literal or, in braces, match any one segment:
/// `/v1/breakers/{name}/open`. A route for GET takes HEAD, too.
public struct HTTPRouter<Endpoint: Sendable>: Sendable {
    /// What a request leads to.
    public enum Match {
        /// The endpoint, with the decoded segments that matched braces, in order.
        case found(Endpoint, [String])
        /// A known path that takes other methods: the value for Allow (RFC 9110 section 10.2.1).
        case methodNotAllowed(allow: String)
        /// No such path.
        case notFound
    }

    private var routes: [(method: String, pattern: [String?], endpoint: Endpoint)] = []

    /// An empty table.
    public init() {}

    /// Adds a route. The first that matches wins.
    public mutating func add(_ method: String, _ pattern: String, _ endpoint: Endpoint) {
        let segments = pattern.dropFirst().split(separator: "/", omittingEmptySubsequences: false)
        routes.append((method, segments.map { $0.hasPrefix("{") ? nil : String($0) }, endpoint))
    }

    /// Looks up a request's method and decoded path segments.
    public func match(method: String, segments: [String]) -> Match {
        var allowed: [String] = []
        for route in routes
        where route.pattern.count == segments.count
            && zip(route.pattern, segments).allSatisfy({ $0 == nil ? !$1.isEmpty : $0 == $1 })
        {
            if route.method == method || route.method == "GET" && method == "HEAD" {
                return .found(route.endpoint, zip(route.pattern, segments).filter { $0.0 == nil }.map(\.1))
            }
            allowed += route.method == "GET" ? ["GET", "HEAD"] : [route.method]
        }
        return allowed.isEmpty ? .notFound : .methodNotAllowed(allow: allowed.joined(separator: ", "))
    }
}
