"""Read a tar in a storage once, from the first byte to the last, and iterate over its samples."""

import hashlib
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orchestrator.errors import DataError
from orchestrator.storage.base import Storage

READ_BYTES = 4 << 20
"""Bytes per request."""
MAX_SAMPLE_BYTES = 256 << 20
MAX_HEADER_BYTES = 16 << 10
"""Most bytes of pax records or of a long name."""

ReadCallback = Callable[[int], object]
"""Called with the number of bytes of each request."""


class HashingReader:
    """Reads a file once in pieces and hashes it; bytes read since the last ``take`` are kept."""

    def __init__(self, storage: Storage, key: str, on_read: ReadCallback | None = None) -> None:
        self.num_bytes = storage.size(key)
        self._storage, self._key, self._on_read = storage, key, on_read
        self._sha256 = hashlib.sha256()
        self._kept = bytearray()
        self._taken = self._position = 0

    @property
    def at_end(self) -> bool:
        """Whether the whole file has been read."""
        return self._position == self.num_bytes

    def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """Read the next bytes, fewer than ``max_bytes`` only at the end of the file."""
        length = min(max_bytes, self.num_bytes - self._position)
        data = self._storage.get_range(self._key, self._position, length)
        self._sha256.update(data)
        self._kept += data
        self._position += length
        if self._on_read is not None:
            self._on_read(length)
        return data

    def take(self, end: int) -> bytes:
        """Return the bytes before ``end`` that were not taken yet, reading as far as needed."""
        while self._position < end and not self.at_end:
            self.read()
        length = end - self._taken
        data = bytes(memoryview(self._kept)[:length])
        del self._kept[:length]
        self._taken = end
        return data

    def sha256(self) -> str:
        """Return the hash of the whole file, reading the rest of it."""
        while not self.at_end:
            self.take(self._position)
            self.read()
        return self._sha256.hexdigest()


class TarSample(NamedTuple):
    """One sample of a tar."""

    key: str
    data: bytes
    """Its tar bytes, starting where the previous sample ends."""
    end: int
    """End offset in the tar."""


class _BoundedTarInfo(tarfile.TarInfo):
    """Limits the size of extended headers: tarfile takes quadratic time in pax records."""

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_pax(self._check_size(tar))  # type: ignore[misc,no-any-return]

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_gnulong(self._check_size(tar))  # type: ignore[misc,no-any-return]

    def _check_size(self, tar: tarfile.TarFile) -> tarfile.TarFile:
        if self.size > MAX_HEADER_BYTES:
            raise tarfile.TarError(f"a header of {self.size} bytes")
        return tar


def iter_samples(reader: HashingReader, where: str) -> Iterator[TarSample]:
    """Yield the samples of a tar in their order, and read it to its end.

    Raises DataError, prefixed by ``where``, unless it is a complete tar in WebDataset's layout.
    """
    key, end, seen = "", 0, set[str]()
    try:
        with tarfile.open(  # type: ignore[call-overload]
            fileobj=reader, mode="r|", bufsize=READ_BYTES, tarinfo=_BoundedTarInfo
        ) as tar:
            for member in tar:
                tar.members = []  # tarfile keeps them all in memory
                if member.isdir():
                    continue
                name = _key(member, where)
                if name != key:
                    if key:
                        yield TarSample(key, reader.take(end), end)
                    if name in seen:
                        raise DataError(
                            f"{where}: the files of {name} are not next to each other; write the "
                            "tar again in order: tar --sort=name"
                        )
                    seen.add(name)
                    key, start = name, end
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end - start > MAX_SAMPLE_BYTES:
                    raise DataError(f"{where}: {name} has more than {MAX_SAMPLE_BYTES >> 20} MiB")
            after = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is not a complete tar: {error}") from error
    if key:
        yield TarSample(key, reader.take(end), end)
    _check_tail(reader, after, where)


def _key(member: tarfile.TarInfo, where: str) -> str:
    folder, base = posixpath.split(member.name)
    key, dot, _ = base.partition(".")
    is_regular = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not is_regular or not key or not dot or ".." in folder.split("/"):
        raise DataError(
            f"{where}: {member.name!r} is not a regular file of a sample, named "
            "KEY.EXTENSION; write the tar again without it"
        )
    return posixpath.join(folder, key)


def _check_tail(reader: HashingReader, after: int, where: str) -> None:
    """Read the rest, which must be zeros: at least one block of them."""
    reader.take(after)
    position = after
    while not reader.at_end or position < reader.num_bytes:
        position = min(position + READ_BYTES, reader.num_bytes)
        if any(reader.take(position)):
            raise DataError(
                f"{where} is not a complete tar: there are no more headers from byte {after}"
            )
    if reader.num_bytes - after < tarfile.BLOCKSIZE:
        raise DataError(f"{where} is truncated: it has no end-of-archive marker; write it again")
