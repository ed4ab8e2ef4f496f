"""What a head, or whatever answers in its place, says to `submit`: one line each."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import job_submission, ray_compat
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain, UsageError

VERSION = json.dumps({"version": "4", "ray_version": "2.60.0"})
HTML = "<!DOCTYPE html><html><body>nginx</body></html>"
TRACEBACK = "Traceback (most recent call last):\n  File 'job_head.py'\nOSError: no space left"
Answers = dict[str, tuple[int, str]]
"""Status and body by method; VERSION answers the version."""


@contextlib.contextmanager
def head(answers: Answers) -> Iterator[str]:
    """A server that answers as given; the address of it."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            method = "VERSION" if self.path.startswith("/api/version") else self.command
            default = (200, VERSION) if method == "VERSION" else (404, "not there")
            status, body = answers.get(method, default)
            if status == 0:
                threading.Event().wait(3)  # it hangs
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # restored; `submit` sets it
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("name: x\n")


def refusal(address: str, working_dir: str | None = None) -> OrchestratorError:
    with pytest.raises(OrchestratorError) as refused:
        job_submission.submit("job.yaml", address=address, working_dir=working_dir)
    assert "\n" not in str(refused.value)
    assert address in str(refused.value) or working_dir is not None
    return refused.value


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"POST": (500, TRACEBACK)}, "status 500: OSError: no space left"),
        ({"POST": (400, "")}, "status 400: no reason"),
        ({"POST": (502, HTML)}, "status 502 with a web page"),
        ({"POST": (200, HTML)}, "its answer is not that of a Jobs API"),
        ({"POST": (200, '{"surprise": 1}')}, "its answer is not that of a Jobs API"),
        ({"VERSION": (200, HTML)}, "its answer is not that of a Jobs API"),
        ({"VERSION": (200, "{}")}, "its answer is not that of a Jobs API"),
        ({"VERSION": (404, "")}, "Version check returned 404"),
        ({"VERSION": (500, "broken")}, "500 Server Error"),
        ({"VERSION": (401, "Unauthorized")}, "set RAY_AUTH_MODE=token"),
        ({"POST": (403, "Forbidden")}, "set RAY_AUTH_MODE=token"),
    ],
)
def test_the_words_of_the_head_are_one_line(answers: Answers, said: str) -> None:
    with head(answers) as address:
        error = refusal(address)
    assert (error.exit_code, said in str(error)) == (3, True), str(error)


@pytest.mark.parametrize("method", ["VERSION", "POST"])
def test_a_head_that_hangs_is_given_up(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_compat, "REQUEST_TIMEOUT_S", 0.3)
    with head({method: (0, "")}) as address:
        assert isinstance(refusal(address), TryAgain)


def test_a_package_that_the_head_finds_too_large_names_the_largest_entries() -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").write_bytes(bytes(300_000))
    too_large = (500, f"{TRACEBACK}\nHTTPRequestEntityTooLarge: Request Entity Too Large")
    for answer in (too_large, (413, "")):
        with head({"PUT": answer}) as address:
            error = refusal(address, working_dir=".")
        assert isinstance(error, UsageError)
        assert "the head refuses that; the largest: photos 0.3 MB, job.yaml 0.0 MB" in str(error)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no-such-host.invalid:8265"])
def test_no_head_is_a_problem_of_the_environment(address: str) -> None:
    error = refusal(address)
    assert isinstance(error, EnvironmentProblem)
    assert str(error).startswith(f"no Ray cluster answers at {address}")


@pytest.mark.parametrize("address", ["nosuchmodule://x:1", "http://", "http://[::1", "http://x:y"])
def test_a_malformed_address_is_a_line(address: str) -> None:
    assert refusal(address).exit_code == 3


def test_a_proxy_between_here_and_the_head_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with head({}) as address:
        assert "requests go through HTTP_PROXY: set NO_PROXY" in str(refusal(address))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert "HTTP_PROXY" not in str(refusal(address))
