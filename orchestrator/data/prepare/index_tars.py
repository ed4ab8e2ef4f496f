"""Index tar files in WebDataset's layout in place: every byte is read, none is copied."""

import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from orchestrator.data.format import sample_table
from orchestrator.data.format.images import Channels
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import (
    CAPTION,
    INDEX,
    LABEL,
    SHARD_NAME,
    Index,
    ProgressCallback,
    Shard,
    canonical_json,
)
from orchestrator.data.format.tar_members import sample_members
from orchestrator.data.format.tar_reader import HashingReader, ReadCallback, iter_samples
from orchestrator.data.format.write_once import put_once, refuse_existing
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.data.prepare.scan import Scan, require_one_size, resolve_class_names
from orchestrator.data.prepare.value_range import AskedRange, choose_value_range
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "tif", "tiff", "webp")
THREADS = 8


@dataclass(frozen=True)
class FieldSelection:
    """Members of a sample to use; by default those of the first sample."""

    image: str | None = None
    """Ending of the image, for samples with one image."""
    a: str | None = None
    b: str | None = None
    """Endings of the two images of a pair."""
    labels: bool = True
    captions: bool = True
    classes: tuple[str, ...] = ()
    """Class names by number; by default the numbers."""
    channels: Channels | None = None
    """By default 1 if all images are grey, else 3."""
    value_range: AskedRange = None
    """Values of black and white of images of more than 8 bits: see ``choose_value_range``."""

    def __post_init__(self) -> None:
        if (self.a is None) != (self.b is None) or (self.image and self.a):
            raise UsageError(
                "give the ending of one image with --image, or of two with --a and --b"
            )

    def resolve(self, endings: Sequence[str], where: str) -> dict[str, str]:
        """Return the ending of each image field, given the endings of a sample.

        Raises UsageError if the choice is ambiguous or an ending is missing.
        """
        chosen = {"image": self.image} if self.image else {"a": self.a, "b": self.b}
        fields = {name: ending.lstrip(".") for name, ending in chosen.items() if ending}
        listed = ", ".join(endings)
        if not fields:
            images = sorted(e for e in endings if e.rpartition(".")[2].lower() in IMAGE_ENDINGS)
            if len(images) == 1:
                return {"image": images[0]}
            if [image.partition(".")[0] for image in images] == ["a", "b"]:
                return dict(zip("ab", images, strict=True))
            raise UsageError(
                f"{where} holds {listed}: choose the image with --image ENDING, or the pair with "
                "--a ENDING --b ENDING"
            )
        missing = [ending for ending in fields.values() if ending not in endings]
        if missing:
            raise UsageError(f"{where} holds {listed}, but no {' and no '.join(missing)}")
        return fields


@dataclass(frozen=True)
class IndexSummary:
    """Result of ``index_set``."""

    index: Index
    notes: tuple[str, ...]
    """Remarks for the user, such as labels that were left out."""


def index_set(
    uri: str, selection: FieldSelection | None = None, progress: ProgressCallback | None = None
) -> IndexSummary:
    """Write sample tables and an index for the tar files at ``uri``, which are not changed.

    ``progress`` is called with the number of bytes. Raises UsageError if the samples hold several
    images and ``selection`` does not choose; DataError if there is a set already, no tar, or one
    whose samples do not fit together.
    """
    selection = selection or FieldSelection()
    refuse_existing(uri)
    storage = open_storage(uri)
    names = _list_tars(storage, uri)
    fields = _fields_of_first(storage, uri, names[0], selection)
    counter = ProgressCounter(sum(map(storage.size, names)), progress)
    scan_tar = partial(_scan_tar, storage, uri, fields, selection, counter.add)
    total = Scan()
    entries: list[tuple[Shard, bytes]] = []
    for entry, scan in ordered_map(ThreadPoolExecutor(THREADS), scan_tar, names, ahead=THREADS):
        total.merge(scan)
        entries += [entry] if entry else []
    size = require_one_size(total, len(fields))
    chosen = choose_value_range(total.extents, selection.value_range)
    if chosen.value_range is not None and chosen.value_range.of_8_bit:
        raise UsageError(
            f"--range: the images at {uri} have 8 bits per value, of 0 to 255; leave it out, or "
            "unpack them and run `orchestrator data pack FOLDER DEST --range LOW,HIGH`"
        )
    classes = resolve_class_names(total, selection.classes)
    advice = f"if it is not needed, remove it and index {uri} again"
    for shard, table in entries:
        put_once(storage, shard.table, table, advice)
    index = Index(
        fields=fields,
        image_size=size,
        channels=selection.channels or (3 if total.num_colour else 1),
        num_samples=total.num_samples,
        shards=tuple(shard for shard, _ in entries),
        classes=classes,
        captions=selection.captions and total.num_captions == total.num_samples,
        preparation=Preparation(value_range=chosen.value_range),
    ).with_digest()
    put_once(storage, INDEX, canonical_json(index.model_dump(by_alias=True)), advice)
    notes = [
        f"only {count:,} of {total.num_samples:,} samples have {what}: left out"
        for count, what in ((total.num_labels, "a class"), (total.num_captions, "a caption"))
        if 0 < count < total.num_samples
    ]
    return IndexSummary(index, (*notes, *chosen.notes))


def _list_tars(storage: Storage, uri: str) -> list[str]:
    keys = storage.list()
    names = [key for key in keys if key.endswith(".tar") and "/" not in key]
    if not names:
        compressed = next((k for k in keys if k.endswith((".tgz", ".tar.gz", ".tar.zst"))), None)
        folders = sorted({k.rpartition("/")[0] for k in keys if k.endswith(".tar")})
        hint = f"; {uri}/{folders[0]} holds some" if folders else ""
        if compressed:
            hint = f"; {compressed} is compressed and has no random access: decompress it"
        raise DataError(f"{uri} holds no tar files{hint}")
    for name in names:
        if not re.fullmatch(SHARD_NAME, name):
            raise DataError(
                f"{uri}/{name} is not a valid name for a shard; rename it with letters, digits, "
                "dots, dashes and underscores"
            )
    return names


def _fields_of_first(
    storage: Storage, uri: str, name: str, selection: FieldSelection
) -> dict[str, str]:
    where = f"{uri}/{name}"
    first = next(iter_samples(HashingReader(storage, name), where), None)
    if first is None:
        raise DataError(f"{where} is an empty tar; remove it")
    return selection.resolve([*sample_members(first.data, where)], f"{where}: {first.key}")


def _scan_tar(
    storage: Storage,
    uri: str,
    fields: dict[str, str],
    selection: FieldSelection,
    on_read: ReadCallback,
    name: str,
) -> tuple[tuple[Shard, bytes] | None, Scan]:
    """Return the index entry and the sample table of one tar, unless it is empty, and its scan."""
    reader, scan = HashingReader(storage, name, on_read), Scan()
    offsets, crcs = [0], []
    for key, data, end in iter_samples(reader, f"{uri}/{name}"):
        where = f"{name}, {key}"
        members = sample_members(data, where)
        for ending in fields.values():
            if ending in members:
                scan.add_image(members[ending], f"{where}.{ending}")
            else:
                scan.add_problem(f"{where} has no {ending}")
        if selection.labels and LABEL in members:
            scan.add_label(bytes(members[LABEL]), where)
        if selection.captions and CAPTION in members:
            scan.add_caption(bytes(members[CAPTION]), where)
        scan.num_samples += 1
        offsets.append(end)
        crcs.append(zlib.crc32(data))
    if not crcs:
        return None, scan
    table = sample_table.encode(offsets, crcs)
    shard = Shard(
        name=name,
        bytes=reader.num_bytes,
        sha256=reader.sha256(),
        samples=len(crcs),
        table_crc32=zlib.crc32(table),
    )
    return (shard, table), scan
