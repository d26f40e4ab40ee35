"""Latency is the time to the first byte, within a millisecond of what the client measures and of what
the server was told to take; buckets, sums and percentiles say the same."""

import pytest

from meshtest.metrics import parse_text
from meshtest.traffic import Knob, Server, exchange, http_server, time_to_first_byte

BEST_OF = 7


@pytest.mark.parametrize("milliseconds", [5, 20, 100])
@pytest.mark.parametrize("route", ["lo4", "veth4", "veth6"])
def test_latency_is_right_within_a_millisecond(shared, milliseconds, route):
    name, port = shared.service()
    programmed = milliseconds / 1000
    differences = []
    with Server(shared.world.listen(route, port), http_server(delay=Knob(programmed))):
        client = shared.world.connect(route, port)
        before = {role: 0.0 for role in ("client", "server")}
        for _ in range(BEST_OF):
            measured = time_to_first_byte(client)
            now = {role: shared.agent.duration(name, role) for role in before}
            took = {role: now[role] - before[role] for role in before}
            before = now
            assert programmed <= took["server"] <= took["client"] + 1e-6 <= measured + 2e-6
            differences.append(max(measured - took["client"], took["client"] - programmed, took["server"] - programmed))
    assert min(differences) <= 0.001, differences
    shared.agent.expect_codes(name, {"200": BEST_OF})


def test_buckets_hold_what_they_say(shared):
    name, port = shared.service()
    delay = Knob(0.0)
    with Server(shared.world.listen("lo4", port), http_server(delay=delay)):
        client = shared.world.connect("lo4", port)
        for delay.value in (0.03, 0.03, 0.06, 0.3):
            time_to_first_byte(client)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in shared.agent.metrics().samples(
            "mesh_request_duration_seconds_bucket", service=name, role="client"
        )
    }
    assert list(buckets) == [
        "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0",
        "10.0", "+Inf",
    ]  # fmt: skip
    assert [buckets[edge] for edge in ("0.025", "0.05", "0.1", "0.25", "0.5", "+Inf")] == [0, 2, 3, 3, 4, 4]


def test_buckets_are_configured(start_agent, world):
    agent = start_agent(
        {"histogram": {"buckets": [0.01, 1]}, "services": [{"name": "web", "endpoints": ["127.0.0.1:9001"]}]}
    )
    client, server = world.pair("lo4", 9001)
    exchange(client, server)
    edges = [
        sample.labels["le"]
        for sample in agent.metrics().samples("mesh_request_duration_seconds_bucket", service="web", role="client")
    ]
    assert edges == ["0.01", "1.0", "+Inf"]


def test_percentiles_and_rates_of_meshctl(shared):
    name, port = shared.service()
    delay = Knob(0.02)
    with Server(shared.world.listen("lo4", port), http_server(delay=delay)):
        client = shared.world.connect("lo4", port)
        for _ in range(20):
            time_to_first_byte(client)
        delay.value = 0.3
        time_to_first_byte(client)
    row = next(
        row for row in shared.agent.meshctl("services")["services"] if row["name"] == name and row["role"] == "client"
    )
    assert row["requests_total"] == 21 and row["errors_total"] == 0
    assert 0.01 <= row["p50_seconds"] <= 0.03
    assert 0.25 <= row["p99_seconds"] <= 0.5
    assert row["rate_per_second"] > 0


def test_exemplars_carry_the_trace_id(shared):
    name, port = shared.service()
    client, server = shared.world.pair("lo4", port)
    exchange(client, server)
    trace = shared.agent.connections(name, role="client")[0]["trace_id"]
    assert len(trace) == 32
    exemplars = [
        sample.exemplar[0]
        for sample in shared.agent.openmetrics().samples("mesh_request_duration_seconds_bucket", service=name)
        if sample.exemplar
    ]
    assert {"trace_id": trace} in exemplars
    headers, page = shared.agent.page()
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "# {" not in page and parse_text(page)
