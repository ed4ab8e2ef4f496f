"""Scan the rows of another data format before they are packed; pack.pack_scanned packs them.

Every row is read twice, as the files of a folder are: here to find what is wrong with any of them
before anything is written, then to convert it. The images are read by this process, in order and
one batch at a time, and decoded in others; rows of a source have made-up paths.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from orchestrator.data.format.derived_input import require_channels
from orchestrator.data.format.images import Channels, Fit
from orchestrator.data.format.shard_index import ProgressCallback
from orchestrator.data.prepare.caption_findings import find_empty_and_cut
from orchestrator.data.prepare.columns import (
    ChosenColumns,
    ClassTable,
    ColumnChoice,
    choose_columns,
    number_classes,
)
from orchestrator.data.prepare.file_facts import FactsReader, FileFacts
from orchestrator.data.prepare.findings import FolderFinding, count, printable_all
from orchestrator.data.prepare.folder_files import FolderFiles
from orchestrator.data.prepare.folder_scan import (
    MAX_SERIAL,
    FolderScan,
    choose_range,
    decide_halves,
    describe_packing,
    without_broken,
)
from orchestrator.data.prepare.folders import Candidate, FolderLayout, ImageSource
from orchestrator.data.prepare.image_findings import PackedShape
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.data.prepare.row_source import RowSource, SourceRow
from orchestrator.data.prepare.split import VALIDATION_SHARE
from orchestrator.data.prepare.value_range import AskedRange
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError


@dataclass(frozen=True)
class RowContents:
    """The images of the chosen columns of a source."""

    source: RowSource
    chosen: ChosenColumns

    @property
    def where(self) -> str:
        """The place of the source."""
        return self.source.where

    def digest(self) -> str:
        """Return a hash of the source's content and of the choice of columns."""
        names = [column.name for column in self.chosen.images]
        others = [c and c.name for c in (self.chosen.label, self.chosen.caption)]
        return hashlib.sha256(
            json.dumps([self.source.digest(), names, others]).encode()
        ).hexdigest()

    def read(self, sources: Sequence[ImageSource]) -> Iterator[tuple[bytes, ...]]:
        """Read the images of the rows that became ``sources``."""
        wanted = {int(source.key.partition("-")[0]) for source in sources}
        rows = self.source.rows(self.chosen, lambda number: number not in wanted)
        # Not more: a source would go through its remaining rows.
        for row in islice(rows, len(sources)):
            if row.problem:
                raise DataError(
                    f"{row.place}: {row.problem}; it has changed since it was read, run the "
                    "command again"
                )
            yield row.images


def scan_rows(  # noqa: PLR0913 - the options of one command
    source: RowSource,
    choice: ColumnChoice | None = None,
    *,
    size: int | None = None,
    fit: Fit | None = None,
    channels: Channels = 3,
    value_range: AskedRange = None,
    side_by_side: bool | None = None,
    validation_share: float = VALIDATION_SHARE,
    derived_input: DerivedInput | None = None,
    max_corrupt_fraction: float = 0.0,
    workers: int | None = None,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
) -> FolderScan:
    """Read every row of ``source`` once, and decide what becomes of it; see ``scan_folder``.

    Raises UsageError if a chosen column is not there or the choice is open, DataError if the
    source cannot be read; whatever else is wrong is among the findings.
    """
    require_channels(derived_input, channels)
    chosen = choose_columns(choice or ColumnChoice(), source.columns, source.where)
    read = _RowReader(FactsReader(channels))
    scanned = list(_read_all(read, source, chosen, workers, parallel_map, progress))
    labels = (row.label for row, _ in scanned)
    classes = number_classes(chosen.label, labels) if chosen.label else None
    root = Path(source.where.rstrip("/").rpartition("/")[2] or "source")
    facts = {
        path: each
        for row, all_facts in scanned
        for path, each in zip(_paths(row, chosen), all_facts, strict=True)
    }
    samples = [Candidate(row.key, _paths(row, chosen), row.for_validation) for row, _ in scanned]
    layout = FolderLayout(
        side_by_side, chosen.label is not None, chosen.caption is not None,
        validation_share=validation_share, derived_input=derived_input,
    )  # fmt: skip
    scan = FolderScan(root, layout, PackedShape(size, fit, channels), [], facts, FolderFiles(root))
    scan.contents = RowContents(source, chosen)
    scan.classes = classes.names if classes else ()
    advice = "--image, --a and --b, --label, --caption"
    scan.findings = [FolderFinding("guessed", chosen.describe(source.columns), advice)]
    scan.findings += source.findings
    whole = without_broken(scan, samples, max_corrupt_fraction)
    halves = decide_halves(scan, whole)
    choose_range(scan, whole, value_range)
    keys = {sample.name for sample in whole}
    rows = [row for row, _ in scanned if row.key in keys]
    scan.sources = _to_sources(scan, rows, chosen, classes, halves)
    describe_packing(scan)
    return scan


@dataclass(frozen=True)
class _RowReader:
    """Read the facts of a row's images; picklable for other processes."""

    reader: FactsReader

    def __call__(self, row: SourceRow) -> tuple[FileFacts, ...]:
        return tuple(map(self.reader.of_bytes, row.images))


def _read_all(
    read: _RowReader,
    source: RowSource,
    chosen: ChosenColumns,
    workers: int | None,
    parallel_map: ParallelMap,
    progress: ProgressCallback | None,
) -> Iterator[tuple[SourceRow, tuple[FileFacts, ...]]]:
    """Yield all rows, without their images, and the facts of these."""
    pending: deque[SourceRow] = deque()

    def remember(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
        for row in rows:
            pending.append(replace(row, images=()))
            yield row

    rows = remember(source.rows(chosen, lambda _: False))
    if source.num_rows <= MAX_SERIAL:
        results: Iterable[tuple[FileFacts, ...]] = map(read, rows)
    else:
        results = parallel_map(read, rows, workers, needs=None)
    for number, facts in enumerate(results):
        row = pending.popleft()
        unread = (FileFacts(error=row.problem or ""),) * len(chosen.images)
        yield row, unread if row.problem else facts
        if progress is not None:
            progress(number + 1, source.num_rows)


def _paths(row: SourceRow, chosen: ChosenColumns) -> tuple[PurePosixPath, ...]:
    """Return a made-up path for each image of a row."""
    path = PurePosixPath(row.place)
    if len(chosen.images) == 1:
        return (path,)
    return tuple(path / side for side in "ab")


def _to_sources(
    scan: FolderScan,
    rows: Sequence[SourceRow],
    chosen: ChosenColumns,
    classes: ClassTable | None,
    halves: bool,
) -> list[ImageSource]:
    texts = {row.key: _captions(row.caption) for row in rows} if chosen.caption else {}
    if chosen.caption:
        scan.multiple_captions = any(len(each or ()) > 1 for each in texts.values())
        scan.findings += _find_captions(rows, chosen.caption.name, texts)
    sources, unknown = [], []
    for row in rows:
        number = classes.number_of(row.label) if classes else None
        if classes and number is None:
            what = "has no class" if row.label is None else f"is of the class {row.label!r}"
            unknown.append(f"{row.place} {what}")
        sources.append(
            ImageSource(
                row.key,
                tuple(scan.folder / path for path in _paths(row, chosen)),
                halves,
                row.for_validation,
                classes.names[number] if classes and number is not None else None,
                "\n".join(texts[row.key] or ()) if texts else None,
            )
        )
    if unknown and chosen.label:
        text = f"{len(unknown):,} of {count(len(rows), 'row')} have no class of the column "
        text += chosen.label.name + (f" (0 to {len(scan.classes) - 1})" if scan.classes else "")
        advice = "correct them, or give --no-labels to leave the classes out"
        scan.findings.append(FolderFinding("refused", text, advice, tuple(unknown)))
    return sources


def _captions(value: object) -> list[str] | None:
    """Return the captions in a cell, each as one line; None if there are none."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        return None
    lines = [" ".join(text.split()) for text in texts if isinstance(text, str)]
    return [line for line in lines if line] or ([""] if lines else None)


def _find_captions(
    rows: Sequence[SourceRow], column: str, texts: dict[str, list[str] | None]
) -> Iterator[FolderFinding]:
    """Yield the findings on the captions of a column, as ``find_captions`` does for files."""
    places = {row.key: row.place for row in rows}
    missing = [f"{places[key]} has no caption" for key, lines in texts.items() if lines is None]
    if missing:
        text = f"{len(missing):,} of {count(len(rows), 'row')} have no caption in the column "
        advice = "write them, or give --no-captions to leave the captions out"
        yield FolderFinding("refused", text + column, advice, tuple(missing))
    found = {key: lines for key, lines in texts.items() if lines is not None}
    several = [places[key] for key, lines in found.items() if len(lines) > 1]
    if several:
        total = sum(map(len, found.values()))
        text = f"{total:,} captions for {len(found):,} samples, of which training draws one per"
        yield FolderFinding("noted", f"{text} visit", "", printable_all(several))
    yield from find_empty_and_cut({places[key]: lines for key, lines in found.items()})
