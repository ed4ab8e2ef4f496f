"""Indexes tar files in WebDataset's layout where they lie: every byte is read, none is copied."""

import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from orchestrator.data.format import sample_table
from orchestrator.data.format.images import Channels
from orchestrator.data.format.shard_index import (
    CAPTION,
    INDEX,
    LABEL,
    SHARD_NAME,
    Index,
    Progress,
    Shard,
    canonical_json,
)
from orchestrator.data.format.tar_members import sample_members
from orchestrator.data.format.tar_reader import Read, Tape, walked
from orchestrator.data.format.write_once import put_once, refuse_existing
from orchestrator.data.prepare.ordered_map import in_order
from orchestrator.data.prepare.progress import Tally
from orchestrator.data.prepare.scan import Scan, class_names, one_size
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp")
THREADS = 8


@dataclass(frozen=True)
class Wanted:
    """What is to be found in the samples; by default what the first one holds."""

    image: str | None = None
    """Ending of the one image of a sample."""
    a: str | None = None
    b: str | None = None
    """Endings of the two images of a pair."""
    labels: bool = True
    captions: bool = True
    classes: tuple[str, ...] = ()
    """Names of the classes by number; by default the numbers."""
    channels: Channels | None = None
    """By default 1 if all images are grey, else 3."""

    def __post_init__(self) -> None:
        if (self.a is None) != (self.b is None) or (self.image and self.a):
            raise UsageError(
                "give the ending of one image with --image, or of two with --a and --b"
            )

    def fields(self, endings: Sequence[str], where: str) -> dict[str, str]:
        """The images by field. Raises UsageError if it takes a person to tell."""
        asked = {"image": self.image} if self.image else {"a": self.a, "b": self.b}
        fields = {name: ending.lstrip(".") for name, ending in asked.items() if ending}
        shown = ", ".join(endings)
        if not fields:
            images = sorted(e for e in endings if e.rpartition(".")[2].lower() in IMAGE_ENDINGS)
            if len(images) == 1:
                return {"image": images[0]}
            if [image.partition(".")[0] for image in images] == ["a", "b"]:
                return dict(zip("ab", images, strict=True))
            raise UsageError(
                f"{where} holds {shown}: say which is the image with --image ENDING, or which are "
                "the pair with --a ENDING --b ENDING"
            )
        missing = [ending for ending in fields.values() if ending not in endings]
        if missing:
            raise UsageError(f"{where} holds {shown} and no {' and no '.join(missing)}")
        return fields


@dataclass(frozen=True)
class IndexSummary:
    """What was indexed."""

    index: Index
    notes: tuple[str, ...]
    """What a person may want to know of it."""


def index_set(
    uri: str, wanted: Wanted | None = None, progress: Progress | None = None
) -> IndexSummary:
    """Write the tables and the index of the tar files at ``uri``, which stay as they are.

    Args:
        progress: called with the bytes read and the bytes there are.

    Raises:
        UsageError: the samples hold several images and ``wanted`` does not say which is what.
        DataError: there is a set already, no tar, or one that is no set of samples alike.
    """
    wanted = wanted or Wanted()
    refuse_existing(uri)
    storage = open_storage(uri)
    names = _tar_names(storage, uri)
    fields = _first_fields(storage, uri, names[0], wanted)
    counted = Tally(sum(map(storage.size, names)), progress)
    pool = ThreadPoolExecutor(THREADS)
    total = Scan()
    scan = partial(_scanned, storage, uri, fields=fields, wanted=wanted, read=counted.add)
    written: list[tuple[Shard, bytes]] = []
    for entry, found in in_order(pool, scan, names, ahead=THREADS):
        total.add(found)
        written += [entry] if entry else []
    size, classes = one_size(total, len(fields)), class_names(total, wanted.classes)
    advice = f"if it is not needed, remove it and index {uri} again"
    for shard, table in written:
        put_once(storage, shard.table, table, advice)
    index = Index(
        fields=fields,
        image_size=size,
        channels=wanted.channels or (3 if total.colour else 1),
        num_samples=total.samples,
        shards=tuple(shard for shard, _ in written),
        classes=classes,
        captions=wanted.captions and total.captions == total.samples,
    ).sealed()
    put_once(storage, INDEX, canonical_json(index.model_dump(by_alias=True)), advice)
    notes = [
        f"only {count:,} of {total.samples:,} samples have {what}: left out"
        for count, what in ((total.labels, "a class"), (total.captions, "a caption"))
        if 0 < count < total.samples
    ]
    return IndexSummary(index, tuple(notes))


def _tar_names(storage: Storage, uri: str) -> list[str]:
    keys = storage.list()
    names = [key for key in keys if key.endswith(".tar") and "/" not in key]
    if not names:
        packed = next((k for k in keys if k.endswith((".tgz", ".tar.gz", ".tar.zst"))), None)
        below = sorted({k.rpartition("/")[0] for k in keys if k.endswith(".tar")})
        hint = f"; there are some in {uri}/{below[0]}" if below else ""
        hint = (
            f"; {packed} is compressed, which cannot be read in parts: unpack it"
            if packed
            else hint
        )
        raise DataError(f"{uri} holds no tar files{hint}")
    for name in names:
        if not re.fullmatch(SHARD_NAME, name):
            raise DataError(
                f"{uri}/{name} has a name that sets may not use; rename it with letters, digits, "
                "dots, dashes and underscores"
            )
    return names


def _first_fields(storage: Storage, uri: str, name: str, wanted: Wanted) -> dict[str, str]:
    where = f"{uri}/{name}"
    first = next(walked(Tape(storage, name), where), None)
    if first is None:
        raise DataError(f"{where} is an empty tar; remove it")
    return wanted.fields([*sample_members(first.data, where)], f"{where}: {first.key}")


def _scanned(
    storage: Storage,
    uri: str,
    name: str,
    *,
    fields: dict[str, str],
    wanted: Wanted,
    read: Read,
) -> tuple[tuple[Shard, bytes] | None, Scan]:
    """The entry and the table of one tar, unless it is empty, and what is in it."""
    tape, scan = Tape(storage, name, read), Scan()
    offsets, crcs = [0], []
    for key, data, end in walked(tape, f"{uri}/{name}"):
        where = f"{name}, {key}"
        members = sample_members(data, where)
        for ending in fields.values():
            if ending in members:
                scan.see(members[ending], f"{where}.{ending}")
            else:
                scan.blame(f"{where} has no {ending}")
        if wanted.labels and LABEL in members:
            scan.see_label(bytes(members[LABEL]), where)
        if wanted.captions and CAPTION in members:
            scan.see_caption(bytes(members[CAPTION]), where)
        scan.samples += 1
        offsets.append(end)
        crcs.append(zlib.crc32(data))
    if not crcs:
        return None, scan
    table = sample_table.encoded(offsets, crcs)
    shard = Shard(
        name=name,
        bytes=tape.num_bytes,
        sha256=tape.sha256(),
        samples=len(crcs),
        table_crc32=zlib.crc32(table),
    )
    return (shard, table), scan
