"""Writes a set of shards: the same samples give the same bytes, and the index goes last."""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from typing import Literal

from orchestrator.data.shards import CAPTION, INDEX, LABEL, Index, Shard, canonical_json
from orchestrator.errors import DataError
from orchestrator.storage import open_storage

SHARD_BYTES = 64 << 20
"""Most bytes of a shard: large enough to move fast, small enough to hold in memory."""
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes a set: ``add`` each sample, then ``finish``. Holds one shard in memory."""

    def __init__(
        self,
        uri: str,
        fields: tuple[str, ...],
        *,
        image_size: int,
        channels: Literal[1, 3],
        classes: tuple[str, ...] = (),
        captions: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.uri = uri
        self._storage = open_storage(uri)
        refuse_existing(uri)
        self._fields, self._image_size, self._channels = fields, image_size, channels
        self._classes, self._captions = classes, captions
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._start_shard()

    def add(
        self,
        key: str,
        images: Mapping[str, bytes],
        label: int | None = None,
        caption: str | None = None,
    ) -> None:
        """Append one sample under ``key``, which has no dot or slash.

        Args:
            images: the PNG of each field.
            label: number of its class, for a set with classes.
            caption: for a set with captions.
        """
        assert set(images) == set(self._fields), f"{sorted(images)} are not {self._fields}"
        assert (label is not None) == bool(self._classes)
        assert (caption is not None) == self._captions
        assert "." not in key
        assert "/" not in key
        sample = b"".join(_member(f"{key}.{name}.png", images[name]) for name in self._fields)
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
        """Write the last shard, then the index. Raises DataError if someone else did so first."""
        if self._crc32:
            self._end_shard()
        content = Index(
            fields=self._fields,
            image_size=self._image_size,
            channels=self._channels,
            num_samples=sum(len(shard.crc32) for shard in self._shards),
            shards=tuple(self._shards),
            classes=self._classes,
            captions=self._captions,
        )
        index = content.model_copy(update={"digest": content.computed_digest()})
        if not self._storage.put_if_absent(INDEX, canonical_json(index.model_dump(by_alias=True))):
            raise DataError(
                f"another process has just packed a set at {self.uri}; "
                "see whether it is whole with `orchestrator data check`"
            )
        return index

    def _start_shard(self) -> None:
        self._tar = bytearray()
        self._offsets = [0]
        self._crc32: list[int] = []

    def _end_shard(self) -> None:
        data = bytes(self._tar) + END_OF_TAR
        shard = Shard(
            name=f"{len(self._shards):06d}.tar",
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            offsets=tuple(self._offsets),
            crc32=tuple(self._crc32),
        )
        self._storage.put(shard.name, data)
        self._shards.append(shard)
        self._start_shard()


def refuse_existing(uri: str, remove: str = "it") -> None:
    """Raise DataError if there is a set at ``uri``: packed data is never written over.

    ``remove`` is what the message says to remove.
    """
    if open_storage(uri).exists(INDEX):
        raise DataError(
            f"there is a packed set at {uri} already; remove {remove}, or choose another place"
        )


def _member(name: str, data: bytes) -> bytes:
    """One tar member; a fresh TarInfo has time, owner and mode that never change."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + padding
