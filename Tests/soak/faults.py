"""What happens to the agent and around it while traffic flows: each fault is a method, drawn at random."""

import contextlib
import copy
import os
import signal
import threading
import time

# The agent's lease. A stop lasts up to it, and so does a time without an agent.
LEASE = 3.0
CGROUPS = 8
SLOW_SCRAPES = 4
# The families that begin anew with each process, as docs/metrics.md says.
OF_THE_PROCESS = ("process_", "mesh_agent_state_", "mesh_agent_refused_", "mesh_agent_log_", "mesh_agent_enforcement_")


class Faults:
    """Does one of its methods at a time. `restarts` are those after which the agent is another process."""

    restarts = ["killed", "restarted_with_keep", "upgraded"]
    others = [
        "reloaded", "reloaded_badly", "stopped", "forced_open", "forced_closed", "an_interface", "a_cgroup", "scraped",
        "scraped_slowly", "servers_in_trouble",
    ]  # fmt: skip

    def __init__(self, agent, world, traffic, visit, dice, config):
        self._agent, self._world, self._traffic, self._visit, self._dice = agent, world, traffic, visit, dice
        self._config, self._number = config, 0
        # Held while the agent cannot answer.
        self.away = threading.Lock()
        self.visits = 0
        self._slow, self._last = [], None

    def restarted_at_last(self):
        """As it was started first, but that its end removes everything."""
        with self.away:
            self._agent.signal(signal.SIGTERM)
            self._agent.ended(0)
            self._agent.arguments = []
            self._agent.start()

    def close(self):
        for connection in self._slow:
            connection.close()

    # Restarts

    def killed(self):
        with self.away:
            self._agent.kill()
            time.sleep(self._dice.random() * LEASE / 2)
            self._agent.start()

    def restarted_with_keep(self):
        with self.away:
            self._agent.signal(signal.SIGTERM)
            self._agent.ended(0)
            time.sleep(self._dice.random() * LEASE / 2)
            self._agent.start()

    def upgraded(self):
        self._number += 1
        self._agent.environment["MESH_AGENT_BUILD"] = str(self._number)
        self._dice.choice([self.killed, self.restarted_with_keep])()

    # What happens to a running agent

    def reloaded(self):
        self._number += 1
        changed = copy.deepcopy(self._config)
        changed["services"].append({"name": f"extra-{self._number % 3}", "endpoints": [f"10.77.0.9:{9100}"]})
        changed["services"][1]["breaker"]["openFor"] = self._dice.choice(["1s", "2s"])
        assert self._agent.reload(changed)["error"] is None
        assert self._agent.reload(self._config)["error"] is None

    def reloaded_badly(self):
        self._agent.config_path.write_text(self._dice.choice(["{", '{"services": [{"name": 1}]}', "", "[]"]))
        assert self._agent.reload()["error"]
        assert self._agent.reload(self._config)["error"] is None

    def stopped(self):
        with self.away:
            self._agent.pause()
            time.sleep(self._dice.random() * LEASE)
            self._agent.resume()

    def forced_open(self):
        self._force("open")

    def forced_closed(self):
        self._force("close")

    def _force(self, state):
        name = self._dice.choice(self._traffic[1:]).name
        self._agent.meshctl("breaker", state, name, "--reason", "a soak", "--for", "10s")
        time.sleep(self._dice.random() * 2)
        self._agent.meshctl("breaker", "auto", name)

    def scraped(self):
        """Counters never go back, whichever agent answers."""
        found = {}
        page = self._agent.metrics()
        for family in page.families.values():
            if family.name.startswith(OF_THE_PROCESS):
                continue
            for sample in family.samples:
                if family.type == "counter" or sample.name.endswith(("_bucket", "_count")):
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        for key, value in (self._last or {}).items():
            # A series may end with its workload; it must not shrink.
            assert found.get(key, value) >= value, f"{key} went from {value} back to {found[key]}"
        self._last = found

    def scraped_slowly(self):
        """Somebody asks and takes an age to read, or goes in the middle."""
        while len(self._slow) >= SLOW_SCRAPES:
            self._slow.pop(0).close()
        connection = self._world.host.outside.socket(self._world.near)
        connection.connect(("127.0.0.1", self._agent.port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n" + b"\r\n" * self._dice.randrange(2))
        self._slow.append(connection)

    # What happens around it

    def an_interface(self):
        self._number += 1
        name = f"soak{self._number}"
        self._world.near.batch(f"link add {name} type veth peer name peer{self._number}", f"link set {name} up")
        time.sleep(self._dice.random() * 0.2)
        self._world.near.batch(f"link del {name}")

    def a_cgroup(self):
        cgroup = self._visit(f"soak-{self.visits % CGROUPS}")
        self.visits += 1
        cgroup.remove()

    def servers_in_trouble(self):
        service = self._dice.choice(self._traffic)
        service.trouble = self._dice.choice(["fail", "delay", "reset"])
        time.sleep(self._dice.random() * 2)
        service.trouble = None


def held(agent):
    """What an agent holds at the moment, in the units of the keys; None if it went meanwhile."""
    pid = agent.process.pid
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status") as lines:
            words = dict(line.split(":", 1) for line in lines)
        maps = {}
        descriptors = os.listdir(f"/proc/{pid}/fdinfo")
        for descriptor in descriptors:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{descriptor}") as lines:
                info = dict(line.split(":", 1) for line in lines if ":" in line)
                if "map_id" in info:
                    maps[info["map_id"]] = int(info["memlock"])
        status = agent.status()
        pins = sum(len(names) + len(directories) for _, directories, names in os.walk(agent.pins()))
        return {
            "resident_kib": int(words["RssAnon"].split()[0]), "descriptors": len(descriptors),
            "maps_kib": sum(maps.values()) / 1024, "series": status["series"]["used"],
            "discovered": status["services"]["discovered"], "interfaces": len(status["interfaces"]), "pins": pins,
            "connections": status["connections_active"], "state_kib": os.stat(agent.control + ".state").st_size / 1024,
            "samples": status["samples"]["received"], "pid": pid,
        }  # fmt: skip
    return None
