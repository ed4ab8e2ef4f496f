"""Index tar files in WebDataset's layout in place: every byte is read, none is copied.

What the webdataset package reads is indexed: the same samples, in the same order.
"""

import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from orchestrator.data.format import sample_table
from orchestrator.data.format.images import Fit
from orchestrator.data.format.index_entries import SHARD_NAME, Shard, Subset
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.sample_table import SampleTable
from orchestrator.data.format.shard_index import INDEX, Index, ProgressCallback
from orchestrator.data.format.tar_headers import printable
from orchestrator.data.format.tar_reader import HashingReader, TarReader
from orchestrator.data.format.write_once import put_once, refuse_existing
from orchestrator.data.prepare.field_selection import Endings, FieldSelection
from orchestrator.data.prepare.parallel import ProgressCounter, ordered_map
from orchestrator.data.prepare.scan import (
    Scan,
    resolve_class_names,
    resolve_size,
    summarize_notes,
)
from orchestrator.data.prepare.scan_tar import ScannedTar, read_members, scan_tar
from orchestrator.data.prepare.value_range import choose_value_range
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

COMPRESSED = (".tgz", ".tar.gz", ".tar.zst")
THREADS = 8


@dataclass(frozen=True)
class IndexSummary:
    """Result of ``index_set``."""

    index: Index
    """Of all samples, or of the training set."""
    validation: Index | None
    """None if no sample was held out."""
    notes: tuple[str, ...]
    """Remarks for the user, such as members that were passed over."""


@dataclass(frozen=True)
class IndexOptions:
    """How to index."""

    fields: FieldSelection = field(default_factory=FieldSelection)
    size: int | None = None
    """Height and width to resize images to while they are read."""
    fit: Fit = "crop"
    validation_share: float = 0
    """Fraction of the samples to hold out, as the set URI/validation beside URI/train."""


def index_set(
    uri: str, options: IndexOptions | None = None, progress: ProgressCallback | None = None
) -> IndexSummary:
    """Write sample tables and an index for the tar files at ``uri``, which are not changed.

    ``progress`` is called with the number of bytes. Raises UsageError if the samples hold several
    images and ``options`` do not choose; DataError if there is a set already, no tar, or one whose
    samples do not fit together.
    """
    options = options or IndexOptions()
    parts = ("validation", "train") if options.validation_share else ()
    for part in ("", *parts):
        refuse_existing(f"{uri.rstrip('/')}/{part}".rstrip("/"), remove=f"its {INDEX}")
    storage = open_storage(uri)
    names, ignored = _list_tars(storage, uri)
    fields = _fields_of_first(storage, uri, names, options.fields)
    counter = ProgressCounter(sum(map(storage.size, names)), progress)
    scan_one = partial(
        scan_tar, storage, uri, fields, options.fields, options.validation_share, counter.add
    )
    total = Scan()
    tars: list[ScannedTar] = []
    for tar, scan in ordered_map(ThreadPoolExecutor(THREADS), scan_one, names, ahead=THREADS):
        total.merge(scan)
        tars += [tar] if len(tar.table.crc32) else []
    content = _describe(total, fields, options)
    chosen_range = choose_value_range(total.extents, options.fields.value_range)
    if chosen_range.value_range is not None and chosen_range.value_range.of_8_bit:
        raise UsageError(
            f"--range: the images at {uri} have 8 bits per value, of 0 to 255; leave it out, or "
            "unpack them and run `orchestrator data pack FOLDER DEST --range LOW,HIGH`"
        )
    is_fitted = content["fit"] is not None and any(w != h for w, h in total.sizes)
    content["preparation"] = Preparation(
        fit=options.fit if is_fitted else None, value_range=chosen_range.value_range
    )
    notes = [*summarize_notes(total), *chosen_range.notes]
    notes += [
        f"passed over: {len(keys):,} {what}, such as {keys[0]}"
        for what, keys in ignored.items()
        if keys
    ]
    if not parts:
        return IndexSummary(_write_set(storage, content, tars), None, tuple(notes))
    num_held_out = sum(int(tar.held_out.sum()) for tar in tars)
    if num_held_out == total.num_samples:
        raise DataError(f"all samples of {uri} were held out; give a smaller --validation-share")
    if not num_held_out:
        notes.append(f"none of the {total.num_samples:,} samples was held out for validation")
    written: dict[str, Index] = {}
    for part in parts if num_held_out else ("train",):  # the training set's index goes last
        chosen = [_choose(tar, held_out=part == "validation") for tar in tars]
        subset = Subset(
            held_out=part == "validation",
            validation_share=options.validation_share,
            bytes=sum(int((tar.table.ends - tar.table.starts).sum()) for tar in chosen),
        )
        written[part] = _write_set(storage, {**content, "subset": subset}, chosen, f"{part}/")
    return IndexSummary(written["train"], written.get("validation"), tuple(notes))


def _describe(total: Scan, fields: dict[str, Endings], options: IndexOptions) -> dict[str, object]:
    """Return the keys of an index but for its shards.

    Raises DataError if the samples do not fit together.
    """
    size = resolve_size(total, len(fields), options.size)
    return {
        "fields": {
            name: ",".join(ending for ending in endings if total.endings[name, ending])
            for name, endings in fields.items()
        },
        "image_size": size,
        "channels": options.fields.channels or (3 if total.num_colour else 1),
        "classes": resolve_class_names(total, options.fields.classes),
        "captions": options.fields.captions and total.num_captions == total.num_samples,
        "fit": options.fit if {*total.sizes} != {(size, size)} else None,
    }


def _choose(tar: ScannedTar, *, held_out: bool) -> ScannedTar:
    """Return a tar with those of its samples only that are, or are not, held out."""
    table, chosen = tar.table, tar.held_out == held_out
    return tar._replace(
        table=SampleTable(table.starts[chosen], table.ends[chosen], table.crc32[chosen])
    )


def _write_set(
    storage: Storage, content: dict[str, object], tars: Sequence[ScannedTar], prefix: str = ""
) -> Index:
    """Write the tables and the index, with a ``prefix`` those of a subset."""
    advice = f"if it is not needed, remove it and index {storage.uri} again"
    shards = []
    for tar in tars:
        _, ends, crc32 = tar.table
        if not len(crc32):
            continue
        encoded = (
            sample_table.encode_subset(tar.table)
            if prefix
            else sample_table.encode([0, *ends.tolist()], crc32.tolist())
        )
        shard = Shard(
            name=tar.name,
            bytes=tar.num_bytes,
            sha256=tar.sha256,
            samples=len(crc32),
            table_crc32=zlib.crc32(encoded),
        )
        put_once(storage, prefix + shard.table, encoded, advice)
        shards.append(shard)
    num_samples = sum(shard.num_samples for shard in shards)
    index = Index.model_validate(
        {**content, "shards": tuple(shards), "num_samples": num_samples}
    ).with_digest()
    put_once(storage, prefix + INDEX, index.to_json(), advice)
    return index


def _list_tars(storage: Storage, uri: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the tar files, and of those that are passed over."""
    keys = storage.list()
    names = [key for key in keys if key.endswith(".tar") and "/" not in key]
    hidden = [name for name in names if name.startswith(".")]
    names = [name for name in names if name not in hidden]
    compressed = [key for key in keys if key.endswith(COMPRESSED)]
    in_folders = [key for key in keys if key.endswith(".tar") and "/" in key]
    if not names:
        hint = f"; {uri}/{in_folders[0].rpartition('/')[0]} holds some" if in_folders else ""
        if compressed:
            hint = f"; {compressed[0]} is compressed and has no random access: decompress it"
        raise DataError(f"{uri} holds no tar files{hint}")
    for name in names:
        if not re.fullmatch(SHARD_NAME, name):
            raise DataError(f"{uri}/{name!r} is not a valid name for a shard; rename it")
    return names, {
        "hidden tar files": hidden,
        "compressed tar files": compressed,
        "tar files in folders": in_folders,
    }


def _fields_of_first(
    storage: Storage, uri: str, names: Sequence[str], selection: FieldSelection
) -> dict[str, Endings]:
    for name in names:
        where = f"{uri}/{name}"
        first = next(iter(TarReader(HashingReader(storage, name), where)), None)
        if first is not None:
            members = read_members(first.data, f"{name}, {printable(first.key)}")
            return selection.resolve([*members], f"{where}: {printable(first.key)}")
    raise DataError(f"{uri} holds no samples: its {len(names):,} tar files are empty")
