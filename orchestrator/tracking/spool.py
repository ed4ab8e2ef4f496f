"""Records that wait on the local disk until a tracking server has them.

A folder holds records.jsonl, one record a line in the order they were made, the pictures as PNG
files, and `sent`: how many bytes of records.jsonl the server has. Writing a record touches the
local disk alone. One process writes to a spool at a time.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.pictures import write_png


@dataclass(frozen=True)
class Points:
    """One value for each of some metrics, all of the same moment."""

    values: Mapping[str, float]
    images_seen: int
    timestamp_ms: int


@dataclass(frozen=True)
class Picture:
    """One picture of a series called ``key``."""

    key: str
    path: Path
    images_seen: int
    timestamp_ms: int


@dataclass(frozen=True)
class Text:
    """A text file, in place of an older one of its name."""

    name: str
    content: str
    images_seen: int
    timestamp_ms: int


Record: TypeAlias = Points | Picture | Text


@dataclass(frozen=True)
class Portion:
    """Records that can be sent with one request, and where the next ones begin."""

    records: list[Record]
    end: int


class Spool:
    """The records in ``folder``; those of an earlier process are still there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "records.jsonl"
        self._sent_path = folder / "sent"
        self._drop_torn_line()
        # Unbuffered: a line that was written survives the process.
        self._file = self._path.open("ab", buffering=0)

    def add_points(self, points: Points) -> None:
        """Append ``points``. Values need not be finite."""
        self._append(
            {"points": dict(points.values), "images_seen": points.images_seen},
            points.timestamp_ms,
        )

    def add_picture(
        self, key: str, pixels: NDArray[np.uint8], images_seen: int, timestamp_ms: int
    ) -> None:
        """Append a picture (H, W, 3)."""
        name = f"{images_seen:012d}-{uuid.uuid4().hex[:8]}.png"
        write_png(self.folder / name, pixels, fast=True)
        self._append({"picture": key, "file": name, "images_seen": images_seen}, timestamp_ms)

    def add_text(self, text: Text) -> None:
        """Append a text."""
        line = {"text": text.name, "content": text.content, "images_seen": text.images_seen}
        self._append(line, text.timestamp_ms)

    def next_portion(self, max_values: int) -> Portion | None:
        """The oldest unsent records: points of ``max_values`` values at most, or one other."""
        records: list[Record] = []
        num_values, end = 0, self._sent()
        with self._path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # another thread is just writing it
                record = self._parse(json.loads(line))
                size = len(record.values) if isinstance(record, Points) else max_values
                if records and num_values + size > max_values:
                    break
                records.append(record)
                num_values += size
                end += len(line)
        return Portion(records, end) if records else None

    def mark_sent(self, portion: Portion) -> None:
        """Remember that the server has ``portion``; its pictures are no longer needed here."""
        new = self._sent_path.with_suffix(".new")
        new.write_text(str(portion.end))
        os.replace(new, self._sent_path)
        for record in portion.records:
            if isinstance(record, Picture):
                record.path.unlink(missing_ok=True)

    def num_unsent(self) -> int:
        """How many records the server does not have, as far as is known."""
        with self._path.open("rb") as file:
            file.seek(self._sent())
            return sum(line.endswith(b"\n") for line in file)

    def close(self) -> None:
        """Write no more; what is there can still be read."""
        self._file.close()

    def _append(self, record: dict[str, Any], timestamp_ms: int) -> None:
        line = json.dumps({"timestamp_ms": timestamp_ms, **record})
        self._file.write(line.encode() + b"\n")

    def _parse(self, line: dict[str, Any]) -> Record:
        seen, timestamp_ms = line["images_seen"], line["timestamp_ms"]
        if "points" in line:
            return Points(line["points"], seen, timestamp_ms)
        if "text" in line:
            return Text(line["text"], line["content"], seen, timestamp_ms)
        return Picture(line["picture"], self.folder / line["file"], seen, timestamp_ms)

    def _sent(self) -> int:
        return int(self._sent_path.read_text()) if self._sent_path.exists() else 0

    def _drop_torn_line(self) -> None:
        """Cut off what a process that died while writing left behind."""
        if self._path.exists() and not (written := self._path.read_bytes()).endswith(b"\n"):
            os.truncate(self._path, written.rfind(b"\n") + 1)
