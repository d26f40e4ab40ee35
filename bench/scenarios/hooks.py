"""What each hook adds to a loopback round trip.

One thread is client and server of one loopback connection, pinned to one CPU: a request line with headers, and an
`HTTP/1.1 200 OK`. No wake-up and no second CPU is in the figure, so it is the least noisy of all. The compiled
`bpf/mesh.bpf.c` is loaded and set up as the agent does (a service with a closed breaker, stamping on), and its hooks
are attached subset by subset. Each round plays every variant on a connection of its own, in changing order; a figure
is the difference from the round's own run with nothing attached. Every segment goes out and comes in, so each
cgroup_skb hook runs twice in a round trip, tc's twice, and two samples are written, the client's and the server's.
"""

from meshtest.host import need
from meshtest.host import run as command

from bench import ROOT
from bench.stage import BenchError

SECONDS = 60
# How a variant of bench/native/hooks.c is called in the table. What the kernel charges for hooks that do nothing
# comes first: no work on the programs can lower that.
SHOWN = {
    "empty cgroup_skb": ("empty programs: cgroup_skb, both directions", "empty\ncgroup_skb"),
    "empty cgroup_skb, tcx": ("empty programs: the same, and tcx", "empty,\nand tcx"),
    "empty cgroup_skb, clsact": ("empty programs: the same, and clsact", "empty,\nand clsact"),
    "connection": ("connect, sock_ops and sock_release", "connect,\nsock_ops"),
    "connection, ingress": ("and cgroup_skb ingress", "and\ningress"),
    "connection, ingress, egress": ("and cgroup_skb egress", "and\negress"),
    "all on tcx": ("together, with tc on tcx", "together\non tcx"),
    "all on clsact": ("together, with tc on clsact", "together\non clsact"),
    "all on tcx, enforcing": ("together on tcx, another service's breaker open", "tcx, while\nenforcing"),
}
NOTHING = "nothing"


def compiled(stage):
    """The kernel side's object, as the build makes it."""
    made = stage.directory / "mesh.bpf.o"
    machine = command("uname", "-m").stdout.strip()
    command(
        need("clang"), "-target", "bpf", "-mcpu=v3", "-g", "-O2", "-std=gnu11", "-ffreestanding",
        "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-I", ROOT / "Sources/CMeshABI/include",
        "-idirafter", f"/usr/include/{machine}-linux-gnu", "-c", ROOT / "bpf/mesh.bpf.c", "-o", made,
    )  # fmt: skip
    return made


def run(stage, report):
    result = stage.measure(stage.world(), stage.program("hooks"), compiled(stage), stage.host.tests.directory, SECONDS)
    made, client, server = result["expected"], result["client"], result["server"]
    if not made == client == server > 0:
        raise BenchError(f"{made} requests gave {client} samples of the client and {server} of the server")

    report.row("a round trip with nothing attached", "ns", [played[NOTHING] for played in result["rounds"]])
    added = {
        name: report.row(shown, "ns added", [played[name] - played[NOTHING] for played in result["rounds"]])
        for name, (shown, _) in SHOWN.items()
    }
    report.target("added together on tcx", added["all on tcx"], "<=", 1000, "ns")
    report.target("added together on clsact", added["all on clsact"], "<=", 1300, "ns")
    report.note(
        f"With both cgroup_skb hooks attached, {made:,} requests were made, and exactly as many samples came out for "
        "each of the two roles: this is the cost of measuring in full."
    )
    for name, count in result["verified_instructions"].items():
        report.row(f"the verifier's walk through {name}", "instructions", count)
    report.plot(
        "added", "bars", "What hooks add to one loopback round trip", y="ns added (median)",
        series={"added": {short: added[name] for name, (_, short) in SHOWN.items()}}, limit=[1000, "target on tcx"],
    )  # fmt: skip
