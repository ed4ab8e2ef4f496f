"""The record beside drawn images: which call they are from, so that no other adds to them."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import __version__ as pillow_version

from orchestrator.data.format.index_entries import Origin
from orchestrator.data.format.shard_index import canonical_json
from orchestrator.errors import DataError, UsageError
from orchestrator.file_sums import sum_bytes
from orchestrator.record_reader import DamagedRecord, parse_record
from orchestrator.sampling.conditions import Conditions
from orchestrator.sampling.image_blocks import Drawer
from orchestrator.storage.base import Storage

RECORD = "sampling.json"
"""Key of the record. It stays, so that the origin of the images is known."""


@dataclass(frozen=True)
class SamplingRecord:
    """What the bytes of the images depend on."""

    origin: Origin
    drawer: Drawer
    conditions: Conditions
    """Of the images to translate, only their number."""
    block: int
    """Images that are drawn at once."""
    shard_bytes: int | None = None
    """Most bytes of a shard of a packed set; None for image files."""

    def content(self) -> dict[str, Any]:
        """Return the content of the file."""
        inputs = self.drawer.inputs
        return {
            **self.origin.model_dump(),
            "config_sha256": sum_bytes(self.drawer.config.model_dump_json().encode()).sha256,
            "num_images": self.conditions.num_images,
            "classes": runs_of(self.conditions.classes),
            "caption": self.conditions.caption,
            "inputs": None if inputs is None else inputs.digest(),
            "preparation": None if inputs is None else asdict(inputs.preparation),
            "shard_bytes": self.shard_bytes,
            "device": self.drawer.device,
            "block": self.block,
            "torch": torch.__version__,
            "pillow": pillow_version,
            "format": 1,
        }


def runs_of(classes: tuple[int, ...] | None) -> list[list[int]] | None:
    """Shorten the classes of all images to [class, number of images] of each run.

    >>> runs_of((0, 0, 3))
    [[0, 2], [3, 1]]
    """
    if classes is None:
        return None
    runs: list[list[int]] = []
    for label in classes:
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1
        else:
            runs.append([label, 1])
    return runs


@contextmanager
def reserved(storage: Storage, record: SamplingRecord, keys: Collection[str]) -> Iterator[set[str]]:
    """Write the record, or find that it is the same, and draw in a with block.

    Yields which of ``keys``, the files that the block writes, exist already. If the block fails
    before it has written one, the record is removed.

    Raises:
        DataError: there is something from another call, or of unknown origin.
        UsageError: the images to translate are there.
    """
    _refuse_input(storage, record.drawer)
    remedy = f"remove {storage.uri}, or choose another --output"
    content = record.content()
    existing = set(storage.list())
    found = existing.intersection(keys)
    if RECORD not in existing and found:
        raise DataError(
            f"{storage.uri}/{min(found)} exists, and no {RECORD} tells what drew it; {remedy}"
        )
    if not storage.put_if_absent(RECORD, canonical_json(content)):
        _require_same(storage, content, remedy)
    try:
        yield found
    except BaseException:
        if not set(storage.list()).intersection(keys):
            storage.delete(RECORD)
        raise


def _refuse_input(storage: Storage, drawer: Drawer) -> None:
    if drawer.inputs is None:
        return
    given, output = drawer.inputs.uri, storage.uri
    if given == output or ("://" not in output and Path(given).resolve() == Path(output).resolve()):
        raise UsageError(
            f"{output} is also the input folder, whose images would be overwritten; give "
            "another --output"
        )


def _require_same(storage: Storage, content: dict[str, Any], remedy: str) -> None:
    read = storage.get_record(RECORD)
    if read == canonical_json(content):
        return
    try:
        theirs = parse_record(dict[str, Any], read, f"{storage.uri}/{RECORD}", remedy)
    except DamagedRecord as error:
        raise DataError(str(error)) from error
    ours = json.loads(canonical_json(content))
    differ = [n for n in sorted(theirs.keys() | ours.keys()) if theirs.get(n) != ours.get(n)]
    shown = ", ".join(f"{n} {_short(theirs.get(n))}, not {_short(ours.get(n))}" for n in differ)
    raise DataError(f"{storage.uri} holds images of another call ({shown}); {remedy}")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
