"""Attempts without a pause while agents come and go: connects from a process of its own, and requests on
connections that were there before."""

import errno
import json
import os
import signal
import socket
import threading

from .traffic import GET


class Storm:
    """Connects to ports of 127.0.0.1 in a namespace, as fast as one process can, until the block ends; then
    `results` says what each port's connects came to: {port: {errno: count}}."""

    def __init__(self, netns, ports):
        self._netns, self._ports, self.results = netns, ports, None

    def __enter__(self):
        self._stop, stop = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                signal.alarm(0)
                with self._netns.entered():
                    os.write(answer, json.dumps(self._connect(self._stop)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(answer)
        self._ended = stop
        return self

    def _connect(self, stop):
        results = {port: {} for port in self._ports}
        while True:
            for _ in range(200):
                for port in self._ports:
                    with socket.socket() as made:
                        error = made.connect_ex(("127.0.0.1", port))
                    results[port][error] = results[port].get(error, 0) + 1
            os.set_blocking(stop, False)
            try:
                os.read(stop, 1)
                return results
            except BlockingIOError:
                pass

    def __exit__(self, *_):
        os.write(self._ended, b".")
        answer = b""
        while piece := os.read(self._answer, 65536):
            answer += piece
        os.waitpid(self._pid, 0)
        for descriptor in (self._stop, self._ended, self._answer):
            os.close(descriptor)
        found = json.loads(answer)
        self.results = {
            int(port): {int(error): count for error, count in counts.items()} for port, counts in found.items()
        }


class Requests:
    """Sends one request on each of many established connections, with a pause after each. All must be reset, at
    both ends: `leaked` are those that were not. With `progress`, which tells how much of the block is over, 0 to 1,
    they last as long as that."""

    def __init__(self, pairs, pause, progress=lambda: 1):
        self._pairs, self._pause, self._progress = list(pairs), pause, progress
        self.leaked, self.sent = [], 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def _run(self):
        count = len(self._pairs)
        while self._pairs and not self._done.wait(self._pause):
            if self.sent > self._progress() * count:
                continue
            client, server = self._pairs.pop()
            self.sent += 1
            client.sendall(GET)
            ends = []
            for end in (client, server):
                try:
                    ends.append(end.recv(len(GET)))
                except OSError as error:
                    ends.append(error.errno)
            if ends != [errno.ECONNRESET, errno.ECONNRESET]:
                self.leaked.append(ends)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
