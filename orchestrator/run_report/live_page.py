"""The report of a run, served on this machine while the run trains.

Points are read from the spool of the machine that trains, which has all of its driver, sent or not;
from the records in the run's storage that MLflow lacks; and from MLflow, if it answers. So the page
needs no MLflow where the run trains.
"""

import hashlib
import threading
import time
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem
from orchestrator.periodic import Periodic
from orchestrator.redaction import mask
from orchestrator.run_report.film_strip import PictureCache
from orchestrator.run_report.run_address import RunAddress
from orchestrator.run_report.run_data import RunData, read_run
from orchestrator.run_report.run_page import render_page

HOST = "127.0.0.1"
REFRESH_S = 3.0
SHARE_OF_TIME = 0.1
"""Most of the time that reading and drawing take: a training may run on the same cores."""
IDLE_S = 20.0
"""Nothing is read once nobody has asked for so long; pages ask every 3 s."""
MLFLOW_TIMEOUT_S = 5
LIVE = "Live: this page follows the run."
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Version:
    """One state of the page."""

    content: bytes
    tag: str
    """Names the content, as an ETag."""

    @classmethod
    def of(cls, html: str) -> "Version":
        """Make a version from its text."""
        content = html.encode()
        return cls(content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


class LivePage:
    """The newest page of one run; ``refresh`` makes the next one."""

    def __init__(self, address: RunAddress) -> None:
        """Raises as ``read_run`` does, except if MLflow is out of reach."""
        self._address, self._cache = address, PictureCache()
        self._last: RunData | None = None
        self._problem = ""
        self._asked_at = self._due_at = time.monotonic()
        self._html = self._build()
        self.version = Version.of(self._html)

    def asked(self) -> None:
        """Note that somebody looks at the page."""
        self._asked_at = time.monotonic()

    def refresh_if_due(self) -> None:
        """Make a new page, unless nobody looks or the last one took long."""
        now = time.monotonic()
        if now < self._due_at or now > self._asked_at + IDLE_S:
            return
        self.refresh()
        took = time.monotonic() - now
        self._due_at = time.monotonic() + took * (1 / SHARE_OF_TIME - 1)

    def refresh(self) -> None:
        """Make a new page; if that is not possible, the last one says why."""
        try:
            self._html = self._build()
            self._problem = ""
            self.version = Version.of(self._html)
        # A storage or a library may raise anything: the page stays, and the next attempt may work.
        except Exception as error:
            problem = mask(" ".join(f"{error}".split())) or type(error).__name__
            if problem != self._problem:
                self._problem = problem
                log_info(f"the page is not refreshed: {problem}")
            told = escape(f"Not refreshed: {problem}")
            self.version = Version.of(self._html.replace(escape(LIVE), told, 1))

    def _build(self) -> str:
        last = None if self._last is None else self._last.history
        run = read_run(
            self._address, needs_mlflow=False, known=last, mlflow_timeout_s=MLFLOW_TIMEOUT_S
        )
        self._last = run
        return render_page([run], cache=self._cache, live=LIVE)


class PageServer(ThreadingHTTPServer):
    """Serves one page on the loopback interface. A context manager."""

    daemon_threads = True

    def __init__(self, page: LivePage, port: int) -> None:
        """Raises EnvironmentProblem if ``port`` cannot be used; 0 stands for any free one."""
        self.page = page
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise EnvironmentProblem(
                f"port {port} of {HOST} cannot be used: {error.strerror}; give another one with "
                "--port, or --port 0 for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def serve_until(self, closing: threading.Event) -> None:
        """Serve, and refresh the page, until ``closing`` is set or Ctrl-C."""
        serving = threading.Thread(target=self.serve_forever, args=(0.2,), daemon=True)
        serving.start()
        try:
            with Periodic(self.page.refresh_if_due, REFRESH_S, name="live-page", delay=True):
                closing.wait()
        finally:
            self.shutdown()
            serving.join()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET / of this machine's own browsers, and nothing else."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 30
    server_version, sys_version = "orchestrator", ""

    def do_GET(self) -> None:
        if not _is_loopback(self.headers.get("Host", "")):
            # A web page elsewhere may let its own name stand for this machine's address.
            self._answer(421, b"this page is served to this machine alone\n")
        elif urlsplit(self.path).path != "/":
            self._answer(404, b"there is only /\n")
        else:
            self.server.page.asked()
            version = self.server.page.version
            if self.headers.get("If-None-Match") == version.tag:
                self._answer(304, b"", version.tag)
            else:
                self._answer(200, version.content, version.tag)

    do_HEAD = do_GET

    def _answer(self, status: int, content: bytes, tag: str = "") -> None:
        self.send_response(status)
        kind = "text/html" if status == 200 else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if tag:
            self.send_header("ETag", tag)
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: a page asks every few seconds."""


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine, with any port: a tunnel may use another one."""
    try:
        return urlsplit(f"//{host}").hostname in _LOOPBACK
    except ValueError:
        return False
