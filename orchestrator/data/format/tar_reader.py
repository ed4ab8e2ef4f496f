"""Read a tar in a storage once, from the first byte to the last, and iterate over its samples."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orchestrator.data.format.tar_headers import BLOCK, TarHeaders, printable
from orchestrator.errors import DataError
from orchestrator.storage.base import Storage

READ_BYTES = 4 << 20
"""Bytes per request."""
MAX_SAMPLE_BYTES = 256 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""First bytes of compressed files."""

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

    def peek(self, start: int, end: int) -> bytes:
        """Return these bytes, none of which was taken, reading as far as needed."""
        while self._position < end and not self.at_end:
            self.read()
        return bytes(memoryview(self._kept)[start - self._taken : end - self._taken])

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


class TarReader:
    """Iterates over the samples of a tar in WebDataset's layout, in order, and reads it to its end.

    The samples are those that the webdataset package groups: consecutive members of one key.
    """

    def __init__(self, reader: HashingReader, where: str) -> None:
        self._reader, self._where = reader, where
        self.passed_over: Counter[str] = Counter()
        """Members that belong to no sample, by kind."""
        self.examples: dict[str, str] = {}
        """Name of the first one of each kind."""
        self.has_end_marker = True
        """Whether the tar has an end-of-archive marker; without one it may be truncated."""

    def __iter__(self) -> Iterator[TarSample]:
        """Yield the samples.

        Raises DataError, prefixed by ``where``, unless the tar is complete.
        """
        self._check_start()
        reader, where = self._reader, self._where
        headers = TarHeaders(reader.peek, reader.num_bytes, where)
        key, start, end = None, 0, 0
        for member in headers:
            if member.passed_over:
                self.passed_over[member.passed_over] += 1
                self.examples.setdefault(member.passed_over, printable(member.name))
            elif member.key != key:
                if key is not None:
                    yield TarSample(key, reader.take(end), end)
                key, start = member.key, end
            if headers.offset - start > MAX_SAMPLE_BYTES:
                name = printable(member.name)
                raise DataError(
                    f"{where}: {name} ends over {MAX_SAMPLE_BYTES >> 20} MiB after "
                    "the start of its sample"
                )
            if not member.passed_over:
                end = headers.offset
        if key is not None:
            yield TarSample(key, reader.take(end), end)
        self._check_tail(headers.offset)

    def _check_start(self) -> None:
        start = bytes(self._reader.peek(0, 6))
        if not start:
            raise DataError(f"{self._where} is not a complete tar: it is an empty file; remove it")
        for magic, name in _COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(
                    f"{self._where} is compressed ({name}) and has no random access: decompress it"
                )

    def _check_tail(self, after: int) -> None:
        """Read the rest, which must be zeros; one block of them is an end-of-archive marker."""
        reader = self._reader
        reader.take(after)
        position = after
        while not reader.at_end or position < reader.num_bytes:
            position = min(position + READ_BYTES, reader.num_bytes)
            if any(reader.take(position)):
                raise DataError(
                    f"{self._where} is not a complete tar: there are no more headers from byte "
                    f"{after}, but more bytes; if tars were joined with cat, split them, or write "
                    "one with tar --concatenate"
                )
        self.has_end_marker = reader.num_bytes - after >= BLOCK
