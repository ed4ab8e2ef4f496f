"""Split the tar bytes of one sample into members. Nothing is extracted, followed or unpickled.

Python's tarfile is not used: its support for links, sparse files, chained headers and corrupt
archives is more than a sample needs and more than hostile bytes should reach.
"""

import struct
import zlib

from orchestrator.errors import CorruptSample

BLOCK = 512
MAX_MEMBERS = 64
"""Most members of a sample, which bounds the cost of a hostile tar."""
MAX_NAME_BYTES = 4096
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s")
"""Name, size, checksum, type, magic, prefix."""
_USTAR = b"ustar\0"
_REGULAR = (b"0", b"\0")
_PAX, _LONG_NAME, _FOLDER = b"x", b"L", b"5"
_RELEVANT_PAX = (b" path=", b" size=", b" linkpath=", b" GNU.sparse")
"""Pax records that override the next header; times do not."""
_ADLER_BASE = 65521


def sample_members(data: bytes | memoryview, where: str) -> dict[str, memoryview]:
    """Return the members of a sample by the extension after its key: ``a.png`` for ``k.a.png``.

    Raises CorruptSample, prefixed by ``where``, unless ``data`` is a tar of regular files with one
    key and distinct extensions.
    """
    view = memoryview(data)
    members: dict[str, memoryview] = {}
    key, long_name, offset = None, b"", 0
    while offset + BLOCK <= len(view):
        header = view[offset : offset + BLOCK]
        name, digits, checksum, kind, magic, prefix = _HEADER.unpack_from(header)
        if kind == b"\0" and not any(header):
            break
        start = offset + BLOCK
        size = _size(header, digits, checksum, where)
        offset = start + -(-size // BLOCK) * BLOCK
        if offset > len(view):
            raise CorruptSample(f"{where} is not a tar: a member extends beyond its end")
        content = view[start : start + size]
        if kind in _REGULAR:
            if prefix[0] and magic == _USTAR:
                name = prefix.rstrip(b"\0") + b"/" + name
            member_key, extension = _split_name(long_name or name, where)
            if key not in (member_key, None):
                raise CorruptSample(
                    f"{where} has members of two samples: {key!r} and {member_key!r}"
                )
            if extension in members:
                raise CorruptSample(f"{where} has two members called {extension!r}")
            if len(members) == MAX_MEMBERS:
                raise CorruptSample(f"{where} has more than {MAX_MEMBERS} members")
            members[extension], key, long_name = content, member_key, b""
        elif kind == _PAX:
            long_name = _pax_path(bytes(content), where) or long_name
        elif kind == _LONG_NAME or (kind == _FOLDER and not size):  # a folder precedes its files
            long_name = bytes(content[: MAX_NAME_BYTES + 1])
        else:
            raise _not_regular(long_name or name, where)
    if not members:
        raise CorruptSample(f"{where} is not a tar of a sample: it contains no files")
    return members


def _size(header: memoryview, digits: bytes, checksum: bytes, where: str) -> int:
    """Return the size in a header after checking its checksum."""
    try:
        size, expected = int(digits.rstrip(b"\0 "), 8), int(checksum.rstrip(b"\0 "), 8)
    except ValueError:
        size = expected = -1
    # The lower half of Adler-32 is the sum plus one, which zlib computes faster than Python.
    found = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(checksum) & 0xFFFF) + 8 * ord(" ")
    if size < 0 or (found - expected) % _ADLER_BASE:
        raise CorruptSample(f"{where} is not a tar: a header is corrupt")
    return size


def _split_name(name: bytes, where: str) -> tuple[str, str]:
    """Split the name of a member into its key, with folders, and its extension."""
    if len(name) > MAX_NAME_BYTES:
        raise _not_regular(name, where)
    path = name.partition(b"\0")[0].decode("utf-8", "replace")
    folders, slash, base = path.rpartition("/")
    stem, _, extension = base.partition(".")
    if not base or ".." in path.split("/") or not path.isprintable():
        raise _not_regular(name, where)
    return folders + slash + stem, extension


def _pax_path(records: bytes, where: str) -> bytes:
    """Return the name that a pax header gives to the next member, or nothing."""
    path, at = b"", 0
    if not any(record in records for record in _RELEVANT_PAX):
        return path
    while at < len(records):
        length, space, _ = records[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() and space else 0
        keyword, equals, value = records[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or records[end - 1 : end] != b"\n":
            raise CorruptSample(f"{where} is not a tar: a pax header is corrupt")
        if keyword in (b"size", b"linkpath") or keyword.startswith(b"GNU.sparse"):
            raise _not_regular(path, where)
        path, at = value if keyword == b"path" else path, end
    return path


def _not_regular(name: bytes, where: str) -> CorruptSample:
    text = name.partition(b"\0")[0][:100].decode("utf-8", "replace")
    return CorruptSample(f"{where}: {text!r} is not a regular file of a sample")
