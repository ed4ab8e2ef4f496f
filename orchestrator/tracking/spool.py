"""Spool: records on the local disk until the tracking server has them.

The folder of a spool holds records.jsonl, one record per line in the order they were logged, images
as PNG files, and `sent`: the bytes of records.jsonl that the server has. Adding a record needs only
the local disk. One process at a time writes to a spool.

If the disk is full or fails, records stay in memory until they can be written or sent; the training
continues.
"""

import errno
import json
import os
import re
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import EnvironmentProblem
from orchestrator.record_reader import DamagedRecord, parse_format, parse_record
from orchestrator.tracking.client import warn

FORMAT = 2
MAX_IN_MEMORY = 100_000
"""Records to keep in memory while the disk fails; later ones are lost and counted."""
LINES_PER_WRITE = 1000
_IMAGE_FILE = re.compile(r"\d+-[0-9a-f]{8}\.png")


@dataclass(frozen=True)
class MetricsRecord:
    """Values of some metrics at one step."""

    values: Mapping[str, float]
    images_seen: int
    timestamp_ms: int


@dataclass(frozen=True)
class ImageRecord:
    """One image of the series called ``key``."""

    key: str
    path: Path
    images_seen: int
    timestamp_ms: int


@dataclass(frozen=True)
class TextRecord:
    """A text file; it replaces an older one of the same name."""

    name: str
    content: str
    images_seen: int
    timestamp_ms: int


Record: TypeAlias = MetricsRecord | ImageRecord | TextRecord


@dataclass(frozen=True)
class RecordBatch:
    """Records that one request can send, and the position of the next ones."""

    records: list[Record]
    end: int
    """Position in the file."""
    end_in_memory: int
    """Position among all records that were ever kept in memory."""


class Spool:
    """Records in ``folder``, those of an earlier process included.

    One thread adds records, another may send them. Raises EnvironmentProblem if ``folder`` belongs
    to another user, or another version of the orchestrator wrote records to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_lost = 0
        """Records that neither the disk nor memory could hold."""
        self._path = folder / "records.jsonl"
        self._sent_path = folder / "sent"
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = self._sent = 0
        self._in_memory: deque[bytes] = deque()
        self._num_removed = 0  # from memory, in total
        self._warned = False
        self._check_owner()
        with suppress(OSError):  # `_write` tries again, and warns
            self._open()
        self._check_format()
        with suppress(OSError, ValueError):
            self._sent = min(int(self._sent_path.read_text()), self._size)

    def add_metrics(self, record: MetricsRecord) -> None:
        """Append ``record``. Values need not be finite."""
        line = {"metrics": dict(record.values), "images_seen": record.images_seen}
        self._append(line, record.timestamp_ms)

    def add_image(
        self, key: str, pixels: NDArray[np.uint8], images_seen: int, timestamp_ms: int
    ) -> None:
        """Append an image (H, W, 3); it is lost if the disk cannot hold it."""
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
        self._append({"image": key, "file": path.name, "images_seen": images_seen}, timestamp_ms)

    def add_text(self, text: TextRecord) -> None:
        """Append a text file."""
        line = {"text": text.name, "content": text.content, "images_seen": text.images_seen}
        self._append(line, text.timestamp_ms)

    def next_batch(self, max_values: int) -> RecordBatch | None:
        """Return the oldest unsent records: metrics with ``max_values`` values, or one other."""
        records: list[Record] = []
        num_values = 0
        self.flush_memory()
        with self._lock:
            end, size, end_in_memory = self._sent, self._size, self._num_removed
            lines = list(islice(self._in_memory, max_values + 1))
        for line, in_memory in self._lines(end, size, lines):
            record = self.parse(line)
            values = 0 if record is None else max_values
            if isinstance(record, MetricsRecord):
                values = len(record.values)
            if records and num_values + values > max_values:
                break
            if record is not None:
                records.append(record)
            num_values += values
            end += 0 if in_memory else len(line)
            end_in_memory += in_memory
        return RecordBatch(records, end, end_in_memory) if records else None

    def mark_sent(self, batch: RecordBatch) -> None:
        """Record that the server has ``batch``, and delete its images."""
        with self._lock:
            self._sent = batch.end
            self._remove_from_memory(batch.end_in_memory - self._num_removed)
        new = self._sent_path.with_suffix(".new")
        # If this fails, a later process sends some records again, which does no harm.
        with suppress(OSError):
            new.write_text(str(batch.end))
            os.replace(new, self._sent_path)
        for record in batch.records:
            if isinstance(record, ImageRecord):
                with suppress(OSError):
                    record.path.unlink(missing_ok=True)

    def flush_memory(self) -> None:
        """Write the records in memory to the disk, if it works again."""
        while True:
            with self._lock:
                lines = list(islice(self._in_memory, LINES_PER_WRITE))
                if not lines or not self._write(b"".join(lines)):
                    return
                self._remove_from_memory(len(lines))

    def unsent_lines(self) -> list[bytes]:
        """Return the records that the server is not known to have, oldest first, as on the disk."""
        with self._lock:
            lines = self._lines(self._sent, self._size, list(self._in_memory))
            return [line for line, _ in lines]

    def insert(self, lines: Sequence[bytes]) -> int:
        """Insert records of another machine by their steps; return how many were not known here.

        Call it before anything is added or sent: records are sent in the order of their steps.
        """
        with self._lock:
            known = {line for line, _ in self._lines(0, self._size, list(self._in_memory))}
            new = [line for line in lines if line not in known and self.parse(line) is not None]
            if not new:
                return 0
            unsent = [line for line, _ in self._lines(self._sent, self._size, [])]
            merged = sorted([*new, *unsent], key=self._step)
            aside = self._path.with_suffix(".new")
            try:
                self._open()
                aside.write_bytes(b"".join(merged))
                self._sent_path.unlink(missing_ok=True)  # at worst, sent records are sent again
                os.replace(aside, self._path)
                self._open()  # the new file, from its start
            except OSError as error:
                self._warn_once(error)
                self._sent, self._in_memory = self._size, deque(merged)
            return len(new)

    def _step(self, line: bytes) -> int:
        record = self.parse(line)
        return -1 if record is None else record.images_seen

    def num_unsent(self) -> int:
        """Count the records that the server is not known to have."""
        with self._lock:
            return sum(1 for _ in self._lines(self._sent, self._size, list(self._in_memory)))

    def num_in_memory(self) -> int:
        """Count the records that would be lost with this process."""
        return len(self._in_memory)

    def close(self) -> None:
        """End writing; the records can still be read."""
        self.flush_memory()
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _append(self, record: dict[str, Any], timestamp_ms: int) -> None:
        values = {"format": FORMAT, "timestamp_ms": timestamp_ms, **record}
        line = json.dumps(values).encode() + b"\n"
        with self._lock:
            if not self._in_memory and self._write(line):
                return
            if len(self._in_memory) < MAX_IN_MEMORY:
                self._in_memory.append(line)
            else:
                self.num_lost += 1

    def _write(self, lines: bytes) -> bool:
        """Append whole lines or nothing; return whether it worked. Needs the lock."""
        try:
            fd = self._open()
            # Unbuffered: a written line survives the process.
            if os.pwrite(fd, lines, self._size) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn_once(error)
            if self._fd is not None:
                with suppress(OSError):  # bytes beyond `_size` are ignored
                    os.ftruncate(self._fd, self._size)
            return False
        self._size += len(lines)
        return True

    def _open(self) -> int:
        """Open the file; cut off an incomplete line of a process that died while it wrote."""
        if self._fd is not None and os.fstat(self._fd).st_nlink == 0:  # someone deleted it
            os.close(self._fd)
            self._fd, self._sent = None, 0
        if self._fd is None:
            self.folder.mkdir(0o700, parents=True, exist_ok=True)
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

    def _check_owner(self) -> None:
        with suppress(FileNotFoundError):
            owner = self.folder.lstat().st_uid
            if owner != os.getuid():
                raise EnvironmentProblem(
                    f"{self.folder} belongs to user {owner}, not to {os.getuid()}; send its "
                    "records as that user"
                )

    def _check_format(self) -> None:
        with suppress(OSError, DamagedRecord), self._path.open("rb") as file:
            found = parse_format(file.readline(), str(self._path), "", 1)
            if found != FORMAT:
                raise EnvironmentProblem(
                    f"the records in {self._path} have format {found}, and this version of the "
                    f"orchestrator reads format {FORMAT}; send them with the version that wrote "
                    "them, or delete the folder"
                )

    def _remove_from_memory(self, count: int) -> None:
        for _ in range(count):
            self._in_memory.popleft()
            self._num_removed += 1

    def _lines(self, start: int, end: int, in_memory: list[bytes]) -> Iterator[tuple[bytes, bool]]:
        """Yield the lines of the file from ``start`` to ``end``, then those in memory.

        Each comes with whether it is in memory.
        """
        if start < end:
            with suppress(FileNotFoundError), self._path.open("rb") as file:
                file.seek(start)
                while start < end and (line := file.readline()):
                    start += len(line)
                    yield line, False
        for line in in_memory:
            yield line, True

    def parse(self, text: bytes) -> Record | None:
        """Parse a line as ``parse_line`` does."""
        return parse_line(text, self.folder)

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.folder} cannot be written: {error.strerror or error}. Training continues; "
                f"up to {MAX_IN_MEMORY:,} records stay in memory until they can be written or sent "
                "to MLflow, and new images are lost. Free some space there"
            )


def parse_line(text: bytes, folder: Path) -> Record | None:
    """Parse a line of the spool ``folder``; None if it is no record, as after a power loss."""
    try:
        line = parse_record(dict[str, Any], text, "a record", "")
        seen, timestamp_ms = line["images_seen"], line["timestamp_ms"]
        if "metrics" in line:
            return MetricsRecord(line["metrics"], seen, timestamp_ms)
        if "text" in line:
            return TextRecord(line["text"], line["content"], seen, timestamp_ms)
        if not _IMAGE_FILE.fullmatch(line["file"]):  # a path elsewhere would be sent and deleted
            return None
        return ImageRecord(line["image"], folder / line["file"], seen, timestamp_ms)
    except (DamagedRecord, KeyError, TypeError):
        return None
