"""Redis, PostgreSQL and memcached are timed too, with the code `ok`, and a client that says goodbye is
no failure."""

import pytest

from meshtest.host import endpoints, need
from meshtest.policies import config, service
from meshtest.real import memcached, postgresql, redis
from meshtest.traffic import receive, receive_until, until_closed


def observed(port):
    return {"services": [{"name": "db", "endpoints": endpoints(port)}]}


def test_redis(start_agent, world, tmp_path):
    agent = start_agent(observed(6379))
    with redis(world, tmp_path, 6379):
        client = world.connect("lo4", 6379)
        for n in range(100):
            client.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n%02d\r\n" % n)
            receive(client, 5)
        client.sendall(b"*1\r\n$4\r\nPING\r\n" * 20)  # pipelined
        receive(client, 7 * 20)
        client.sendall(b"*1\r\n$4\r\nQUIT\r\n")
        receive(client, 5)
        assert until_closed(client) == 0
        client.close()
        agent.expect_codes("db", {"ok": 102})


def test_redis_benchmark(start_agent, world, tmp_path):
    agent = start_agent(observed(6379))
    with redis(world, tmp_path, 6379):
        world.near.run(need("redis-benchmark"), "-p", "6379", "-t", "set,get", "-n", "5000", "-c", "10", "-q")
        # It asks for the server's configuration first, twice, on a connection of its own for each.
        codes = lambda: agent.codes("db")
        agent.expect(lambda: set(codes()) == {"ok"} and 10_000 <= codes()["ok"] <= 10_010, True)
        agent.expect(lambda: agent.codes("db", "server"), agent.codes("db"))


def test_memcached(start_agent, world, tmp_path):
    agent = start_agent(observed(11211))
    with memcached(world, tmp_path, 11211):
        client = world.connect("lo4", 11211)
        for n in range(100):
            client.sendall(b"set k 0 0 3\r\n%03d\r\n" % n)
            assert receive_until(client, b"\r\n") == b"STORED\r\n"
            client.sendall(b"get k\r\n")
            receive_until(client, b"END\r\n")
        client.sendall(b"quit\r\n")  # which has no answer
        assert until_closed(client) == 0
        client.close()
        agent.expect(lambda: agent.codes("db").get("ok"), 200)
        assert agent.codes("db") == agent.codes("db", "server") == {"ok": 200}


def test_postgresql(start_agent, world, tmp_path):
    agent = start_agent(observed(5432))
    with postgresql(world, tmp_path, 5432):
        psql = lambda *queries: world.near.run(
            need("psql"), "-X", "-q", "-h", "127.0.0.1", "-p", "5432", "-U", "postgres", "-d", "postgres",
            *[word for query in queries for word in ("-c", query)],
        )  # fmt: skip
        psql("select 1")
        agent.expect(lambda: agent.codes("db").get("ok", 0) > 0, True)
        one = agent.codes("db")["ok"]
        psql(*["select 1"] * 101)
        agent.expect(lambda: agent.codes("db")["ok"], 2 * one + 100)
        # Each session ended with a Terminate message, to which there is no answer.
        assert agent.codes("db") == agent.codes("db", "server") == {"ok": 2 * one + 100}


def test_a_slow_query_takes_its_time(start_agent, world, tmp_path):
    agent = start_agent(observed(5432))
    with postgresql(world, tmp_path, 5432):
        world.near.run(
            need("psql"), "-X", "-q", "-h", "127.0.0.1", "-p", "5432", "-U", "postgres", "-d", "postgres",
            "-c", "select pg_sleep(0.2)",
        )  # fmt: skip
        slow = (
            lambda: agent.metrics()
            .samples("mesh_request_duration_seconds_bucket", service="db", role="client", code="ok", le="0.1")[0]
            .value
        )
        count = lambda: agent.metrics().value(
            "mesh_request_duration_seconds_count", service="db", role="client", code="ok"
        )
        agent.expect(lambda: count() - slow(), 1)


@pytest.mark.parametrize("database", [redis, memcached])
def test_a_dead_database_opens_its_breaker(start_agent, world, tmp_path, database):
    agent = start_agent(config(service("db", 7000, consecutiveFailures=3)))
    with database(world, tmp_path, 7000):
        client = world.connect("lo4", 7000)
        client.sendall(b"PING\r\n" if database is redis else b"version\r\n")
        receive_until(client, b"\r\n")
    for _ in range(3):
        refused, address = world.client("lo4")
        assert refused.connect_ex((address, 7000)) != 0
        refused.close()
    assert agent.wait_state("db", "open")["reason"] == "consecutive_failures"
