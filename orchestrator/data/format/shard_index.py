"""The shard format: tar files in WebDataset's layout, and an index that finds every sample.

A set is a folder or prefix with ``000000.tar``, ``000001.tar``, ... and ``index.json``. A sample
is a run of tar members ``<key>.<ending>``: an image for each of the set's fields, which are
``image``, or ``a`` and ``b`` for pairs; then ``<key>.cls``, the number of its class, and
``<key>.txt``, its caption, in sets that have classes or captions. Any tar tool reads a shard, and
equal samples give equal bytes. Beside each shard lies a table (sample_table.py) with the offset and
CRC-32 of each sample, so that any run of samples is one ranged GET that is checked; tables are
read when they are needed. The index names the shards with the sha256 of each and is written
last: without it there is no set.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from orchestrator.data.format import decoding, sample_table
from orchestrator.data.format.decoding import Buffer, Pixels
from orchestrator.data.format.sample_table import Table
from orchestrator.data.format.tar_members import sample_members
from orchestrator.errors import DamagedSample, DataError
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

INDEX = "index.json"
SHARD_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar$"
VERSION = 2
LABEL, CAPTION = "cls", "txt"
"""Endings of the members that hold a sample's class and its caption."""
TABLES_KEPT = 1024
"""Tables in memory at a time; one of a shard of 64 MiB takes 10 kB for images of 50 kB."""

Progress = Callable[[int, int], None]
"""Called with the number of samples done and the number there are."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Entry):
    """One tar file of a set."""

    name: str = Field(pattern=SHARD_NAME)
    num_bytes: NonNegativeInt = Field(alias="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_samples: PositiveInt = Field(alias="samples")
    table_crc32: Annotated[int, Field(ge=0, lt=1 << 32)]
    """CRC-32 of the table beside it."""

    @property
    def table(self) -> str:
        """Name of the table of its samples."""
        return self.name + sample_table.SUFFIX


class Index(_Entry):
    """All that is known of a set: the content of its index.json."""

    format: Literal["orchestrator-shards"] = "orchestrator-shards"
    version: Literal[2] = 2
    fields: Annotated[dict[str, str], Field(min_length=1)]
    """The images of a sample: ending of the member by name of the field."""
    image_size: Annotated[int, Field(gt=0, le=1 << 14)]
    channels: Literal[1, 3]
    num_samples: NonNegativeInt
    shards: Annotated[tuple[Shard, ...], Field(strict=False)]
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of the classes by number; none for a set without labels."""
    captions: bool = False
    """Whether each sample has a caption."""
    digest: str = ""
    """Sha256 over all the rest, which holds the sha256 of every shard: it names the data."""

    def computed_digest(self) -> str:
        """What ``digest`` must be."""
        content = self.model_dump(by_alias=True, exclude={"digest"})
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def sealed(self) -> Self:
        """The same index with its digest."""
        return self.model_copy(update={"digest": self.computed_digest()})

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if sum(shard.num_samples for shard in self.shards) != self.num_samples:
            raise ValueError("num_samples is not the number of samples in the shards")
        return self


def canonical_json(content: object) -> bytes:
    """``content`` as JSON that is the same for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class ShardSet:
    """A packed set, opened for reading; safe to share between threads and to pickle."""

    uri: str
    index: Index
    storage: Storage
    _tables: Any = field(init=False, repr=False, compare=False)
    _endings: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", lru_cache(TABLES_KEPT)(self._read_table))
        endings = tuple((name, self.index.fields.get(name, name)) for name in self.members)
        object.__setattr__(self, "_endings", endings)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.uri, self.index, self.storage)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self.index.num_samples

    @property
    def digest(self) -> str:
        """Sha256 that names exactly this data."""
        return self.index.digest

    @property
    def fields(self) -> tuple[str, ...]:
        """The images of a sample: ("image",), or ("a", "b") for pairs."""
        return tuple(self.index.fields)

    @property
    def members(self) -> tuple[str, ...]:
        """All that a sample holds: its images by field, its class and its caption."""
        label = (LABEL,) if self.index.classes else ()
        return (*self.fields, *label, *((CAPTION,) if self.index.captions else ()))

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
        """Samples in each shard."""
        return tuple(shard.num_samples for shard in self.index.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.index.shards)

    def table(self, shard: int) -> Table:
        """Where the samples of a shard are; read once. Raises DataError if it is damaged."""
        return self._tables(shard)  # type: ignore[no-any-return]

    def where(self, shard: int, index: int) -> str:
        """A sample's place in words."""
        return f"{self.uri}/{self.index.shards[shard].name}, sample {index}"

    def read(self, shard: int, index: int) -> dict[str, memoryview]:
        """One sample's ``members``, encoded, in one checked ranged GET.

        Raises DamagedSample, naming the shard and the sample, if its bytes are damaged.
        """
        return self.split(self.read_bytes(shard, index), self.where(shard, index))

    def read_bytes(self, shard: int, index: int) -> bytes:
        """One sample's tar bytes in one checked ranged GET. Raises as ``read`` does."""
        entry, table = self.index.shards[shard], self.table(shard)
        start, end = int(table.offsets[index]), int(table.offsets[index + 1])
        for _ in range(2):  # a second time, for damage may have happened on the way
            data = self.get_range(entry.name, start, end - start)
            if zlib.crc32(data) == table.crc32[index]:
                return data
            self.storage.forget(entry.name, start, end - start)
        raise DamagedSample(
            f"{self.where(shard, index)}: the bytes are not those that were packed; "
            f"pack the set again (see `orchestrator data check {self.uri}`)"
        )

    def split(self, data: Buffer, where: str) -> dict[str, memoryview]:
        """The ``members`` in one sample's bytes. Raises DamagedSample, at ``where``."""
        found = sample_members(data, where)
        try:
            return {name: found[ending] for name, ending in self._endings}
        except KeyError:
            missing = [ending for _, ending in self._endings if ending not in found]
        raise DamagedSample(
            f"{where} has {', '.join(sorted(found))}, but no {' and no '.join(missing)}, "
            "which the index says"
        )

    def label(self, data: Buffer, where: str) -> int:
        """The number of a class, from a sample's LABEL. Raises DamagedSample, at ``where``."""
        count, text = len(self.index.classes), bytes(data[:21])
        # A number of thousands of digits would not even convert.
        if not text.isdigit() or len(data) > 9 or not int(text) < count:
            raise DamagedSample(
                f"{where}: {text[:20]!r} is no number of a class, which are 0 to {count - 1}"
            )
        return int(text)

    def caption(self, data: Buffer, where: str) -> str:
        """The text of a sample's CAPTION. Raises DamagedSample, at ``where``."""
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise DamagedSample(f"{where}: the caption is no UTF-8: {error}") from error

    def decode(self, data: Buffer, where: str) -> Pixels:
        """The image in ``data``: uint8 (S, S, C). Raises DamagedSample, at ``where``."""
        return decoding.decode(data, self.image_size, self.channels, where)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Bytes of a shard, not checked. Raises DataError if there is no such shard."""
        try:
            return self.storage.get_range(name, start, length)
        except NotFound as error:
            raise self._missing(name) from error

    def _read_table(self, shard: int) -> Table:
        entry = self.index.shards[shard]
        where = f"{self.uri}/{entry.table}"
        try:
            data = self.storage.get(entry.table)
        except NotFound as error:
            raise self._missing(entry.table) from error
        if zlib.crc32(data) != entry.table_crc32:
            raise DataError(f"{where} is damaged: its CRC-32 is not the index's")
        return sample_table.decoded(data, entry.num_samples, entry.num_bytes, where)

    def _missing(self, name: str) -> DataError:
        return DataError(f"{self.uri}/{name} is missing, but the index names it")


def open_set(uri: str, storage: Storage | None = None) -> ShardSet:
    """The packed set at ``uri``, a folder or s3://bucket/prefix; reads its index alone.

    Args:
        storage: what to read ``uri`` through, if not plainly.

    Raises DataError if there is none, or if the index is damaged.
    """
    storage = storage or open_storage(uri)
    try:
        text = storage.get(INDEX)
    except NotFound as error:
        root = uri.rstrip("/").removesuffix("/train").removesuffix("/validation")
        raise DataError(
            f"there is no packed set at {uri}: it has no {INDEX}. Write one with `orchestrator "
            f"data fetch openmoji {root} --size 64` or `orchestrator data pack FOLDER {root}`"
        ) from error
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
        raise DataError(f"{uri}/{INDEX} is damaged: {place} {first['msg']}".rstrip()) from error
    if index.digest != index.computed_digest():
        raise DataError(f"{uri}/{INDEX} is damaged: its digest is not that of its content")
    return ShardSet(uri, index, storage)
