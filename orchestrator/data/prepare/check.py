"""Reads every byte of packed sets: checksums, each sample's images, and what looks like a mistake.

Damage makes training fail or leave samples out. What is only worth a look is a warning: samples
that are there twice, or in both sets; pairs of two identical images; grey among colour.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.format.shard_index import CAPTION, INDEX, LABEL, Progress, ShardSet, open_set
from orchestrator.data.format.tar_reader import Tape
from orchestrator.data.prepare.ordered_map import in_order
from orchestrator.data.prepare.progress import Tally
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

MOST_THREADS = 8
EXAMPLES = 3
"""Places that a warning names."""
TWINS, WRONG_COLOUR = "pairs of two identical images", "images that are {} in a set that is {}"


class Place(NamedTuple):
    """One sample of a set."""

    uri: str
    shard: str
    number: int

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.number}"


@dataclass
class CheckReport:
    """What ``check_set`` found."""

    uri: str
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    problems: list[str] = field(default_factory=list)
    """What is damaged."""
    warnings: list[str] = field(default_factory=list)
    """What is worth a look."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


@dataclass
class _Seen:
    """What one shard holds."""

    shard: str
    problems: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of the samples that are whole."""
    hashes: list[int] = field(default_factory=list)
    """Of their pixels."""
    odd: dict[str, list[str]] = field(default_factory=dict)
    """Places by what is worth a look there."""


@dataclass(frozen=True)
class _Pictures:
    """The hashes of all pictures of a set, and where these are."""

    uri: str
    shards: tuple[str, ...]
    shard: NDArray[numpy.int64]
    number: NDArray[numpy.int64]
    hashes: NDArray[numpy.uint64]

    def place(self, row: int) -> Place:
        return Place(self.uri, self.shards[self.shard[row]], int(self.number[row]))


def sets_at(uri: str) -> list[str]:
    """The set at ``uri``, or those of the folder above: URI/train and URI/validation.

    Raises DataError if there is none.
    """
    parts = [f"{uri.rstrip('/')}/{part}" for part in ("train", "validation")]
    if not open_storage(uri).exists(INDEX):
        found = [part for part in parts if open_storage(part).exists(INDEX)]
        if found:
            return found
    open_set(uri)
    return [uri]


def check_set(uri: str, progress: Progress | None = None) -> CheckReport:
    """Check the one set at ``uri``. Raises DataError only if there is no readable index."""
    (report,) = check_sets([uri], progress)
    return report


def check_sets(uris: Sequence[str], progress: Progress | None = None) -> list[CheckReport]:
    """Read every byte of these sets, a few MiB at a time in each of several threads.

    Raises DataError only if one has no readable index.
    """
    sets = [open_set(uri) for uri in uris]
    tally = Tally(sum(packed.num_samples for packed in sets), progress)
    reports: list[CheckReport] = []
    pictures: list[_Pictures] = []
    for packed in sets:
        report, found = _checked(packed, tally)
        reports.append(report)
        report.warnings += _repeated(found)
        for other in pictures:
            report.warnings += _shared(found, other)
        pictures.append(found)
    return reports


def _checked(packed: ShardSet, tally: Tally) -> tuple[CheckReport, _Pictures]:
    index = packed.index
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(threads)
    look = partial(_seen, packed, tally=tally)
    shards = list(in_order(pool, look, range(len(index.shards)), ahead=threads))
    odd: dict[str, list[str]] = {}
    for seen in shards:
        for what, places in seen.odd.items():
            odd.setdefault(what, []).extend(places)
    report = CheckReport(
        packed.uri,
        index.num_samples,
        len(shards),
        packed.num_bytes,
        index.digest,
        [problem for seen in shards for problem in seen.problems],
        [_warning(what, places, len(places)) for what, places in odd.items()],
    )
    counts = [len(seen.numbers) for seen in shards]
    pictures = _Pictures(
        packed.uri,
        tuple(seen.shard for seen in shards),
        numpy.repeat(numpy.arange(len(shards)), counts),
        numpy.array([n for seen in shards for n in seen.numbers], numpy.int64),
        numpy.array([n for seen in shards for n in seen.hashes], numpy.uint64),
    )
    return report, pictures


def _seen(packed: ShardSet, number: int, *, tally: Tally) -> _Seen:
    shard = packed.index.shards[number]
    seen = _Seen(shard.name)
    try:
        tape = Tape(packed.storage, shard.name)
    except NotFound:
        tally.add(shard.num_samples)
        seen.problems.append(f"{shard.name} is missing")
        return seen
    if tape.num_bytes != shard.num_bytes:
        tally.add(shard.num_samples)
        told = f"{shard.name} has {tape.num_bytes} bytes; the index says {shard.num_bytes}"
        seen.problems.append(told)
        return seen
    try:
        table = packed.table(number)
    except DataError as error:
        tally.add(shard.num_samples)
        seen.problems.append(str(error))
    else:
        for sample, (_, end) in enumerate(pairwise(table.offsets.tolist())):
            _see(packed, seen, sample, tape.take(end), int(table.crc32[sample]))
            tally.add(1)
    if tape.sha256() != shard.sha256:
        seen.problems.insert(0, f"{shard.name} is damaged: its sha256 is not the index's")
    return seen


def _see(packed: ShardSet, seen: _Seen, number: int, content: bytes, crc32: int) -> None:
    where = f"{seen.shard}, sample {number}"
    if zlib.crc32(content) != crc32:
        seen.problems.append(f"{where}: its bytes are not those that were packed")
        return
    try:
        members = packed.split(content, where)
        images = {name: packed.decode(members[name], f"{where}, {name}") for name in packed.fields}
        if LABEL in members:
            packed.label(members[LABEL], where)
        if CAPTION in members:
            packed.caption(members[CAPTION], where)
    except DataError as error:
        seen.problems.append(str(error))
        return
    pixels = [image.tobytes() for image in images.values()]
    digest = hashlib.blake2b(b"".join(pixels), digest_size=8).digest()
    seen.numbers.append(number)
    seen.hashes.append(int.from_bytes(digest, "big"))
    if len(pixels) > len(set(pixels)):
        seen.odd.setdefault(TWINS, []).append(where)
    for name in images:
        grey = _is_grey(members[name])
        if grey != (packed.channels == 1):
            words = ("grey", "in colour") if grey else ("in colour", "grey")
            seen.odd.setdefault(WRONG_COLOUR.format(*words), []).append(f"{where}, {name}")


def _is_grey(data: memoryview) -> bool:
    """What the header of an image says that was decoded."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getbands()[0] in ("1", "L", "I")


def _repeated(pictures: _Pictures) -> Iterable[str]:
    """A warning of the samples whose pictures an earlier one of the set has."""
    _, first, inverse = numpy.unique(pictures.hashes, return_index=True, return_inverse=True)
    rows = numpy.flatnonzero(first[inverse] != numpy.arange(len(inverse))).tolist()
    if rows:
        pairs = [(row, int(first[inverse[row]])) for row in rows[:EXAMPLES]]
        places = [f"{pictures.place(row)} is {pictures.place(earlier)}" for row, earlier in pairs]
        yield _warning("samples whose pictures an earlier one has", places, len(rows))


def _shared(pictures: _Pictures, other: _Pictures) -> Iterable[str]:
    """A warning of the samples whose pictures another set has."""
    rows = numpy.flatnonzero(numpy.isin(pictures.hashes, other.hashes)).tolist()
    if rows:
        there = [numpy.flatnonzero(other.hashes == pictures.hashes[row]) for row in rows[:EXAMPLES]]
        places = [
            f"{pictures.place(row)} is {other.place(int(found[0]))} there"
            for row, found in zip(rows, there, strict=False)
        ]
        yield _warning(f"samples whose pictures {other.uri} has too", places, len(rows))


def _warning(what: str, places: Sequence[str], count: int) -> str:
    more = "; ..." if count > EXAMPLES else ""
    return f"{what}: {count:,} ({'; '.join(places[:EXAMPLES])}{more})"
