"""A mark that a run has saved a checkpoint: one whose checkpoints are all gone is not a new run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.record_reader import DamagedRecord, parse_record
from orchestrator.storage.base import NotFound, Storage

SAVED = "saved.json"
COMMITTED = {"manifest.json", "quarantined.json"}
"""Files of which a checkpoint that was committed has one."""


@dataclass(frozen=True)
class _Saved:
    """Content of saved.json."""

    saved: bool


class SavedMark:
    """Whether a run has ever saved a checkpoint, in its storage."""

    def __init__(self, storage: Storage, checkpoints: str) -> None:
        """``checkpoints``: their folder; the mark is beside it, not to be lost with it."""
        self._storage = storage
        self._key = f"{checkpoints.rpartition('/')[0]}/{SAVED}".lstrip("/")

    def write_once(self) -> None:
        """Write that the run has saved a checkpoint, unless that is written already."""
        try:
            content = self._storage.get_record(self._key)
            if parse_record(_Saved, content, SAVED, "").saved:
                return
        except (NotFound, DamagedRecord):
            pass
        self.write(saved=True)

    def write(self, *, saved: bool) -> None:
        """Write the mark."""
        content = json.dumps({"saved": saved}, indent=1).encode()
        self._storage.put(self._key, content)

    def read(self, listed: Callable[[], Mapping[str, set[str]]]) -> bool:
        """Read the mark; a run of before there were marks has the files that ``listed`` returns."""
        try:
            content = self._storage.get_record(self._key)
            return parse_record(_Saved, content, SAVED, "").saved
        except NotFound:
            return any(COMMITTED & files for files in listed().values())
        except DamagedRecord:  # it was written
            return True
