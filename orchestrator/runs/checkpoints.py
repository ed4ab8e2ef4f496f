"""Checkpoints in a storage: each under a new name, hashed, its manifest written last.

    <run>/checkpoints/000000512000-3f9a1c2e/networks.safetensors          the model's state dict
                                            snapshot.safetensors          weights to sample from
                                            optimizers.safetensors        optimizer tensors
                                            per_rank_buffers.safetensors  buffers of each rank
                                            state.json                    the rest: no pickle
                                            job.yaml                      the resolved job
                                            manifest.json                 size, sha256 of each file
                                            quarantined.json              why it is corrupt
    <run>/saved.json                        whether the run has ever saved a checkpoint

The number is images seen. A folder without a manifest is not a checkpoint. A checkpoint whose files
differ from its manifest is corrupt: it is quarantined, skipped from then on, and kept for
inspection. Each attempt has a new name, so a file that a manifest lists is never overwritten.
Older checkpoints are deleted only after the new one was read back.
"""

import json
import logging
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

from safetensors.torch import save as save_tensors
from torch import Tensor

from orchestrator.errors import DataError, OrchestratorError
from orchestrator.file_sums import sum_bytes
from orchestrator.runs.checkpoint_manifest import write_manifest
from orchestrator.runs.checkpoint_reader import (
    MANIFEST,
    TENSOR_FILES,
    CheckpointReader,
    CorruptCheckpoint,
)
from orchestrator.runs.saved_mark import SavedMark
from orchestrator.storage.base import Storage
from orchestrator.training.best_checkpoint import best_images
from orchestrator.training.state import TrainState

KEEP = 3
"""Checkpoints to keep: the newest that were read back as valid, and all that are newer."""
MOST = 2 * KEEP
"""Checkpoints from which on a process reads those that it has not written itself."""
QUARANTINED = "quarantined.json"
_NAME = re.compile(r"\d{12,13}-[^/]+")

T = TypeVar("T")
logger = logging.getLogger(__name__)


class NoCheckpointLeft(DataError):
    """A run has saved checkpoints, and all of them are damaged or gone."""


class Checkpoints(CheckpointReader):
    """Checkpoints of one run."""

    def __init__(
        self,
        storage: Storage,
        prefix: str,
        job: str,
        about: Mapping[str, str] | None = None,
        check_fence: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        prefix: folder of the checkpoints within ``storage``.
        job: the resolved job as YAML, without secrets.
        about: values for the manifest that name the run.
        check_fence: called right before each commit; raises Superseded to refuse it.
        """
        super().__init__(storage, prefix, about)
        self.job = job
        self.in_use: str | None = None
        """A checkpoint that is not deleted, because something else reads it."""
        self.also_kept: Callable[[list[str]], Collection[str]] = lambda names: ()
        """Which of the committed ones are not deleted, besides those that ``_retain`` keeps."""
        self._check_fence = check_fence
        self._valid: dict[str, int | None] = {}
        """Checkpoints that this process has read back as valid, with the images seen at what was
        the best one then, if the job asks for it."""
        self._saved, self._marked_saved = SavedMark(storage, self.prefix), False

    def save(self, state: TrainState) -> None:
        """Commit ``state``, which is on the host, read it back, and delete old checkpoints.

        If the storage returns something else, quarantines it and raises CorruptCheckpoint.
        """
        name = f"{state.images_seen:012d}-{uuid.uuid4().hex[:8]}"
        try:
            self._commit(name, state)
        except BaseException:
            with suppress(OrchestratorError):  # leave no partial files on a full disk
                self._delete(name)
            raise
        try:
            self.load(name)
        except CorruptCheckpoint as error:
            self._quarantine(name, error)
            raise
        if not self._marked_saved:
            self._saved.write_once()
            self._marked_saved = True
        with suppress(OrchestratorError):  # it is committed; the next save deletes more
            self._retain()

    def _commit(self, name: str, state: TrainState) -> None:
        listed = {}
        for file, content in self._contents(state):
            self.storage.put(f"{self.prefix}/{name}/{file}", content)
            listed[file] = sum_bytes(content)
        content = write_manifest(state.images_seen, listed, self.about)
        self._check_fence()
        self.storage.put_if_absent(f"{self.prefix}/{name}/{MANIFEST}", content)
        self._check_fence()  # it may have been superseded in between: `save` deletes it then

    def _contents(self, state: TrainState) -> Iterator[tuple[str, bytes]]:
        """Yield the files of a checkpoint one by one, because each may be large."""
        for kind, file in TENSOR_FILES.items():
            yield file, save_tensors(getattr(state, kind))
        values = {
            "images_seen": state.images_seen,
            "optimizers": state.settings,
            "stateful": state.stateful,
            "eval_pending": state.eval_pending,
        }
        yield "state.json", _json(values)
        yield "job.yaml", self.job.encode()

    def names(self) -> list[str]:
        """List the committed checkpoints that are not quarantined, oldest first."""
        return _usable(self.listed())

    def listed(self) -> dict[str, set[str]]:
        """List the files of every checkpoint by its name, uncommitted ones included."""
        found: dict[str, set[str]] = {}
        for key in self.storage.list(f"{self.prefix}/"):
            name, _, file = key.removeprefix(f"{self.prefix}/").partition("/")
            if _NAME.fullmatch(name) and file and "/" not in file:
                found.setdefault(name, set()).add(file)
        return dict(sorted(found.items()))

    def latest(self) -> TrainState | None:
        """Load the newest valid checkpoint; None if there is none.

        Corrupt ones are quarantined with a warning. Raises UnsupportedCheckpoint as ``load`` does.
        """
        return (self._newest(self.load) or (None, None))[1]

    def latest_snapshot(self) -> tuple[str, dict[str, Tensor]]:
        """Load the newest valid weights to sample from, with the name of their checkpoint.

        Raises NoCheckpointLeft if there are none.
        """
        found = self._newest(self.snapshot)
        if found is None:
            raise NoCheckpointLeft(f"no valid checkpoint is left in {self._uri('')}")
        return found

    def best_snapshot(self, best: str) -> tuple[str, dict[str, Tensor]]:
        """Load the weights to sample from of the best checkpoint, with its name.

        ``best`` is its name, or the beginning up to the ``-`` where all of that number are equal.
        Raises NoCheckpointLeft if it is damaged or gone: another one is not what was asked for.
        """
        problem = "it is gone"
        for name in reversed(self.names()):
            if name.startswith(best):
                try:
                    return name, self.snapshot(name)
                except CorruptCheckpoint as error:
                    problem = str(error)
        raise NoCheckpointLeft(
            f"the best checkpoint in {self._uri('').rstrip('/')}, of {images_of(best):,} images, "
            f"cannot be registered: {problem}; restore it from a backup and run the same command "
            "again, or register the newest one with --set register.best=null"
        )

    def _newest(self, load: Callable[[str], T]) -> tuple[str, T] | None:
        for name in reversed(self.names()):
            try:
                return name, load(name)
            except CorruptCheckpoint as error:
                logger.warning("%s; quarantined, using the previous checkpoint", error)
                self._quarantine(name, error)
        return None

    def resume(self) -> TrainState | None:
        """Load the newest valid checkpoint; None if the run has not saved one yet.

        Raises NoCheckpointLeft if it has, and else as ``latest`` does.
        """
        state = self.latest()
        if state is None and self._saved.read(self.listed):
            raise NoCheckpointLeft(
                f"all checkpoints in {self._uri('').rstrip('/')} are damaged or gone: restore one "
                "from a backup, or start the run again at image 0 with `orchestrator run JOB "
                "--resume --restart-from-scratch`"
            )
        return state

    def forget_saved(self) -> None:
        """Let the run start again at image 0, although its checkpoints are damaged or gone."""
        self._saved.write(saved=False)

    def _quarantine(self, name: str, reason: CorruptCheckpoint) -> None:
        mark = _json({"reason": str(reason)})
        self.storage.put_if_absent(f"{self.prefix}/{name}/{QUARANTINED}", mark)

    def load(self, name: str) -> TrainState:
        """Load a checkpoint as ``CheckpointReader.load`` does, and remember that it is valid."""
        state = super().load(name)
        self._valid[name] = best_images(state.stateful)
        return state

    def _retain(self) -> None:
        """Delete what is older than the KEEP newest valid checkpoints.

        That includes uncommitted ones. Quarantined ones are kept for inspection, and the best one
        as each of the KEEP knows it, because training may go on from any of them.
        """
        in_use = self.in_use  # before `also_kept`: what ends in between has its result there
        found = self.listed()
        if len(_usable(found)) >= MOST:
            self._read_back(_usable(found))
        valid = [name for name in _usable(found) if name in self._valid][-KEEP:]
        if len(valid) < KEEP:
            return
        best = tuple(f"{n:012d}-" for name in valid if (n := self._valid[name]) is not None)
        kept = {in_use, *self.also_kept(_usable(found))}
        for name, files in found.items():
            if name >= valid[0] or name in kept:
                continue
            if QUARANTINED not in files and not name.startswith(best):
                self._delete(name)

    def _read_back(self, names: list[str]) -> None:
        """Read the newest checkpoints until KEEP are known to be valid.

        A process that is killed after every checkpoint or two never knows KEEP of its own.
        """
        for name in reversed(names):
            if len(self._valid.keys() & set(names)) >= KEEP:
                return
            if name not in self._valid:
                with suppress(CorruptCheckpoint):  # whoever resumes quarantines it
                    self.load(name)

    def _delete(self, name: str) -> None:
        """Delete the files of ``name``, the manifest first."""
        folder = f"{self.prefix}/{name}/"
        self.storage.delete(f"{folder}{MANIFEST}")
        for key in self.storage.list(folder):
            self.storage.delete(key)


def images_of(name: str) -> int:
    """Return the images seen at a checkpoint, from its name."""
    return int(name.partition("-")[0])


def _usable(listed: Mapping[str, set[str]]) -> list[str]:
    return [n for n, files in listed.items() if MANIFEST in files and QUARANTINED not in files]


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
