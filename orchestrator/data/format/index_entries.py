"""Entries of the index.json of a set: its shards, which samples it has, and what drew them."""

from typing import Annotated

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from orchestrator.data.format import sample_table

SHARD_NAME = r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*\.tar$"


class IndexEntry(BaseModel, frozen=True, extra="forbid", strict=True):
    """Base class of what an index.json holds."""


class Shard(IndexEntry, frozen=True):
    """Index entry of one tar file."""

    name: str = Field(pattern=SHARD_NAME)
    num_bytes: NonNegativeInt = Field(alias="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_samples: PositiveInt = Field(alias="samples")
    table_crc32: Annotated[int, Field(ge=0, lt=1 << 32)]
    """CRC-32 of its sample table."""

    @property
    def table(self) -> str:
        """Name of its sample table."""
        return self.name + sample_table.SUFFIX


class Subset(IndexEntry, frozen=True):
    """Which samples of the tar files in the parent folder a set has."""

    held_out: bool
    """Whether it has those that are held out for validation, or the others."""
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    num_bytes: NonNegativeInt = Field(alias="bytes")
    """Of its samples."""


class Origin(IndexEntry, frozen=True):
    """The model that drew the images of a set."""

    model: str
    """Its registered name; empty if it is not known."""
    version: PositiveInt | None
    """Its registered version, if that is known."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    seed: NonNegativeInt
    """Of all translations, or of the first sample."""
