"""Real servers as private instances: their own configuration, data and ports, in the namespace and
cgroup of the test, and gone with it."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess

from .host import need, poll, run

NGINX = """
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 2048; }}
http {{
    access_log {directory}/access.log combined;
    keepalive_requests 1000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 0.0.0.0:{port};
        listen [::]:{port};
        {tls}
        location / {{ return 200 "hello\\n"; }}
        location /file {{ alias {directory}/file; }}
        location /missing {{ return 404; }}
        location /broken {{ return 503; }}
        location /moved {{ return 302 /; }}
    }}
}}
"""


class Program:
    """A server process that ends with the block."""

    def __init__(self, netns, words, directory, cgroup=None, stop=signal.SIGTERM):
        self.directory, self._stop = pathlib.Path(directory), stop
        self._log = open(self.directory / "output.log", "ab")
        self.process = netns.popen(*words, cgroup=cgroup, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)

    def output(self):
        return (self.directory / "output.log").read_text()

    def listening(self, probe, timeout=20):
        def up():
            assert self.process.poll() is None, self.output()
            try:
                return probe()
            except OSError:
                return False

        try:
            poll(up, timeout, 0.02, f"{self.process.args[-1]} is up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(self._stop)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def _accepts(world, netns, port, address="127.0.0.1"):
    """Whether something listens, asked from outside, where no agent looks."""
    probe = world.host.outside.socket(netns, socket.AF_INET6 if ":" in address else socket.AF_INET)
    with probe:
        return probe.connect_ex((address, port)) == 0


def _directory(tmp_path, name):
    made = pathlib.Path(tmp_path) / name
    made.mkdir()
    return made


def nginx(world, tmp_path, port, netns=None, tls_port=None):
    directory = _directory(tmp_path, "nginx")
    (directory / "file").write_bytes(os.urandom(1 << 20))
    tls = ""
    if tls_port:
        run(
            need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", directory / "key.pem", "-out", directory / "cert.pem", "-days", "2", "-subj", "/CN=test",
        )  # fmt: skip
        tls = (
            f"listen 0.0.0.0:{tls_port} ssl; ssl_certificate {directory}/cert.pem;"
            f" ssl_certificate_key {directory}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;"
        )
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=directory, port=port, tls=tls))
    netns = netns or world.near
    server = Program(
        netns, [need("nginx"), "-c", configuration, "-e", directory / "error.log"], directory, stop=signal.SIGQUIT
    )
    return server.listening(lambda: _accepts(world, netns, port))


def access_log(server):
    """The statuses of nginx's access log, one for each request that it served."""
    lines = (server.directory / "access.log").read_text().splitlines()
    return [line.split('" ')[1].split()[0] for line in lines]


def redis(world, tmp_path, port):
    directory = _directory(tmp_path, "redis")
    words = [
        need("redis-server"), "--port", port, "--bind", "127.0.0.1", "--dir", directory, "--save", "", "--daemonize", "no",
    ]  # fmt: skip
    return Program(world.near, words, directory).listening(lambda: _accepts(world, world.near, port))


def memcached(world, tmp_path, port):
    directory = _directory(tmp_path, "memcached")
    words = [need("memcached"), "-u", "root", "-l", "127.0.0.1", "-p", port, "-U", "0"]
    return Program(world.near, words, directory).listening(lambda: _accepts(world, world.near, port))


def postgresql(world, tmp_path, port):
    """A cluster of the user postgres, without passwords on its loopback address."""
    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "install postgresql"
    directory = _directory(tmp_path, "postgres")
    for path in (directory, *directory.parents[:4]):
        if path != pathlib.Path("/tmp"):
            os.chmod(path, 0o755)
    shutil.chown(directory, "postgres", "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    data = directory / "data"
    run(*as_postgres, programs[-1] / "initdb", "-D", data, "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
    words = [
        *as_postgres, programs[-1] / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1",
        "-c", f"unix_socket_directories={directory}", "-c", "fsync=off",
    ]  # fmt: skip
    server = Program(world.near, words, directory, stop=signal.SIGINT)
    ready = (
        lambda: run(*as_postgres, programs[-1] / "pg_isready", "-h", directory, "-p", port, check=False).returncode == 0
    )
    return server.listening(ready)


def prometheus(world, tmp_path, port, target):
    directory = _directory(tmp_path, "prometheus")
    configuration = directory / "prometheus.yml"
    configuration.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs: [{{job_name: mesh, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    words = [
        need("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    server = Program(world.near, words, directory, cgroup=world.host.home)
    return server.listening(lambda: _accepts(world, world.near, port), 30)
