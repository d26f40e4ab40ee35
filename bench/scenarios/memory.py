"""Memory: what the agent and its maps take, by what is configured and by traffic.

The agent with 10, 1,000 and 10,000 services, each with a breaker and an endpoint, and with 20,000 series (1,000
services, both roles on this host, ten statuses). Resident memory when it is ready, after each service has had a
request on a connection of its own, and after two bursts of requests over all connections: what the second burst
adds is what traffic adds. Then after a scrape, compressed as Prometheus asks for it. Kernel memory is that of the maps; a connection's is in the scenario `scale`."""

from bench.crowd import Crowd, services
from bench.kernel import map_memory
from bench.stage import memory_kb

CASES = [
    ("10 services", 10, 1),
    ("1,000 services", 1_000, 1),
    ("10,000 services", 10_000, 1),
    ("20,000 series", 1_000, 10),
]
BURST = 60_000


def run(stage, report):
    world = stage.world()
    plotted, bursts = {}, []
    for name, count, codes in CASES:
        with stage.agent(world, {"services": services(count)}) as agent:
            pid = agent.process.pid
            stages = {"ready": memory_kb(pid)}
            with Crowd(stage, world, count) as crowd:
                crowd.tell(f"open {count}")
                crowd.tell(f"sweep {codes}")
                agent.status()
                stages["each service called"] = memory_kb(pid)
                for burst in ("one burst", "two bursts"):
                    crowd.tell(f"run {BURST} {codes}")
                    agent.status()
                    stages[burst] = memory_kb(pid)
                page = agent.page(encoding="gzip")[1]
                series = page.count("\nmesh_request_duration_seconds_count{")
                stages["scraped"] = memory_kb(pid)
                kernel = map_memory(pid)
                assert all(stage["count"] == 0 for stage in agent.status()["samples"]["lost"]), "samples were lost"
        for moment, kinds in stages.items():
            for kind, size in kinds.items():
                report.row("agent, resident", "MB", size * 1024 / 1e6, case=name, moment=moment, kind=kind)
        report.row("series", "", series, case=name)
        report.row("eBPF maps, in the kernel", "MB", kernel / 1e6, case=name)
        bursts.append((stages["two bursts"]["VmRSS"] - stages["one burst"]["VmRSS"]) * 1024 / 1e6)
        plotted[name] = {moment: kinds["VmRSS"] * 1024 / 1e6 for moment, kinds in stages.items()}
        if count == 1_000 and codes == 1:
            highest = max(kinds["VmRSS"] for kinds in stages.values()) * 1024 / 1e6
            report.target("resident at 1,000 services, whatever the moment", highest, "<=", 25, "MB")
        if codes > 1:
            report.target("series in the case of 20,000", series, ">=", 20_000)
    report.target("what a burst of 60,000 requests adds, at the most", max(bursts), "<=", 0.5, "MB")
    report.note(
        "VmRSS is RssAnon (heap, stacks), RssFile (the program, libraries, and what is mapped of the ring buffer and "
        "of the arrays of breakers) and RssShmem. What is mapped of maps is counted again among the kernel's."
    )
    report.plot(
        "memory", "bars", "The agent's resident memory", x="", y="MB",
        series={
            moment: {name: moments[moment] for name, moments in plotted.items()} for moment in plotted["10 services"]
        },
        limit=[25, "25 MB"],
    )  # fmt: skip
