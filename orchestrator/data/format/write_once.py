"""Writing that cannot mix: what is there already is the same bytes, or an error says what to do."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from PIL import __version__ as pillow_version

from orchestrator.data.format.shard_index import INDEX, VERSION, canonical_json
from orchestrator.errors import DataError, TryAgain
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

MARK = "packing.json"
"""Name of what lies beside the sets while they are packed: of what, and how."""
CONFLICT_WAITS_S = (0.1, 0.5, 2.0)


def put_once(storage: Storage, key: str, data: bytes, advice: str) -> None:
    """Write ``data`` under ``key``, or find the same bytes there.

    Raises DataError, which ends with ``advice``, if something else is there.
    """
    for wait_s in (*CONFLICT_WAITS_S, None):
        try:
            if storage.put_if_absent(key, data) or storage.get(key) == data:
                return
        except TryAgain:  # another is writing it at this very moment
            if wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            break
    raise DataError(f"{storage.uri}/{key} is there already with another content; {advice}")


def refuse_existing(uri: str, remove: str = "it") -> None:
    """Raise DataError if there is a set at ``uri``: packed data is never written over.

    ``remove`` is what the message says to remove.
    """
    if open_storage(uri).exists(INDEX):
        raise DataError(
            f"there is a packed set at {uri} already; remove {remove}, or choose another place"
        )


@contextmanager
def reserved(dest_uri: str, plan: Mapping[str, object]) -> Iterator[None]:
    """Keep DEST/train and DEST/validation for what ``plan`` says, until the block is through.

    A block that fails after it has written leaves its mark: only the same plan may go on there.

    Raises DataError if there is a set already, or another plan's mark.
    """
    dest = dest_uri.rstrip("/")
    storage = open_storage(dest)
    both = f"{dest}/train and {dest}/validation"
    mine = canonical_json({**plan, "format": VERSION, "pillow": pillow_version})
    first = storage.put_if_absent(MARK, mine)
    if not first:
        _refuse_other(storage, mine, f"{dest}/{MARK}, {both}")
    try:
        # Of an interrupted packing the held-out set can be whole, for its index goes first.
        for part in ("train", "validation") if first else ("train",):
            refuse_existing(f"{dest}/{part}", remove=both)
    except DataError:
        storage.delete(MARK)
        raise
    try:
        yield
    except BaseException:
        if not storage.list("train/") and not storage.list("validation/"):
            storage.delete(MARK)
        raise
    storage.delete(MARK)


def _refuse_other(storage: Storage, mine: bytes, remove: str) -> None:
    try:
        found = storage.get(MARK)
    except NotFound:  # the other has just finished; what it packed is there
        return
    if found == mine:
        return
    try:
        theirs, ours = json.loads(found), json.loads(mine)
        names = sorted(theirs.keys() | ours.keys())
        differ = [n for n in names if theirs.get(n) != ours.get(n)]
        told = ", ".join(f"{n} {theirs.get(n)} and not {ours.get(n)}" for n in differ)
    except (ValueError, AttributeError):
        told = f"{MARK} is damaged"
    raise DataError(
        f"something else is being packed at {storage.uri}, or was interrupted ({told}); "
        f"wait for it, or remove {remove}, or choose another place"
    )
