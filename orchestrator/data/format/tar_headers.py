"""Parse the headers of a tar, whose bytes may be hostile, and name the member of each.

Python's tarfile is not used: its support for links, sparse files, chained headers and corrupt
archives is more than a sample needs and more than hostile bytes should reach. For the archives
that it reads to their end, the members are the same as by tarfile, which webdataset uses.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orchestrator.errors import CorruptSample

BLOCK = 512
MAX_HEADER_BYTES = 1 << 20
"""Most bytes of pax records."""
MAX_NAME_BYTES = 4096
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s")
"""Name, size, checksum, type, magic, prefix."""
_USTAR = b"ustar\0"
_REGULAR = (b"0", b"\0", b"7")
_PAX, _PAX_OLD, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"x", b"X", b"g", b"L", b"K", b"S"
_EXTENDED = (_PAX, _PAX_OLD, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
"""Headers that describe the next member."""
_FOLDER = b"5"
_LINKS = (b"1", b"2")
_NO_CONTENT = (*_LINKS, b"3", b"4", _FOLDER, b"6")
"""Types without content, whatever size they state."""
_RELEVANT_PAX = (b" path=", b" size=", b" GNU.sparse")
"""Pax records that override the next header; times do not."""
_ADLER_BASE = 65521
_NAMES_TO_PASS_OVER = (
    (
        re.compile(r"(^|/)(\._[^/]*|\.DS_Store)\Z|^(\./)?__MACOSX/"),
        "macOS files (._NAME, .DS_Store, __MACOSX)",
    ),
    (
        re.compile(r"(^|/)(Thumbs\.db|desktop\.ini)\Z", re.IGNORECASE),
        "Windows files (Thumbs.db, desktop.ini)",
    ),
    (re.compile(r"^__[^/]*__(/|\Z)"), "files of webdataset's own (__NAME__)"),
    (re.compile(r"(^|/)\.[^/]*\Z"), "hidden files"),
    (re.compile(r"(^|/)[^./]*\Z"), "files without an ending"),
)
"""Patterns of the names of files that belong to no sample."""

Bytes = bytes | memoryview


class TarMember(NamedTuple):
    """One member; offsets are in bytes of the archive."""

    name: str
    key: str
    """Name of its sample, with folders; empty if the member belongs to none."""
    ending: str
    """What follows the key and a dot, with the case that it has."""
    passed_over: str
    """What kind of member that belongs to no sample it is; empty for the others."""
    start: int
    end: int
    """Of its content."""


class TarHeaders:
    """Iterates over the members of an archive, and ends at its end-of-archive marker."""

    def __init__(self, read: Callable[[int, int], Bytes], num_bytes: int, where: str) -> None:
        """Parse what ``read(start, end)`` returns, which is called in ascending order."""
        self._read, self._num_bytes, self._where = read, num_bytes, where
        self.offset = 0
        """Where the next header is."""

    def __iter__(self) -> Iterator[TarMember]:
        """Yield each member. Raises CorruptSample, prefixed by ``where``, if a header is corrupt,
        a member extends beyond the end, or is a sparse file.
        """
        long_name, pax_size = b"", None
        while self.offset + BLOCK <= self._num_bytes:
            header = self._read(self.offset, self.offset + BLOCK)
            name, digits, checksum, kind, magic, prefix = _HEADER.unpack_from(header)
            if kind == b"\0" and not any(header):
                return
            size = self._size(header, digits, checksum)
            start = self.offset + BLOCK
            if kind == b"\0" and name.partition(b"\0")[0].endswith(b"/"):  # before POSIX
                kind = _FOLDER
            if kind in _NO_CONTENT:
                size = 0
            elif pax_size is not None and kind not in _EXTENDED:
                size = pax_size
            self.offset = start + -(-size // BLOCK) * BLOCK
            if self.offset > self._num_bytes:
                raise self._not_a_tar("a member extends beyond its end")
            if kind in (_PAX, _PAX_OLD, _PAX_GLOBAL):
                path, records_size = self._pax(start, size, kind == _PAX_GLOBAL)
                if kind != _PAX_GLOBAL:
                    long_name, pax_size = path or long_name, records_size
            elif kind == _LONG_NAME:
                long_name = bytes(self._read(start, start + min(size, MAX_NAME_BYTES + 1)))
                long_name = long_name.partition(b"\0")[0]
            elif kind != _LONG_LINK:
                if prefix[0] and magic == _USTAR:
                    name = prefix.rstrip(b"\0") + b"/" + name.partition(b"\0")[0]
                full_name = long_name or name.partition(b"\0")[0]
                long_name, pax_size = b"", None
                yield self._member(full_name, kind, start, start + size)

    def _member(self, name: bytes, kind: bytes, start: int, end: int) -> TarMember:
        text = name[: MAX_NAME_BYTES + 1].decode("utf-8", "surrogateescape")
        if len(name) > MAX_NAME_BYTES or kind == _SPARSE:
            what = "a sparse file" if kind == _SPARSE else f"a name of over {MAX_NAME_BYTES} bytes"
            advice = "without --sparse" if kind == _SPARSE else "with shorter names"
            raise CorruptSample(
                f"{self._where}: {printable(text)!r} is {what}; write the tar again {advice}"
            )
        passed_over = _kind_to_pass_over(text, kind)
        if passed_over:
            return TarMember(text, "", "", passed_over, start, end)
        folders, slash, base = text.rpartition("/")
        stem, _, ending = base.partition(".")
        return TarMember(text, folders + slash + stem, ending, "", start, end)

    def _size(self, header: Bytes, digits: bytes, checksum: bytes) -> int:
        """Return the size in a header after checking its checksum."""
        try:
            size, expected = _number(digits), _number(checksum)
        except ValueError:
            size = expected = -1
        # The lower half of Adler-32 is the sum plus one, which zlib computes faster than Python.
        found = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(checksum) & 0xFFFF) + 8 * ord(" ")
        is_valid = size >= 0 and (found - expected) % _ADLER_BASE == 0
        if not is_valid and (size < 0 or expected != _signed_sum(bytes(header))):
            raise self._not_a_tar(f"the header at byte {self.offset} is corrupt")
        return size

    def _pax(self, start: int, size: int, is_global: bool) -> tuple[bytes, int | None]:
        """Return the name and the size that a pax header gives to the next member, if any."""
        if size > MAX_HEADER_BYTES:
            raise self._not_a_tar(f"a pax header has {size} bytes")
        records = bytes(self._read(start, start + size))
        path, member_size, at = b"", None, 0
        if not any(record in records for record in _RELEVANT_PAX):
            return path, member_size
        while at < len(records) and records[at]:
            length, space, _ = records[at : at + 20].partition(b" ")
            end = at + int(length) if length.isdigit() and space else 0
            keyword, equals, value = records[at + len(length) + 1 : end - 1].partition(b"=")
            if not equals or records[end - 1 : end] != b"\n":
                raise self._not_a_tar("a pax header is corrupt")
            if keyword == b"path":
                path = value[: MAX_NAME_BYTES + 1]
            elif keyword == b"size" and value.isdigit() and len(value) < 20:
                member_size = int(value)
            elif keyword == b"size" or keyword.startswith(b"GNU.sparse"):
                what = "sparse files" if keyword != b"size" else "an invalid size"
                raise self._not_a_tar(f"a pax header describes {what}, which are not read")
            at = end
        if is_global and (path or member_size is not None):
            raise self._not_a_tar("a global pax header names its members")
        return path, member_size

    def _not_a_tar(self, what: str) -> CorruptSample:
        return CorruptSample(f"{self._where} is not a complete tar: {what}")


def printable(text: str) -> str:
    """Return up to 100 characters of a name, escaped where they are not printable."""
    text = text[:100]
    return text if text.isprintable() else repr(text)[1:-1]


def _number(field: bytes) -> int:
    """Parse a number of a header: octal digits, or base 256 if the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _signed_sum(header: bytes) -> int:
    """Return the checksum of a header as some old programs compute it, from signed bytes."""
    fields = header[:148] + b" " * 8 + header[156:]
    return sum(fields) - 256 * sum(byte > 127 for byte in fields)


def _kind_to_pass_over(name: str, kind: bytes) -> str:
    """Return what kind of member that belongs to no sample it is, or ""."""
    if kind not in _REGULAR:
        return "folders" if kind == _FOLDER else "links" if kind in _LINKS else "special files"
    return next((what for pattern, what in _NAMES_TO_PASS_OVER if pattern.search(name)), "")
