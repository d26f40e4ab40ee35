"""From open back to closed: the deadline, probes by share and by interval, reopening with backoff, and
the ramp."""

import datetime
import errno
import time

import pytest

from meshtest.host import poll
from meshtest.policies import config, service
from meshtest.traffic import Knob, Server, connect_errno, exchange, http_server, time_to_first_byte

NEVER = {"ratio": 0.000001, "interval": "1h", "successes": 1000}


def trip(agent, world):
    """Opens a breaker with `consecutiveFailures: 1` by a refused connect."""
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")


def attempt(world, count):
    """How many of `count` connects were let through; the rest must have been refused."""
    admitted = 0
    for _ in range(count):
        error = connect_errno(world, "lo4", 9001)
        assert error in (0, errno.ECONNREFUSED)
        admitted += not error
    return admitted


def probes(world, listener, count):
    """Attempts that go on until `count` were let through, each with a request that succeeds."""
    while count:
        client, address = world.client("lo4")
        if client.connect_ex((address, 9001)) == 0:
            server, _ = listener.accept()
            exchange(client, server)
            server.close()
            count -= 1
        client.close()


def drain(listener):
    """For `Server`: connections are taken and closed."""
    return Server(listener, lambda connection: None)


def parse_time(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def open_for(breaker):
    return parse_time(breaker["open_until"]) - parse_time(breaker["since"])


@pytest.mark.limit(120)
def test_the_share_of_probes_over_100_000_attempts(start_agent, world):
    agent = start_agent(
        config(service(consecutiveFailures=1, openFor="1s", probe={"interval": "1h", "successes": 1000}))
    )
    # Where requests were seen, a connect that succeeds is no sign of health, so this stays half-open.
    exchange(*world.pair("lo4", 9001))
    trip(agent, world)
    agent.wait_state("web", "half_open")
    listener = world.listen("lo4", 9001)
    done, admitted = 100_000, 0
    with drain(listener):
        admitted = attempt(world, done)
    assert 0.0085 <= admitted / done <= 0.0115, admitted
    agent.expect(lambda: agent.attempts("web", "connect"), {
        "admitted": 2, "rejected": done - admitted, "probe": admitted,
    })  # fmt: skip
    assert agent.lost() == 0


def test_a_quiet_service_gets_its_probe_each_interval(start_agent, world):
    """One attempt a second with a shorter interval: each of them is a probe, whatever the share."""
    agent = start_agent(config(service(consecutiveFailures=1, openFor="1s", probe={**NEVER, "interval": "500ms"})))
    trip(agent, world)
    agent.wait_state("web", "half_open")
    with drain(world.listen("lo4", 9001)):
        for _ in range(4):
            assert attempt(world, 1) == 1
            assert attempt(world, 5) == 0
            time.sleep(0.6)
    assert agent.attempts("web", "connect")["probe"] == 4


def test_a_quiet_service_recovers(start_agent, world):
    agent = start_agent(
        config(
            service(
                consecutiveFailures=1, openFor="1s", probe={**NEVER, "interval": "200ms", "successes": 2, "ramp": "1s"}
            )
        )
    )
    trip(agent, world)
    with Server(world.listen("lo4", 9001), http_server()):

        def call():
            client, address = world.client("lo4")
            try:
                if client.connect_ex((address, 9001)) == 0:
                    time_to_first_byte(client)
            finally:
                client.close()
            return agent.breaker("web")["state"] == "closed"

        poll(call, 15, 0.3)
    history = [(e["from"], e["to"], e["reason"]) for e in agent.breaker("web")["history"] if e["kind"] == "transition"]
    assert history == [
        ("closed", "open", "consecutive_failures"), ("open", "half_open", "deadline"), ("half_open", "closed", "recovered"),
    ]  # fmt: skip
    assert attempt_all(world, 20)


def attempt_all(world, count):
    with drain(world.listen("lo6", 9001)):
        return all(connect_errno(world, "lo6", 9001) == 0 for _ in range(count))


def test_a_failed_probe_reopens_for_longer(start_agent, world):
    agent = start_agent(
        config(service(consecutiveFailures=1, openFor="1s", maxOpenFor="3s", probe={"ratio": 1.0, "successes": 1000}))
    )
    trip(agent, world)
    spans = [open_for(agent.breaker("web"))]
    for _ in range(2):
        agent.wait_state("web", "half_open", 10)
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED  # the server's, not the breaker's
        breaker = agent.wait_state("web", "open")
        assert breaker["reason"] == "probe_failed"
        spans.append(open_for(breaker))
    assert 0.99 <= spans[0] <= 1.11 and 1.99 <= spans[1] <= 2.21 and 2.99 <= spans[2] <= 3.01, spans
    assert agent.failed("web") == {"refused": 3}
    transitions = agent.metrics().by("mesh_breaker_transitions_total", "reason", service="web")
    assert transitions == {"consecutive_failures": 1, "deadline": 2, "probe_failed": 2}


def test_a_probe_with_a_bad_status_reopens(start_agent, world):
    agent = start_agent(config(service(consecutiveFailures=1, openFor="1s", probe={"ratio": 1.0})))
    trip(agent, world)
    agent.wait_state("web", "half_open")
    client, server = world.pair("lo4", 9001)
    exchange(client, server, 500)
    assert agent.wait_state("web", "open")["reason"] == "probe_failed"


def test_probes_on_established_connections(start_agent, world):
    """A pool that opens no new connection recovers too."""
    agent = start_agent(
        config(service(consecutiveFailures=1, openFor="1s", probe={"ratio": 1.0, "successes": 3, "ramp": "1s"}))
    )
    client, server = world.pair("lo4", 9001)
    exchange(client, server, 500)
    agent.wait_state("web", "open")
    agent.wait_state("web", "half_open")
    for _ in range(3):
        exchange(client, server)
    agent.expect(lambda: agent.attempts("web", "request").get("probe"), 3)
    agent.wait_state("web", "closed", 10)
    exchange(client, server)
    agent.expect_codes("web", {"500": 1, "200": 4})


@pytest.mark.limit(90)
def test_the_ramp_admits_a_tenth_then_a_half_then_all(start_agent, world):
    agent = start_agent(
        config(
            service(
                consecutiveFailures=1,
                openFor="1s",
                probe={"interval": "200ms", "ramp": "10s"},
            )
        )
    )
    trip(agent, world)
    agent.wait_state("web", "half_open")
    listener = world.listen("lo4", 9001)
    probes(world, listener, 3)
    with drain(listener):
        poll(lambda: agent.breaker("web")["probe_share"] == 0.1, 5, what="the ramp begins")
        admitted = attempt(world, 3000)
        assert agent.breaker("web")["probe_share"] == 0.1, "the machine is too slow for this test"
        assert 0.08 <= admitted / 3000 <= 0.12, admitted
        poll(lambda: agent.breaker("web")["probe_share"] == 0.5, 10, what="the ramp goes on")
        assert agent.breaker("web")["state"] == "half_open"
        admitted = attempt(world, 3000)
        assert agent.breaker("web")["state"] == "half_open", "the machine is too slow for this test"
        assert 0.46 <= admitted / 3000 <= 0.54, admitted
        assert agent.wait_state("web", "closed", 10)["reason"] == "recovered"
        assert attempt(world, 500) == 500


def test_a_failure_in_the_ramp_reopens(start_agent, world):
    agent = start_agent(
        config(
            service(
                consecutiveFailures=2,
                openFor="1s",
                probe={"interval": "10ms", "successes": 2, "ramp": "60s"},
            )
        )
    )
    for _ in range(2):
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")
    agent.wait_state("web", "half_open")
    listener = world.listen("lo4", 9001)
    probes(world, listener, 2)
    poll(lambda: agent.breaker("web")["probe_share"] == 0.1, what="the ramp begins")
    listener.close()

    def reopened():
        connect_errno(world, "lo4", 9001)
        return agent.breaker("web")["state"] == "open"

    poll(reopened, 10, 0.02)
    assert agent.breaker("web")["reason"] == "ramp_failed"


def test_slow_probes_do_not_recover(start_agent, world):
    agent = start_agent(
        config(
            service(
                minimumRequests=2,
                slowCallDuration="20ms",
                slowCallRate=0.5,
                openFor="1s",
                probe={"ratio": 1.0, "successes": 1},
            )
        )
    )
    delay = Knob(0.05)
    with Server(world.listen("lo4", 9001), http_server(delay=delay)):
        client = world.connect("lo4", 9001)
        for _ in range(2):
            time_to_first_byte(client)
        assert agent.wait_state("web", "open")["reason"] == "slow_calls"
        agent.wait_state("web", "half_open")
        time_to_first_byte(client)
        assert agent.wait_state("web", "open")["reason"] == "probe_failed"
