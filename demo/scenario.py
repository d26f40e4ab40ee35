"""The story that the demo tells, and what it measures on the way."""

import json
import secrets
import subprocess
import threading
import time

from demo.agent import CATALOG_PORT, PAYMENTS_PORT, Agent, Refused
from demo.screen import duration
from demo.stage import PYTHON, SERVER_INTERFACE, StageError

CALLER_THREADS = 8
WRK_CONNECTIONS = 4
OVERRIDE_SECONDS = 4
OVERRIDE_REASON = "disk swap, ticket 4711"
SLOW_MILLISECONDS = 250

NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{ listen 10.77.0.2:{port}; listen [fd77::2]:{port}; location / {{ return 200 "catalog\\n"; }} }}
}}
"""


class NotSeen(Exception):
    """Something that the story needs did not happen in time."""


class Lines:
    """Reads a process's JSON lines in a thread, and lets others wait for one."""

    def __init__(self, process, each=None):
        self.items = []
        self.condition = threading.Condition()
        self.ended = False
        self.process = process
        self.each = each
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            item = json.loads(line)
            if self.each:
                self.each(item)
            with self.condition:
                self.items.append(item)
                self.condition.notify_all()
        with self.condition:
            self.ended = True
            self.condition.notify_all()

    def wait(self, wanted, seconds, after=0):
        """The first item from index `after` on that fits; None when time is up, or no more will come."""
        deadline = time.monotonic() + seconds
        with self.condition:
            while True:
                for item in self.items[after:]:
                    if wanted(item):
                        return item
                left = deadline - time.monotonic()
                if left <= 0 or self.ended:
                    return None
                self.condition.wait(left)


class Caller:
    """One client process and its totals so far."""

    def __init__(self, stage, name, port):
        command = [*PYTHON, "-m", "demo.client", str(port), str(CALLER_THREADS)]
        self.stage = stage
        self.process = stage.start(
            command, "client", name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ends = {"ok": 0, "failed": 0, "refused": 0, "reset": 0, "other": 0}
        self.refused_ns = []
        self.reactions_ns = []
        self.lines = Lines(self.process, self._take)

    def _take(self, line):
        self.refused_ns += line.pop("refused_ns")
        self.reactions_ns = line.pop("reactions_ns")
        self.ends = line

    def refusal_seconds(self, quantile):
        ordered = sorted(self.refused_ns)
        return ordered[int(quantile * (len(ordered) - 1))] / 1e9 if ordered else None

    def finish(self):
        """Lets it end its attempts and print its exact totals."""
        self.process.stdin.close()
        self.lines.thread.join(10)
        self.stage.stop(self.process)


class Scenario:
    def __init__(self, stage, screen):
        self.stage = stage
        self.screen = screen
        self.deadline = screen.started + screen.seconds
        self.facts = []
        self.problems = []

    # What it is made of.

    def play(self):
        screen = self.screen
        screen.begin("starting", "nginx, a service that can fail, their callers, the agent")
        self.agent = Agent(self.stage)
        self._start_services()
        self.agent.wait_until_ready()
        screen.say("the agent is ready; it knows two services: catalog (nginx) and payments")
        self.wire = Lines(self._python("demo.wire", "server", [SERVER_INTERFACE]))
        if not self.wire.wait(lambda line: "ready" in line, 5):
            raise NotSeen("the packet reader did not start")
        self.events = Lines(self.agent.follow("events"), self._tell)
        self.callers = {
            "catalog": Caller(self.stage, "storefront", CATALOG_PORT),
            "payments": Caller(self.stage, "checkout", PAYMENTS_PORT),
        }
        screen.callers = self.callers
        self.ended = threading.Event()
        poller = threading.Thread(target=self._poll, daemon=True)
        poller.start()
        try:
            self._all_is_well()
            self._follow_flows()
            self._payments_fails()
            self._breathe()
            self._override()
            self._breathe()
            self._traces()
            self._payments_slows()
            self._count()
        finally:
            self.ended.set()
            poller.join()

    def _python(self, module, side, arguments, service=None):
        return self.stage.start(
            [*PYTHON, "-m", module, *arguments],
            side,
            service,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _start_services(self):
        path = self.stage.directory / "nginx.conf"
        path.write_text(NGINX.format(directory=self.stage.directory, port=CATALOG_PORT))
        log = self.stage.directory / "nginx.log"
        self.stage.start(
            ["nginx", "-c", str(path), "-e", str(log)], "server", "catalog", stderr=subprocess.DEVNULL
        )
        self.payments = self._python("demo.server", "server", [str(PAYMENTS_PORT)], "payments")
        if self.payments.stdout.readline() != "ready\n":
            raise StageError("the payments server did not start")

    def _behave(self, command):
        self.payments.stdin.write(command + "\n")
        self.payments.stdin.flush()

    def _poll(self):
        while not self.ended.wait(0.4):
            try:
                self.screen.services = self.agent.query("services")["services"]
            except Refused:
                return  # The agent is gone; the story's thread finds out by itself.

    def _tell(self, event):
        if "error" in event:
            self.problems.append(event["error"])
            return
        if event["kind"] == "transition":
            text = f"{event['service']}: {event['from']} -> {event['to']} ({event['reason']})"
        else:
            text = f"{event['service']}: {event['kind']} by {event['actor']}: {event['reason']}"
            if event["text"]:
                text += f", \"{event['text']}\""
        self.screen.say(text)

    def _left(self):
        return self.deadline - time.monotonic()

    def _pause(self, seconds):
        time.sleep(max(0, min(seconds, self._left())))

    def _breathe(self):
        """Leaves the watcher a moment to read, if there is time."""
        if self._left() > 20:
            self._pause(2)

    def _transition(self, service, to, seconds, after):
        """Waits for a breaker's next transition to a state."""
        seen = self.events.wait(
            lambda event: event["service"] == service and event["to"] == to, min(seconds, self._left()), after
        )
        if not seen:
            raise NotSeen(
                f"the breaker of {service} did not become {to} in time; {self.agent.last_words()}"
            )
        return seen

    def _fact(self, what, value):
        self.facts.append((what, value))

    def _equal(self, what, ours, agents):
        """A count of ours and the agent's, which must be the same."""
        same = ours == agents
        self._fact(what, f"{ours:,.0f} by the callers, {agents:,.0f} by the agent" + ("" if same else "  DIFFER"))
        if not same:
            self.problems.append(what)

    # The story.

    def _all_is_well(self):
        seconds = max(2, min(6, self.screen.seconds // 8))
        self.screen.begin("all is well", f"callers at their pace, and wrk on catalog for {seconds} s")
        process = self.stage.start(
            ["wrk", "-t1", f"-c{WRK_CONNECTIONS}", f"-d{seconds}s", f"http://10.77.0.2:{CATALOG_PORT}/"],
            "client",
            "loadtest",
            stdout=subprocess.PIPE,
            text=True,
        )
        output = process.communicate()[0]
        self.stage.stop(process)
        done = int(next(line.split()[0] for line in output.splitlines() if " requests in " in line))
        counted = self.agent.metrics().total(
            "mesh_request_duration_seconds_count", service="catalog", role="client", workload="loadtest.service"
        )
        self.screen.say(f"wrk completed {done:,} requests; the agent counted {counted:,.0f}")
        # wrk drops what is under way when its time is up: at most one request a connection.
        cut_off = counted - done
        self._fact(
            "wrk on catalog",
            f"{done:,} completed in {seconds} s, {counted:,.0f} counted by the agent"
            f" ({cut_off:.0f} under way when wrk stopped)",
        )
        if not 0 <= cut_off <= WRK_CONNECTIONS:
            self.problems.append("wrk on catalog")

    def _follow_flows(self):
        # Not during wrk: each of its requests would be a line.
        self.flows = Lines(self.agent.follow("flows"))
        if not self.flows.wait(lambda flow: True, 5):
            raise NotSeen("meshctl flows --follow shows nothing, though callers call")
        self.first_followed = len(self.wire.items)

    def _payments_fails(self):
        after = len(self.events.items)
        self.screen.begin("payments fails", "each answer is a 503 now; callers retry at once")
        self._behave("fail")
        self._transition("payments", "open", 5, after)
        reaction = self.agent.metrics()
        count = reaction.total("mesh_breaker_reaction_seconds_count")
        mean = reaction.total("mesh_breaker_reaction_seconds_sum") / count
        self.screen.say(f"the breaker was in force {duration(mean)} after the kernel saw the deciding failure")
        self._fact("breaker in force", f"{duration(mean)} after the deciding failure (mesh_breaker_reaction_seconds)")
        self._pause(0.5)
        seen = self.callers["payments"].reactions_ns
        if seen:
            self.screen.say(f"a caller was turned away {duration(seen[0] / 1e9)} after it got the deciding failure")
            self._fact("first caller turned away", f"{duration(seen[0] / 1e9)} after it had the deciding failure in hand")
        self._transition("payments", "half_open", 5, after)
        self.screen.say("its time is up: the kernel lets a probe through, and payments still fails")
        reopened = self.events.wait(lambda event: event["reason"] == "probe_failed", min(5, self._left()), after)
        if not reopened:
            raise NotSeen("no probe failed, though payments fails")

        after = len(self.events.items)
        healed = time.monotonic()
        self.screen.begin("payments heals", "the next probes succeed, then 10%, 50%, all attempts")
        self._behave("ok")
        self._transition("payments", "closed", 15, after)
        seconds = time.monotonic() - healed
        refused = self.callers["payments"]
        self._fact("recovery", f"{duration(seconds)} after payments was well again (open, probes, ramp), by itself")
        self._fact(
            "a refused connect() took",
            f"p50 {duration(refused.refusal_seconds(0.5))}, p99 {duration(refused.refusal_seconds(0.99))}"
            f" ({len(refused.refused_ns):,} of them, ECONNREFUSED)",
        )

    def _override(self):
        after = len(self.events.items)
        self.screen.begin("an override", "a person opens the breaker of a service that is well")
        command = ["breaker", "open", "catalog", "--reason", OVERRIDE_REASON, "--for", f"{OVERRIDE_SECONDS}s"]
        self.screen.say("$ meshctl " + " ".join(f"'{word}'" if " " in word else word for word in command))
        before = dict(self.callers["catalog"].ends)
        self.agent.meshctl(*command)
        expired = self.events.wait(
            lambda event: event["service"] == "catalog" and event["kind"] == "override_end",
            OVERRIDE_SECONDS + 3,
            after,
        )
        if not expired:
            raise NotSeen("the override of catalog did not expire")
        turned_away = sum(self.callers["catalog"].ends[end] - before[end] for end in ("refused", "reset"))
        history = self.agent.query("breaker", "show", "catalog")["history"]
        entry = next(event for event in history if event["kind"] == "override")
        self.screen.say(f"{turned_away} attempts turned away in {OVERRIDE_SECONDS} s; forced by {entry['actor']}")
        self._fact(
            "override of catalog",
            f"{turned_away} attempts turned away; by {entry['actor']}, \"{entry['text']}\", expired by itself",
        )

    def _traces(self):
        after = len(self.wire.items)
        trace = secrets.token_hex(16)
        checkout = self.callers["payments"].process.pid
        self.screen.begin("traces", "connections of checkout belong to a trace of ours for a while")
        self.agent.meshctl("trace", "bind", "--pid", str(checkout), "--trace", trace)
        self.screen.say(f"$ meshctl trace bind --pid {checkout} --trace {trace}")
        syn = self.wire.wait(lambda line: line.get("trace") == trace, min(3, self._left()), after)
        if not syn:
            raise NotSeen(f"no SYN with the trace {trace} came out of the far end")
        self.screen.say(f"on the far end: SYN {syn['from']} -> {syn['to']} with {syn['trace']}")
        self._pause(1)
        self.agent.meshctl("trace", "unbind", "--pid", str(checkout))

    def _payments_slows(self):
        if self._left() < 12:
            self.screen.say("no time left for a slow payments: DEMO_SECONDS bounds this")
            return
        after = len(self.events.items)
        self.screen.begin("payments slows", f"answers take {SLOW_MILLISECONDS} ms now; over 100 ms is slow")
        self._behave(f"slow {SLOW_MILLISECONDS}")
        began = time.monotonic()
        self._transition("payments", "open", 6, after)
        self._fact("slow calls", f"breaker open {duration(time.monotonic() - began)} after they began (window 2 s)")
        self._behave("ok")
        self._transition("payments", "closed", 10, after)

    def _count(self):
        """Ends the callers and compares what they counted with what the agent did."""
        self.screen.begin("counting", "callers end; their counts against the agent's")
        for caller in self.callers.values():
            caller.finish()
        metrics = self.agent.metrics()
        for name, service in (("storefront", "catalog"), ("checkout", "payments")):
            ends = self.callers[service].ends
            answered = metrics.total(
                "mesh_request_duration_seconds_count",
                service=service,
                role="client",
                workload=f"{name}.service",
                code=("200", "503"),
            )
            self._equal(f"requests of {service}", ends["ok"] + ends["failed"], answered)
            for point, end in (("connect", "refused"), ("request", "reset")):
                rejected = metrics.total(
                    "mesh_breaker_attempts_total", service=service, point=point, decision="rejected"
                )
                self._equal(f"rejected at {point}, {service}", ends[end], rejected)
        lost = metrics.total("mesh_agent_samples_lost_total")
        self._fact("samples lost", f"{lost:.0f}")
        if lost:
            self.problems.append("samples lost")
        self._compare_traces()
        self._fact("the agent's memory", f"{self.agent.memory_bytes() / 1e6:.1f} MB resident")

    def _compare_traces(self):
        self._pause(0.5)
        on_wire = {line["from"]: line["trace"] for line in self.wire.items[self.first_followed :]}
        agents = {"client": {}, "server": {}}
        for flow in self.flows.items:
            if "error" in flow:
                self.problems.append(flow["error"])
            elif flow["event"] == "connect":
                agents["client"][flow["local"]] = flow["trace_id"]
            elif flow["event"] == "accept":
                agents["server"][flow["remote"]] = flow["trace_id"]
        for role, flows in agents.items():
            same = sum(trace is not None and flows.get(end) == trace for end, trace in on_wire.items())
            self._fact(
                f"traces, wire and {role}",
                f"{same:,} of {len(on_wire):,} SYNs on the far end carry what meshctl flows says",
            )
            if same != len(on_wire) or not on_wire:
                self.problems.append(f"traces, {role}")

    def summary(self):
        lines = ["", f"What was measured, in {self.screen.elapsed():.0f} s:"]
        lines += [f"  {what:<30} {value}" for what, value in self.facts]
        if self.problems:
            lines += ["", "NOT AS IT SHOULD BE: " + "; ".join(self.problems)]
        return "\n".join(lines)
