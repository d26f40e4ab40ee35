"""Connections that are older than the agent: pools live for days, and DaemonSets start last."""

import errno

import pytest

from meshtest.host import ROUTES
from meshtest.policies import config, service
from meshtest.traffic import GET, exchange, receive, reset, until_closed


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("listening", [True, False], ids=["listener", "listener-gone"])
def test_older_connections_are_adopted_on_both_sides(start_agent, world, route, listening):
    listener = world.listen(route, 9001)
    client, server = world.pair(route, 9001, listener)
    exchange(client, server)
    if not listening:
        listener.close()
    agent = start_agent(config(service()))
    for _ in range(3):
        exchange(client, server)
    agent.expect_codes("web", {"200": 3})
    flows = agent.connections("web")
    assert sorted(flow["role"] for flow in flows) == ["client", "server"]
    assert all(flow["adopted"] and flow["protocol"] == "http" for flow in flows)
    agent.expect(
        lambda: agent.metrics().by("mesh_connections_active", "role", service="web"), {"client": 1, "server": 1}
    )
    client.close()
    assert until_closed(server) == 0
    server.close()
    agent.expect(lambda: agent.metrics().by("mesh_connections_active", "role", service="web"), {})
    # They were opened before.
    assert agent.metrics().value("mesh_connections_opened_total", service="web") == 0


def test_only_the_bytes_since_then_are_counted(start_agent, world):
    client, server = world.pair("lo4", 9001)
    exchange(client, server, body=b"x" * 50_000)
    agent = start_agent(config(service()))
    exchange(client, server)
    exchange(client, server)
    client.close()
    until_closed(server)
    server.close()
    sent = lambda: agent.metrics().value("mesh_sent_bytes_total", service="web", role="client")
    # The packet that the adoption was made by may be counted or not, but nothing before it.
    agent.expect(lambda: sent() in (len(GET), 2 * len(GET)), True)


def test_unknown_services_are_adopted_by_their_listening_port(start_agent, world):
    listener = world.listen("lo4", 9050)
    client, server = world.pair("lo4", 9050, listener)
    agent = start_agent({})
    exchange(client, server)
    agent.expect(lambda: agent.codes("127.0.0.1:9050", "client"), {"200": 1})
    agent.expect(lambda: agent.codes("*:9050", "server"), {"200": 1})


def test_a_server_that_answers_first_after_the_start(start_agent, world):
    """The request was sent before the agent came: its response starts and finishes nothing."""
    client, server = world.pair("lo4", 9001)
    client.sendall(GET)
    receive(server, len(GET))
    agent = start_agent(config(service()))
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    receive(client, 38)
    exchange(client, server)
    agent.expect_codes("web", {"200": 1})


def test_adopted_connections_are_reset_by_an_open_breaker(start_agent, world):
    used, unused = world.pair("veth4", 9001), world.pair("veth4", 9001)
    agent = start_agent(config(service()))
    exchange(*used)
    agent.override("web", "open")
    for client, server in (used, unused):
        client.sendall(GET)
        assert until_closed(client) == errno.ECONNRESET
        assert until_closed(server) == errno.ECONNRESET
    agent.expect(lambda: agent.attempts("web", "request"), {"admitted": 1, "rejected": 2})


def test_the_ends_of_adopted_requests(start_agent, world):
    pairs = [world.pair("lo4", 9001) for _ in range(3)]
    agent = start_agent(config(service()))
    for client, server in pairs:
        exchange(client, server)
        client.sendall(GET)
        receive(server, len(GET))
    reset(pairs[0][1])
    pairs[1][1].close()
    pairs[2][0].close()
    for client, server in pairs:
        for sock in (client, server):
            if sock.fileno() >= 0:
                until_closed(sock)
                sock.close()
    agent.expect(lambda: agent.codes("web"), {"200": 3, "reset": 1, "aborted": 2})
    # As on connections that the agent saw made: whose own process resets it has it aborted.
    agent.expect(lambda: agent.codes("web", "server"), {"200": 3, "aborted": 3})
    agent.expect(lambda: agent.metrics().value("mesh_connections_active", service="web"), 0)


def test_a_restarted_agent_goes_on(start_agent, world):
    client, server = world.pair("veth4", 9001)
    for _ in range(3):
        agent = start_agent(config(service()))
        for _ in range(4):
            exchange(client, server)
        agent.expect_codes("web", {"200": 4})
        agent.stop()
