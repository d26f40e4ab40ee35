"""Clients and servers that tally every attempt and every request with what became of it: the truth that the agent's
counters are held against."""

import collections
import contextlib
import errno
import random
import socket
import threading
import time

from meshtest.host import ADDRESSES
from meshtest.traffic import Server, receive_response, receive_until, reset, response

ANSWERED = ["200", "200", "200", "200", "404"]
# One request in so many is ended by one of the two ends instead of answered.
ENDED_EARLY = 50
# Longer than anything lasts; a request that hangs is a fault of its own.
PATIENCE = 60


class Tally:
    """What the two ends of one service saw with their own eyes."""

    def __init__(self):
        self.connected = self.accepted = self.refused = self.rejected = 0
        self.client, self.server = collections.Counter(), collections.Counter()


class Traffic:
    """One service: its server, and a client that keeps calling it. `trouble` is what the server has at the moment:
    None, "fail" (503), "delay" or "reset"."""

    def __init__(self, world, name, route, port, seed, pause):
        self.name, self.tally, self.trouble, self.failure = name, Tally(), None, None
        self._world, self._route, self._port, self._pause = world, route, port, pause
        self._dice, self._done = random.Random(seed), threading.Event()
        self._lock, self._received = threading.Lock(), set()
        self._server = Server(world.listen(route, port), self._serve)
        self._client = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._server.__enter__()
        self._client.start()

    def end_calls(self):
        """Ends the client, after the request that it has under way."""
        self._done.set()
        if self._client.is_alive():
            self._client.join(PATIENCE)

    def close(self):
        self.end_calls()
        self._server.__exit__()

    # The server

    def _serve(self, connection):
        with self._lock:
            self.tally.accepted += 1
        while True:
            words = receive_until(connection).split()
            kind, number = words[1].decode().strip("/").split("/")
            with self._lock:
                self._received.add(int(number))
            if kind == "hang":
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
            if kind == "slow":
                time.sleep(0.03)
                kind = "200"
            with self._lock:
                self.tally.server["aborted" if kind in ("reset", "close", "hang") else kind] += 1
            if kind == "reset":
                reset(connection)
                return
            if kind in ("close", "hang"):
                return
            connection.sendall(response(int(kind)))

    # The client

    def _run(self):
        try:
            while not self._done.is_set():
                self._call()
                time.sleep(self._pause)
        except BaseException as error:
            self.failure = f"the client of {self.name}: {type(error).__name__}: {error}"

    def _call(self):
        _, family, _, _, address = ADDRESSES[self._route]
        with self._world.near.socket(family, timeout=PATIENCE) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = client.connect_ex((address, self._port))
            # There is always somebody who listens, so it was a breaker.
            if error == errno.ECONNREFUSED:
                self.tally.refused += 1
                return
            if error:
                raise OSError(error, "connect()")
            self.tally.connected += 1
            for _ in range(self._dice.randrange(1, 30)):
                if self._done.is_set() or not self._ask(client):
                    return
                time.sleep(self._pause)

    def _choose(self):
        trouble = {"fail": "503", "delay": "slow", "reset": "reset"}.get(self.trouble)
        if trouble:
            return trouble
        if self._dice.randrange(ENDED_EARLY) == 0:
            return self._dice.choice(["close", "hang", "reset"])
        return self._dice.choice(ANSWERED)

    def _ask(self, client):
        """One request. False if the connection has ended with it."""
        kind, number = self._choose(), self._dice.getrandbits(63)
        try:
            client.sendall(f"GET /{kind}/{number} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
            if kind == "hang":
                return self._leave(client, number)
            status, _ = receive_response(client)
        except ConnectionError:
            # Who ended it? A request that a breaker rejected never comes to the server.
            if self._came(number):
                self._saw("reset", kind == "reset", kind)
            else:
                self.tally.rejected += 1
            return False
        except AssertionError:
            self._saw("aborted", kind == "close", kind)
            return False
        self._came(number)
        self._saw(str(status), str(status) == ("200" if kind == "slow" else kind), kind)
        return True

    def _leave(self, client, number):
        """Gives up once the server has the request, or a breaker has rejected it."""
        client.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        while not self._came(number):
            try:
                client.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                time.sleep(0.0005)
            except ConnectionError:
                self.tally.rejected += 1
                return False
            if time.monotonic() > deadline:
                raise AssertionError("a request was neither received nor rejected")
        self.tally.client["aborted"] += 1
        return False

    def _came(self, number):
        with self._lock:
            found = number in self._received
            self._received.discard(number)
            return found

    def _saw(self, outcome, expected, kind):
        if not expected:
            raise AssertionError(f"'{outcome}' instead of '{kind}'")
        self.tally.client[outcome] += 1
