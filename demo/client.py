"""A caller: a few threads that send HTTP requests and count how each attempt ended.

Half of them keep their connection, half make one for each request; both over IPv4 and IPv6. It
prints its totals as a JSON line five times a second and ends, with the last line exact, when its
stdin does. Nothing here knows of the agent: what is counted is what any program would see.
"""

import json
import random
import socket
import sys
import threading
import time

PAUSE_SECONDS = 0.03
TIMEOUT_SECONDS = 3
# As in the demo's breaker: the failure in a row that decides.
CONSECUTIVE_FAILURES = 5


class Totals:
    """How attempts ended, for all threads together."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ends = {"ok": 0, "failed": 0, "refused": 0, "reset": 0, "other": 0}
        self.refused_ns = []
        self.in_a_row = 0
        self.decided_ns = None
        self.reactions_ns = []

    def add(self, end, started_ns):
        now = time.monotonic_ns()
        with self.lock:
            self.ends[end] += 1
            if end == "ok":
                self.in_a_row = 0
                self.decided_ns = None
            elif end == "failed":
                self.in_a_row += 1
                if self.in_a_row == CONSECUTIVE_FAILURES:
                    self.decided_ns = now
            elif end in ("refused", "reset"):
                if end == "refused":
                    self.refused_ns.append(now - started_ns)
                if self.decided_ns:
                    self.reactions_ns.append(now - self.decided_ns)
                self.in_a_row = 0
                self.decided_ns = None

    def report(self):
        with self.lock:
            refused, self.refused_ns = self.refused_ns, []
            line = {**self.ends, "refused_ns": refused, "reactions_ns": self.reactions_ns}
            print(json.dumps(line), flush=True)


class Caller:
    """One thread's connection and its way to use it."""

    def __init__(self, endpoint, keep):
        self.family, self.address, self.keep = *endpoint, keep
        self.connection = None

    def attempt(self):
        """One request, on a new connection or the kept one. Gives (end, when it started)."""
        started = time.monotonic_ns()
        try:
            if self.connection is None:
                self.connection = socket.socket(self.family)
                self.connection.settimeout(TIMEOUT_SECONDS)
                self.connection.connect(self.address)
            self.connection.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
            status = self.response()
            if not self.keep:
                self.close()
            return ("ok" if status < 500 else "failed"), started
        except ConnectionRefusedError:
            end = "refused"
        except (ConnectionResetError, BrokenPipeError):
            end = "reset"
        except OSError:
            end = "other"
        self.close()
        return end, started

    def response(self):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.receive()
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(body) < length:
            body += self.receive()
        return int(head.split()[1])

    def receive(self):
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionResetError
        return data

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


def work(caller, totals, stopped):
    while not stopped.is_set():
        end, started = caller.attempt()
        totals.add(end, started)
        # Like many a real caller, it tries again at once when the service fails.
        if end != "failed":
            stopped.wait(PAUSE_SECONDS * random.uniform(0.5, 1.5))
    caller.close()


def main():
    # Python lets a thread run for 5 ms at a time, which is longer than what is measured here.
    sys.setswitchinterval(0.0001)
    port, threads = int(sys.argv[1]), int(sys.argv[2])
    endpoints = [(socket.AF_INET, ("10.77.0.2", port)), (socket.AF_INET6, ("fd77::2", port))]
    totals, stopped = Totals(), threading.Event()
    callers = [Caller(endpoints[n % 2], keep=n % 4 >= 2) for n in range(threads)]
    workers = [threading.Thread(target=work, args=(caller, totals, stopped)) for caller in callers]
    for worker in workers:
        worker.start()

    def report():
        while not stopped.wait(0.2):
            totals.report()

    reporter = threading.Thread(target=report)
    reporter.start()
    sys.stdin.read()
    stopped.set()
    for worker in [*workers, reporter]:
        worker.join()
    totals.report()


main()
