"""Write files that never change: existing ones must have the same bytes."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import __version__ as pillow_version

from orchestrator.data.format.shard_index import INDEX, VERSION, canonical_json
from orchestrator.errors import DataError, TryAgain
from orchestrator.record_reader import DamagedRecord, parse_record
from orchestrator.retry import retry
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage

PACKING_FILE = "packing.json"
"""Key beside the sets while they are packed, with the inputs and options of the packing."""
CONFLICT_TIMEOUT_S = 3.0
"""How long to wait for another process that is writing the same key."""


def put_once(storage: Storage, key: str, data: bytes, advice: str) -> None:
    """Write ``data`` to ``key`` unless it exists with the same bytes.

    Raises DataError, which ends with ``advice``, if it exists with other bytes.
    """
    is_written = retry(
        lambda: storage.put_if_absent(key, data) or storage.get(key) == data,
        is_transient=lambda error: isinstance(error, TryAgain),
        timeout_s=CONFLICT_TIMEOUT_S,
        first_pause_s=0.1,
        longest_pause_s=1.0,
    )
    if not is_written:
        raise DataError(f"{storage.uri}/{key} already exists with other content; {advice}")


def refuse_existing(uri: str, remove: str = "it") -> None:
    """Raise DataError if there is a set at ``uri``: packed data is never overwritten.

    The message advises to remove ``remove``.
    """
    if open_storage(uri).exists(INDEX):
        raise DataError(
            f"there is already a packed set at {uri}; remove {remove}, or choose another "
            "destination"
        )


@contextmanager
def reserve_destination(dest_uri: str, plan: Mapping[str, object]) -> Iterator[None]:
    """Reserve DEST/train and DEST/validation for packing by ``plan`` within a with block.

    If the block fails after it has written something, the reservation stays: only a packing with
    the same plan can resume there.

    Raises DataError if there is already a set or a reservation with another plan.
    """
    dest = dest_uri.rstrip("/")
    storage = open_storage(dest)
    both = f"{dest}/train and {dest}/validation"
    reservation = canonical_json({**plan, "format": VERSION, "pillow": pillow_version})
    is_new = storage.put_if_absent(PACKING_FILE, reservation)
    if not is_new:
        _refuse_other(storage, reservation, f"{dest}/{PACKING_FILE}, {both}")
    try:
        # An interrupted packing may have a complete validation set, whose index is written first.
        for part in ("train", "validation") if is_new else ("train",):
            refuse_existing(f"{dest}/{part}", remove=both)
    except DataError:
        storage.delete(PACKING_FILE)
        raise
    try:
        yield
    except BaseException:
        if not storage.list("train/") and not storage.list("validation/"):
            storage.delete(PACKING_FILE)
        raise
    storage.delete(PACKING_FILE)


def _refuse_other(storage: Storage, reservation: bytes, remove: str) -> None:
    """Raise DataError if another reservation is there; ``remove`` is what the message advises."""
    try:
        found = storage.get(PACKING_FILE)
    except NotFound:  # the other packing has just finished
        return
    if found == reservation:
        return
    try:
        theirs = parse_record(dict[str, Any], found, PACKING_FILE, "")
        ours = json.loads(reservation)
        names = sorted(theirs.keys() | ours.keys())
        differ = [n for n in names if theirs.get(n) != ours.get(n)]
        difference = ", ".join(f"{n} {theirs.get(n)}, not {ours.get(n)}" for n in differ)
    except DamagedRecord:
        difference = f"{PACKING_FILE} is corrupt"
    raise DataError(
        f"another packing at {storage.uri} is in progress or was interrupted ({difference}); "
        f"wait for it, or remove {remove}, or choose another destination"
    )
