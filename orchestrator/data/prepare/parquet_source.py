"""Rows of Parquet files, in a folder or in a bucket, as Hugging Face writes them.

Only the chosen columns are read, in batches, so that neither the files nor their row groups need
fit in memory. Class names come from the schema's ``huggingface`` metadata.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.data.prepare.columns import ChosenColumns, Column
from orchestrator.data.prepare.parquet_schema import read_columns
from orchestrator.data.prepare.row_source import (
    LFS_ADVICE,
    LFS_POINTER,
    IsDone,
    RowSource,
    SourceRow,
    SplitChoice,
    held_out_parts,
    require_one_set,
    split_in_name,
)
from orchestrator.errors import DataError
from orchestrator.storage.base import Storage
from orchestrator.storage.ranged_file import RangedFile

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ENDINGS = (".parquet", ".parq", ".pq")
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp")
"""What programs append to the name of a file while they download it."""
MAGIC = b"PAR1"
FOOTER_END = 8
"""Bytes after the footer: its length and MAGIC."""
READ_BYTES = 4 << 20
"""Bytes of a column chunk that are read at once."""
ROWS_PER_BATCH = 16
SHOWN = 10
"""Most problems that a message lists."""


@dataclass(frozen=True)
class _File:
    key: str
    for_validation: bool | None
    group_rows: tuple[int, ...]
    """Number of rows of each row group."""
    footer_sha256: str
    columns: tuple[Column, ...]


class ParquetSource(RowSource):
    """Parquet files, sorted by name: the training files first, then those that are held out."""

    def __init__(self, storage: Storage, keys: list[str], split: SplitChoice) -> None:
        """Read the footers of the files called ``keys``.

        Raises DataError, listing them all, if files are missing, incomplete or no Parquet files.
        """
        self.where = storage.uri
        self._storage = storage
        splits = [split_in_name(key) for key in keys]
        parts, self.findings = held_out_parts(splits, keys, "file", split)
        require_one_set(list(parts), storage.uri)
        _require_all_parts(keys, storage.uri)
        self._files = _read_footers(storage, dict(sorted(parts.items(), key=lambda p: bool(p[1]))))
        self.columns = self._files[0].columns
        self.num_rows = sum(sum(file.group_rows) for file in self._files)
        if not self.num_rows:
            raise DataError(f"{self.where}: the {len(self._files)} Parquet files hold no rows")

    def digest(self) -> str:
        """Hash the names and footers, which list the place and size of every column chunk."""
        facts = [[f.key, f.for_validation, f.footer_sha256] for f in self._files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def rows(self, chosen: ChosenColumns, is_done: IsDone) -> Iterator[SourceRow]:
        """Read the row groups that have a row that is not done."""
        for file in self._files:
            _require_columns(file, chosen.all, self._files[0].key)
        number = 0
        for file in self._files:
            row = 0
            for group, count in enumerate(file.group_rows):
                if all(is_done(n) for n in range(number, number + count)):
                    row, number = row + count, number + count
                    continue
                names = [column.name for column in chosen.all]
                for batch in self._batches(file, [group], names, ROWS_PER_BATCH):
                    for index in range(batch.num_rows):
                        if not is_done(number):
                            yield self._row(file, batch, index, (row, number), chosen)
                        row, number = row + 1, number + 1

    def _row(
        self,
        file: _File,
        batch: "pyarrow.RecordBatch",
        index: int,
        place: tuple[int, int],
        chosen: ChosenColumns,
    ) -> SourceRow:
        row, number = place
        values = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        images, problems, name = [], [], ""
        for column in chosen.images:
            data, path = _image_bytes(values[column.name])
            if isinstance(data, bytes):
                images.append(data)
            else:
                problems.append(f"{column.name}: {data}")
            name = name or path.rpartition("/")[2].partition(".")[0]
        return SourceRow(
            number,
            name or f"{file.key.rpartition('/')[2].partition('.')[0]}-{row}",
            f"{file.key} row {row}",
            () if problems else tuple(images),
            "; ".join(problems) or None,
            values[chosen.label.name] if chosen.label else None,
            values[chosen.caption.name] if chosen.caption else None,
            file.for_validation,
        )

    def _batches(
        self, file: _File, groups: Iterable[int], names: list[str], rows: int
    ) -> "Iterator[pyarrow.RecordBatch]":
        import pyarrow

        try:
            with _open(self._storage, file.key) as parquet:
                yield from parquet.iter_batches(rows, [*groups], names, use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{self.where}/{file.key} cannot be read to its end ({_first_line(error)}); "
                "download or write it again"
            ) from error


def find_parquet(storage: Storage) -> list[str]:
    """Return the keys of the Parquet files of ``storage``, sorted, hidden ones excepted.

    Raises DataError if one is still being downloaded.
    """
    keys = [key for key in storage.list() if not re.search(r"(^|/)\.", key)]
    for key in keys:
        stem, _, ending = key.rpartition(".")
        if f".{ending}" in UNFINISHED and stem.endswith(ENDINGS):
            raise DataError(
                f"{storage.uri}/{key} is an unfinished download; finish it, or remove the file"
            )
    return [key for key in keys if key.lower().endswith(ENDINGS)]


def _require_all_parts(keys: list[str], uri: str) -> None:
    """Raise DataError if a file such as train-00001-of-00002.parquet is missing."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for key in keys:
        match = re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(.*)", key)
        if match:
            start, number, count, end = match.groups()
            found.setdefault((start, count, end), set()).add(int(number))
    missing = [
        f"{start}{number:05d}-of-{count}{end}"
        for (start, count, end), numbers in found.items()
        for number in range(int(count))
        if number not in numbers
    ]
    if missing:
        more = f", ... ({len(missing)} files)" if len(missing) > 3 else ""
        raise DataError(f"{uri} lacks {', '.join(missing[:3])}{more}; download the rest")


def _read_footers(storage: Storage, parts: dict[str, bool | None]) -> list[_File]:
    files, problems = [], []
    for key, for_validation in parts.items():
        try:
            files.append(_read_footer(storage, key, for_validation))
        except DataError as error:
            problems.append(str(error))
    if problems:
        shown = problems[:SHOWN]
        more = [f"... and {len(problems) - SHOWN} more files"] if len(problems) > SHOWN else []
        raise DataError("\n".join(shown + more))
    return files


def _read_footer(storage: Storage, key: str, for_validation: bool | None) -> _File:
    import pyarrow

    where, size = f"{storage.uri}/{key}", storage.size(key)
    head = storage.get_range(key, 0, min(size, len(LFS_POINTER)))
    if head == LFS_POINTER:
        raise DataError(f"{where} {LFS_ADVICE}")
    if not size:
        raise DataError(f"{where} is an empty file; download or write it again")
    if not head.startswith(MAGIC):
        raise DataError(f"{where} is not a Parquet file: it starts with {head[:8]!r}")
    end = storage.get_range(key, max(0, size - FOOTER_END), min(size, FOOTER_END))
    length = FOOTER_END + int.from_bytes(end[:4], "little")
    if not end.endswith(MAGIC) or length > size:
        raise DataError(
            f"{where} is incomplete: a Parquet file ends with its footer, and {size:,} bytes are "
            "here; download or write it again"
        )
    footer = storage.get_range(key, size - length, length)
    try:
        with _open(storage, key) as parquet:
            counts = range(parquet.metadata.num_row_groups)
            return _File(
                key,
                for_validation,
                tuple(parquet.metadata.row_group(group).num_rows for group in counts),
                hashlib.sha256(footer).hexdigest(),
                read_columns(parquet.schema_arrow),
            )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{where} is not a valid Parquet file ({_first_line(error)}); download or write it "
            "again"
        ) from error


def _open(storage: Storage, key: str) -> "pyarrow.parquet.ParquetFile":
    from pyarrow import parquet

    return parquet.ParquetFile(
        RangedFile(storage, key),
        buffer_size=READ_BYTES,
        pre_buffer=False,  # which would read the whole of a row group
        page_checksum_verification=True,
    )


def _require_columns(file: _File, wanted: tuple[Column, ...], first: str) -> None:
    for column in wanted:
        if column not in file.columns:
            theirs = [c for c in file.columns if c.name == column.name]
            found = ", ".join(c.name for c in file.columns)
            what = f"has another column {column.name}: other types or class names"
            what = what if theirs else f"has no column {column.name}, only {found}"
            raise DataError(f"{file.key} {what}; the files of a set have the columns of {first}")


def _image_bytes(value: object) -> tuple[bytes | str, str]:
    """Return the encoded image of a cell, or what is wrong with it, and its file name."""
    path = ""
    if isinstance(value, dict):
        path = value.get("path") or ""
        value = value.get("bytes")
        if value is None and path:
            return f"it has no bytes, only the path {path}", path
    if value is None:
        return "it is null", path
    assert isinstance(value, bytes), "the column's type says so"
    return value or "it is empty", path


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
