"""`doctor` tells of a model that is served without a token, and of nothing else on its port."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.diagnostics.doctor import check_open_service
from orchestrator.serving.access import AccessOptions
from orchestrator.serving.service_metrics import ServiceMetrics
from support.served import running, service_of, slot_of, write_model
from support.small import scattered_model

pytestmark = pytest.mark.server


@contextmanager
def passed_on(port: int) -> Iterator[int]:
    """Pass connections to any address of this machine on to a port, as a container engine does."""
    with socket.create_server(("0.0.0.0", 0)) as listening:

        def copy(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client, socket.create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=copy, args=(server, client))
                    back.start()
                    copy(client, server)
                    back.join()

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_service_without_a_token_is_a_line_and_a_warning_once_other_machines_reach_it(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, scattered_model("gan").eval(), version=3)
    with running(service_of(slot_of(tmp_path, ServiceMetrics()))) as client:
        (check,) = check_open_service(client.port)
        assert (check.name, check.status, check.remedy) == ("served model", "ok", "")
        assert check.found.startswith(f"gan/3 on port {client.port} requires no token")
        with passed_on(client.port) as port:
            (check,) = check_open_service(port)
    assert check.status == "warn"
    assert "other machines reach it at 0.0.0.0" in check.found
    assert "--token-file" in check.remedy


def test_a_service_with_a_token_is_no_line(tmp_path: Path) -> None:
    write_model(tmp_path, scattered_model("gan").eval())
    access = AccessOptions(token="a-token-of-enough-length")
    with running(service_of(slot_of(tmp_path, ServiceMetrics())), access) as client:
        assert client.get("/health").status == 200
        assert check_open_service(client.port) == []


def test_the_command_asks_the_port_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model", scattered_model("gan").eval())
    with running(service_of(slot_of(tmp_path / "model", ServiceMetrics()))) as client:
        done = CliRunner().invoke(app, ["doctor", "--json", "--serve-port", str(client.port)])
    last = json.loads(done.stdout)[-1]
    assert (last["name"], last["status"]) == ("served model", "ok")
    assert f"port {client.port}" in last["found"]


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[1]", b'"token_required"', b'{"token_required": true}', b"\xff", b"[" * 100_000],
)
def test_another_server_is_no_line(answer: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert check_open_service(server.server_port) == []
        thread.join()


def test_a_port_where_nothing_listens_is_no_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert check_open_service(port) == []
