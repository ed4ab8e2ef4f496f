"""Send the records of a spool to MLflow, each exactly once.

A request that failed may have been carried out: the server answered with an error afterwards, the
answer was lost, or it came too late. So each request can be repeated without a second effect, by
this code or by MLflow's own HTTP client. A metric keeps its timestamp, by which MLflow recognizes
the same point; a picture keeps the names of its files; a text file is replaced. What MLflow has is
asked before the first request and after each one that failed.
"""

import errno
import re
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from orchestrator.tracking.client import RunRef, create_client, warn
from orchestrator.tracking.spool import ImageRecord, MetricsRecord, Spool, TextRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000
"""MLflow's limit for one request."""
THUMBNAIL_SIZE = 256
IMAGES_TAG = "mlflow.loggedImages"
"""Makes MLflow show the pictures of a run."""
TEXT_STEP_TAG = "step."
"""Prefix of the tags that say how many images had been seen when a text was logged."""

PICTURE_FILE = re.compile(
    r"images/(?P<stem>(?P<key>[^+]+)\+step\+(?P<step>\d+)\+.*?)"
    r"(?P<ending>\.png|\+compressed\.webp)"
)
"""Paths of the two files of a picture; a / of its key is a ~ there."""


@dataclass
class _Known:
    """What MLflow has of a run."""

    last_steps: dict[str, int]
    """Step of the last point of each metric."""
    text_steps: dict[str, int]
    shows_images: bool
    stems: dict[tuple[str, int], str] = field(default_factory=dict)
    """Names of the files of each picture, without their endings, by series and step."""
    complete: set[tuple[str, int]] = field(default_factory=set)


class Sender:
    """Sends a spool's records in order; can be interrupted anywhere and repeated."""

    def __init__(
        self, run: RunRef, spool: Spool, check_fence: Callable[[], None] = lambda: None
    ) -> None:
        self._run = run
        self._spool = spool
        self._check_fence = check_fence
        self._client: MlflowClient | None = None
        self._known: _Known | None = None

    def send(self) -> int:
        """Send all records; return how many."""
        num_sent = 0
        while batch := self._spool.next_batch(MAX_METRICS):
            self._check_fence()
            if self._client is None:
                self._client = create_client(self._run.tracking_uri)
            try:
                if self._known is None:
                    self._known = _ask(self._client, self._run.run_id)
                    self._check_fence()  # that may have taken long
                metrics = [record for record in batch.records if isinstance(record, MetricsRecord)]
                self._send_metrics(self._client, self._known, metrics)
                for record in batch.records:
                    if isinstance(record, ImageRecord):
                        self._send_image(self._client, self._known, record)
                    elif isinstance(record, TextRecord):
                        self._send_text(self._client, self._known, record)
            except BaseException:
                self._known = None  # it is unknown what arrived
                raise
            self._spool.mark_sent(batch)
            num_sent += len(batch.records)
        return num_sent

    def _send_metrics(
        self, client: "MlflowClient", known: _Known, records: list[MetricsRecord]
    ) -> None:
        from mlflow.entities import Metric

        metrics = []
        for record in records:
            for key, value in record.values.items():
                if record.images_seen > known.last_steps.get(key, -1):
                    metrics.append(Metric(key, value, record.timestamp_ms, record.images_seen))
                    known.last_steps[key] = record.images_seen
        if metrics:
            client.log_batch(self._run.run_id, metrics=metrics)

    def _send_text(self, client: "MlflowClient", known: _Known, record: TextRecord) -> None:
        """Log a text, unless MLflow has a newer one of this name."""
        if record.images_seen < known.text_steps.get(record.name, -1):
            return
        client.log_text(self._run.run_id, record.content, record.name)
        client.set_tag(self._run.run_id, TEXT_STEP_TAG + record.name, record.images_seen)
        known.text_steps[record.name] = record.images_seen

    def _send_image(self, client: "MlflowClient", known: _Known, record: ImageRecord) -> None:
        """Log a picture as MlflowClient.log_image does, which would name its files anew each time.

        The file of the thumbnail comes last: with it, the picture is complete.
        """
        name = record.key.replace("/", "~")
        place = (name, record.images_seen)
        if place in known.complete:
            return
        unique = uuid.uuid5(uuid.NAMESPACE_URL, record.path.name)
        own = f"{name}+step+{record.images_seen}+timestamp+{record.timestamp_ms}+{unique}"
        stem = known.stems.setdefault(place, own)
        with tempfile.TemporaryDirectory() as folder:
            full, thumbnail = Path(folder, f"{stem}.png"), Path(folder, f"{stem}+compressed.webp")
            if (image := _load(record.path)) is None:
                return
            image.save(full)
            scale = THUMBNAIL_SIZE / max(image.size)
            size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            image.resize(size).save(thumbnail)
            for file in (full, thumbnail):
                client.log_artifact(self._run.run_id, str(file), "images")
        if not known.shows_images:
            client.set_tag(self._run.run_id, IMAGES_TAG, True)
            known.shows_images = True
        known.complete.add(place)


def _load(path: Path) -> Image.Image | None:
    """Read a picture; None, with a warning, if it is damaged or gone."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):  # the disk may work again
            raise
        warn(f"a picture is damaged or gone and is not sent: {error}")
        return None


def _ask(client: "MlflowClient", run_id: str) -> _Known:
    """Ask what MLflow has, in two requests: a slow server would take minutes for all histories."""
    data = client.get_run(run_id).data
    known = _Known(
        {metric.key: int(metric.step) for metric in data.to_proto().metrics},
        {
            name.removeprefix(TEXT_STEP_TAG): int(value)
            for name, value in data.tags.items()
            if name.startswith(TEXT_STEP_TAG) and value.isdigit()
        },
        IMAGES_TAG in data.tags,
    )
    for file in client.list_artifacts(run_id, "images"):
        if (match := PICTURE_FILE.fullmatch(file.path)) is not None:
            place = (match["key"], int(match["step"]))
            known.stems[place] = match["stem"]
            if match["ending"] != ".png":
                known.complete.add(place)
    return known
