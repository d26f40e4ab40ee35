"""A workload that goes from cgroup to cgroup, which come and go with it."""

import contextlib
import os
import signal

from .host import Cgroup


@contextlib.contextmanager
def visitor(world, base, port):
    """A process that goes where it is told: yields `visit(name)`, which makes a cgroup below `base`, has the process
    make one request there to 127.0.0.1 and leave, and returns the cgroup."""
    orders, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(0)
            os.close(orders[1])
            with world.near.entered():
                while name := os.read(orders[0], 256).decode():
                    Cgroup(name).adopt(os.getpid())
                    if name != base.path:
                        client = world.connect("lo4", port)
                        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                        assert client.recv(4096).startswith(b"HTTP/1.1 200")
                        client.close()
                    os.write(answers[1], b".")
        os._exit(0)
    os.close(orders[0])
    os.close(answers[1])

    def go(name):
        os.write(orders[1], name.encode())
        assert os.read(answers[0], 1) == b".", "the visitor has failed"

    def visit(name):
        cgroup = base.child(name)
        go(cgroup.path)
        go(base.path)
        return cgroup

    try:
        yield visit
    finally:
        os.close(orders[1])
        os.waitpid(pid, 0)
        os.close(answers[0])
