"""The shard format: tar files in WebDataset's layout, and an index that finds every sample.

A set is a folder or prefix with ``000000.tar``, ``000001.tar``, ... and ``index.json``. A sample
is a run of tar members ``<key>.<field>.png``, one per field of the set: ``image``, or ``a`` and
``b`` for pairs; then ``<key>.cls``, the number of its class, and ``<key>.txt``, its caption, in
sets that have classes or captions. Any tar tool reads a shard, and equal samples give equal
bytes. The index holds for each shard its sha256 and, for each sample, where its first tar header
starts and the CRC-32 of its bytes, so that a sample is one ranged GET that is checked. The index
is written last: without it there is no set.
"""

import hashlib
import io
import json
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, Self

from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from orchestrator.errors import DataError
from orchestrator.storage import NotFound, Storage, open_storage

INDEX = "index.json"
LABEL, CAPTION = "cls", "txt"
"""Endings of the members that hold a sample's class and its caption."""

Crc = Annotated[int, Field(ge=0, lt=1 << 32)]
Progress = Callable[[int, int], None]
"""Called with the number of samples done and the number there are."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(_Entry):
    """One tar file of a set."""

    name: str = Field(pattern=r"^[0-9]{6,}\.tar$")
    num_bytes: NonNegativeInt = Field(alias="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    offsets: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]
    """Where each sample starts, in bytes, and last where the samples end."""
    crc32: Annotated[tuple[Crc, ...], Field(strict=False)]
    """CRC-32 of each sample's bytes."""

    @model_validator(mode="after")
    def _offsets_are_those_of_samples(self) -> Self:
        if len(self.offsets) != len(self.crc32) + 1:
            raise ValueError("offsets and crc32 are not those of the same samples")
        if any(a >= b for a, b in pairwise(self.offsets)) or self.offsets[-1] > self.num_bytes:
            raise ValueError("offsets do not rise within the shard")
        return self


class Index(_Entry):
    """All that is known of a set: the content of its index.json."""

    format: Literal["orchestrator-shards"] = "orchestrator-shards"
    version: Literal[1] = 1
    fields: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    image_size: PositiveInt
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
        for later in ("classes", "captions"):  # sets from before have digests without them
            if not content[later]:
                del content[later]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if sum(len(shard.crc32) for shard in self.shards) != self.num_samples:
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
        return self.index.fields

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
    def channels(self) -> int:
        """3 for colour, 1 for grey."""
        return self.index.channels

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard."""
        return tuple(len(shard.crc32) for shard in self.index.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.index.shards)

    def read(self, shard: int, index: int) -> dict[str, bytes]:
        """One sample's ``members``, encoded, in one checked ranged GET.

        Raises DataError naming the shard and the sample if its bytes are damaged.
        """
        entry = self.index.shards[shard]
        start, end = entry.offsets[index], entry.offsets[index + 1]
        for _ in range(2):  # a second time, for damage may have happened on the way
            data = self._range(entry.name, start, end - start)
            if zlib.crc32(data) == entry.crc32[index]:
                return self.split(data, f"{self.uri}/{entry.name}, sample {index}")
        raise DataError(
            f"{self.uri}/{entry.name}, sample {index}: the bytes are not those that were packed; "
            f"pack the set again (see `orchestrator data check {self.uri}`)"
        )

    def split(self, data: bytes, where: str) -> dict[str, bytes]:
        """The ``members`` in one sample's bytes. Raises DataError, at ``where``."""
        found = sample_members(data, where)
        if set(found) != set(self.members):
            raise DataError(f"{where} has {sorted(found)}; the index says {list(self.members)}")
        return found

    def label(self, data: bytes, where: str) -> int:
        """The number of a class, from a sample's LABEL. Raises DataError, at ``where``."""
        count = len(self.index.classes)
        # A number of thousands of digits would not even convert.
        if not data.isdigit() or len(data) > 9 or not int(data) < count:
            raise DataError(
                f"{where}: {data[:20]!r} is no number of a class, which are 0 to {count - 1}"
            )
        return int(data)

    def caption(self, data: bytes, where: str) -> str:
        """The text of a sample's CAPTION. Raises DataError, at ``where``."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: the caption is no UTF-8: {error}") from error

    def decode(self, data: bytes, where: str) -> Image.Image:
        """The image in ``data``, of the set's size and channels. Raises DataError, at ``where``."""
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{where} does not decode: {error}") from error
        size, mode = self.image_size, "RGB" if self.channels == 3 else "L"
        if image.size != (size, size) or image.mode != mode:
            found = f"{image.width}x{image.height} {image.mode}"
            raise DataError(f"{where} is {found}; the index says {size}x{size} {mode}")
        return image

    def _range(self, name: str, start: int, length: int) -> bytes:
        try:
            return self.storage.get_range(name, start, length)
        except NotFound as error:
            raise DataError(f"{self.uri}/{name} is missing, but the index names it") from error


def sample_members(data: bytes, where: str) -> dict[str, bytes]:
    """The members of one sample's tar bytes: images by field, others by ending.

    Nothing is extracted or followed.

    Raises DataError, which starts with ``where``, for anything but plain files.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
                parts = member.name.split("/")
                if not plain or member.issparse() or ".." in parts or member.size > len(data):
                    raise DataError(f"{where}: {member.name!r} is not a plain file of a sample")
                file = tar.extractfile(member)
                assert file is not None, "a plain member has content"
                ending = posixpath.basename(member.name).partition(".")[2]
                members[ending.rpartition(".")[0] or ending] = file.read()
    except tarfile.TarError as error:
        raise DataError(f"{where} is no tar: {error}") from error
    return members


def open_set(uri: str) -> ShardSet:
    """The packed set at ``uri``, a folder or s3://bucket/prefix; reads its index alone.

    Raises DataError if there is none, or if the index is damaged.
    """
    storage = open_storage(uri)
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
        raise DataError(f"{uri}/{INDEX} is damaged: {place} {first['msg']}".rstrip()) from error
    if index.digest != index.computed_digest():
        raise DataError(f"{uri}/{INDEX} is damaged: its digest is not that of its content")
    return ShardSet(uri, index, storage)


@dataclass
class CheckReport:
    """What ``check_set`` found."""

    uri: str
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_set(uri: str, progress: Progress | None = None) -> CheckReport:
    """Read every byte of the set at ``uri``: checksums, then each image's decoding and shape.

    Raises DataError only if there is no readable index.
    """
    packed = open_set(uri)
    index = packed.index
    report = CheckReport(uri, index.num_samples, len(index.shards), packed.num_bytes, index.digest)
    done = 0
    for shard in index.shards:
        report.problems += _shard_problems(packed, shard)
        done += len(shard.crc32)
        if progress is not None:
            progress(done, index.num_samples)
    return report


def _shard_problems(packed: ShardSet, shard: Shard) -> list[str]:
    try:
        data = packed.storage.get(shard.name)
    except NotFound:
        return [f"{shard.name} is missing"]
    if len(data) != shard.num_bytes:
        return [f"{shard.name} has {len(data)} bytes; the index says {shard.num_bytes}"]
    problems = []
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        problems.append(f"{shard.name} is damaged: its sha256 is not the index's")
    for number, (start, end) in enumerate(pairwise(shard.offsets)):
        sample, where = data[start:end], f"{shard.name}, sample {number}"
        if zlib.crc32(sample) != shard.crc32[number]:
            problems.append(f"{where}: its bytes are not those that were packed")
            continue
        try:
            members = packed.split(sample, where)
            for name in packed.fields:
                packed.decode(members[name], f"{where}, {name}")
            if LABEL in members:
                packed.label(members[LABEL], where)
            if CAPTION in members:
                packed.caption(members[CAPTION], where)
        except DataError as error:
            problems.append(str(error))
    return problems
