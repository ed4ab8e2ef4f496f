"""The proxy does to an exchange what a disturbance says, and the server sees what it should."""

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from orchestrator.faults.http_proxy import Disturbance, Head, HttpProxy, http_answer

BODY = bytes(range(256)) * 8
ERROR = http_answer("500 Internal Server Error", b"failed", "text/plain")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers each GET with BODY, and keeps what arrives."""

    protocol_version = "HTTP/1.1"
    arrived: list[tuple[str, str, bytes]]

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_PUT(self) -> None:
        self._answer(b"stored")

    def _answer(self, body: bytes) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.arrived.append((self.command, self.headers["Host"], content))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Disturbed:
    """A server behind a proxy that disturbs the first request alone."""

    def __init__(self, disturbance: Disturbance | None, *, rewrite_host: bool = False) -> None:
        self.arrived: list[tuple[str, str, bytes]] = []
        self.disturbed: list[Disturbance] = []
        self._pending = [disturbance] if disturbance else []
        handler = type("Handler", (Server,), {"arrived": self.arrived})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.proxy = HttpProxy(
            self.server.server_port, self._choose, self.disturbed.append, rewrite_host=rewrite_host
        )

    def _choose(self, _: Head) -> Disturbance | None:
        return self._pending.pop() if self._pending else None

    @contextmanager
    def running(self) -> Iterator["Disturbed"]:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        with self.proxy.running():
            yield self
        self.server.shutdown()
        self.server.server_close()

    def request(self, method: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=20)
        try:
            connection.request(method, "/key", body or None)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def disturbed(kind: Any, **values: Any) -> Any:
    return Disturbed(Disturbance(kind, **values)).running()


def test_only_the_chosen_request_is_disturbed() -> None:
    with disturbed("refuse", answer=ERROR) as server:
        assert server.request("GET") == (500, b"failed")
        assert server.arrived == []
        assert server.request("GET") == (200, BODY)
        assert [one.kind for one in server.disturbed] == ["refuse"]


def test_a_failed_request_was_carried_out() -> None:
    with disturbed("fail", answer=ERROR) as server:
        assert server.request("PUT", b"content") == (500, b"failed")
        assert [(method, body) for method, _, body in server.arrived] == [("PUT", b"content")]


@pytest.mark.parametrize(("kind", "arrived"), [("lose", 1), ("reset", 0)])
def test_a_connection_breaks_after_or_before_the_request_arrives(kind: str, arrived: int) -> None:
    with disturbed(kind) as server:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            server.request("PUT", b"content")
        assert len(server.arrived) == arrived


def test_one_bit_of_a_body_is_flipped() -> None:
    with disturbed("flip") as server:
        status, body = server.request("GET")
        assert status == 200
        differing = [at for at in range(len(BODY)) if body[at] != BODY[at]]
        assert len(body) == len(BODY)
        assert differing == [len(BODY) // 2]
        assert server.request("GET") == (200, BODY)


def test_a_body_is_cut_in_the_middle() -> None:
    with disturbed("cut") as server, pytest.raises(http.client.IncompleteRead) as caught:
        server.request("GET")
    assert caught.value.partial == BODY[: len(BODY) // 2]


@pytest.mark.parametrize("kind", ["delay", "stall"])
def test_an_answer_comes_late_and_whole(kind: str) -> None:
    with disturbed(kind, seconds=0.5) as server:
        before = time.monotonic()
        assert server.request("GET") == (200, BODY)
        assert time.monotonic() - before >= 0.5


def test_a_fault_of_the_body_needs_a_body() -> None:
    with disturbed("flip") as server:
        with suppress(http.client.HTTPException):
            server.request("HEAD")  # answered 501 by this server
        assert server.disturbed == []


@pytest.mark.parametrize("rewrite", [True, False])
def test_the_host_is_that_of_the_server_where_that_is_asked_for(rewrite: bool) -> None:
    with Disturbed(None, rewrite_host=rewrite).running() as server:
        server.request("GET")
        ((_, host, _),) = server.arrived
        port = server.server.server_port if rewrite else server.proxy.port
        assert host == f"127.0.0.1:{port}"
