"""Check packed sets: read every byte, verify checksums, decode every sample, find likely mistakes.

A problem makes training fail or leaves samples out. A warning is only worth a look: duplicate
samples, X
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy
from numpy.typing import NDArray

from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.images import is_grey
from orchestrator.data.format.shard_index import (
    CAPTION,
    INDEX,
    ProgressCallback,
    ShardSet,
    open_set,
)
from orchestrator.data.format.tar_reader import HashingReader
from orchestrator.data.prepare.caption_findings import MODEL_CAPTION_BYTES, is_cut
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

MAX_THREADS = 8
CUT_CAPTIONS = f"captions longer than the {MODEL_CAPTION_BYTES} bytes that models read"
NUM_EXAMPLES = 3
"""Samples that a warning names."""


@dataclass
class CheckReport:
    """Result of ``check_set``."""

    uri: str
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    problems: list[str] = field(default_factory=list)
    """What is corrupt or missing."""
    warnings: list[str] = field(default_factory=list)
    """What is likely to be a mistake."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass
class _ShardFindings:
    """Result of checking one shard."""

    shard: str
    problems: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Numbers of the valid samples."""
    hashes: list[int] = field(default_factory=list)
    """64-bit hashes of the pixels of the valid samples."""
    suspects: dict[str, list[str]] = field(default_factory=dict)
    """Locations by kind of warning."""


@dataclass(frozen=True)
class _SampleHashes:
    """Hashes of the pixels of all valid samples of a set, with their locations."""

    uri: str
    shards: tuple[str, ...]
    shard: NDArray[numpy.int64]
    number: NDArray[numpy.int64]
    hashes: NDArray[numpy.uint64]

    def location(self, row: int) -> str:
        return f"{self.shards[self.shard[row]]}, sample {self.number[row]}"


def find_sets(uri: str) -> list[str]:
    """Return the set at ``uri``, or else URI/train and URI/validation as far as they exist.

    Raises DataError if there is none.
    """
    parts = [f"{uri.rstrip('/')}/{part}" for part in ("train", "validation")]
    if not open_storage(uri).exists(INDEX):
        found = [part for part in parts if open_storage(part).exists(INDEX)]
        if found:
            return found
    open_set(uri)
    return [uri]


def check_set(uri: str, progress: ProgressCallback | None = None) -> CheckReport:
    """Check the set at ``uri``. Raises DataError only if it has no readable index."""
    (report,) = check_sets([uri], progress)
    return report


def check_sets(uris: Sequence[str], progress: ProgressCallback | None = None) -> list[CheckReport]:
    """Check several sets, each one also for samples that an earlier one has.

    Every byte is read, a few MiB at a time in each of several threads.
    Raises DataError only if a set has no readable index.
    """
    sets = [open_set(uri) for uri in uris]
    counter = ProgressCounter(sum(packed.num_samples for packed in sets), progress)
    reports: list[CheckReport] = []
    checked: list[_SampleHashes] = []
    for packed in sets:
        report, hashes = _check_set(packed, counter)
        reports.append(report)
        report.warnings += _find_duplicates(hashes)
        for other in checked:
            report.warnings += _find_shared(hashes, other)
        checked.append(hashes)
    return reports


def _check_set(packed: ShardSet, counter: ProgressCounter) -> tuple[CheckReport, _SampleHashes]:
    index = packed.index
    threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(threads)
    check = partial(_check_shard, packed, counter=counter)
    shards = list(ordered_map(pool, check, range(len(index.shards)), ahead=threads))
    suspects: dict[str, list[str]] = {}
    for shard in shards:
        for kind, locations in shard.suspects.items():
            suspects.setdefault(kind, []).extend(locations)
    report = CheckReport(
        packed.uri,
        index.num_samples,
        len(shards),
        packed.num_bytes,
        index.digest,
        [problem for shard in shards for problem in shard.problems],
        [_warning(kind, places, len(places)) for kind, places in suspects.items() if places],
    )
    counts = [len(shard.numbers) for shard in shards]
    hashes = _SampleHashes(
        packed.uri,
        tuple(shard.shard for shard in shards),
        numpy.repeat(numpy.arange(len(shards)), counts),
        numpy.array([n for shard in shards for n in shard.numbers], numpy.int64),
        numpy.array([n for shard in shards for n in shard.hashes], numpy.uint64),
    )
    return report, hashes


def _check_shard(packed: ShardSet, number: int, *, counter: ProgressCounter) -> _ShardFindings:
    findings = _read_shard(packed, number, counter)
    if findings.problems:  # the bytes may have been corrupted on the way
        findings = _read_shard(packed, number, ProgressCounter(0, None))
    return findings


def _read_shard(packed: ShardSet, number: int, counter: ProgressCounter) -> _ShardFindings:
    shard = packed.index.shards[number]
    findings = _ShardFindings(shard.name)
    try:
        reader = HashingReader(packed.storage, shard.name)
    except NotFound:
        counter.add(shard.num_samples)
        findings.problems.append(f"{shard.name} is missing")
        return findings
    if reader.num_bytes != shard.num_bytes:
        counter.add(shard.num_samples)
        sizes = f"{reader.num_bytes} bytes; the index has {shard.num_bytes}"
        findings.problems.append(f"{shard.name} has {sizes}")
        return findings
    try:
        table = packed.table(number)
    except DataError as error:
        counter.add(shard.num_samples)
        findings.problems.append(str(error))
    else:
        columns = [column.tolist() for column in table]
        for sample, (start, end, crc32) in enumerate(zip(*columns, strict=True)):
            reader.take(start)
            _check_sample(packed, findings, sample, reader.take(end), crc32)
            counter.add(1)
    if reader.sha256() != shard.sha256:
        findings.problems.insert(0, f"{shard.name} is corrupt: its sha256 differs from the index")
    return findings


def _check_sample(
    packed: ShardSet, findings: _ShardFindings, number: int, content: bytes, crc32: int
) -> None:
    where = f"{findings.shard}, sample {number}"
    if zlib.crc32(content) != crc32:
        findings.problems.append(f"{where} is corrupt: its CRC-32 is not the table's")
        return
    try:
        members = packed.split_members(content, where)
        images = packed.decode(members, where).images
    except DataError as error:
        findings.problems.append(str(error))
        return
    if CAPTION in members:
        text = packed.parse_caption(members[CAPTION], where)
        lines = text.split("\n") if packed.index.multiple_captions else [text]
        cut = [where] * sum(map(is_cut, lines))
        findings.suspects.setdefault(CUT_CAPTIONS, []).extend(cut)
    pixels = [image.tobytes() for image in images.values()]
    digest = hashlib.blake2b(b"".join(pixels), digest_size=8).digest()
    findings.numbers.append(number)
    findings.hashes.append(int.from_bytes(digest, "big"))
    if len(pixels) > len(set(pixels)):
        findings.suspects.setdefault("pairs of two identical images", []).append(where)
    for name in images:
        with open_image(io.BytesIO(members[name])) as image:
            grey = is_grey(image.mode)
        if grey != (packed.channels == 1):
            kind = "grey images in a colour set" if grey else "colour images in a grey set"
            findings.suspects.setdefault(kind, []).append(f"{where}, {name}")


def _find_duplicates(samples: _SampleHashes) -> Iterable[str]:
    """Warn of the samples that equal an earlier one of the set."""
    _, first, inverse = numpy.unique(samples.hashes, return_index=True, return_inverse=True)
    rows = numpy.flatnonzero(first[inverse] != numpy.arange(len(inverse))).tolist()
    if rows:
        pairs = [(row, int(first[inverse[row]])) for row in rows[:NUM_EXAMPLES]]
        examples = [f"{samples.location(row)} equals {samples.location(e)}" for row, e in pairs]
        yield _warning("duplicate samples", examples, len(rows))


def _find_shared(samples: _SampleHashes, other: _SampleHashes) -> Iterable[str]:
    """Warn of the samples that are in the other set, too."""
    rows = numpy.flatnonzero(numpy.isin(samples.hashes, other.hashes)).tolist()
    if rows:
        examples = [
            f"{samples.location(row)} equals "
            f"{other.location(int(numpy.argmax(other.hashes == samples.hashes[row])))} there"
            for row in rows[:NUM_EXAMPLES]
        ]
        yield _warning(f"samples that are in {other.uri}, too", examples, len(rows))


def _warning(kind: str, examples: Sequence[str], count: int) -> str:
    more = "; ..." if count > NUM_EXAMPLES else ""
    return f"{kind}: {count:,} ({'; '.join(examples[:NUM_EXAMPLES])}{more})"
