"""HTTP proxy of an MLflow server that spoils the answers to chosen calls, which it carries out."""

import contextlib
import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Fault = Literal["late", "500", "dropped"]


@dataclass
class FaultyMlflow:
    """A running proxy; its attributes may be changed at any time."""

    uri: str
    num_calls: int = 0
    """Calls since ``arm``."""
    fault: Fault | None = None
    first: int = 0
    """Number of the first call with a fault, from 1 on."""
    count: int = 0
    """How many calls in a row have it."""
    delay_s: float = 0.0
    """Of each call, and of the answer to a call with the fault "late", in addition."""

    def arm(self, fault: Fault | None, first: int = 0, count: int = 1) -> None:
        """Count calls from here on; spoil ``count`` answers from call ``first`` on."""
        self.num_calls, self.fault, self.first, self.count = 0, fault, first, count

    def fault_of_next_call(self) -> Fault | None:
        self.num_calls += 1
        return self.fault if 0 <= self.num_calls - self.first < self.count else None


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: FaultyMlflow
    upstream: int
    late_s: float
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = self.proxy.fault_of_next_call()
        time.sleep(self.proxy.delay_s)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "late":
            time.sleep(self.late_s)
        if fault == "dropped":
            self.close_connection = True
            return
        status = 500 if fault == "500" else answer.status
        content = b"carried out, and then something broke" if fault == "500" else content
        with contextlib.suppress(OSError):  # the client may have given up
            self.send_response(status)
            self.send_header("Content-Type", answer.getheader("Content-Type") or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def faulty_mlflow(port: int, late_s: float = 1.5) -> Iterator[FaultyMlflow]:
    """Run a proxy of the server at ``port`` of this machine within the block.

    ``late_s`` delays the answers with the fault "late".
    """

    class Handler(_Handler):
        pass

    Handler.upstream, Handler.late_s = port, late_s
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Handler.proxy = FaultyMlflow(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield Handler.proxy
        server.shutdown()
