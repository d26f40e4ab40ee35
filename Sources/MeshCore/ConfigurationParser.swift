// Reads a configuration file and says everything that is wrong with it, line by line.

extension Configuration {
    /// How many services a file may configure.
    public static let maximumServices = 20_000
    /// How many endpoints all services may have together: the size of the kernel side's maps.
    public static let maximumEndpoints = 262_144

    /// Parses and validates a configuration file.
    ///
    /// - Parameters:
    ///   - bytes: The file's content: JSON in UTF-8.
    ///   - file: The file's name, for messages.
    /// - Throws: `ConfigurationErrors` with every mistake in the file, or the one that makes it no JSON.
    public static func parse(bytes: [UInt8], file: String) throws(ConfigurationErrors) -> Configuration {
        try parse(bytes: bytes, file: file, maximumEndpoints: maximumEndpoints)
    }

    static func parse(
        bytes: [UInt8], file: String, maximumEndpoints: Int
    ) throws(ConfigurationErrors) -> Configuration {
        let document: JSONNode
        do {
            document = try JSONNode.parse(bytes)
        } catch {
            throw ConfigurationErrors(errors: [
                ConfigurationError(file: file, line: error.line, path: "(document)", message: error.message)
            ])
        }
        var reader = ConfigurationReader(file: file, maximumEndpoints: maximumEndpoints)
        let configuration = reader.configuration(document)
        let errors = reader.sortedErrors()
        if !errors.isEmpty { throw ConfigurationErrors(errors: errors) }
        return configuration
    }
}

/// An object being read.
private struct Fields {
    let line: Int
    let members: [JSONMember]

    subscript(key: String) -> JSONNode? { members.first { $0.key == key }?.value }
}

/// Walks the document. Every function reports what is wrong and returns something usable (the default),
/// so that the walk goes on and finds the next mistake.
private struct ConfigurationReader {
    private enum Step {
        case key(String)
        case index(Int)
    }

    /// Whoever made more mistakes than this did not make them by hand.
    private static let maximumErrors = 1000

    private let file: String
    private let maximumEndpoints: Int
    private var path: [Step] = []
    private var errors: [ConfigurationError] = []
    private var unreported = 0

    init(file: String, maximumEndpoints: Int) {
        self.file = file
        self.maximumEndpoints = maximumEndpoints
    }

    func sortedErrors() -> [ConfigurationError] {
        var sorted = errors.enumerated().sorted {
            ($0.element.line, $0.offset) < ($1.element.line, $1.offset)
        }
        .map(\.element)
        if unreported > 0, let last = sorted.last {
            sorted.append(
                ConfigurationError(
                    file: file, line: last.line, path: "(document)",
                    message: "has \(unreported) more mistakes, which are not listed"))
        }
        return sorted
    }

    // MARK: The document

    mutating func configuration(_ document: JSONNode) -> Configuration {
        var configuration = Configuration()
        guard
            let fields = fields(
                of: document,
                keys: [
                    "listen", "cgroup", "interfaces", "exempt", "stamp", "histogram", "limits", "breakers",
                    "services",
                ])
        else { return configuration }
        at(fields, "listen") { reader, node in
            guard let text = reader.string(node, such: "an address such as \"127.0.0.1:9464\"") else {
                return
            }
            do throws(AddressError) {
                configuration.listen = try AddressPort(text)
            } catch {
                reader.report(node.line, error.description)
            }
        }
        at(fields, "cgroup") { reader, node in configuration.cgroup = reader.cgroup(node) }
        at(fields, "interfaces") { reader, node in configuration.interfaces = reader.interfaces(node) }
        at(fields, "exempt") { reader, node in configuration.exempt = reader.networks(node) }
        at(fields, "stamp") { reader, node in
            guard let stamp = reader.fields(of: node, keys: ["enabled", "destinations"]) else { return }
            reader.at(stamp, "enabled") { reader, node in
                guard case .bool(let value) = node.content else {
                    return reader.wrongType(node, expected: "true or false")
                }
                configuration.stamp.enabled = value
            }
            reader.at(stamp, "destinations") { reader, node in
                configuration.stamp.destinations = reader.networks(node)
            }
        }
        at(fields, "histogram") { reader, node in
            guard let histogram = reader.fields(of: node, keys: ["buckets"]) else { return }
            reader.at(histogram, "buckets") { reader, node in configuration.buckets = reader.buckets(node) }
        }
        at(fields, "limits") { reader, node in
            guard let limits = reader.fields(of: node, keys: ["maxSeries", "maxDiscoveredServices"]) else {
                return
            }
            reader.integer(limits, "maxSeries", 100...1_000_000, into: &configuration.limits.maxSeries)
            reader.integer(
                limits, "maxDiscoveredServices", 0...10_000, into: &configuration.limits.maxDiscoveredServices
            )
        }
        at(fields, "breakers") { reader, node in
            guard let breakers = reader.fields(of: node, keys: ["maxOpenShare", "lease"]) else { return }
            reader.share(breakers, "maxOpenShare", into: &configuration.breakers.maxOpenShare)
            reader.duration(breakers, "lease", 1 * second...300 * second, into: &configuration.breakers.lease)
        }
        at(fields, "services") { reader, node in configuration.services = reader.services(node) }
        return configuration
    }

    private mutating func cgroup(_ node: JSONNode) -> String? {
        guard let text = string(node, such: "\"auto\" or a path") else { return nil }
        if text == "auto" { return nil }
        if text.isEmpty || text.utf8.count > 4000 {
            report(node.line, "must be \"auto\" or a path of 1 to 4000 bytes")
        } else if hasControlCharacters(text) {
            report(node.line, "must not have control characters")
        } else if text.split(separator: "/").contains("..") {
            report(node.line, "must not have \"..\" in its path")
        }
        return text
    }

    private mutating func interfaces(_ node: JSONNode) -> [String] {
        var seen: Set<String> = []
        return list(node, of: "interface names", maximum: 1000) { reader, node -> String? in
            guard let name = reader.string(node, such: "an interface's name or \"auto\"") else { return nil }
            let valid =
                (1...15).contains(name.utf8.count) && name != "." && name != ".."
                && name.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7f && $0 != UInt8(ascii: "/") }
            if !valid {
                reader.report(
                    node.line,
                    "\(name.quoted()) is not an interface's name, which has 1 to 15 bytes, no space and no \"/\""
                )
            } else if !seen.insert(name).inserted {
                reader.report(node.line, "\(name.quoted()) is listed twice")
            }
            return name
        }
    }

    private mutating func networks(_ node: JSONNode) -> [Network] {
        var seen: Set<Network> = []
        return list(node, of: "networks", maximum: 10_000) { reader, node -> Network? in
            guard let text = reader.string(node, such: "a network such as \"10.0.0.0/8\"") else { return nil }
            do throws(AddressError) {
                let network = try Network(text)
                return seen.insert(network).inserted ? network : nil
            } catch {
                reader.report(node.line, error.description)
                return nil
            }
        }
    }

    private mutating func buckets(_ node: JSONNode) -> [Double] {
        var last = 0.0
        let before = errors.count
        let buckets = list(node, of: "bucket bounds in seconds", maximum: 64) { reader, node -> Double? in
            guard let bound = reader.number(node, such: "a number of seconds") else { return nil }
            if bound <= 0 {
                reader.report(node.line, "must be more than 0, not \(numeral(bound))")
            } else if bound <= last {
                reader.report(
                    node.line, "must be more than the bound before it, which is \(numeral(last))")
            }
            last = bound
            return bound
        }
        if buckets.isEmpty && errors.count == before { report(node.line, "must have at least one bound") }
        return buckets
    }

    // MARK: Services

    private mutating func services(_ node: JSONNode) -> [Configuration.Service] {
        var names: [String: Int] = [:]
        var owners: [Endpoint: (service: String, line: Int)] = [:]
        var endpointCount = 0
        let maximum = Configuration.maximumServices
        let services = list(node, of: "services", maximum: maximum) {
            reader, node -> Configuration.Service? in
            guard let fields = reader.fields(of: node, keys: ["name", "endpoints", "breaker"]) else {
                return nil
            }
            var service = Configuration.Service(name: "", endpoints: [])
            reader.required(fields, "name") { reader, node in
                guard let name = reader.string(node, such: "a name") else { return }
                reader.check(name: name, line: node.line)
                if let line = names.updateValue(node.line, forKey: name) {
                    reader.report(node.line, "\(name.quoted()) is already the service on line \(line)")
                }
                service.name = name
            }
            reader.required(fields, "endpoints") { reader, node in
                let owner = service.name.isEmpty ? "the unnamed service" : "service \(service.name.quoted())"
                service.endpoints = reader.endpoints(node, owner: owner, owners: &owners)
                if case .array(let elements) = node.content { endpointCount += elements.count }
            }
            reader.at(fields, "breaker") { reader, node in
                if case .null = node.content { return }
                service.breaker = reader.breaker(node)
            }
            return service
        }
        let limit = maximumEndpoints
        if endpointCount > limit {
            report(
                node.line,
                "may have at most \(limit) endpoints in all, not \(endpointCount)")
        }
        return services
    }

    private mutating func check(name: String, line: Int) {
        if name.isEmpty || name.utf8.count > 200 {
            report(line, "must have 1 to 200 bytes, not \(name.utf8.count)")
        } else if hasControlCharacters(name) {
            report(line, "must not have control characters")
        } else if name == "other" {
            report(line, "\"other\" stands for what lies past the discovery limit; choose another name")
        } else if looksDiscovered(name) {
            report(line, "\(name.quoted()) is how discovered services are named; choose another name")
        }
    }

    private func looksDiscovered(_ name: String) -> Bool {
        // Two services of one name would be two time series of the same name.
        if let port = name.wholeMatchPort(after: "*:") { return port > 0 }
        guard name.utf8.contains(UInt8(ascii: ":")) else { return false }
        do throws(AddressError) {
            return try AddressPort(name).description == name
        } catch {
            return false
        }
    }

    private mutating func endpoints(
        _ node: JSONNode, owner: String, owners: inout [Endpoint: (service: String, line: Int)]
    ) -> [Endpoint] {
        if case .array(let elements) = node.content, elements.isEmpty {
            report(node.line, "must have at least one endpoint such as \"10.0.0.1:8443\"")
        }
        return list(node, of: "endpoints", maximum: maximumEndpoints) {
            reader, node -> Endpoint? in
            guard let text = reader.string(node, such: "an endpoint such as \"10.0.0.1:8443\"") else {
                return nil
            }
            do throws(AddressError) {
                let endpoint = try Endpoint(text)
                if let other = owners.updateValue((owner, node.line), forKey: endpoint) {
                    reader.report(
                        node.line,
                        other.service == owner
                            ? "\(endpoint) is already on line \(other.line)"
                            : "\(endpoint) belongs to \(other.service) on line \(other.line) already, and cannot"
                                + " belong to \(owner) too")
                }
                return endpoint
            } catch {
                reader.report(node.line, error.description)
                return nil
            }
        }
    }

    private mutating func breaker(_ node: JSONNode) -> Configuration.Breaker {
        var breaker = Configuration.Breaker()
        guard
            let fields = fields(
                of: node,
                keys: [
                    "mode", "window", "minimumRequests", "failureRate", "consecutiveFailures",
                    "failureStatuses", "slowCallDuration", "slowCallRate", "openFor", "maxOpenFor", "probe",
                    "established",
                ])
        else { return breaker }
        choice(fields, "mode", into: &breaker.mode)
        duration(fields, "window", 1 * second...600 * second, into: &breaker.window)
        integer(fields, "minimumRequests", 1...1_000_000, into: &breaker.minimumRequests)
        share(fields, "failureRate", aboveZero: true, into: &breaker.failureRate)
        if !isNull(fields, "consecutiveFailures") {
            integer(fields, "consecutiveFailures", 0...1_000_000, into: &breaker.consecutiveFailures)
        } else {
            breaker.consecutiveFailures = 0
        }
        at(fields, "failureStatuses") { reader, node in breaker.failureStatuses = reader.statuses(node) }
        if fields["slowCallDuration"] != nil && !isNull(fields, "slowCallDuration") {
            var slow = second
            duration(fields, "slowCallDuration", 1000...hour, into: &slow)
            breaker.slowCallDuration = slow
        }
        share(fields, "slowCallRate", aboveZero: true, into: &breaker.slowCallRate)
        openTimes(fields, &breaker)
        at(fields, "probe") { reader, node in breaker.probe = reader.probe(node) }
        choice(fields, "established", into: &breaker.established)
        return breaker
    }

    /// `openFor` and `maxOpenFor`: where only one is given, the other's default gives way.
    private mutating func openTimes(_ fields: Fields, _ breaker: inout Configuration.Breaker) {
        duration(fields, "openFor", 10 * millisecond...hour, into: &breaker.openFor)
        duration(fields, "maxOpenFor", 10 * millisecond...hour, into: &breaker.maxOpenFor)
        if breaker.openFor <= breaker.maxOpenFor { return }
        if fields["maxOpenFor"] == nil {
            breaker.maxOpenFor = breaker.openFor
        } else if fields["openFor"] == nil {
            breaker.openFor = breaker.maxOpenFor
        } else {
            let (shorter, longer) = (breaker.maxOpenFor, breaker.openFor)
            at(fields, "openFor") { reader, node in
                reader.report(
                    node.line,
                    "must not be longer than maxOpenFor: \(DurationText.format(longer)) is more than "
                        + DurationText.format(shorter))
            }
        }
    }

    private mutating func probe(_ node: JSONNode) -> Configuration.Probe {
        var probe = Configuration.Probe()
        guard let fields = fields(of: node, keys: ["ratio", "interval", "successes", "ramp"]) else {
            return probe
        }
        share(fields, "ratio", into: &probe.ratio)
        duration(fields, "interval", 10 * millisecond...hour, into: &probe.interval)
        integer(fields, "successes", 1...1000, into: &probe.successes)
        duration(fields, "ramp", 0...hour, into: &probe.ramp)
        return probe
    }

    private mutating func statuses(_ node: JSONNode) -> Configuration.StatusSet {
        var statuses = Configuration.StatusSet()
        _ = list(node, of: "HTTP statuses", maximum: 1000) { reader, node -> Int? in
            let text: String
            switch node.content {
            case .string(let string): text = string
            case .number(let number): text = numeral(number)
            default:
                reader.wrongType(node, expected: "an HTTP status such as 503 or \"5xx\"")
                return nil
            }
            let utf8 = Array(text.utf8)
            if utf8.count == 3, utf8.dropFirst().allSatisfy({ $0 | 0x20 == UInt8(ascii: "x") }),
                (UInt8(ascii: "2")...UInt8(ascii: "5")).contains(utf8[0])
            {
                statuses.insert(class: Int(utf8[0] - UInt8(ascii: "0")))
            } else if let status = decimal(utf8[...], maximum: 599), status >= 200 {
                statuses.insert(UInt16(status))
            } else {
                reader.report(
                    node.line,
                    "\(text.quoted()) is not an HTTP status: write 200 to 599, or \"2xx\" to \"5xx\"")
            }
            return nil
        }
        return statuses
    }

    // MARK: Values

    private mutating func report(_ line: Int, _ message: @autoclosure () -> String) {
        guard errors.count < ConfigurationReader.maximumErrors else {
            unreported += 1
            return
        }
        var text = ""
        for step in path {
            switch step {
            case .index(let index): text += "[\(index)]"
            case .key(let key): text += (text.isEmpty ? "" : ".") + plain(key)
            }
        }
        errors.append(
            ConfigurationError(
                file: file, line: line, path: text.isEmpty ? "(document)" : text, message: message()))
    }

    /// A key as it stands in a path: as it is, if it could be a key, else quoted.
    private func plain(_ key: String) -> String {
        let isPlain =
            !key.isEmpty && key.utf8.count <= 80
            && key.utf8.allSatisfy {
                UnicodeScalar($0).properties.isAlphabetic && $0 < 0x80 || decimal([$0], maximum: 9) != nil
                    || $0 == UInt8(ascii: "_") || $0 == UInt8(ascii: "-")
            }
        return isPlain ? key : key.quoted()
    }

    private mutating func wrongType(_ node: JSONNode, expected: String) {
        let found =
            switch node.content {
            case .null: "null"
            case .bool(let value): value ? "true" : "false"
            case .number: "a number"
            case .string: "a string"
            case .array: "an array"
            case .object: "an object"
            }
        report(node.line, "must be \(expected), not \(found)")
    }

    private mutating func at(
        _ fields: Fields, _ key: String, _ body: (inout ConfigurationReader, JSONNode) -> Void
    ) {
        guard let node = fields[key] else { return }
        path.append(.key(key))
        body(&self, node)
        path.removeLast()
    }

    private mutating func required(
        _ fields: Fields, _ key: String, _ body: (inout ConfigurationReader, JSONNode) -> Void
    ) {
        if fields[key] != nil { return at(fields, key, body) }
        path.append(.key(key))
        report(fields.line, "is missing")
        path.removeLast()
    }

    private mutating func fields(of node: JSONNode, keys: [String]) -> Fields? {
        guard case .object(let members) = node.content else {
            wrongType(node, expected: "an object")
            return nil
        }
        for member in members where !keys.contains(member.key) {
            path.append(.key(member.key))
            report(
                member.line,
                NearestName.suggest(member.key, from: keys).map { "unknown key; did you mean \"\($0)\"?" }
                    ?? "unknown key; the keys here are \(keys.joined(separator: ", "))")
            path.removeLast()
        }
        return Fields(line: node.line, members: members)
    }

    private mutating func list<Element>(
        _ node: JSONNode, of what: String, maximum: Int,
        _ body: (inout ConfigurationReader, JSONNode) -> Element?
    ) -> [Element] {
        guard case .array(let nodes) = node.content else {
            wrongType(node, expected: "an array of \(what)")
            return []
        }
        if nodes.count > maximum {
            report(node.line, "may have at most \(maximum) \(what), not \(nodes.count)")
            return []
        }
        var elements: [Element] = []
        elements.reserveCapacity(nodes.count)
        for (index, node) in nodes.enumerated() {
            path.append(.index(index))
            if let element = body(&self, node) { elements.append(element) }
            path.removeLast()
        }
        return elements
    }

    private func isNull(_ fields: Fields, _ key: String) -> Bool {
        guard case .null = fields[key]?.content else { return false }
        return true
    }

    private mutating func string(_ node: JSONNode, such expected: String) -> String? {
        guard case .string(let value) = node.content else {
            wrongType(node, expected: expected)
            return nil
        }
        return value
    }

    private mutating func number(_ node: JSONNode, such expected: String) -> Double? {
        guard case .number(let value) = node.content else {
            wrongType(node, expected: expected)
            return nil
        }
        return value
    }

    private mutating func duration(
        _ fields: Fields, _ key: String, _ range: ClosedRange<UInt64>, into value: inout UInt64
    ) {
        var read: UInt64?
        at(fields, key) { reader, node in
            guard let text = reader.string(node, such: "a duration such as \"10s\"") else { return }
            do throws(DurationError) {
                let nanoseconds = try DurationText.parse(text)
                if range.contains(nanoseconds) {
                    read = nanoseconds
                } else {
                    let (low, high) = (range.lowerBound, range.upperBound)
                    reader.report(
                        node.line,
                        "must be from \(DurationText.format(low)) to \(DurationText.format(high)), not \(text)"
                    )
                }
            } catch {
                reader.report(node.line, error.description)
            }
        }
        if let read { value = read }
    }

    private mutating func integer(
        _ fields: Fields, _ key: String, _ range: ClosedRange<Int>, into value: inout Int
    ) {
        var read: Int?
        at(fields, key) { reader, node in
            let expected = "a whole number from \(range.lowerBound) to \(range.upperBound)"
            guard let number = reader.number(node, such: expected) else { return }
            if let whole = Int(exactly: number), range.contains(whole) {
                read = whole
            } else {
                reader.report(node.line, "must be \(expected), not \(numeral(number))")
            }
        }
        if let read { value = read }
    }

    private mutating func share(
        _ fields: Fields, _ key: String, aboveZero: Bool = false, into value: inout Double
    ) {
        var read: Double?
        at(fields, key) { reader, node in
            let expected = aboveZero ? "a number above 0 and up to 1" : "a number from 0 to 1"
            guard let number = reader.number(node, such: expected) else { return }
            if number >= 0 && number <= 1 && !(aboveZero && number == 0) {
                read = number
            } else {
                reader.report(node.line, "must be \(expected), not \(numeral(number))")
            }
        }
        if let read { value = read }
    }

    private mutating func choice<Value: RawRepresentable<String> & CaseIterable>(
        _ fields: Fields, _ key: String, into value: inout Value
    ) {
        var read: Value?
        at(fields, key) { reader, node in
            let words = Value.allCases.map(\.rawValue)
            let expected = words.map { "\"\($0)\"" }.joined(separator: " or ")
            guard let word = reader.string(node, such: expected) else { return }
            read = Value(rawValue: word)
            if read == nil {
                let nearest = NearestName.suggest(word, from: words).map { "; did you mean \"\($0)\"?" } ?? ""
                reader.report(node.line, "must be \(expected), not \(word.quoted())\(nearest)")
            }
        }
        if let read { value = read }
    }
}

private let millisecond: UInt64 = 1_000_000
private let second: UInt64 = 1_000_000_000
private let hour: UInt64 = 3_600_000_000_000

private func numeral(_ number: Double) -> String {
    JSONValue.number(number).serialized()
}

/// Whether a string has characters that would break a line or a terminal.
private func hasControlCharacters(_ text: String) -> Bool {
    text.unicodeScalars.contains { $0.properties.generalCategory == .control }
        || text.unicodeScalars.contains("\u{2028}") || text.unicodeScalars.contains("\u{2029}")
}

extension String {
    /// The port of a string that is nothing but `prefix` and a canonical port.
    fileprivate func wholeMatchPort(after prefix: String) -> Int? {
        guard hasPrefix(prefix) else { return nil }
        return decimal(Array(utf8.dropFirst(prefix.utf8.count))[...], maximum: 65535)
    }
}
