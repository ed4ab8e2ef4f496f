"""Write a set of shards: equal samples give equal bytes, and the index is written last."""

import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from typing import Literal

from orchestrator.data.format import sample_table
from orchestrator.data.format.index_entries import Origin, Shard
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import CAPTION, INDEX, LABEL, Index
from orchestrator.data.format.write_once import put_once, refuse_existing
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

SHARD_BYTES = 64 << 20
"""Most bytes of a shard: large enough to transfer fast, small enough to hold in memory."""
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writes a set: ``add`` each sample, then ``finish``. Holds one shard in memory.

    Existing files are never overwritten. If a writer of the same samples was interrupted, its
    shards are found to have the same bytes, or ``resume`` continues after them.
    """

    def __init__(  # noqa: PLR0913 - the content of an index
        self,
        uri: str,
        fields: tuple[str, ...],
        *,
        image_size: int,
        channels: Literal[1, 3],
        extension: str = "png",
        classes: tuple[str, ...] = (),
        captions: bool = False,
        multiple_captions: bool = False,
        preparation: Preparation = Preparation(),  # noqa: B008 - it is immutable
        origin: Origin | None = None,
        derived_input: DerivedInput | None = None,
        shard_bytes: int = SHARD_BYTES,
        new: bool = True,
    ) -> None:
        """Start a set at ``uri``. Raises DataError if there is one and ``new`` is True.

        A shard of several samples has at most ``shard_bytes``.
        """
        self.uri = uri
        self._storage = open_storage(uri)
        if new:
            refuse_existing(uri)
        self._fields = {name: f"{name}.{extension}" for name in fields}
        self._image_size, self._channels = image_size, channels
        self._classes, self._captions = classes, captions
        self._multiple_captions = multiple_captions
        self._preparation, self._origin = preparation, origin
        self._derived_input = derived_input
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._start_shard()

    def resume(self) -> set[str]:
        """Keep the complete shards of an interrupted writer; return the keys of their samples.

        Call it before ``add``. Raises DataError if a shard is corrupt.
        """
        keys: set[str] = set()
        while (found := self._read_complete(_shard_name(len(self._shards)))) is not None:
            shard, shard_keys = found
            self._shards.append(shard)
            keys |= shard_keys
        return keys

    def _read_complete(self, name: str) -> tuple[Shard, set[str]] | None:
        where = f"{self.uri}/{name}"
        try:  # the table is written after its shard: if it exists, the shard is complete
            table = self._storage.get(name + sample_table.SUFFIX)
            data = self._storage.get(name)
        except NotFound:
            return None
        shard = _index_entry(name, data, table)
        found = sample_table.decode(
            table, shard.num_samples, shard.num_bytes, where + sample_table.SUFFIX
        )
        starts = found.starts.tolist()
        for start, end, crc in zip(starts, found.ends.tolist(), found.crc32.tolist(), strict=True):
            if zlib.crc32(memoryview(data)[start:end]) != crc:
                raise DataError(f"{where} is corrupt; remove {self.uri} and pack it again")
        return shard, {_key(data[start : start + tarfile.BLOCKSIZE]) for start in starts}

    def add(
        self,
        key: str,
        images: Mapping[str, bytes],
        label: int | None = None,
        caption: str | None = None,
    ) -> None:
        """Append one sample with its encoded images by field.

        ``key`` must not contain a dot or a slash; ``label`` is the class number.
        """
        assert set(images) == set(self._fields), f"{sorted(images)} are not {self._fields}"
        assert (label is not None) == bool(self._classes)
        assert (caption is not None) == self._captions
        assert "." not in key
        assert "/" not in key
        sample = b"".join(
            _member(f"{key}.{extension}", images[name]) for name, extension in self._fields.items()
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
        """Write the last shard, then the index. Raises DataError if another set exists."""
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
            multiple_captions=self._multiple_captions,
            preparation=self._preparation,
            origin=self._origin,
            derived_input=self._derived_input,
        ).with_digest()
        self._put(INDEX, index.to_json())
        return index

    def _start_shard(self) -> None:
        self._tar = bytearray()
        self._offsets = [0]
        self._crc32: list[int] = []

    def _end_shard(self) -> None:
        data = bytes(self._tar) + END_OF_TAR
        table = sample_table.encode(self._offsets, self._crc32)
        shard = _index_entry(_shard_name(len(self._shards)), data, table)
        self._put(shard.name, data)
        self._put(shard.table, table)
        self._shards.append(shard)
        self._start_shard()

    def _put(self, key: str, data: bytes) -> None:
        put_once(
            self._storage,
            key,
            data,
            f"it belongs to another set: remove {self.uri}, or choose another destination",
        )


def _shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def _index_entry(name: str, data: bytes, table: bytes) -> Shard:
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
    """Encode one tar member; a new TarInfo has constant time, owner and mode."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    padding = bytes(-len(data) % tarfile.BLOCKSIZE)
    return header.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + padding
