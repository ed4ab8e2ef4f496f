"""Refusals of the Jobs API, answered by a small server: one line with the cause and the remedy."""

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.cluster.job_submission import submit
from orchestrator.cluster.ray_compat import BoundedJobClient
from orchestrator.diagnostics.doctor import check_ray_cluster
from orchestrator.diagnostics.open_cluster_check import find_open_cluster
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain, UsageError

VERSION = json.dumps(
    {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
)
TRACEBACK = "Traceback (most recent call last):\n  File x, line 3\n"


@contextmanager
def head(version: tuple[int, str], put: tuple[int, str], post: tuple[int, str]) -> Iterator[str]:
    """A head that answers to the three requests of a submission as given; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*(version if "version" in self.path else (404, "no package")))

        def do_PUT(self) -> None:
            self.answer(*put)

        def do_POST(self) -> None:
            self.answer(*post)

        def answer(self, status: int, text: str) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos/a.jpg").write_bytes(bytes(3_000_000))
    (folder / "small.txt").write_bytes(bytes(1000))
    (folder / "job.yaml").write_text("name: x")
    return folder


GOOD = (200, "{}")


@pytest.mark.parametrize(
    ("version", "put", "post", "error", "words"),
    [
        (GOOD, (500, f"{TRACEBACK}web.HTTPRequestEntityTooLarge: Request Entity Too Large"), GOOD,
         UsageError, ["too large to upload, 3.0 MB", "photos/ 3.0 MB, small.txt", ".rayignore"]),
        (GOOD, (413, ""), GOOD, UsageError, ["photos/ 3.0 MB"]),
        (GOOD, GOOD, (500, f"{TRACEBACK}ray.RuntimeEnvSetupError: no space left on device"),
         EnvironmentProblem, ["status 500: ray.RuntimeEnvSetupError: no space left on device"]),
        (GOOD, GOOD, (503, "restarting"), TryAgain, ["status 503: restarting"]),
        (GOOD, GOOD, (403, "not allowed"), EnvironmentProblem, ["set RAY_AUTH_TOKEN"]),
        ((200, "<html>a page</html>"), GOOD, GOOD, EnvironmentProblem, ["not that of Ray's Jobs"]),
        ((404, "no such page"), GOOD, GOOD, EnvironmentProblem, ["no Ray cluster answers"]),
    ],
)  # fmt: skip
def test_a_refusal_is_explained(
    version: tuple[int, str],
    put: tuple[int, str],
    post: tuple[int, str],
    error: type[OrchestratorError],
    words: list[str],
    folder: Path,
) -> None:
    answers = head((200, VERSION) if version is GOOD else version, put, post)
    with answers as address, pytest.raises(error) as raised:
        submit("job.yaml", address=address, working_dir=str(folder))
    assert type(raised.value) is error
    for each in words:
        assert each in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "words"), [("none", "does not exist"), ("file", "not a folder")])
def test_a_working_dir_that_is_no_folder_is_refused_before_the_cluster_is_asked(
    name: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words):
        submit("job.yaml", address="http://127.0.0.1:1", working_dir=str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray logs the name, and pytest's workers cannot send a record that is not UTF-8.
    monkeypatch.setattr(logging.getLogger("ray._private.runtime_env.packaging"), "disabled", True)
    Path(os.fsdecode(bytes(folder) + b"/\xff.txt")).touch()
    with head((200, VERSION), GOOD, GOOD) as address, pytest.raises(UsageError, match="not UTF-8"):
        submit("job.yaml", address=address, working_dir=str(folder))


def test_a_head_that_accepts_and_never_answers_does_not_hold_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BoundedJobClient, "ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises((TryAgain, EnvironmentProblem), match="answer"):
            submit("job.yaml", address=address)


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"HTTP_PROXY=.*NO_PROXY=head\.example"):
        submit("job.yaml", address="http://head.example:8265")


@pytest.mark.parametrize("address", ["http://[1", "head:99999", "[1, 2]"])
def test_an_address_that_is_not_valid_is_refused_at_once(address: str) -> None:
    with pytest.raises(UsageError, match=r"is not a valid address of a cluster: .*; use http://"):
        submit("job.yaml", address=address)
    assert check_ray_cluster({"RAY_ADDRESS": address}).status == "fail"
    assert find_open_cluster(address) is None
