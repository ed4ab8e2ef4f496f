"""Split the tar bytes of one sample into members. Nothing is extracted, followed or unpickled."""

from collections.abc import Mapping

from orchestrator.data.format.tar_headers import TarHeaders, printable
from orchestrator.errors import CorruptSample

MAX_MEMBERS = 1024
"""Most members of a sample, which bounds the cost of a hostile tar."""


def sample_members(data: bytes | memoryview, where: str) -> dict[str, memoryview]:
    """Return the members of a sample by the extension after its key: ``a.png`` for ``k.a.png``.

    Members that belong to no sample, such as folders and links, are passed over. Raises
    CorruptSample, prefixed by ``where``, unless ``data`` is a tar of files with one key and
    distinct extensions.
    """
    view = memoryview(data)
    members: dict[str, memoryview] = {}
    key = None
    for member in TarHeaders(lambda start, end: view[start:end], len(view), where):
        if member.passed_over:
            continue
        if key not in (member.key, None):
            raise CorruptSample(
                f"{where} has members of two samples: {printable(key or '')!r} and "
                f"{printable(member.key)!r}"
            )
        if member.ending in members:
            raise CorruptSample(f"{where} has two members called {printable(member.ending)!r}")
        if len(members) == MAX_MEMBERS:
            raise CorruptSample(f"{where} has more than {MAX_MEMBERS} members")
        members[member.ending], key = view[member.start : member.end], member.key
    if not members:
        raise CorruptSample(f"{where} is not a tar of a sample: it contains no files")
    return members


def find_member(members: Mapping[str, memoryview], endings: str) -> str | None:
    """Return the name of the first member that has one of ``endings``, such as "jpg,png".

    Upper and lower case do not matter, unless a sample has both.
    """
    for ending in endings.split(","):
        if ending in members:
            return ending
        lower = ending.lower()
        for name in members:
            if name.lower() == lower:
                return name
    return None
