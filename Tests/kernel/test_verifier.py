"""How much work the programs are to the kernel's verifier, which refuses one that is more than a million
instructions to it, and differs from kernel to kernel: each program has a budget well below."""

import glob
import json
import os
import pathlib
import re

from meshtest.host import run

RECORD = pathlib.Path(__file__).resolve().parents[1] / "kernels" / "verifier.json"


def processed(pid):
    """The instructions that the verifier processed for each program that a process holds open."""
    found = {}
    for path in glob.glob(f"/proc/{pid}/fdinfo/*"):
        try:
            text = pathlib.Path(path).read_text()
        except FileNotFoundError:
            continue  # closed meanwhile: the agent goes on with its work
        count = re.search(r"^verified_insns:\s*(\d+)$", text, re.MULTILINE)
        if count:
            number = re.search(r"^prog_id:\s*(\d+)$", text, re.MULTILINE).group(1)
            # The kernel's own name has 15 bytes; newer tools than some know the whole one.
            found[json.loads(run("bpftool", "-j", "prog", "show", "id", number).stdout)["name"][:15]] = int(
                count.group(1)
            )
    return found


def test_the_verifier_stays_within_its_budget(start_agent):
    found = processed(start_agent().process.pid)
    record = json.loads(RECORD.read_text())
    names = {name[:15]: name for name in record["budgets"]}
    counts = {names[short]: count for short, count in found.items()}
    if os.environ.get("MESH_VERIFIER_REPORT"):
        pathlib.Path(os.environ["MESH_VERIFIER_REPORT"]).write_text(json.dumps(counts))
    assert counts.keys() == record["budgets"].keys()
    over = {name: count for name, count in counts.items() if count > record["budgets"][name]}
    assert over == {}, f"over the budget in {RECORD.name}: make the program simpler to verify"
    assert max(record["budgets"].values()) <= record["limit"] // 4
