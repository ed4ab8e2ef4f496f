"""Files in a storage read once, from the first byte to the last; and the samples of such a tar."""

import hashlib
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orchestrator.errors import DataError
from orchestrator.storage.base import Storage

PIECE = 4 << 20
"""Bytes that are asked for at a time."""
LARGEST_SAMPLE = 256 << 20
"""Bytes of the largest sample that is taken for one."""
LONGEST_EXTRA = 16 << 10
"""Bytes of pax records or of a long name."""

Read = Callable[[int], object]
"""Called with the number of bytes that were read."""


class Tape:
    """A file that is read once in pieces, hashed on the way; the newest bytes can be taken."""

    def __init__(self, storage: Storage, key: str, read: Read | None = None) -> None:
        self.num_bytes = storage.size(key)
        self._storage, self._key, self._told = storage, key, read
        self._sha256 = hashlib.sha256()
        self._kept = bytearray()
        self._taken = self._position = 0

    @property
    def at_end(self) -> bool:
        """Whether all is read."""
        return self._position == self.num_bytes

    def read(self, most: int = PIECE) -> bytes:
        """The next bytes, ``most`` or as many as there are left."""
        length = min(most, self.num_bytes - self._position)
        data = self._storage.get_range(self._key, self._position, length)
        self._sha256.update(data)
        self._kept += data
        self._position += length
        if self._told is not None:
            self._told(length)
        return data

    def take(self, end: int) -> bytes:
        """The bytes before ``end`` that were not taken yet; reads as far as it must."""
        while self._position < end and not self.at_end:
            self.read()
        length = end - self._taken
        data = bytes(memoryview(self._kept)[:length])
        del self._kept[:length]
        self._taken = end
        return data

    def sha256(self) -> str:
        """Sum of the whole file; reads what is left of it."""
        while not self.at_end:
            self.take(self._position)
            self.read()
        return self._sha256.hexdigest()


class Found(NamedTuple):
    """A sample of a tar."""

    key: str
    data: bytes
    """Its bytes, from where the sample before it ends."""
    end: int
    """Where they end in the tar."""


class _Bounded(tarfile.TarInfo):
    """A header with little before it: tarfile's time grows with the square of pax records."""

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_pax(self._checked(tar))  # type: ignore[misc,no-any-return]

    def _proc_gnulong(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return super()._proc_gnulong(self._checked(tar))  # type: ignore[misc,no-any-return]

    def _checked(self, tar: tarfile.TarFile) -> tarfile.TarFile:
        if self.size > LONGEST_EXTRA:
            raise tarfile.TarError(f"a header of {self.size} bytes")
        return tar


def walked(tape: Tape, where: str) -> Iterator[Found]:
    """The samples of the tar on ``tape``, one after the other from byte 0, and reads to its end.

    Raises DataError, at ``where``, for what is no tar in WebDataset's layout, and for a cut one.
    """
    key, end, seen = "", 0, set[str]()
    try:
        with tarfile.open(  # type: ignore[call-overload]
            fileobj=tape, mode="r|", bufsize=PIECE, tarinfo=_Bounded
        ) as tar:
            for member in tar:
                tar.members = []  # they are kept for nothing
                if member.isdir():
                    continue
                name = _key(member, where)
                if name != key:
                    if key:
                        yield Found(key, tape.take(end), end)
                    if name in seen:
                        raise DataError(
                            f"{where}: the files of {name} do not lie side by side; write the tar "
                            "again in order: tar --sort=name"
                        )
                    seen.add(name)
                    key, start = name, end
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if end - start > LARGEST_SAMPLE:
                    raise DataError(f"{where}: {name} has more than {LARGEST_SAMPLE >> 20} MiB")
            after = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is no whole tar: {error}") from error
    if key:
        yield Found(key, tape.take(end), end)
    _check_tail(tape, after, where)


def _key(member: tarfile.TarInfo, where: str) -> str:
    folder, base = posixpath.split(member.name)
    key, dot, _ = base.partition(".")
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    if not plain or not key or not dot or ".." in folder.split("/"):
        raise DataError(
            f"{where}: {member.name!r} is not a plain file of a sample, which are called "
            "KEY.ENDING; write the tar again without it"
        )
    return posixpath.join(folder, key)


def _check_tail(tape: Tape, after: int, where: str) -> None:
    """Read the rest, where a tar has nothing but zeros: at least one block of them."""
    tape.take(after)
    position = after
    while not tape.at_end or position < tape.num_bytes:
        position = min(position + PIECE, tape.num_bytes)
        if any(tape.take(position)):
            raise DataError(f"{where} is no whole tar: there are no headers from byte {after} on")
    if tape.num_bytes - after < tarfile.BLOCKSIZE:
        raise DataError(f"{where} is cut: it has no end mark; write it again")
