// Turns snapshots of the figures into Prometheus text on a thread of its own: twenty thousand series
// take milliseconds to write out, and breakers do not wait for that.
import MeshCore
import MeshSystem

/// The rendering thread.
final class Renderer: Sendable {
    /// A snapshot and who wants it.
    struct Job: Sendable {
        let snapshot: MetricsSnapshot
        let exchanges: [HTTPExchange]
    }

    private let jobs: Mailbox<Job>

    /// Starts the thread; it ends with the process. `whenDone` is called on it after each job.
    init(whenDone: @escaping @Sendable () -> Void) throws(SystemError) {
        let jobs = try Mailbox<Job>()
        self.jobs = jobs
        _ = try MeshSystem.Thread.spawn(name: "render") {
            var encoder = MetricsEncoder()
            while true {
                for job in jobs.wait() {
                    Renderer.answer(job, &encoder)
                    whenDone()
                }
            }
        }
    }

    /// Renders a snapshot as each asker's headers say, and answers.
    func render(_ job: Job) { jobs.post(job) }

    private static func answer(_ job: Job, _ encoder: inout MetricsEncoder) {
        for format in [MetricsFormat.text, .openMetrics] {
            let asking = job.exchanges.filter {
                $0.isOpen && MetricsFormat(accept: $0.request.header("accept")) == format
            }
            if asking.isEmpty { continue }
            let response = HTTPResponse(
                status: 200, headers: [("Content-Type", format.contentType)],
                body: encoder.encode(job.snapshot, as: format), compressible: true)
            for exchange in asking { exchange.reply(.respond(response)) }
        }
    }
}
