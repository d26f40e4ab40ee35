"""What MeshAgent costs and how fast it acts, measured beside its peers: `make bench`."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BUILD = ROOT / ".build" / "bench"

# The tests' harness makes the namespaces, the cgroups and the agent here as well.
sys.path.insert(0, str(ROOT / "Tests"))
