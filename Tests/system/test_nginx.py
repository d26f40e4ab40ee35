"""Counts are exact: what wrk and curl sent to a real nginx is what was counted, on both sides."""

import re

import pytest

from meshtest.host import endpoints, need
from meshtest.real import access_log, nginx

SERVICES = {"services": [{"name": "web", "endpoints": endpoints(8080)}, {"name": "tls", "endpoints": endpoints(8443)}]}

# Each thread sends exactly so many requests, and then no more until wrk's time is over.
WRK = """
local sent = 0
function delay()
    sent = sent + 1
    return sent > %d and 10000000 or 0
end
function done(summary, latency, requests)
    print(string.format("total=%%d errors=%%d", summary.requests,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout))
end
"""


def wrk(world, tmp_path, url, requests, threads, connections, seconds):
    script = tmp_path / "count.lua"
    script.write_text(WRK % (requests // threads))
    done = world.near.run(
        need("wrk"), "-t", threads, "-c", connections, "-d", f"{seconds}s", "--timeout", "30s", "-s", script, url
    )
    found = re.search(r"total=(\d+) errors=(\d+)", done.stdout)
    assert found and int(found[2]) == 0, done.stdout
    return int(found[1])


@pytest.mark.parametrize("where", ["lo4", "lo6", "veth4"])
def test_wrk(start_agent, world, tmp_path, where):
    agent = start_agent(SERVICES)
    url = {"lo4": "http://127.0.0.1:8080/", "lo6": "http://[::1]:8080/", "veth4": "http://10.77.0.2:8080/"}[where]
    with nginx(world, tmp_path, 8080, world.far if where == "veth4" else world.near) as server:
        total = wrk(world, tmp_path, url, 30_000, 2, 16, 4)
        assert total == 30_000
        assert access_log(server) == ["200"] * total
        agent.expect_codes("web", {"200": total})
        assert agent.lost() == 0
        metrics = agent.metrics()
        assert metrics.value("mesh_connections_opened_total", service="web", role="client") >= 16
        opened = metrics.by("mesh_connections_opened_total", "role", service="web")
        assert (
            opened["client"] == opened["server"] == metrics.value("mesh_connect_duration_seconds_count", service="web")
        )
    agent.expect(lambda: agent.metrics().value("mesh_connections_active", service="web"), 0)


def test_curl_on_one_connection(start_agent, world, tmp_path):
    agent = start_agent(SERVICES)
    with nginx(world, tmp_path, 8080) as server:
        world.near.run(need("curl"), "-s", "-o", "/dev/null", "http://127.0.0.1:8080/[1-500]")
        assert len(access_log(server)) == 500
        agent.expect_codes("web", {"200": 500})
        assert agent.metrics().value("mesh_connections_opened_total", service="web", role="client") == 1


def test_curl_with_a_connection_each(start_agent, world, tmp_path):
    agent = start_agent(SERVICES)
    with nginx(world, tmp_path, 8080) as server:
        world.near.run(need("curl"), "-s", "-o", "/dev/null", "-H", "Connection: close", "http://[::1]:8080/[1-200]")
        assert len(access_log(server)) == 200
        agent.expect_codes("web", {"200": 200})
        assert agent.metrics().value("mesh_connections_opened_total", service="web", role="client") == 200


def test_curl_codes_uploads_and_downloads(start_agent, world, tmp_path):
    agent = start_agent(SERVICES)
    with nginx(world, tmp_path, 8080) as server:
        curl = lambda *words: world.near.run(need("curl"), "-s", "-o", "/dev/null", *words)
        base = "http://127.0.0.1:8080"
        for path in ("/missing", "/broken", "/broken", "/moved", "/file"):
            curl(base + path)
        upload = tmp_path / "upload"
        upload.write_bytes(b"u" * 900_000)
        curl("-T", upload, base + "/put", "-H", "Expect: 100-continue")
        curl("--data-binary", f"@{upload}", "-H", "Transfer-Encoding: chunked", base + "/post")
        curl("-L", base + "/moved")
        statuses = access_log(server)
        wanted = {}
        for status in statuses:
            wanted[status] = wanted.get(status, 0) + 1
        assert len(statuses) == 9 and wanted["302"] == 2
        agent.expect_codes("web", wanted)
        received = agent.metrics().value("mesh_received_bytes_total", service="web", role="client")
        assert received > 1 << 20


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_is_timed_without_codes(start_agent, world, tmp_path, version):
    agent = start_agent(SERVICES)
    with nginx(world, tmp_path, 8080, tls_port=8443) as server:
        world.near.run(
            need("curl"), "-sk", "--http1.1", f"--tlsv{version}", "--tls-max", version, "-o", "/dev/null",
            "https://127.0.0.1:8443/[1-50]",
        )  # fmt: skip
        assert len(access_log(server)) == 50
        agent.expect_codes("tls", {"ok": 50})
        protocols = agent.metrics().by("mesh_request_duration_seconds_count", "protocol", service="tls")
        assert protocols == {"tls": 100}
