"""Send metrics and images of a run to MLflow in the background."""

import platform
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import OrchestratorError, Superseded
from orchestrator.redaction import mask
from orchestrator.tracking.client import (
    LONGEST_PAUSE_S,
    RunRef,
    artifact_errors,
    connect,
    limit_http_retries,
    now_ms,
    secret_hint,
    warn,
)
from orchestrator.tracking.explain import explain
from orchestrator.tracking.sender import MAX_METRICS, Sender
from orchestrator.tracking.spool import MetricsRecord, Spool, TextRecord

REQUEST_TIMEOUT_S = 30
SEND_EVERY_S = 1.0
WARN_AFTER_S = 5.0

_KEY = re.compile(r"[A-Za-z0-9_\-. /]+")


class Tracker:
    """Logs metrics and images of a run, on rank 0. Only ``close`` waits for MLflow.

    Records of an earlier process of the same run that are still in ``spool`` are sent too. Once
    MLflow has all records, ``close`` deletes them, and ``spool`` itself if nothing else is in it.
    """

    def __init__(
        self,
        run: RunRef,
        spool: Path,
        check_fence: Callable[[], None] = lambda: None,
        *,
        quiet_s: float = 0.0,
        also_kept_in: str = "",
        replay_command: str = "",
    ) -> None:
        """Args:
        check_fence: called right before each batch; raises Superseded to refuse it.
        quiet_s: for so long MLflow is not asked what it has: requests of an earlier driver, which
            may be alive, are still arriving. At most half of the run's retry timeout.
        also_kept_in: place other than ``spool`` that has what is unsent at the end.
        replay_command: command that sends it later.
        """
        self._run = run
        self._quiet_until = time.monotonic() + min(quiet_s, run.retry_timeout_s / 2)
        self._also_kept_in = f" and in {also_kept_in}" if also_kept_in else ""
        self._uri = mask(run.tracking_uri)
        names = f"{shlex.quote(spool.name)} --tracking-uri {shlex.quote(self._uri)}"
        self._replay_command = replay_command or f"orchestrator tracking replay {names}"
        self.spool = self._spool = Spool(spool / run.run_id)
        """Records that MLflow may lack."""
        self._sender = Sender(run, self._spool, check_fence)
        self._first_record = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._superseded = False
        self._http_limits = ExitStack()
        self._http_limits.enter_context(limit_http_retries(retries=1, timeout_s=REQUEST_TIMEOUT_S))
        self._thread = threading.Thread(target=self._send_loop, name="tracking", daemon=True)
        self._thread.start()

    def log_metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Log one value of each metric; NaN and infinity are logged too."""
        assert len(values) <= MAX_METRICS
        assert all(map(_KEY.fullmatch, values)), f"MLflow does not accept all of {list(values)}"
        floats = {key: float(value) for key, value in values.items()}
        self._spool.add_metrics(MetricsRecord(floats, images_seen, now_ms()))
        self._first_record.set()

    def log_image(self, key: str, pixels: NDArray[np.uint8], images_seen: int) -> None:
        """Log an image (H, W, 3); MLflow shows those of one ``key`` with a step slider."""
        assert _KEY.fullmatch(key), f"MLflow does not accept {key!r} as the name of an image"
        self._spool.add_image(key, pixels, images_seen, now_ms())
        self._first_record.set()

    def log_text(self, name: str, text: str, images_seen: int) -> None:
        """Log a text file as an artifact called ``name``; it replaces an older one."""
        self._spool.add_text(TextRecord(name, text, images_seen, now_ms()))
        self._first_record.set()

    def close(self, timeout_s: float | None = None) -> None:
        """Send the remaining records for at most ``timeout_s``; warn if some could not be sent.

        The default is the run's retry timeout.
        """
        timeout_s = self._run.retry_timeout_s if timeout_s is None else timeout_s
        self._closing.set()
        self._first_record.set()
        try:
            self._thread.join(min(WARN_AFTER_S, timeout_s))
            if self._thread.is_alive() and timeout_s > WARN_AFTER_S:
                warn(
                    f"sending {self._spool.num_unsent()} records to MLflow at {self._uri} for up "
                    f"to {timeout_s:.0f} s before this ends"
                )
                self._thread.join(timeout_s - WARN_AFTER_S)
        finally:  # also after a Ctrl-C
            self._given_up.set()
            self._spool.close()
            self._http_limits.close()
            if self._superseded:  # whoever took over logs these steps itself
                _delete(self._spool.folder)
            else:
                self._warn_of_unsent(timeout_s)

    def _warn_of_unsent(self, timeout_s: float) -> None:
        if num_lost := self._spool.num_lost + self._spool.num_in_memory():
            warn(f"{num_lost} records or images were lost: {self._spool.folder} cannot be written")
        if num_left := self._spool.num_unsent() - self._spool.num_in_memory():
            hint = secret_hint(self._run.tracking_uri) if "***" in self._replay_command else ""
            warn(
                f"{num_left} records did not reach MLflow at {self._uri} within {timeout_s:g} s. "
                f"They are kept on {platform.node()} in {self._spool.folder}{self._also_kept_in}. "
                f"To send them{hint}:\n  {self._replay_command}"
            )
        elif not self._thread.is_alive():  # otherwise it still needs the files
            _delete(self._spool.folder)

    def _send_loop(self) -> None:
        # Importing MLflow takes seconds, for which a restarted training would wait.
        self._first_record.wait()
        self._given_up.wait(max(0.0, self._quiet_until - time.monotonic()))
        failures = 0
        while not self._given_up.is_set():
            closing = self._closing.wait(min(SEND_EVERY_S * 2**failures, LONGEST_PAUSE_S))
            if closing and failures:
                self._given_up.wait(SEND_EVERY_S)
            try:
                self._sender.send()
            except Superseded:
                self._superseded = True
                return
            # MLflow, its database or its artifact store may raise anything: the records are kept,
            # the next attempt may succeed, and the training must not end.
            except Exception as error:
                failures = min(failures + 1, 10)
                if failures == 1:
                    warn(self._explain_failure(error))
                continue
            if failures:
                warn(f"MLflow at {self._uri} accepts records again")
            failures = 0
            if closing:
                return

    def _explain_failure(self, error: Exception) -> str:
        kept = f"Training continues; its records are spooled in {self._spool.folder}"
        if isinstance(error, OrchestratorError):  # of the fence: who drives the run is unknown
            return f"nothing is sent to MLflow meanwhile: {error}. {kept}"
        found = explain(self._run.tracking_uri, error)
        return (
            f"MLflow at {self._uri} does not accept records, as it {found.problem}; "
            f"{found.advice}. {kept}"
        )


def replay(run: RunRef, spool: Path) -> int:
    """Send the records left in a spool, each once, and delete it; return how many there were.

    If MLflow is out of reach, raises EnvironmentProblem; the unsent records stay in the spool.
    """
    records = Spool(spool / run.run_id)
    with connect(run.tracking_uri, timeout_s=30), artifact_errors(run.tracking_uri):
        num_sent = Sender(run, records).send()
    records.close()
    _delete(records.folder)
    return num_sent


def _delete(spool_of_run: Path) -> None:
    shutil.rmtree(spool_of_run, ignore_errors=True)
    with suppress(OSError):  # other runs have spools there
        spool_of_run.parent.rmdir()
