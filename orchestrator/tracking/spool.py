"""Records that wait on the local disk until a tracking server has them.

A folder holds records.jsonl, one record a line in the order they were made, the pictures as PNG
files, and `sent`: how many bytes of records.jsonl the server has. Writing a record touches the
local disk alone. One process writes to a spool at a time.

Where the disk takes nothing, because it is full or for another reason, records wait in memory until
it does again or until they are sent, and nobody is stopped by that.
"""

import errno
import json
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.tracking.client import warn

MAX_IN_MEMORY = 100_000
"""Records that wait for a disk; what comes after them is lost, and counted."""
LINES_AT_ONCE = 1000


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
    """In the file."""
    end_in_memory: int
    """In the count of all records that ever waited in memory."""


class Spool:
    """The records in ``folder``; those of an earlier process are still there.

    One thread adds records, another may send them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_lost = 0
        """Records for which there was neither disk nor memory."""
        self._path = folder / "records.jsonl"
        self._sent_path = folder / "sent"
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = self._sent = 0
        self._waiting: deque[bytes] = deque()
        self._num_taken = 0  # of those that once waited in memory
        self._warned = False
        with suppress(OSError):  # `_write` tries again, and tells
            self._open()
        self._sent = min(self._stored_sent(), self._size)

    def add_points(self, points: Points) -> None:
        """Append ``points``. Values need not be finite."""
        self._append(
            {"points": dict(points.values), "images_seen": points.images_seen},
            points.timestamp_ms,
        )

    def add_picture(
        self, key: str, pixels: NDArray[np.uint8], images_seen: int, timestamp_ms: int
    ) -> None:
        """Append a picture (H, W, 3); it is lost where the disk does not take it."""
        from orchestrator.image_grid import write_png

        path = self.folder / f"{images_seen:012d}-{uuid.uuid4().hex[:8]}.png"
        try:
            write_png(path, pixels, fast=True)
        except OSError as error:
            self.num_lost += 1
            self._warn_once(error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return
        self._append({"picture": key, "file": path.name, "images_seen": images_seen}, timestamp_ms)

    def add_text(self, text: Text) -> None:
        """Append a text."""
        line = {"text": text.name, "content": text.content, "images_seen": text.images_seen}
        self._append(line, text.timestamp_ms)

    def next_portion(self, max_values: int) -> Portion | None:
        """The oldest unsent records: points of ``max_values`` values at most, or one other."""
        records: list[Record] = []
        num_values = 0
        self.write_waiting()
        with self._lock:
            end, size, end_in_memory = self._sent, self._size, self._num_taken
            waiting = list(islice(self._waiting, max_values + 1))
        for line, in_memory in self._lines(end, size, waiting):
            record = self._parse(line)
            values = 0 if record is None else max_values
            if isinstance(record, Points):
                values = len(record.values)
            if records and num_values + values > max_values:
                break
            if record is not None:
                records.append(record)
            num_values += values
            end += 0 if in_memory else len(line)
            end_in_memory += in_memory
        return Portion(records, end, end_in_memory) if records else None

    def mark_sent(self, portion: Portion) -> None:
        """Remember that the server has ``portion``; its pictures are no longer needed here."""
        with self._lock:
            self._sent = portion.end
            while self._waiting and self._num_taken < portion.end_in_memory:
                self._take()
        new = self._sent_path.with_suffix(".new")
        # If it cannot be written, a later process sends some records again, which does no harm.
        with suppress(OSError):
            new.write_text(str(portion.end))
            os.replace(new, self._sent_path)
        for record in portion.records:
            if isinstance(record, Picture):
                with suppress(OSError):
                    record.path.unlink(missing_ok=True)

    def write_waiting(self) -> None:
        """Write what waits in memory, if the disk takes it again."""
        while True:
            with self._lock:
                lines = list(islice(self._waiting, LINES_AT_ONCE))
                if not lines or not self._write(b"".join(lines)):
                    return
                for _ in lines:
                    self._take()

    def num_unsent(self) -> int:
        """How many records the server does not have, as far as is known."""
        with self._lock:
            return sum(1 for _ in self._lines(self._sent, self._size, list(self._waiting)))

    def num_in_memory(self) -> int:
        """How many records would be lost with this process."""
        return len(self._waiting)

    def close(self) -> None:
        """Write no more; what is there can still be read."""
        self.write_waiting()
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _append(self, record: dict[str, Any], timestamp_ms: int) -> None:
        line = json.dumps({"timestamp_ms": timestamp_ms, **record}).encode() + b"\n"
        with self._lock:
            if not self._waiting and self._write(line):
                return
            if len(self._waiting) < MAX_IN_MEMORY:
                self._waiting.append(line)
            else:
                self.num_lost += 1

    def _write(self, lines: bytes) -> bool:
        """Append whole lines, or nothing; whether it worked. It needs the lock."""
        try:
            fd = self._open()
            # Unbuffered: a line that was written survives the process.
            if os.pwrite(fd, lines, self._size) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn_once(error)
            if self._fd is not None:
                with suppress(OSError):  # what is beyond `_size` counts for nothing
                    os.ftruncate(self._fd, self._size)
            return False
        self._size += len(lines)
        return True

    def _open(self) -> int:
        """The file, from which a line is cut off that a process left when it died while writing."""
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:  # someone tidied up
            os.close(self._fd)
            self._fd, self._sent = None, 0
        if self._fd is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                written = self._path.read_bytes()
                self._size = written.rfind(b"\n") + 1
                os.ftruncate(fd, self._size)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
        return self._fd

    def _take(self) -> None:
        self._waiting.popleft()
        self._num_taken += 1

    def _lines(self, start: int, end: int, waiting: list[bytes]) -> Iterator[tuple[bytes, bool]]:
        """The lines of the file from ``start`` to ``end`` and then those in memory, told apart."""
        if start < end:
            with suppress(FileNotFoundError), self._path.open("rb") as file:
                file.seek(start)
                while start < end and (line := file.readline()):
                    start += len(line)
                    yield line, False
        for line in waiting:
            yield line, True

    def _parse(self, text: bytes) -> Record | None:
        """None for what is no record: a machine that lost its power may leave that."""
        try:
            line = json.loads(text)
            seen, timestamp_ms = line["images_seen"], line["timestamp_ms"]
            if "points" in line:
                return Points(line["points"], seen, timestamp_ms)
            if "text" in line:
                return Text(line["text"], line["content"], seen, timestamp_ms)
            return Picture(line["picture"], self.folder / line["file"], seen, timestamp_ms)
        except (ValueError, KeyError, TypeError):
            return None

    def _stored_sent(self) -> int:
        try:
            return int(self._sent_path.read_text())
        except (OSError, ValueError):
            return 0

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.folder} cannot be written: {error.strerror or error}. Training goes on; up "
                f"to {MAX_IN_MEMORY:,} records wait in memory for room or for MLflow, and new "
                "pictures are lost meanwhile. Free some space there"
            )
