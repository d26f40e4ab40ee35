"""When a breaker opens: at its threshold and not a request before, by failures and by slow calls, and
by nothing that is not a failure."""

import errno
import os
import socket
import time

import pytest

from meshtest.agent import CAP_SYS_NICE, CAPABILITIES
from meshtest.host import poll
from meshtest.policies import config, service
from meshtest.traffic import GET, Knob, Server, connect_errno, exchange, http_server, receive, reset, time_to_first_byte


def statuses(client, server, *codes):
    for code in codes:
        exchange(client, server, code)


def settled(agent, requests):
    """The breaker once its window holds a number of requests."""
    agent.expect(lambda: agent.breaker("web")["window"]["requests"], requests)
    return agent.breaker("web")


def test_failure_rate(start_agent, world):
    agent = start_agent(config(service(minimumRequests=20, failureRate=0.5)))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, *[500] * 9, *[200] * 10)
    breaker = settled(agent, 19)
    assert breaker["state"] == "closed" and breaker["window"]["failures"] == 9
    statuses(client, server, 500)
    breaker = agent.wait_state("web", "open")
    assert breaker["reason"] == "failure_rate"
    assert breaker["window"]["failures"] == 10 and breaker["window"]["requests"] == 20
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    metrics = agent.metrics()
    labels = dict(service="web", to="open", reason="failure_rate")
    assert metrics.value("mesh_breaker_transitions_total", **labels, **{"from": "closed"}) == 1
    assert metrics.value("mesh_breaker_transitions_total", service="web") == 1
    assert metrics.by("mesh_breaker_state", "state", service="web") == {"open": 1}
    assert {s.labels["state"] for s in metrics.samples("mesh_breaker_state", service="web")} == {
        "closed",
        "open",
        "half_open",
    }
    assert metrics.value("mesh_breaker_reaction_seconds_count") >= 1


def test_below_the_rate_it_stays_closed(start_agent, world):
    agent = start_agent(config(service(minimumRequests=10, failureRate=0.5)))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, *[200, 200, 500] * 20)
    agent.expect_codes("web", {"200": 40, "500": 20})
    assert agent.breaker("web")["state"] == "closed"
    assert agent.attempts("web", "request") == {"admitted": 60}


def test_consecutive_failures(start_agent, world):
    agent = start_agent(config(service(consecutiveFailures=5)))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, *[503] * 4, 200, *[503] * 4)
    agent.expect(lambda: agent.breaker("web")["window"]["consecutive_failures"], 4)
    assert agent.breaker("web")["state"] == "closed"
    statuses(client, server, 503)
    breaker = agent.wait_state("web", "open")
    assert breaker["reason"] == "consecutive_failures"


def test_slow_calls(start_agent, world):
    agent = start_agent(config(service(minimumRequests=6, slowCallDuration="20ms", slowCallRate=0.5)))
    delay = Knob(0.0)
    with Server(world.listen("lo4", 9001), http_server(delay=delay)):
        client = world.connect("lo4", 9001)
        for delay.value in (0, 0.03, 0, 0.03):
            time_to_first_byte(client)
        agent.expect(lambda: agent.breaker("web")["window"]["slow"], 2)
        assert agent.breaker("web")["state"] == "closed"
        for delay.value in (0.03, 0.03):
            time_to_first_byte(client)
        breaker = agent.wait_state("web", "open")
    assert breaker["reason"] == "slow_calls"
    assert breaker["window"]["failures"] == 0


def refused(world):
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED


def was_reset(world):
    client, server = world.pair("lo4", 9001)
    client.sendall(GET)
    receive(server, len(GET))
    reset(server)


def aborted(world):
    client, server = world.pair("lo4", 9001)
    client.sendall(GET)
    receive(server, len(GET))
    server.close()


def bad_gateway(world):
    client, server = world.pair("lo4", 9001)
    exchange(client, server, 502)


def timed_out(world):
    world.near.sysctl("net.ipv4.tcp_syn_retries", 1)
    world.near.batch("neigh replace 10.77.0.2 lladdr 02:00:00:00:00:66 dev veth0 nud permanent")
    client, address = world.client("veth4")
    client.setsockopt(socket.IPPROTO_TCP, 18, 500)  # TCP_USER_TIMEOUT
    assert client.connect_ex((address, 9001)) == errno.ETIMEDOUT
    client.close()


def unreachable(world):
    world.near.batch("route add unreachable 10.77.0.2/32")
    client, address = world.client("veth4")
    assert client.connect_ex((address, 9001)) in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    client.close()


@pytest.mark.parametrize("fail", [refused, was_reset, aborted, bad_gateway, timed_out, unreachable])
def test_each_failure_trips(start_agent, world, fail):
    agent = start_agent(config(service(consecutiveFailures=1)))
    fail(world)
    assert agent.wait_state("web", "open")["reason"] == "consecutive_failures"


@pytest.mark.parametrize("status", [200, 301, 404, 429])
def test_other_statuses_are_no_failures(start_agent, world, status):
    agent = start_agent(config(service(consecutiveFailures=1)))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, *[status] * 3)
    agent.expect_codes("web", {str(status): 3})
    assert agent.breaker("web")["state"] == "closed"
    assert agent.breaker("web")["window"]["failures"] == 0


def test_failure_statuses_are_configured(start_agent, world):
    agent = start_agent(config(service(consecutiveFailures=1, failureStatuses=["429", "504"])))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, 500, 503)
    agent.expect_codes("web", {"500": 1, "503": 1})
    assert agent.breaker("web")["state"] == "closed"
    statuses(client, server, 429)
    agent.wait_state("web", "open")


def test_only_clients_feed_a_breaker(start_agent, world):
    """The server's view of a failing response is the same failure, not another."""
    agent = start_agent(config(service(consecutiveFailures=2)))
    client, server = world.pair("lo4", 9001)
    exchange(client, server, 500)
    agent.expect_codes("web", {"500": 1})
    assert agent.breaker("web")["window"]["failures"] == 1
    assert agent.breaker("web")["state"] == "closed"


def test_its_own_rejections_are_no_failures(start_agent, world):
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    agent.override("web", "open")
    for _ in range(10):
        refused(world)
    client.sendall(GET)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    agent.expect(lambda: agent.attempts("web", "connect").get("rejected"), 10)
    agent.expect(lambda: agent.attempts("web", "request").get("rejected"), 1)
    assert agent.failed("web") == {}
    assert agent.codes("web") == {"200": 1}
    assert agent.breaker("web")["window"]["failures"] == 0


def test_the_window_forgets(start_agent, world):
    agent = start_agent(config(service(window="1s", minimumRequests=4, failureRate=0.5)))
    client, server = world.pair("lo4", 9001)
    statuses(client, server, 500, 500)
    agent.expect(lambda: agent.breaker("web")["window"]["failures"], 2)
    agent.expect(lambda: agent.breaker("web")["window"]["requests"], 0, timeout=5)
    statuses(client, server, 500, 200, 200)
    agent.expect_codes("web", {"500": 3, "200": 2})
    assert agent.breaker("web")["state"] == "closed"


def test_observe_opens_and_rejects_nothing(start_agent, world):
    agent = start_agent(config(service(mode="observe", consecutiveFailures=1)))
    refused(world)
    assert agent.wait_state("web", "open")["mode"] == "observe"
    for _ in range(4):
        client, server = world.pair("lo4", 9001)
        exchange(client, server)
    agent.expect(lambda: agent.attempts("web", "connect").get("would_reject"), 4)
    agent.expect(lambda: agent.attempts("web", "request").get("would_reject"), 4)
    assert "rejected" not in {**agent.attempts("web", "connect"), **agent.attempts("web", "request")}
    agent.expect_codes("web", {"200": 4})


def test_mode_off_is_only_measured(start_agent, world):
    agent = start_agent(config(service(mode="off", consecutiveFailures=1)))
    refused(world)
    client, server = world.pair("lo4", 9001)
    statuses(client, server, 500, 500)
    agent.expect_codes("web", {"500": 2})
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    world.listen("lo4", 9001)
    assert connect_errno(world, "lo4", 9001) == 0


def test_never_more_than_the_share_of_breakers_open(start_agent, world):
    services = [service(f"svc{n}", 9001 + n, consecutiveFailures=1) for n in range(4)]
    agent = start_agent({**config(*services), "breakers": {"maxOpenShare": 0.5, "lease": "10s"}})
    for n in range(4):
        assert connect_errno(world, "lo4", 9001 + n) == errno.ECONNREFUSED
    agent.wait_state("svc1", "open")
    agent.expect(lambda: [agent.breaker(f"svc{n}")["state"] for n in range(4)], ["open", "open", "closed", "closed"])
    assert [agent.breaker(f"svc{n}")["held_closed"] for n in range(4)] == [False, False, True, True]
    breakers = agent.status()["breakers"]
    assert (breakers["open"], breakers["open_limit"], breakers["held_closed"]) == (2, 2, 2)
    assert [e["service"] for e in agent.ask("/v1/events")["events"] if e["kind"] == "held_closed"] == ["svc2", "svc3"]
    for n in range(4):
        world.listen("lo4", 9001 + n)
    assert [connect_errno(world, "lo4", 9001 + n) for n in range(4)] == [errno.ECONNREFUSED] * 2 + [0] * 2
    agent.override("svc3", "open")  # a person may
    assert connect_errno(world, "lo4", 9004) == errno.ECONNREFUSED


def test_one_breaker_may_always_open(start_agent, world):
    agent = start_agent({**config(service(consecutiveFailures=1)), "breakers": {"maxOpenShare": 0.1}})
    refused(world)
    agent.wait_state("web", "open")


def test_the_decision_is_driven_by_the_sample(start_agent, world):
    """The next attempt after a failure is refused without anyone asking the agent for anything."""
    agent = start_agent(config(service(consecutiveFailures=1)))
    client, server = world.pair("lo4", 9001)
    listener = world.listen("lo4", 9001)
    follow = agent.follow("/v1/events?follow=1")
    exchange(client, server, 500)
    assert follow.until(lambda event: event["to"] == "open")["service"] == "web"
    follow.close()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    listener.close()
    begin = time.monotonic()
    assert agent.metrics().value("mesh_breaker_reaction_seconds_count") == 1
    assert agent.metrics().value("mesh_breaker_reaction_seconds_sum") < time.monotonic() - begin + 1


def test_the_engine_goes_where_failures_are(start_agent, world):
    """A real-time thread is woken where it last ran, and another CPU may take long to wake."""
    agent = start_agent(config(service(consecutiveFailures=10_000)), capabilities=CAPABILITIES | CAP_SYS_NICE)
    client, server = world.pair("lo4", 9001)
    mine = os.sched_getaffinity(0)
    allowed = os.sched_getaffinity(agent.process.pid)

    def fails_beside_it():
        exchange(client, server, 500)
        return agent.cpu() == cpu

    try:
        for cpu in sorted(mine) * 2:
            os.sched_setaffinity(0, {cpu})
            poll(fails_beside_it)
            poll(lambda: os.sched_getaffinity(agent.process.pid) == allowed)
        # It stays where somebody wants it.
        os.sched_setaffinity(agent.process.pid, {cpu})
        os.sched_setaffinity(0, {min(mine)})
        for _ in range(3):
            exchange(client, server, 500)
            # The second answer comes of a turn after the one that the failure began.
            agent.status()
            agent.status()
        assert os.sched_getaffinity(agent.process.pid) == {cpu} and agent.cpu() == cpu
    finally:
        os.sched_setaffinity(0, mine)
    assert agent.status()["privileges"]["calls_refused"] == 0
