"""The members of one sample's tar bytes. Nothing is extracted, followed or unpickled.

Python's tarfile is not used: what it does for links, sparse files, chains of headers and damaged
archives is more than a sample needs, and more than hostile bytes should reach.
"""

import struct
import zlib

from orchestrator.errors import DamagedSample

BLOCK = 512
MOST_MEMBERS = 64
"""More members than this make no sample; it bounds what a hostile tar costs."""
LONGEST_NAME = 4096
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s")
"""Name, size, checksum, kind, magic, prefix."""
_USTAR = b"ustar\0"
_REGULAR = (b"0", b"\0")
_PAX, _LONG_NAME, _FOLDER = b"x", b"L", b"5"
_PAX_THAT_MATTERS = (b" path=", b" size=", b" linkpath=", b" GNU.sparse")
"""Records of a pax header that change what the header after it says; times do not."""
_ADLER_BASE = 65521


def sample_members(data: bytes | memoryview, where: str) -> dict[str, memoryview]:
    """What a sample holds, by the ending after its key: ``k.a.png`` is ``a.png``.

    Raises DamagedSample, which starts with ``where``, for anything but plain files of one key, for
    two members of one ending, and for bytes that are no tar.
    """
    view = memoryview(data)
    members: dict[str, memoryview] = {}
    key, renamed, offset = None, b"", 0
    while offset + BLOCK <= len(view):
        header = view[offset : offset + BLOCK]
        name, digits, checksum, kind, magic, prefix = _HEADER.unpack_from(header)
        if kind == b"\0" and not any(header):
            break
        start = offset + BLOCK
        size = _size(header, digits, checksum, where)
        offset = start + -(-size // BLOCK) * BLOCK
        if offset > len(view):
            raise DamagedSample(f"{where} is no tar: a member does not end where it should")
        content = view[start : start + size]
        if kind in _REGULAR:
            whole = prefix.rstrip(b"\0") + b"/" + name if prefix[0] and magic == _USTAR else name
            of, ending = _split(renamed or whole, where)
            if key not in (of, None):
                raise DamagedSample(f"{where} has members of two samples: {key!r} and {of!r}")
            if ending in members:
                raise DamagedSample(f"{where} has two members called {ending!r}")
            if len(members) == MOST_MEMBERS:
                raise DamagedSample(f"{where} has more than {MOST_MEMBERS} members")
            members[ending], key, renamed = content, of, b""
        elif kind == _PAX:
            renamed = _pax_path(bytes(content), where) or renamed
        elif kind == _LONG_NAME or (kind == _FOLDER and not size):  # a folder precedes its files
            renamed = bytes(content[: LONGEST_NAME + 1])
        else:
            raise _not_plain(renamed or name, where)
    if not members:
        raise DamagedSample(f"{where} is no tar of a sample: it holds no files")
    return members


def _size(header: memoryview, digits: bytes, checksum: bytes, where: str) -> int:
    """The size that a header says, once its checksum is right."""
    try:
        size, expected = int(digits.rstrip(b"\0 "), 8), int(checksum.rstrip(b"\0 "), 8)
    except ValueError:
        size = expected = -1
    # The lower half of Adler-32 is one more than the sum, which zlib finds faster than Python.
    found = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(checksum) & 0xFFFF) + 8 * ord(" ")
    if size < 0 or (found - expected) % _ADLER_BASE:
        raise DamagedSample(f"{where} is no tar: a header is damaged")
    return size


def _split(name: bytes, where: str) -> tuple[str, str]:
    """A member's key with its folders, and its ending."""
    if len(name) > LONGEST_NAME:
        raise _not_plain(name, where)
    path = name.partition(b"\0")[0].decode("utf-8", "replace")
    folders, slash, base = path.rpartition("/")
    stem, _, ending = base.partition(".")
    if not base or ".." in path.split("/") or not path.isprintable():
        raise _not_plain(name, where)
    return folders + slash + stem, ending


def _pax_path(records: bytes, where: str) -> bytes:
    """The name that a pax header gives to the next member, or nothing."""
    path, at = b"", 0
    if not any(word in records for word in _PAX_THAT_MATTERS):
        return path
    while at < len(records):
        length, space, _ = records[at : at + 20].partition(b" ")
        end = at + int(length) if length.isdigit() and space else 0
        keyword, equals, value = records[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or records[end - 1 : end] != b"\n":
            raise DamagedSample(f"{where} is no tar: a pax header is damaged")
        if keyword in (b"size", b"linkpath") or keyword.startswith(b"GNU.sparse"):
            raise _not_plain(path, where)
        path, at = value if keyword == b"path" else path, end
    return path


def _not_plain(name: bytes, where: str) -> DamagedSample:
    text = name.partition(b"\0")[0][:100].decode("utf-8", "replace")
    return DamagedSample(f"{where}: {text!r} is not a plain file of a sample")
