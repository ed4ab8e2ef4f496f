"""Scan one tar file in WebDataset's layout: find its samples and what they hold."""

import zlib
from collections import Counter
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from orchestrator.data.format.sample_table import SampleTable
from orchestrator.data.format.shard_index import CAPTION, LABEL
from orchestrator.data.format.tar_headers import printable
from orchestrator.data.format.tar_members import sample_members
from orchestrator.data.format.tar_reader import HashingReader, ReadCallback, TarReader
from orchestrator.data.prepare.field_selection import Endings, FieldSelection
from orchestrator.data.prepare.scan import Scan
from orchestrator.data.prepare.split import is_held_out
from orchestrator.errors import CorruptSample
from orchestrator.storage.base import Storage


class ScannedTar(NamedTuple):
    """What was found in one tar."""

    name: str
    num_bytes: int
    sha256: str
    table: SampleTable
    held_out: NDArray[numpy.bool]
    """Whether each sample is held out for validation; empty without a validation share."""


def scan_tar(
    storage: Storage,
    uri: str,
    fields: dict[str, Endings],
    selection: FieldSelection,
    validation_share: float,
    on_read: ReadCallback,
    name: str,
) -> tuple[ScannedTar, Scan]:
    """Return the samples of one tar, and what they hold."""
    reader, scan = HashingReader(storage, name, on_read), Scan()
    tar = TarReader(reader, f"{uri}/{name}")
    ends, crcs, held_out = [0], [], []
    keys: Counter[str] = Counter()
    incomplete: list[tuple[str, str]] = []
    for key, data, end in tar:
        keys[key] += 1
        members = read_members(data, f"{name}, {printable(key)}")
        images = _scan_images(scan, members, fields, f"{name}, {printable(key)}")
        incomplete += [(key, field) for field in fields if field not in images]
        _scan_texts(scan, members, selection, f"{name}, {printable(key)}")
        scan.num_samples += 1
        ends.append(end)
        crcs.append(zlib.crc32(data))
        if validation_share:
            held_out.append(is_held_out(b"".join(images.values()), validation_share))
    for key, field in incomplete:
        where = f"{name}, {printable(key)}"
        hint = "; its files are not next to each other: write the tar again with tar --sort=name"
        listed = " or ".join(fields[field][:4])
        scan.add_problem(f"{where} has no {listed}{hint if keys[key] > 1 else ''}")
    scan.passed_over, scan.passed_over_examples = tar.passed_over, tar.examples
    scan.unmarked += [] if tar.has_end_marker else [name]
    starts = numpy.asarray(ends[:-1], numpy.int64)
    table = SampleTable(
        starts, numpy.asarray(ends[1:], numpy.int64), numpy.asarray(crcs, numpy.uint32)
    )
    found = ScannedTar(
        name, reader.num_bytes, reader.sha256(), table, numpy.asarray(held_out, bool)
    )
    return found, scan


def read_members(data: bytes, where: str) -> dict[str, memoryview]:
    """Return the members of a sample by their endings in lower case. Raises CorruptSample."""
    found = sample_members(data, where)
    members = {ending.lower(): content for ending, content in found.items()}
    if len(members) < len(found):
        twice = next(e for e, n in Counter(map(str.lower, found)).items() if n > 1)
        raise CorruptSample(f"{where} has two members called {printable(twice)!r}")
    return members


def _scan_images(
    scan: Scan, members: dict[str, memoryview], fields: dict[str, Endings], where: str
) -> dict[str, memoryview]:
    """Return the images of a sample by field, as far as it has them."""
    images, sizes = {}, set()
    for field, endings in fields.items():
        ending = next((ending for ending in endings if ending in members), None)
        if ending is not None:
            images[field] = members[ending]
            scan.endings[field, ending] += 1
            sizes.add(scan.add_image(members[ending], f"{where}.{ending}"))
    shapes = [size for size in sizes if size is not None]
    if any(w * shapes[0][1] != h * shapes[0][0] for w, h in shapes):
        listed = " and ".join(f"{w}x{h}" for w, h in sorted(shapes))
        scan.add_problem(f"{where} is a pair of {listed}: they must have the same proportions")
    return images


def _scan_texts(
    scan: Scan, members: dict[str, memoryview], selection: FieldSelection, where: str
) -> None:
    if selection.labels and LABEL in members:
        scan.add_label(bytes(members[LABEL]), where)
    if selection.captions and CAPTION in members:
        scan.add_caption(bytes(members[CAPTION]), where)
