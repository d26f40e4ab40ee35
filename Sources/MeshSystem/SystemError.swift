// The one error type of the system layers: what was tried, on what, why it failed, what to do.
import Glibc

/// A system call that failed, as a sentence for people.
public struct SystemError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What was tried, as a verb phrase that follows "cannot": `listen on`.
    public var operation: String
    /// What it was tried on: a path, an address, a name. May be empty.
    public var subject: String
    /// The `errno` value, to decide on.
    public var errno: Int32
    /// Why it failed; the C library's text for `errno` unless something better is known.
    public var reason: String
    /// What to do about it, as an imperative; nil where there is nothing to advise.
    public var hint: String?
    /// Further lines for a log, such as the last words of the eBPF verifier.
    public var details: [String]

    /// Describes a failure.
    /// - Parameters:
    ///   - operation: What was tried, as a verb phrase that follows "cannot".
    ///   - subject: What it was tried on.
    ///   - errno: The error number; by default the calling thread's current one.
    ///   - reason: Why, if better known than the C library's text for `errno`.
    ///   - hint: What to do about it; by default, advice that holds for that errno anywhere.
    ///   - details: Further lines for a log.
    public init(
        _ operation: String, _ subject: String = "", errno: Int32 = Glibc.errno, reason: String? = nil,
        hint: String? = nil, details: [String] = []
    ) {
        self.operation = operation
        self.subject = subject
        self.errno = errno
        self.reason = reason ?? Self.text(errno)
        self.hint = hint ?? Self.advice(errno)
        self.details = details
    }

    /// The sentence: `cannot listen on 127.0.0.1:9464: address already in use; choose another port`.
    public var description: String {
        let what = subject.isEmpty ? operation : "\(operation) \(subject)"
        return "cannot \(what): \(reason)" + (hint.map { "; \($0)" } ?? "")
    }

    /// The same error with other advice.
    public func advising(_ hint: String?) -> SystemError {
        var copy = self
        copy.hint = hint
        return copy
    }

    /// The C library's text for an error number, as the middle of a sentence.
    public static func text(_ errno: Int32) -> String {
        // The kernel's own ENOTSUPP, which eBPF answers with and the C library does not know.
        if errno == 524 { return "not supported by this kernel" }
        let text = String(cString: strerror(errno))
        // "Address in use" becomes "address in use"; an acronym stays as it is.
        guard let first = text.first, let second = text.dropFirst().first, !second.isUppercase else {
            return text
        }
        return first.lowercased() + text.dropFirst()
    }

    private static func advice(_ errno: Int32) -> String? {
        switch errno {
        case EMFILE: "raise the limit of open files (ulimit -n)"
        case EROFS: "choose a place that it may write to (systemd: RuntimeDirectory=, ReadWritePaths=)"
        case ENFILE: "raise fs.file-max: the whole machine has too many files open"
        default: nil
        }
    }
}
