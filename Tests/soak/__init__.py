"""Everything at once, for an hour: mixed traffic, and faults at random. At the end counts are exact, and what the
agent holds is flat: `make soak`."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# For what the bench has of stages, figures and plots.
sys.path.insert(0, str(ROOT))
