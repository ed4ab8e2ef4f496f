"""Metrics and pictures on their way from the training to MLflow."""

import platform
import re
import shlex
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.redaction import mask
from orchestrator.tracking.client import (
    LONGEST_PAUSE_S,
    RunRef,
    client_of,
    connect,
    first_line,
    patience,
    warn,
)
from orchestrator.tracking.spool import Picture, Points, Spool, Text

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000
"""MLflow's limit for one request."""
SEND_EVERY_S = 1.0
TELL_AFTER_S = 5.0

_KEY = re.compile(r"[A-Za-z0-9_\-. /]+")
_IMAGE_FILE = re.compile(r"images/(?P<key>[^+]+)\+step\+(?P<step>\d+)\+.*\+compressed\.webp")


class Tracker:
    """Metrics and pictures of the training, for rank 0. No call waits for MLflow but ``close``.

    Records of an earlier process of the same run that are still in ``spool`` are sent too. Once
    MLflow has them all, ``close`` deletes them, and ``spool`` itself if nothing else is in it.
    """

    def __init__(self, run: RunRef, spool: Path) -> None:
        self._run = run
        self._uri = mask(run.tracking_uri)
        self._spool = Spool(spool / run.run_id)
        self._sender = _Sender(run, self._spool)
        self._first_record = threading.Event()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._patience = ExitStack()
        self._patience.enter_context(patience(retries=1, timeout_s=30))
        self._thread = threading.Thread(target=self._send_on, name="tracking", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Record one value for each metric; NaN and infinity are recorded too."""
        assert len(values) <= MAX_METRICS
        assert all(map(_KEY.fullmatch, values)), f"MLflow does not take all of {list(values)}"
        floats = {key: float(value) for key, value in values.items()}
        self._spool.add_points(Points(floats, images_seen, _now_ms()))
        self._first_record.set()

    def picture(self, key: str, image: NDArray[np.uint8], images_seen: int) -> None:
        """Record a picture (H, W, 3); MLflow shows those of one ``key`` with a slider."""
        assert _KEY.fullmatch(key), f"MLflow does not take {key!r} as the name of a picture"
        self._spool.add_picture(key, image, images_seen, _now_ms())
        self._first_record.set()

    def text(self, name: str, text: str, images_seen: int) -> None:
        """Record a text file as an artifact called ``name``, in place of an older one."""
        self._spool.add_text(Text(name, text, images_seen, _now_ms()))
        self._first_record.set()

    def close(self, timeout_s: float | None = None) -> None:
        """Send what is left, for at most ``timeout_s``; warn if something had to stay behind.

        Without ``timeout_s`` it is the run's patience.
        """
        if timeout_s is None:
            timeout_s = self._run.retry_timeout_s
        self._closing.set()
        self._first_record.set()
        try:
            self._thread.join(min(TELL_AFTER_S, timeout_s))
            if self._thread.is_alive() and timeout_s > TELL_AFTER_S:
                warn(
                    f"{self._spool.num_unsent()} records wait for MLflow at {self._uri} for up to "
                    f"{timeout_s:.0f} s before this ends"
                )
                self._thread.join(timeout_s - TELL_AFTER_S)
        finally:  # also where someone does not want to wait
            self._given_up.set()
            self._spool.close()
            self._patience.close()
            self._tell_what_is_left(timeout_s)

    def _tell_what_is_left(self, timeout_s: float) -> None:
        if num_lost := self._spool.num_lost + self._spool.num_in_memory():
            warn(f"{num_lost} records or pictures were lost: {self._spool.folder} takes no more")
        if num_left := self._spool.num_unsent() - self._spool.num_in_memory():
            warn(
                f"{num_left} records did not reach MLflow at {self._uri} within {timeout_s:g} s. "
                f"They are kept on {platform.node()} in {self._spool.folder}. To send them, run "
                f"there{self._missing()}:\n{self._replay_command()}"
            )
        elif not self._thread.is_alive():  # else it looks at the files once more
            _delete(self._spool.folder)

    def _missing(self) -> str:
        secret = self._uri != self._run.tracking_uri
        return ", with the user and password in place of ***" if secret else ""

    def _replay_command(self) -> str:
        run = f"RunRef({self._uri!r}, {self._run.experiment_id!r}, {self._run.run_id!r})"
        code = (
            "from pathlib import Path; from orchestrator.tracking import RunRef, replay; "
            f"replay({run}, Path({str(self._spool.folder.parent.absolute())!r}))"
        )
        return f"python -c {shlex.quote(code)}"

    def _send_on(self) -> None:
        # To import MLflow takes seconds in which a training that begins again would wait.
        self._first_record.wait()
        failures = 0
        while not self._given_up.is_set():
            closing = self._closing.wait(min(SEND_EVERY_S * 2**failures, LONGEST_PAUSE_S))
            if closing and failures:
                self._given_up.wait(SEND_EVERY_S)
            try:
                self._sender.send()
            # Whatever MLflow, its database or its artifact store raises: the records are kept,
            # the next attempt may succeed, and it must not end the training.
            except Exception as error:
                failures = min(failures + 1, 10)
                if failures == 1:
                    warn(
                        f"MLflow at {self._uri} takes no records: {first_line(error)}. Training "
                        f"goes on; they wait in {self._spool.folder}"
                    )
                continue
            if failures:
                warn(f"MLflow at {self._uri} takes records again")
            failures = 0
            if closing:
                return


def replay(run: RunRef, spool: Path) -> int:
    """Send what a spool still holds, each record once, and delete it; gives how many there were.

    Raises:
        EnvironmentProblem: MLflow cannot be reached; what it has not got stays in the spool.
    """
    records = Spool(spool / run.run_id)
    with connect(run.tracking_uri, timeout_s=30):
        num_sent = _Sender(run, records).send()
    records.close()
    _delete(records.folder)
    return num_sent


class _Sender:
    """Sends a spool's records in order. It may be interrupted anywhere and begun again."""

    def __init__(self, run: RunRef, spool: Spool) -> None:
        self._run = run
        self._spool = spool
        self._client: MlflowClient | None = None
        self._last_steps: dict[str, int] = {}
        self._pictures: set[tuple[str, int]] | None = None

    def send(self) -> int:
        """Send everything that is there; gives the number of records."""
        num_sent = 0
        while portion := self._spool.next_portion(MAX_METRICS):
            if self._client is None:
                self._client = client_of(self._run.tracking_uri)
            try:
                points = [record for record in portion.records if isinstance(record, Points)]
                self._send_points(self._client, points)
                for record in portion.records:
                    if isinstance(record, Picture):
                        self._send_picture(self._client, record)
                    elif isinstance(record, Text):
                        self._client.log_text(self._run.run_id, record.content, record.name)
            except BaseException:
                # What arrived is unknown now: MLflow is asked again before the next attempt.
                self._last_steps, self._pictures = {}, None
                raise
            self._spool.mark_sent(portion)
            num_sent += len(portion.records)
        return num_sent

    def _send_points(self, client: "MlflowClient", records: list[Points]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for record in records:
            for key, value in record.values.items():
                if key not in self._last_steps:
                    history = client.get_metric_history(self._run.run_id, key)
                    self._last_steps[key] = max((m.step for m in history), default=-1)
                if record.images_seen > self._last_steps[key]:
                    metrics.append(Metric(key, value, record.timestamp_ms, record.images_seen))
                    self._last_steps[key] = record.images_seen
        if metrics:
            client.log_batch(self._run.run_id, metrics=metrics)

    def _send_picture(self, client: "MlflowClient", record: Picture) -> None:
        if self._pictures is None:
            names = (f.path for f in client.list_artifacts(self._run.run_id, "images"))
            found = filter(None, map(_IMAGE_FILE.fullmatch, names))
            self._pictures = {(match["key"], int(match["step"])) for match in found}
        # MLflow writes file names so; the compressed file is the last of a picture to be sent.
        name = (record.key.replace("/", "~"), record.images_seen)
        if name in self._pictures or not record.path.exists():
            return
        with Image.open(record.path) as image:
            client.log_image(
                self._run.run_id,
                image,
                key=record.key,
                step=record.images_seen,
                timestamp=record.timestamp_ms,
            )
        self._pictures.add(name)


def _delete(spool_of_run: Path) -> None:
    shutil.rmtree(spool_of_run, ignore_errors=True)
    with suppress(OSError):  # the spools of other runs are there
        spool_of_run.parent.rmdir()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
