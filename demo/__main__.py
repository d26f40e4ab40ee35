"""Runs the demo: `make demo`, or python3 -m demo after `make build`. DEMO_SECONDS bounds it."""

import os
import signal
import sys

from demo.agent import BINARIES, Refused
from demo.scenario import NotSeen, Scenario
from demo.screen import Screen
from demo.stage import Stage, StageError

DEFAULT_SECONDS, LEAST_SECONDS = 45, 25


def stop(signal_number, _):
    raise KeyboardInterrupt


def main():
    if os.geteuid() != 0:
        raise StageError("the demo loads eBPF programs and makes network namespaces: sudo make demo")
    if not (BINARIES / "mesh-agent").exists():
        raise StageError("there is no agent yet: make build")
    text = os.environ.get("DEMO_SECONDS", "") or str(DEFAULT_SECONDS)
    if not text.isdigit() or int(text) < LEAST_SECONDS:
        raise StageError(f"DEMO_SECONDS is a whole number of seconds, {LEAST_SECONDS} at least; it is '{text}'")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)

    with Stage() as stage:
        scenario = Scenario(stage, Screen(int(text)))
        with scenario.screen:
            scenario.play()
        print(scenario.summary())
    left = stage.left_behind()
    print("left behind: " + ("nothing" if not left else ", ".join(left)))
    return 1 if left or scenario.problems else 0


try:
    status = main()
except (StageError, NotSeen, Refused) as error:
    print(f"error: {error}", file=sys.stderr)
    status = 1
except KeyboardInterrupt:
    print("ended early; everything it made is removed", file=sys.stderr)
    status = 130
sys.exit(status)
