"""Rows of LMDB databases whose values are encoded images, as LSUN, pix2pix and BasicSR have them.

A folder may hold one database, one per split (bedroom_train_lmdb, bedroom_val_lmdb), or two whose
keys match, as pairs. Values are never unpickled, and raw arrays are refused.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.prepare.columns import ChosenColumns, Column
from orchestrator.data.prepare.findings import FolderFinding, count
from orchestrator.data.prepare.row_source import (
    LFS_ADVICE,
    LFS_POINTER,
    IsDone,
    RowSource,
    SourceRow,
    SplitChoice,
    held_out_parts,
    split_in_name,
)
from orchestrator.distribution import install_command
from orchestrator.errors import DataError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import lmdb

DATA_FILE = "data.mdb"
META_FILE = "meta_info.txt"
"""BasicSR's list of keys: a line `name.png (height,width,channels) compression` per image."""
BOOKKEEPING = (
    b"__len__", b"__keys__", b"length", b"len", b"keys", b"num-samples", b"num_samples",
    b"meta_info", b"meta", b"dataset_size",
)  # fmt: skip
"""Keys whose values describe the database; they are left out."""
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
NUMPY_FILE = b"\x93NUMPY"


@dataclass(frozen=True)
class _Part:
    """The databases of one split: one, or two with matching keys."""

    name: str
    paths: tuple[Path, ...]
    for_validation: bool | None
    num_keys: int
    num_left_out: int


class LmdbSource(RowSource):
    """Databases with encoded images by key; the columns are their names."""

    def __init__(self, folder: Path, a: str | None, b: str | None, split: SplitChoice) -> None:
        """Open the databases in ``folder``, which may itself be one.

        Args:
            a: name of the database with the inputs of pairs, in ``folder``.
            b: name of the one with the targets, which has the same keys.

        Raises DataError if one is incomplete or holds no images; EnvironmentProblem if the
        package lmdb is not installed.
        """
        if folder.name == DATA_FILE and folder.is_file():
            folder = folder.parent
        self.where = str(folder)
        found = find_databases(folder)
        if a is not None and b is not None:
            names = {path.name: path for path in found} | {path.stem: path for path in found}
            for option, name in (("--a", a), ("--b", b)):
                if name not in names:
                    listed = ", ".join(path.name for path in found)
                    raise UsageError(f"{option} {name}: {folder} holds no such LMDB, but {listed}")
            parts: dict[str, bool | None] = {folder.name: None}
            paths: dict[str, tuple[Path, ...]] = {folder.name: (names[a], names[b])}
            self.columns = tuple(Column(name, "image", "LMDB") for name in (a, b))
            self.findings: list[FolderFinding] = []
        else:
            paths = {path.name: (path,) for path in found}
            parts, self.findings = _split(folder, found, split)
            self.columns = (Column("image", "image", "LMDB"),)
        self._parts = [
            _open_part(name, paths[name], parts[name])
            for name in sorted(parts, key=lambda n: (bool(parts[n]), n))
        ]
        self.num_rows = sum(part.num_keys for part in self._parts)
        if not self.num_rows:
            raise DataError(f"{folder} is an LMDB without images")
        left_out = sum(part.num_left_out for part in self._parts)
        if left_out:
            text = count(left_out, "key that describes the LMDB", "keys that describe the LMDB")
            self.findings.append(FolderFinding("left out", text))

    def digest(self) -> str:
        """Hash the names, sizes, times and numbers of the databases' last transactions."""
        facts: list[object] = []
        for part in self._parts:
            for path in part.paths:
                stat = _data_file(path).stat()
                with _opened(path) as database:
                    last = database.info()["last_txnid"]
                facts.append([path.name, part.for_validation, stat.st_size, stat.st_mtime_ns, last])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def rows(self, chosen: ChosenColumns, is_done: IsDone) -> Iterator[SourceRow]:
        """Read the values whose rows are not done, in the order of the keys."""
        number = 0
        for part in self._parts:
            for key, values in _iterate(part.paths):
                if not is_done(number):
                    yield self._row(part, key, values, number)
                number += 1

    def _row(
        self, part: _Part, key: bytes, values: tuple[memoryview, ...], number: int
    ) -> SourceRow:
        text = _key_text(key)
        images = tuple(bytes(value) for value in values)
        problem = next((p for image in images if (p := describe_no_image(image))), None)
        return SourceRow(
            number,
            text.rpartition("/")[2].partition(".")[0],
            f"{part.name} key {text}",
            () if problem else images,
            problem,
            for_validation=part.for_validation,
        )


def find_databases(folder: Path) -> list[Path]:
    """Return the LMDB databases at or directly in ``folder``, sorted; perhaps none."""
    if folder.name == DATA_FILE and folder.is_file():
        return [folder.parent]
    if _is_database(folder):
        return [folder]
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _is_database(path))


def describe_no_image(value: bytes) -> str | None:
    """Say why a value is certainly no encoded image: it is empty, a pickle or an array file."""
    if not value:
        return "it is empty"
    if value.startswith(PICKLES):
        return "it is a pickle, which could run any code and is never loaded"
    if value.startswith(NUMPY_FILE):
        return "it is a numpy array, not an encoded image"
    return None


def _is_database(path: Path) -> bool:
    if path.is_dir():
        return (path / DATA_FILE).is_file()
    return path.is_file() and (path.suffix in (".lmdb", ".mdb"))


def _data_file(path: Path) -> Path:
    return path / DATA_FILE if path.is_dir() else path


def _split(
    folder: Path, found: list[Path], choice: SplitChoice
) -> tuple[dict[str, bool | None], list[FolderFinding]]:
    if len(found) == 1 and choice.held_out is None:
        return {found[0].name: None}, []
    names = [path.name for path in found]
    splits = [split_in_name(name) for name in names]
    if len(set(splits) - {None}) < len(names):
        raise UsageError(
            f"{folder} holds {len(names)} LMDBs, {', '.join(names)}: give one of them, or a pair "
            "with --a NAME --b NAME"
        )
    return held_out_parts(splits, names, "LMDB", choice)


def _open_part(name: str, paths: tuple[Path, ...], for_validation: bool | None) -> _Part:
    """Count the keys, and check that those of pairs match and none of BasicSR's list is missing."""
    num_keys = left_out = 0
    listed = _read_meta(paths[0])
    wanted = set(listed)
    checked_first = False
    for key, values in _iterate(paths, bookkeeping=True):
        if key in BOOKKEEPING and key.decode() not in wanted:
            left_out += 1
            continue
        num_keys += 1
        wanted.discard(_key_text(key))
        if not checked_first:
            checked_first = True
            for value, path in zip(values, paths, strict=True):
                _require_images(bytes(value), f"{path} key {_key_text(key)}")
    if wanted:
        missing = sorted(wanted)
        raise DataError(
            f"{paths[0]}: {len(missing)} of {len(listed)} keys in {META_FILE} are missing, such as "
            f"{missing[0]}; copy or create the LMDB again"
        )
    return _Part(name, paths, for_validation, num_keys, left_out)


def _require_images(value: bytes, where: str) -> None:
    """Refuse a database by its first value, rather than each of a million values."""
    import io

    from orchestrator.data.format.image_files import open_image
    from orchestrator.data.format.images import DECODING_ERRORS

    problem = describe_no_image(value)
    if problem and value:
        raise DataError(f"{where}: {problem}; write encoded images (PNG, JPEG), or a folder")
    try:
        with open_image(io.BytesIO(value)):
            return
    except DECODING_ERRORS:
        pass
    if len(value) >= 64 and not value.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8")):
        raise DataError(
            f"{where}: the value is {len(value):,} bytes that are not an encoded image, perhaps a "
            "raw array, whose shape is unknown; write encoded images (PNG, JPEG), or a folder"
        )


def _read_meta(path: Path) -> list[str]:
    meta = path / META_FILE
    if not meta.is_file():
        return []
    lines = meta.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split(" ")[0].rpartition(".")[0] or line for line in lines if line.strip()]


def _iterate(
    paths: tuple[Path, ...], bookkeeping: bool = False
) -> Iterator[tuple[bytes, tuple[memoryview, ...]]]:
    """Yield the keys in order with a view of the value in each database, which have equal keys."""
    with _opened(paths[0]) as first, first.begin(buffers=True) as transaction:
        if len(paths) == 1:
            for key, value in transaction.cursor():
                if bookkeeping or bytes(key) not in BOOKKEEPING:
                    yield bytes(key), (value,)
            return
        with _opened(paths[1]) as second, second.begin(buffers=True) as partner:
            cursors = transaction.cursor(), partner.cursor()
            iterators = [
                (item for item in cursor if bookkeeping or bytes(item[0]) not in BOOKKEEPING)
                for cursor in cursors
            ]
            while True:
                items = [next(iterator, None) for iterator in iterators]
                if items == [None, None]:
                    return
                keys = [bytes(item[0]) if item else None for item in items]
                if keys[0] != keys[1]:
                    smaller = min(key for key in keys if key is not None)
                    side = paths[keys.index(smaller)]
                    raise DataError(
                        f"the key {_key_text(smaller)} is in {side} only; every image of a pair "
                        "needs its partner of the same key"
                    )
                assert keys[0] is not None
                yield keys[0], tuple(item[1] for item in items if item)


@contextmanager
def _opened(path: Path) -> "Iterator[lmdb.Environment]":
    """Open a database to read it; its files are not changed, not even a lock file is written."""
    try:
        import lmdb
    except ImportError as error:
        raise EnvironmentProblem(
            f"reading LMDB needs the package lmdb; get it with `{install_command('lmdb')}`"
        ) from error
    file = _data_file(path)
    try:
        start = file.open("rb").read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise DataError(f"{file} {LFS_ADVICE}")
        with lmdb.open(
            str(path), readonly=True, lock=False, subdir=path.is_dir(), readahead=False
        ) as database:
            expected = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
            if file.stat().st_size < expected:  # reading beyond the end would kill the process
                raise DataError(
                    f"{file} is incomplete: it has {file.stat().st_size:,} of {expected:,} bytes; "
                    "copy or download it again"
                )
            yield database
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be read as an LMDB ({error}); copy it again") from error
    except OSError as error:
        raise EnvironmentProblem(f"{file} cannot be read: {error.strerror or error}") from error


def _key_text(key: bytes) -> str:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return key.hex()
    return text if text.isprintable() else key.hex()
