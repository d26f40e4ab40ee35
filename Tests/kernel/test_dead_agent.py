"""Agent dead, stopped or wedged: traffic flows. And what the kernel keeps by itself: deadlines,
expiry of overrides, the lease."""

import errno
import time

import pytest

from meshtest.host import poll
from meshtest.policies import config, service
from meshtest.traffic import connect_errno, exchange, load, until_closed

KEEPS_LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "60s"}}
SHORT_LEASE = {"breakers": {"maxOpenShare": 1.0, "lease": "1s"}}


def trip(agent, world):
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.wait_state("web", "open")
    return world.listen("lo4", 9001)


def test_past_the_lease_automatic_breakers_admit_everything(start_agent, world):
    agent = start_agent({**config(service(consecutiveFailures=1)), **SHORT_LEASE})
    client, server = world.pair("lo4", 9001)
    trip(agent, world)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.pause()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 5, 0.02, "the breaker fails open")
    for _ in range(5):
        assert connect_errno(world, "lo4", 9001) == 0
        exchange(client, server)
    agent.resume()
    poll(lambda: connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED, 5, 0.02, "the lease is renewed")
    assert agent.status()["lease"]["valid"]
    agent.expect_codes("web", {"200": 5})
    assert agent.lost() == 0


def test_a_stopped_agent_does_not_hold_half_open_services(start_agent, world):
    agent = start_agent(
        {
            **config(service(consecutiveFailures=1, openFor="1s", probe={"ratio": 0.000001, "interval": "1h"})),
            **SHORT_LEASE,
        }
    )
    trip(agent, world)
    agent.wait_state("web", "half_open")
    agent.pause()
    poll(lambda: all(connect_errno(world, "lo4", 9001) == 0 for _ in range(3)), 5, 0.02)
    agent.resume()


def test_the_kernel_keeps_the_deadline_by_itself(start_agent, world):
    agent = start_agent(
        {
            **config(service(consecutiveFailures=1, openFor="2s", probe={"ratio": 0.000001, "interval": "1h"})),
            **KEEPS_LEASE,
        }
    )
    begin = time.monotonic()
    trip(agent, world)
    agent.pause()
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.005, "the kernel lets a probe through")
    assert time.monotonic() - begin >= 2
    for _ in range(20):
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.resume()
    agent.wait_state("web", "half_open")
    assert agent.attempts("web", "connect")["probe"] == 1


def test_overrides_expire(start_agent, world):
    agent = start_agent(config(service()))
    world.listen("lo4", 9001)
    begin = time.monotonic()
    agent.override("web", "open", 2, "for two seconds")
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.01)
    assert time.monotonic() - begin >= 2
    agent.expect(lambda: agent.breaker("web")["override"], None)
    ended = agent.breaker("web")["history"][-1]
    assert (ended["kind"], ended["reason"], ended["actor"]) == ("override_end", "override_expired", "agent")


def test_an_override_expires_in_the_kernel_with_the_agent_stopped(start_agent, world):
    """The lease is over long before: an override holds until its own end, and no longer."""
    agent = start_agent({**config(service()), **SHORT_LEASE})
    world.listen("lo4", 9001)
    begin = time.monotonic()
    agent.override("web", "open", 3)
    agent.pause()
    while time.monotonic() - begin < 2.5:
        assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
        time.sleep(0.05)
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 6, 0.01)
    assert time.monotonic() - begin >= 3
    agent.resume()
    agent.expect(lambda: agent.breaker("web")["override"], None)


def test_an_override_that_closes_wins_over_an_open_breaker(start_agent, world):
    agent = start_agent(config(service(consecutiveFailures=1)))
    trip(agent, world)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.override("web", "close", 2)
    assert connect_errno(world, "lo4", 9001) == 0
    poll(lambda: connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED, 6, 0.01, "the override ends")
    assert agent.breaker("web")["state"] == "open"


@pytest.mark.parametrize("tc", ["tcx", "clsact"])
@pytest.mark.parametrize("how", ["automatic", "override"])
def test_a_killed_agent_lets_traffic_flow(start_agent, world, tc, how):
    environment = {"MESH_AGENT_FORCE_CLSACT": "1"} if tc == "clsact" else {}
    settings = {**config(service(consecutiveFailures=1)), **SHORT_LEASE}
    agent = start_agent(settings, environment=environment)
    client, server = world.pair("veth4", 9001)
    exchange(client, server)
    if how == "automatic":
        trip(agent, world)
    else:
        world.listen("lo4", 9001)
        agent.override("web", "open", 3)
    assert connect_errno(world, "lo4", 9001) == errno.ECONNREFUSED
    agent.kill()
    poll(lambda: connect_errno(world, "lo4", 9001) == 0, 10, 0.02)
    for _ in range(10):
        exchange(client, server)
        exchange(*world.pair("veth6", 9001))
    # The next agent takes over what the killed one left, and leaves nothing itself.
    agent = start_agent(settings, environment=environment)
    agent.override("web", "close")
    counted = agent.codes("web")["200"]
    assert counted >= 20
    exchange(client, server)
    agent.expect(lambda: agent.codes("web"), {"200": counted + 1})
    agent.stop()


def test_traffic_goes_through_a_kill_unharmed(start_agent, world):
    agent = start_agent(config(service()))
    # What fails there fails the test.
    with load(world, route="veth4") as totals:
        for _ in range(2):
            poll(lambda before=totals()[0]: totals()[0] > before + 200)
            agent.kill()
            poll(lambda before=totals()[0]: totals()[0] > before + 200)
            agent = start_agent(config(service()))


def test_a_stopped_agent_loses_no_sample_that_fits(start_agent, world):
    """The ring buffer holds what comes while the agent stands still."""
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    agent.pause()
    for _ in range(5000):
        exchange(client, server)
    agent.resume()
    agent.expect_codes("web", {"200": 5000})
    assert agent.lost() == 0


@pytest.mark.limit(120)
def test_what_is_lost_is_counted(start_agent, world):
    """More samples than the ring holds, with nobody reading: counted + lost = sent."""
    agent = start_agent(config(service()))
    client, server = world.pair("lo4", 9001)
    agent.pause()
    total = 40_000  # client and server make 80,000 samples; about 58,000 fit
    for _ in range(total):
        client.sendall(b"*")
        server.recv(1)
        server.sendall(b"+")
        client.recv(1)
    agent.resume()

    def accounted():
        metrics = agent.metrics()
        counted = metrics.value("mesh_request_duration_seconds_count", service="web")
        return counted + metrics.value("mesh_agent_samples_lost_total")

    agent.expect(accounted, 2 * total, timeout=10)
    assert agent.metrics().value("mesh_agent_samples_lost_total", stage="ring") > 0
    client.close()
    assert until_closed(server) == 0
