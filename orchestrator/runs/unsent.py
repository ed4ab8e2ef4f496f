"""Records that MLflow lacks, in the run's storage: they outlive the machine that made them.

<storage>/<run>/unsent/<term>/records.jsonl  a header, then the lines of the spool that are not sent
<storage>/<run>/unsent/<term>/<name>.png     their pictures

Each driver has a folder of its own, by its term: where one is suspended during a write and another
takes over, the late write replaces nothing of its successor. Earlier versions wrote to unsent/
itself, which is read, too.

Rank 0 writes them with each checkpoint, in the thread that writes the checkpoint and before its
commit, so that whoever resumes from it finds all records up to it. Whoever resumes the run, or
`orchestrator tracking replay`, puts them into its own spool, from where they are sent; records that
MLflow has already are not sent twice. They are deleted once all are sent.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.record_reader import DamagedRecord, parse_format, parse_record
from orchestrator.redaction import mask
from orchestrator.runs.record import check_format
from orchestrator.storage.base import NotFound, Storage
from orchestrator.tracking.spool import ImageRecord, Record, Spool, parse_line

FORMAT = 1
RECORDS = "records.jsonl"
MAX_BYTES = 32 << 20
"""Records to keep: about 100,000 points in each of ten metrics. Newer ones are left out."""
MAX_IMAGE_BYTES = 512 << 20
REMEDY = "the records in it are lost"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Header:
    """First line of records.jsonl."""

    format: int
    mlflow_run_id: str
    crc32: list[int]
    """Of each line after this one."""
    images: dict[str, str] = field(default_factory=dict)
    """Sha256 of the pictures' files, by name."""
    num_left_out: int = 0


class UnsentRecords:
    """Unsent records of one run, between its spool on this machine and its storage."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        mlflow_run_id: str,
        spool: Spool,
        term: int = 0,
        check_fence: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the records of the driver with ``term``; 0 without one.

        ``check_fence`` is called right before each write; it raises Superseded to refuse it.
        """
        self._storage, self._run = storage, run
        self._folder = f"{run}/unsent/{term:06d}"
        self._key = f"{self._folder}/{RECORDS}"
        self._restored: list[str] = []
        """Keys of the records that earlier drivers wrote and this one's spool has."""
        self._mlflow_run_id, self._spool, self._check_fence = mlflow_run_id, spool, check_fence
        self._images: dict[str, str] = {}
        """Pictures that this process has written, with their sha256."""
        self._written: bytes | None = None
        self._is_empty = False
        """Whether it is known that the storage holds none."""
        self._warned = False

    def restore(self) -> int:
        """Put the records of the storage into the spool; return how many it did not have.

        Call it before anything is added to the spool. Warns of those that cannot be read.
        """
        self._restored = unsent_keys(self._storage, self._run)
        return sum(self._restore(key) for key in self._restored)

    def _restore(self, key: str) -> int:
        """Put the records of one driver into the spool."""
        where = _place(self._storage, key)
        try:
            header, lines = _read(self._storage, key, where)
        except NotFound:
            return 0
        except DamagedRecord as error:
            logger.warning("%s", error)
            return 0
        if header.mlflow_run_id != self._mlflow_run_id:
            logger.warning("%s is of MLflow run %s: not sent", where, header.mlflow_run_id)
            return 0
        readable = [line for line in lines if self._is_complete(line, header, _parent(key))]
        num_records = len(header.crc32)
        if num_lost := num_records - len(readable):
            problem = "%s is damaged: %d of %d records that MLflow lacks are lost"
            logger.warning(problem, where, num_lost, num_records)
        if header.num_left_out:
            logger.warning(
                "%d records that MLflow lacks were too many for %s: they are lost, unless the "
                "machine that made them still has them",
                header.num_left_out,
                where,
            )
        return self._spool.insert(readable)

    def save(self) -> None:
        """Write what MLflow lacks, or delete what it has by now. Raises as Storage does."""
        try:
            lines = self._spool.unsent_lines()
        except OSError as error:  # a broken local disk; the spool has its own warnings
            logger.warning("records that MLflow lacks are not kept in the storage: %s", error)
            return
        if not lines:
            self.delete()
            return
        kept, images, num_left_out = self._fit(lines)
        self._is_empty = False
        for name, content in images.items():
            if name not in self._images:
                self._check_fence()
                self._storage.put(f"{self._folder}/{name}", content)
                self._images[name] = hashlib.sha256(content).hexdigest()
        body = b"".join(kept)
        sums = {name: self._images[name] for name in images}
        crc32 = [zlib.crc32(line) for line in kept]
        header = _Header(FORMAT, self._mlflow_run_id, crc32, sums, num_left_out)
        content = json.dumps(vars(header)).encode() + b"\n" + body
        if content != self._written:
            self._check_fence()
            self._storage.put(self._key, content)
            self._written = content
        self._delete_folders({_parent(key) for key in self._restored} - {self._folder})
        self._restored = []
        for name in self._images.keys() - images.keys():  # they are sent
            self._storage.delete(f"{self._folder}/{name}")
            del self._images[name]

    def delete(self) -> None:
        """Delete what was restored and saved, which MLflow has. Raises as Storage does."""
        if self._is_empty:
            return
        self._delete_folders({self._folder, *map(_parent, self._restored)})
        self._restored, self._images, self._written, self._is_empty = [], {}, None, True

    def _delete_folders(self, folders: set[str]) -> None:
        for folder in sorted(folders):
            self._check_fence()
            self._storage.delete(f"{folder}/{RECORDS}")  # first: it names the pictures
            for key in self._storage.list(f"{folder}/"):
                if _parent(key) == folder:
                    self._storage.delete(key)

    def _fit(self, lines: list[bytes]) -> tuple[list[bytes], dict[str, bytes], int]:
        """Choose the oldest records within the limits.

        Returns them, their pictures by file name, and the number of those that are left out.
        """
        kept: list[bytes] = []
        images: dict[str, bytes] = {}
        num_bytes = num_image_bytes = 0
        for number, line in enumerate(lines):
            num_bytes += len(line)
            record = self._spool.parse(line) if b'"image": ' in line else None
            if isinstance(record, ImageRecord):
                try:
                    content = record.path.read_bytes()
                except OSError:  # sent meanwhile, or lost with a local disk
                    continue
                num_image_bytes += len(content)
                images[record.path.name] = content
            if num_bytes > MAX_BYTES or num_image_bytes > MAX_IMAGE_BYTES:
                if isinstance(record, ImageRecord):
                    del images[record.path.name]
                self._warn_of_limit(len(lines) - number)
                return kept, images, len(lines) - number
            kept.append(line)
        return kept, images, 0

    def _warn_of_limit(self, num_left_out: int) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%d records that MLflow lacks are too many to be kept in the run's storage: they "
                "are on this machine alone; make MLflow work again",
                num_left_out,
            )

    def _is_complete(self, line: bytes, header: _Header, folder: str) -> bool:
        """Whether a line is a record; bring its picture, if it has one."""
        record = self._spool.parse(line)
        if not isinstance(record, ImageRecord):
            return record is not None
        name = record.path.name
        expected = header.images.get(name)
        if record.path.exists():
            return True
        try:
            content = self._storage.get_valid(
                f"{folder}/{name}", lambda data: hashlib.sha256(data).hexdigest() == expected
            )
        except NotFound:
            return False
        if content is None:
            return False
        try:
            record.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            record.path.write_bytes(content)
        except OSError as error:
            logger.warning("a picture cannot be sent: %s", error)
            return False
        return True


@dataclass(frozen=True)
class KeptPicture:
    """An unsent picture in a run's storage."""

    key: str
    sha256: str


def read_unsent(storage: Storage, key: str) -> tuple[list[Record], dict[str, KeptPicture]]:
    """Read the records at ``key``, which MLflow lacked when they were written.

    Returns them, and their pictures by the names of their files. Raises NotFound, DamagedRecord,
    and UsageError if another version of the orchestrator wrote them.
    """
    header, lines = _read(storage, key, _place(storage, key))
    parsed = (parse_line(line, Path(_parent(key))) for line in lines)
    records = [record for record in parsed if record is not None]
    pictures = {
        name: KeptPicture(f"{_parent(key)}/{name}", sha256)
        for name, sha256 in header.images.items()
    }
    return records, pictures


def unsent_keys(storage: Storage, run: str) -> list[str]:
    """List where the drivers of ``run`` keep unsent records, the earliest driver first."""
    found = storage.list(f"{run}/unsent/")
    return sorted(key for key in found if key.endswith(f"/{RECORDS}"))


def _parent(key: str) -> str:
    return key.rpartition("/")[0]


def _place(storage: Storage, key: str) -> str:
    """Return where ``key`` is, to be printed."""
    return f"{mask(storage.uri.rstrip('/'))}/{key}"


def _read(storage: Storage, key: str, where: str) -> tuple[_Header, list[bytes]]:
    """Read the header and the lines that are whole. Raises NotFound and DamagedRecord."""
    with suppress(DamagedRecord):
        header, lines = _parse(storage.get_record(key), where)
        if len(lines) == len(header.crc32):
            return header, lines
    # They may have been corrupted on the way.
    return _parse(storage.get_record(key), where)


def _parse(content: bytes, where: str) -> tuple[_Header, list[bytes]]:
    first, _, body = content.partition(b"\n")
    check_format(where, parse_format(first, where, REMEDY), FORMAT)
    header = parse_record(_Header, first, where, REMEDY)
    written = set(header.crc32)
    return header, [line for line in body.splitlines(True) if zlib.crc32(line) in written]
