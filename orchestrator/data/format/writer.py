"""Writes a set of shards: the same samples give the same bytes, and the index goes last."""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from orchestrator.data.format import sample_table
from orchestrator.data.format.shard_index import CAPTION, INDEX, LABEL, Index, Shard, canonical_json
from orchestrator.data.format.write_once import put_once, refuse_existing
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

SHARD_BYTES = 64 << 20
"""Most bytes of a shard: large enough to move fast, small enough to hold in memory."""
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes a set: ``add`` each sample, then ``finish``. Holds one shard in memory.

    What is there already is never written over. A writer of the same samples may have begun:
    its shards are found to be the same bytes, or ``resume`` goes on after them.
    """

    def __init__(  # noqa: PLR0913 - what an index says
        self,
        uri: str,
        fields: tuple[str, ...],
        *,
        image_size: int,
        channels: Literal[1, 3],
        ending: str = "png",
        classes: tuple[str, ...] = (),
        captions: bool = False,
        shard_bytes: int = SHARD_BYTES,
        new: bool = True,
    ) -> None:
        """Begin a set at ``uri``.

        Args:
            ending: of the images' files, which says how they are encoded.
            shard_bytes: most bytes of a shard of several samples.
            new: whether to refuse to write where a set is already.
        """
        self.uri = uri
        self._storage = open_storage(uri)
        if new:
            refuse_existing(uri)
        self._fields = {name: f"{name}.{ending}" for name in fields}
        self._image_size, self._channels = image_size, channels
        self._classes, self._captions = classes, captions
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._start_shard()

    def resume(self) -> set[str]:
        """Keep the shards that an interrupted writer finished; gives the keys of their samples.

        To be called first; samples that are then added follow these. Raises DataError if a
        shard is damaged.
        """
        keys: set[str] = set()
        while (found := self._finished(_shard_name(len(self._shards)))) is not None:
            shard, more = found
            self._shards.append(shard)
            keys |= more
        return keys

    def _finished(self, name: str) -> tuple[Shard, set[str]] | None:
        where = f"{self.uri}/{name}"
        try:  # the table is written after its shard: where it is, the shard is whole
            table = self._storage.get(name + sample_table.SUFFIX)
            data = self._storage.get(name)
        except NotFound:
            return None
        shard = _entry(name, data, table)
        found = sample_table.decoded(
            table, shard.num_samples, shard.num_bytes, where + sample_table.SUFFIX
        )
        starts = found.offsets.tolist()
        for (start, end), crc in zip(pairwise(starts), found.crc32.tolist(), strict=True):
            if zlib.crc32(memoryview(data)[start:end]) != crc:
                raise DataError(f"{where} is damaged; remove {self.uri} and pack it again")
        return shard, {_key(data[start : start + tarfile.BLOCKSIZE]) for start in starts[:-1]}

    def add(
        self,
        key: str,
        images: Mapping[str, bytes],
        label: int | None = None,
        caption: str | None = None,
    ) -> None:
        """Append one sample under ``key``, which has no dot or slash.

        Args:
            images: each field's, encoded.
            label: number of its class, for a set with classes.
            caption: for a set with captions.
        """
        assert set(images) == set(self._fields), f"{sorted(images)} are not {self._fields}"
        assert (label is not None) == bool(self._classes)
        assert (caption is not None) == self._captions
        assert "." not in key
        assert "/" not in key
        sample = b"".join(
            _member(f"{key}.{ending}", images[name]) for name, ending in self._fields.items()
        )
        if label is not None:
            sample += _member(f"{key}.{LABEL}", str(label).encode())
        if caption is not None:
            sample += _member(f"{key}.{CAPTION}", caption.encode())
        if self._crc32 and len(self._tar) + len(sample) + len(END_OF_TAR) > self._shard_bytes:
            self._end_shard()
        self._tar += sample
        self._offsets.append(len(self._tar))
        self._crc32.append(zlib.crc32(sample))

    def finish(self) -> Index:
        """Write the last shard, then the index. Raises DataError if another set is there."""
        if self._crc32:
            self._end_shard()
        index = Index(
            fields=self._fields,
            image_size=self._image_size,
            channels=self._channels,
            num_samples=sum(shard.num_samples for shard in self._shards),
            shards=tuple(self._shards),
            classes=self._classes,
            captions=self._captions,
        ).sealed()
        self._put(INDEX, canonical_json(index.model_dump(by_alias=True)))
        return index

    def _start_shard(self) -> None:
        self._tar = bytearray()
        self._offsets = [0]
        self._crc32: list[int] = []

    def _end_shard(self) -> None:
        data = bytes(self._tar) + END_OF_TAR
        table = sample_table.encoded(self._offsets, self._crc32)
        shard = _entry(_shard_name(len(self._shards)), data, table)
        self._put(shard.name, data)
        self._put(shard.table, table)
        self._shards.append(shard)
        self._start_shard()

    def _put(self, key: str, data: bytes) -> None:
        put_once(
            self._storage,
            key,
            data,
            f"another set was begun there: remove {self.uri}, or choose another place",
        )


def _shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def _entry(name: str, data: bytes, table: bytes) -> Shard:
    return Shard(
        name=name,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        samples=len(table) // sample_table.ENTRY_BYTES,
        table_crc32=zlib.crc32(table),
    )


def _key(block: bytes) -> str:
    header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    return header.name.partition(".")[0]


def _member(name: str, data: bytes) -> bytes:
    """One tar member; a fresh TarInfo has time, owner and mode that never change."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + padding
