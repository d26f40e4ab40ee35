// Turns snapshots of the figures into Prometheus text on a thread of its own: twenty thousand series
// take milliseconds to write out, and breakers do not wait for that.
import MeshCore
import MeshSystem

/// The rendering thread.
final class Renderer: Sendable {
    /// A snapshot and who wants it.
    struct Job: Sendable {
        let snapshot: MetricsSnapshot
        let exchange: HTTPExchange
    }

    private let jobs: Mailbox<Job>

    /// Starts the thread; it ends with the process.
    init() throws(SystemError) {
        let jobs = try Mailbox<Job>()
        self.jobs = jobs
        _ = try MeshSystem.Thread.spawn(name: "render") {
            var encoder = MetricsEncoder()
            while true {
                for job in jobs.wait() {
                    let format = MetricsFormat(accept: job.exchange.request.header("accept"))
                    let page = encoder.encode(job.snapshot, as: format)
                    job.exchange.reply(
                        .respond(
                            HTTPResponse(
                                status: 200, headers: [("Content-Type", format.contentType)], body: page,
                                compressible: true)))
                }
            }
        }
    }

    /// Renders a snapshot as its asker's headers say, and answers.
    func render(_ job: Job) { jobs.post(job) }
}
