"""The service that can be made slow or failing: HTTP/1.1 on IPv4 and IPv6, told on stdin how to behave.

Commands, one a line: `ok`, `fail` (status 503), `slow MILLISECONDS`. Ends with stdin.
"""

import socket
import socketserver
import sys
import threading
import time

behaviour = {"status": "200 OK", "delay": 0.0}


class Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self):
        try:
            while line := self.rfile.readline():
                # No request here has a body: an empty line ends it.
                while line.strip():
                    line = self.rfile.readline()
                if behaviour["delay"]:
                    time.sleep(behaviour["delay"])
                body = b"thank you\n"
                head = f"HTTP/1.1 {behaviour['status']}\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body)
        except OSError:
            pass  # The caller went away, or a breaker reset the connection.


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def main():
    server = Server(("::", int(sys.argv[1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["ok"]:
                behaviour.update(status="200 OK", delay=0.0)
            case ["fail"]:
                behaviour.update(status="503 Service Unavailable", delay=0.0)
            case ["slow", milliseconds]:
                behaviour.update(status="200 OK", delay=float(milliseconds) / 1000)


main()
