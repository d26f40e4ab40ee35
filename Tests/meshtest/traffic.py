"""Clients and servers whose every segment the test decides. Most tests hold both ends of a connection
and send each piece themselves; `Server` is for those that need a service which answers by itself."""

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time

from .host import scaled

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def response(status=200, body=b"", headers=()):
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def receive(sock, count):
    """Exactly `count` bytes."""
    data = b""
    while len(data) < count:
        piece = sock.recv(min(count - len(data), 1 << 20))
        assert piece, f"the connection ended after {len(data)} of {count} bytes"
        data += piece
    return data


def receive_until(sock, end=b"\r\n\r\n"):
    data = b""
    while not data.endswith(end):
        piece = sock.recv(1)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


def receive_response(sock):
    """Reads one HTTP response: (status, body)."""
    head = receive_until(sock).decode()
    status = int(head.split()[1])
    length = 0
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    return status, receive(sock, length)


def exchange(client, server, status=200, request=GET, body=b""):
    """One request and its response on a connection, both ends in the test's hands."""
    client.sendall(request)
    receive(server, len(request))
    answer = response(status, body)
    server.sendall(answer)
    receive(client, len(answer))


def reset(sock):
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def errno_of(action, *arguments):
    """The errno that a call fails with; 0 where it does not fail."""
    try:
        action(*arguments)
    except OSError as error:
        return error.errno if error.errno is not None else errno.ETIMEDOUT
    return 0


def connect_errno(world, route, port, blocking=True):
    """What connect() comes to: 0, or an errno."""
    client, address = world.client(route)
    try:
        if blocking:
            client.settimeout(None)
            return client.connect_ex((address, port))
        client.setblocking(False)
        result = client.connect_ex((address, port))
        if result != errno.EINPROGRESS:
            return result
        poller = select.poll()
        poller.register(client, select.POLLOUT)
        assert poller.poll(scaled(10_000)), "no end of a non-blocking connect()"
        return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    finally:
        client.close()


def until_closed(sock):
    """Reads on to the end of a connection: 0 where it ended with FIN, else the errno."""
    sock.settimeout(scaled(10.0))
    try:
        while sock.recv(1 << 16):
            pass
    except OSError as error:
        return error.errno if error.errno is not None else errno.ETIMEDOUT
    return 0


class Server:
    """Accepts in a thread and gives each connection to `serve(connection)` in one of its own."""

    def __init__(self, listener, serve):
        self.listener, self._serve = listener, serve
        self.listener.settimeout(None)
        self._stopped, self._stop = socket.socketpair()
        self._connections = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        # A process that was forked meanwhile may hold a copy of it.
        self._stop.shutdown(socket.SHUT_RDWR)
        self._stop.close()
        self._thread.join()
        self.listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._stopped.close()

    def _accept(self):
        while True:
            ready, _, _ = select.select([self.listener, self._stopped], [], [])
            if self._stopped in ready:
                return
            connection, _ = self.listener.accept()
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection):
        try:
            self._serve(connection)
        except (OSError, AssertionError):
            pass  # the client left, or a breaker reset the connection
        finally:
            self._connections.discard(connection)
            connection.close()


def http_server(status=lambda: 200, delay=lambda: 0.0, served=None):
    """For `Server`: answers each request on a connection after a programmed delay."""

    def serve(connection):
        while True:
            receive_until(connection)
            wait = delay()
            if wait:
                time.sleep(wait)
            if served is not None:
                served.append(time.monotonic())
            connection.sendall(response(status()))

    return serve


def sink(connection):
    """For `Server`: reads to the end and answers nothing."""
    while connection.recv(1 << 16):
        pass


class Knob:
    """A value that a test turns while a server reads it."""

    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value


def time_to_first_byte(client, request=GET):
    """Sends a request on a connection and returns how long its response's first byte took."""
    begin = time.monotonic()
    client.sendall(request)
    first = client.recv(1)
    took = time.monotonic() - begin
    assert first
    receive_until(client)
    return took


def this_pid():
    return os.getpid()


@contextlib.contextmanager
def load(world, threads=2, connections=3, route="lo4"):
    """Requests without a pause on a route, over connections that come and go. Yields what was done:
    [requests, connections], each counted when its end was seen."""
    done, failures, counts = threading.Event(), [], []
    knob = Knob(200)

    def call(count):
        try:
            while not done.is_set():
                client = world.connect(route, 9001)
                count[1] += 1
                for _ in range(connections * 10):
                    client.sendall(GET)
                    receive(client, len(response(200)))
                    count[0] += 1
                client.close()
        except (OSError, AssertionError) as error:
            failures.append(error)

    served = []
    with Server(world.listen(route, 9001), http_server(status=knob, served=served)):
        workers = [
            threading.Thread(target=call, args=(count,))
            for count in (counts.append([0, 0]) or counts[-1] for _ in range(threads))
        ]
        for worker in workers:
            worker.start()
        totals = lambda: [sum(count[0] for count in counts), sum(count[1] for count in counts)]
        try:
            yield totals
        finally:
            done.set()
            for worker in workers:
                worker.join()
            assert failures == []
            assert len(served) == totals()[0], "the server's own count"
