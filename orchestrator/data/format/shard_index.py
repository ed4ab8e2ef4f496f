"""Shard format: tar files in WebDataset's layout, with an index to find every sample.

A set is a folder or prefix with ``000000.tar``, ``000001.tar``, ... and ``index.json``. A sample
consists of consecutive tar members ``<key>.<extension>``: one image per field, which are ``image``,
or ``a`` and ``b`` for pairs; then its class number ``<key>.cls`` and its caption ``<key>.txt`` in
sets with classes or captions. Any tar tool reads a shard, and equal samples give equal bytes. Each
shard has a table beside it (sample_table.py) with the offset and CRC-32 of each sample, so that
consecutive samples can be read with one ranged GET and verified; tables are read on demand. The
index lists the shards with their sha256 and is written last: without it there is no set.

Tar files of other tools are indexed in place, and may hold more (tar_headers.py). They may also be
split: the sets URI/train and URI/validation then have their indexes and tables there, and the tar
files stay at URI.
"""

import hashlib
import json
import shlex
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy
from pydantic import (
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from orchestrator.bounds import MAX_IMAGE_SIZE
from orchestrator.data.format import decoding, sample_table, sample_texts
from orchestrator.data.format.decoding import Buffer, Pixels
from orchestrator.data.format.images import Fit
from orchestrator.data.format.index_entries import IndexEntry, Origin, Shard, Subset
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.sample_table import Integers, SampleTable
from orchestrator.data.format.tar_headers import printable
from orchestrator.data.format.tar_members import find_member, sample_members
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import CorruptSample, DataError
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

INDEX = "index.json"
VERSION = 2
LABEL, CAPTION = "cls", "txt"
"""Extensions of the members with a sample's class and caption."""
MAX_CACHED_TABLES = 1024
"""Tables kept in memory; that of a shard of 64 MiB takes 10 kB for images of 50 kB."""

ProgressCallback = Callable[[int, int], None]
"""Called with the number of samples done and in total."""


class Index(IndexEntry, frozen=True):
    """Content of the index.json of a set."""

    format: Literal["orchestrator-shards"] = "orchestrator-shards"
    version: Literal[2] = 2
    fields: Annotated[dict[str, str], Field(min_length=1)]
    """Images of a sample: member extension by field name, or several, such as "jpg,png": the first
    that a sample has. Upper and lower case do not matter."""
    image_size: Annotated[int, Field(gt=0, le=MAX_IMAGE_SIZE)]
    channels: Literal[1, 3]
    num_samples: NonNegativeInt
    shards: Annotated[tuple[Shard, ...], Field(strict=False)]
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Class names by number; empty for a set without labels."""
    captions: bool = False
    """Whether each sample has a caption."""
    multiple_captions: bool = False
    """Whether each line of a caption is one, of which training draws one per visit."""
    preparation: Preparation = Preparation()
    """How the images became square and 8-bit; images of the set with other values than 8 bits are
    converted by its range when they are read."""
    fit: Fit | None = None
    """How images are made square and resized while they are read; None if all have the size."""
    subset: Subset | None = None
    """None for a set with all samples of its tar files."""
    origin: Origin | None = None
    """None for images that no model drew, or of unknown origin."""
    derived_input: DerivedInput | None = None
    """How ``a`` was made from ``b``; None if it was given."""
    digest: str = ""
    """Sha256 of the other fields, which include the sha256 of every shard: identifies the data."""

    def compute_digest(self) -> str:
        """Compute the expected ``digest``."""
        content = self.model_dump(by_alias=True)
        del content["digest"]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def to_json(self) -> bytes:
        """Encode as the content of index.json."""
        return canonical_json(self.model_dump(by_alias=True))

    def with_digest(self) -> Self:
        """Return a copy with its digest."""
        return self.model_copy(update={"digest": self.compute_digest()})

    @model_serializer(mode="wrap")
    def _omit_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave newer fields out where they say nothing: older sets keep their digests."""
        content: dict[str, Any] = handler(self)
        newer = ("multiple_captions", "preparation", "fit", "subset", "origin", "derived_input")
        fields = type(self).model_fields
        for name in (name for name in newer if getattr(self, name) == fields[name].default):
            content.pop(name, None)
        return content

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if sum(shard.num_samples for shard in self.shards) != self.num_samples:
            raise ValueError("num_samples is not the number of samples in the shards")
        return self


def canonical_json(content: object) -> bytes:
    """Encode as JSON with the same bytes for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


class DecodedSample(NamedTuple):
    """One sample."""

    images: dict[str, Pixels]
    """By field: uint8 (S, S, C), S the set's image_size, or the model's once transformed."""
    label: int | None
    caption: str | None


@dataclass(frozen=True)
class ShardSet:
    """A packed set opened for reading. Safe to share between threads and to pickle."""

    uri: str
    index: Index
    storage: Storage
    """Where the tar files are: at ``uri``, or in its parent for a subset."""
    table_prefix: str = ""
    """Prefix of the keys of the sample tables in ``storage``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.uri, self.index, self.storage, self.table_prefix)

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""
        return self.index.num_samples

    @property
    def digest(self) -> str:
        """Sha256 that identifies the data."""
        return self.index.digest

    @property
    def fields(self) -> tuple[str, ...]:
        """Image names of a sample: ("image",), or ("a", "b") for pairs."""
        return tuple(self.index.fields)

    @cached_property
    def members(self) -> dict[str, str]:
        """Extensions by member name: the fields, then LABEL and CAPTION if the set has them."""
        label = {LABEL: LABEL} if self.index.classes else {}
        return self.index.fields | label | ({CAPTION: CAPTION} if self.index.captions else {})

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return self.index.image_size

    @property
    def channels(self) -> Literal[1, 3]:
        """3 for colour, 1 for grey."""
        return self.index.channels

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of samples in each shard."""
        return tuple(shard.num_samples for shard in self.index.shards)

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all shards, or of the samples of a subset."""
        subset = self.index.subset
        return subset.num_bytes if subset else sum(s.num_bytes for s in self.index.shards)

    @cached_property
    def table(self) -> Callable[[int], SampleTable]:
        """Return the table of a shard, cached. Raises DataError if it is missing or corrupt."""
        return lru_cache(MAX_CACHED_TABLES)(self._read_table)

    def locate(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Return the shards of the samples with these numbers in the set, and their indices."""
        starts = numpy.cumsum((0, *self.shard_sizes))
        shards = numpy.searchsorted(starts, numbers, side="right") - 1
        return shards, numbers - starts[shards]

    def describe(self, shard: int, index: int) -> str:
        """Describe the location of a sample for messages."""
        part = f" of {self.table_prefix.rstrip('/')}" if self.index.subset else ""
        return f"{self._folder}/{self.index.shards[shard].name}, sample {index}{part}"

    def read(self, shard: int, index: int) -> dict[str, memoryview]:
        """Read the encoded ``members`` of one sample with one verified ranged GET.

        Raises CorruptSample, naming the shard and the sample, if its bytes are corrupt.
        """
        return self.split_members(self.read_bytes(shard, index), self.describe(shard, index))

    def read_bytes(self, shard: int, index: int) -> bytes:
        """Read the tar bytes of one sample with one verified ranged GET. Raises as ``read``."""
        entry, table = self.index.shards[shard], self.table(shard)
        start, end = int(table.starts[index]), int(table.ends[index])
        for _ in range(2):  # twice, because the bytes may have been corrupted on the way
            data = self.get_range(entry.name, start, end - start)
            if zlib.crc32(data) == table.crc32[index]:
                return data
            self.storage.invalidate(entry.name, start, end - start)
        raise CorruptSample(
            f"{self.describe(shard, index)}: the bytes differ from those that were packed or "
            "indexed; restore the file, or write the set again (see `orchestrator data check "
            f"{shlex.quote(self.uri)}`)"
        )

    def split_members(self, data: Buffer, where: str) -> dict[str, memoryview]:
        """Split a sample's tar bytes. Raises CorruptSample, prefixed by ``where``."""
        found = sample_members(data, where)
        chosen = {name: find_member(found, endings) for name, endings in self.members.items()}
        missing = [self.members[name] for name, member in chosen.items() if member is None]
        if missing:
            listed = ", ".join(map(printable, sorted(found)))
            raise CorruptSample(
                f"{where} has {listed}, but no {' and no '.join(missing)}, which the index lists"
            )
        return {name: found[member] for name, member in chosen.items() if member is not None}

    def decode(self, members: Mapping[str, memoryview], where: str) -> DecodedSample:
        """Decode all members of a sample. Raises CorruptSample, prefixed by ``where``."""
        return DecodedSample(
            {name: self.decode_image(members[name], f"{where}, {name}") for name in self.fields},
            self.parse_label(members[LABEL], where) if LABEL in members else None,
            self.parse_caption(members[CAPTION], where) if CAPTION in members else None,
        )

    def parse_label(self, data: Buffer, where: str) -> int:
        """Parse a LABEL member into a class number. Raises CorruptSample."""
        return sample_texts.parse_label(data, len(self.index.classes), where)

    def parse_caption(self, data: Buffer, where: str) -> str:
        """Decode a CAPTION member. Raises CorruptSample."""
        return sample_texts.parse_caption(data, where)

    def decode_image(
        self, data: Buffer, where: str, size: int | None = None, fit: Fit | None = None
    ) -> Pixels:
        """Decode an image member to uint8 (S, S, C). Raises CorruptSample.

        S is ``size``, to which ``fit`` resizes, or by default the set's image_size.
        """
        size, fit = size or self.image_size, fit or self.index.fit
        value_range = self.index.preparation.value_range
        return decoding.decode(data, size, self.channels, where, fit, value_range)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Read bytes of a shard without verifying them. Raises DataError if it is missing."""
        try:
            return self.storage.get_range(name, start, length)
        except NotFound as error:
            raise self._missing(name) from error

    def _read_table(self, shard: int) -> SampleTable:
        entry = self.index.shards[shard]
        key = self.table_prefix + entry.table
        where = f"{self._folder}/{key}"
        try:
            data = self.storage.get_valid(key, lambda d: zlib.crc32(d) == entry.table_crc32)
        except NotFound as error:
            raise self._missing(key) from error
        if data is None:
            raise DataError(f"{where} is corrupt: its CRC-32 differs from the index")
        return sample_table.decode(
            data,
            entry.num_samples,
            entry.num_bytes,
            where,
            is_subset=self.index.subset is not None,
        )

    @property
    def _folder(self) -> str:
        """URI of the tar files."""
        return self.storage.uri if self.index.subset else self.uri

    def _missing(self, name: str) -> DataError:
        return DataError(f"{self._folder}/{name} is missing, but the index lists it")


def open_set(uri: str, open_storage: Callable[[str], Storage] = open_storage) -> ShardSet:
    """Open the packed set at ``uri`` with ``open_storage``; read only its index.

    Raises DataError if there is no set or its index is corrupt.
    """
    storage = open_storage(uri)
    try:
        try:
            index = _read_index(uri, storage)
        except DataError:  # it may have been corrupted on the way
            storage.invalidate(INDEX, 0, storage.size(INDEX))
            index = _read_index(uri, storage)
    except NotFound as error:
        root = uri.rstrip("/").removesuffix("/train").removesuffix("/validation")
        root = shlex.quote(root)
        raise DataError(
            f"there is no packed set at {uri}: it has no {INDEX}. Write one with `orchestrator "
            f"data fetch openmoji {root} --size 64` or `orchestrator data pack FOLDER {root}`"
        ) from error
    if index.subset is None:
        return ShardSet(uri, index, storage)
    parent, _, name = storage.uri.rstrip("/").rpartition("/")
    return ShardSet(uri, index, open_storage(parent or "/"), f"{name}/")


def _read_index(uri: str, storage: Storage) -> Index:
    """Read the index of the set at ``uri``. Raises NotFound, or DataError if it is corrupt."""
    text = storage.get(INDEX)
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if place == "version" and first["input"] == 1:
            raise DataError(
                f"{uri} was packed by an older version (format 1, this is {VERSION}); remove it "
                "and pack or fetch it again"
            ) from error
        raise DataError(f"{uri}/{INDEX} is corrupt: {place} {first['msg']}".rstrip()) from error
    if index.digest != index.compute_digest():
        raise DataError(f"{uri}/{INDEX} is corrupt: its digest does not match its content")
    return index
