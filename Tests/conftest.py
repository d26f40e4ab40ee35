"""Fixtures of the kernel and system tests. They need root and a real kernel, and a test that cannot
run here fails: a skipped kernel test proves nothing."""

import faulthandler
import os
import pathlib
import signal
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

pytest.register_assert_rewrite("meshtest.agent", "meshtest.host", "meshtest.traffic")

from meshtest.agent import Agents  # noqa: E402
from meshtest.foreign import Foreign  # noqa: E402
from meshtest.host import Host, World, endpoints, scaled  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): how long this test may take (default 60)")
    faulthandler.enable()


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests of tcx where the kernel has none (before Linux 6.6), and they are counted as
    deselected: the same tests run with clsact there."""
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 6):
        return
    left_out = [item for item in items if getattr(item, "callspec", None) and item.callspec.params.get("tc") == "tcx"]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """Ends a test that hangs."""
    marker = item.get_closest_marker("limit")
    limit = int(scaled(marker.args[0] if marker else 60))

    def expired(*_):
        raise TimeoutError(f"the test took longer than {limit} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(limit)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Makes a skipped test a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"


@pytest.fixture(scope="session")
def host():
    if os.geteuid() != 0:
        pytest.fail("kernel and system tests need root: run them with sudo")
    made = Host()
    yield made
    made.close()


@pytest.fixture
def world(host):
    """Two fresh namespaces joined by a veth pair."""
    made = World(host)
    yield made
    made.close()


@pytest.fixture
def start_agent(world, tmp_path, request):
    """Starts an agent: `start_agent({"services": [...]})`. It is stopped, and checked, after the test."""
    made = Agents(world, tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_world(host):
    made = World(host)
    yield made
    made.close()


class Shared:
    """One agent for a module's tests that only observe, each with a service of its own."""

    COUNT, FIRST_PORT = 250, 20000

    def __init__(self, world, agent):
        self.world, self.agent, self._next = world, agent, 0

    @classmethod
    def services(cls):
        return [{"name": f"s{n}", "endpoints": endpoints(cls.FIRST_PORT + n)} for n in range(cls.COUNT)]

    def service(self):
        """A name and a port that no test has used yet."""
        number, self._next = self._next, self._next + 1
        assert number < self.COUNT
        return f"s{number}", self.FIRST_PORT + number


@pytest.fixture(scope="module")
def shared(shared_world, tmp_path_factory):
    agents = Agents(shared_world, tmp_path_factory.mktemp("shared"))
    agent = agents({"services": Shared.services()})
    yield Shared(shared_world, agent)
    try:
        assert agent.lost() == 0
    finally:
        agents.close()


@pytest.fixture
def foreign(tmp_path):
    made = Foreign(tmp_path)
    yield made
    made.close()
