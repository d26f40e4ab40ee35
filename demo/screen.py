"""What the demo shows: a redrawn screen on a terminal, plain lines with times elsewhere."""

import shutil
import sys
import threading
import time

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 2

BOLD, DIM, RED, GREEN, YELLOW, PLAIN = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[33m", "\033[0m"
STATE_COLOURS = {"closed": GREEN, "open": RED, "half_open": YELLOW}


def duration(seconds):
    """A duration for people, three digits and a unit."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


class Screen:
    """Holds what is known now; whoever learns something sets it, and one thread draws."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.started = time.monotonic()
        self.lock = threading.RLock()
        self.live = sys.stdout.isatty()
        self.phase = ""
        self.log = []
        self.services = []
        self.callers = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._draw_all, daemon=True)

    def __enter__(self):
        if self.live:
            # The alternate screen, without a cursor: the terminal's own text comes back at the end.
            sys.stdout.write("\033[?1049h\033[?25l")
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        if self.live:
            sys.stdout.write("\033[?25h\033[?1049l")
            print("\n".join(self.log))
        sys.stdout.flush()

    def elapsed(self):
        return time.monotonic() - self.started

    def say(self, text):
        """Adds to the log something that happened now."""
        line = f"{self.elapsed():6.2f}s  {text}"
        with self.lock:
            self.log.append(line)
            if not self.live:
                print(line, flush=True)

    def begin(self, title, text):
        """Begins a phase of the story."""
        self.phase = title
        self.say(f"--- {title}: {text}")

    def _draw_all(self):
        while not self.ended.wait(REDRAW_SECONDS if self.live else PLAIN_SECONDS):
            with self.lock:
                if self.live:
                    self._draw()
                else:
                    for row in (row for row in self.services if row["role"] == "client"):
                        print(f"{self.elapsed():6.2f}s  {self._plain_row(row)}", flush=True)

    def _plain_row(self, row):
        return (
            f"{row['name']}: {row['rate_per_second']:.0f}/s, {row['error_ratio']:.1%} errors, "
            f"p50 {duration(row['p50_seconds'])}, p99 {duration(row['p99_seconds'])}"
            + (f", breaker {row['breaker']['state']}" if row["breaker"] else "")
        )

    def _draw(self):
        width, height = shutil.get_terminal_size()
        lines = [
            f"{BOLD}MeshAgent demo{PLAIN}  {self.phase}",
            f"{DIM}{self.elapsed():.0f} of at most {self.seconds} s; Ctrl-C ends it{PLAIN}",
            "",
            f"{DIM}{'SERVICE':<12}{'ROLE':<8}{'REQ/S':>9}{'ERRORS':>8}{'P50':>10}{'P90':>10}{'P99':>10}  BREAKER{PLAIN}",
        ]
        for row in self.services:
            breaker = row["breaker"]
            shown = "-"
            if breaker:
                forced = f"  (override: {breaker['override']['state']})" if breaker["override"] else ""
                shown = f"{STATE_COLOURS.get(breaker['state'], '')}{breaker['state']}{PLAIN}{forced}"
            errors = f"{row['error_ratio']:.1%}"
            lines.append(
                f"{row['name']:<12}{row['role']:<8}{row['rate_per_second']:>9.0f}"
                f"{RED if row['error_ratio'] else ''}{errors:>8}{PLAIN}"
                f"{duration(row['p50_seconds']):>10}{duration(row['p90_seconds']):>10}"
                f"{duration(row['p99_seconds']):>10}  {shown}"
            )
        lines += ["", f"{DIM}{'CALLER OF':<12}{'OK':>9}{'FAILED':>9}{'REFUSED':>9}{'RESET':>9}   A REFUSAL TAKES{PLAIN}"]
        for name, caller in self.callers.items():
            ends = caller.ends
            lines.append(
                f"{name:<12}{ends['ok']:>9}{ends['failed']:>9}{ends['refused']:>9}{ends['reset']:>9}"
                f"   {duration(caller.refusal_seconds(0.5))}"
            )
        lines.append("")
        lines += self.log[-max(3, height - len(lines) - 1) :]
        # Each line is cut, not wrapped, at the right edge (DECAWM off), so that the picture stays in place.
        body = "\033[K\r\n".join(lines[: height - 1])
        sys.stdout.write(f"\033[?7l\033[H{body}\033[K\033[J\033[?7h")
        sys.stdout.flush()
