// What libbpf and the kernel's verifier say when they refuse something: kept instead of printed, and
// boiled down to the few lines that tell why.
import CLibBPF
import Glibc
import MeshSystem

/// The captured log of libbpf.
enum LoadLog {
    private static let capture: Void = clibbpf_capture_log()

    /// Keeps libbpf from printing to stderr, from now on and for the whole process.
    static func start() { _ = capture }

    /// What libbpf said since the last call.
    static func take() -> String {
        withUnsafeTemporaryAllocation(byteCount: Int(CLIBBPF_LOG_SIZE), alignment: 1) { bytes in
            let count = clibbpf_take_log(bytes.baseAddress!.assumingMemoryBound(to: CChar.self))
            return String(decoding: bytes[..<count], as: UTF8.self)
        }
    }

    /// The gist of a log.
    struct Digest: Equatable {
        /// The program that was refused, if it was one.
        var program: String?
        /// The verifier's last word, or libbpf's first; nil for an empty log.
        var reason: String?
        /// The last lines before that, oldest first.
        var details: [String]
    }

    /// How many lines of a log are worth showing.
    static let shownLines = 12

    /// Boils a log of libbpf down. The text may begin in the middle of a line.
    static func digest(_ text: String) -> Digest {
        var program: String?
        var verifier: [String] = []
        var general: [String] = []
        for line in text.split(whereSeparator: \.isNewline) {
            if line.hasPrefix("libbpf: ") {
                let message = line.dropFirst("libbpf: ".count)
                if message.hasPrefix("prog '"), let end = message.dropFirst(6).firstIndex(of: "'") {
                    program = String(message[..<end].dropFirst(6))
                }
                if !isNoise(message) { general.append(String(message)) }
            } else if !isStatistics(line) {
                verifier.append(String(line))
            }
        }
        let lines = verifier.isEmpty ? general : verifier
        return Digest(
            program: program, reason: verifier.last ?? general.first,
            details: Array(lines.suffix(shownLines)))
    }

    /// A heading, and the first of two tries, which the second one's failure makes void.
    private static func isNoise(_ message: Substring) -> Bool {
        message.hasSuffix("-- BEGIN PROG LOAD LOG --") || message.hasSuffix("Retrying without BTF.")
    }

    /// The verifier ends with figures about its own work, which explain nothing.
    private static func isStatistics(_ line: Substring) -> Bool {
        ["processed ", "verification time ", "stack depth ", "-- END PROG LOAD LOG --"]
            .contains { line.hasPrefix($0) }
    }
}

/// The error for something that the kernel refused to load, with what the log says about it.
func loadError(_ subject: String, _ errno: Int32, _ digest: LoadLog.Digest) -> SystemError {
    // For want of rights, libbpf guesses at other causes.
    let known = errno == EPERM ? nil : digest.reason
    let reason = [SystemError.text(errno), known].compactMap { $0 }.joined(separator: ": ")
    return SystemError(
        "load", subject, errno: errno, reason: reason, hint: loadHint(errno), details: digest.details)
}

/// Advice for a refused eBPF operation.
func loadHint(_ errno: Int32) -> String {
    switch errno {
    case EPERM: "run this as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    default: "run `meshctl doctor` to see what this kernel lacks"
    }
}
