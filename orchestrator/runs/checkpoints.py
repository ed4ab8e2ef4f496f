"""Checkpoints in a storage: each under a new name, hashed, its manifest written last.

    <run>/checkpoints/000000512000-3f9a1c2e/networks.safetensors          the model's state dict
                                            snapshot.safetensors          weights to sample from
                                            optimizers.safetensors        optimizer tensors
                                            per_rank_buffers.safetensors  buffers of each rank
                                            state.json                    the rest: no pickle
                                            job.yaml                      the resolved job
                                            manifest.json                 size, sha256 of each file
                                            quarantined.json              why it is corrupt

The number is images seen. A folder without a manifest is not a checkpoint. A checkpoint whose files
differ from its manifest is corrupt: it is quarantined, skipped from then on, and kept for
inspection. Each attempt has a new name, so a file that a manifest lists is never overwritten.
Older checkpoints are deleted only after the new one was read back.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.redaction import mask
from orchestrator.storage.base import NotFound, Storage
from orchestrator.storage.open import open_storage
from orchestrator.training.state import TENSORS, TrainState

FORMAT = 3
KEEP = 3
"""Checkpoints to keep: the newest that were read back as valid, and all that are newer."""
TENSOR_FILES = {kind: f"{kind}.safetensors" for kind in TENSORS}
"""File of each field of TrainState that has its own."""
MANIFEST, QUARANTINED = "manifest.json", "quarantined.json"
FILES = (*TENSOR_FILES.values(), "state.json", "job.yaml")
"""Files of every checkpoint, besides its manifest."""

logger = logging.getLogger(__name__)


class CorruptCheckpoint(DataError):
    """A checkpoint cannot be used: a file is missing or differs from the manifest."""


class UnsupportedCheckpoint(DataError):
    """A checkpoint was written in another format, by another version of the orchestrator."""


class Checkpoints:
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
        self.storage = storage
        self.prefix = prefix.rstrip("/")
        self.job = job
        self.about = dict(about or {})
        self._check_fence = check_fence
        self._valid: set[str] = set()
        """Checkpoints that this process has read back as valid."""

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
        with suppress(OrchestratorError):  # it is committed; the next save deletes more
            self._retain()

    def _commit(self, name: str, state: TrainState) -> None:
        listed = {}
        for file, content in self._contents(state):
            self.storage.put(f"{self.prefix}/{name}/{file}", content)
            listed[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"format": FORMAT, "images_seen": state.images_seen, "files": listed}
        content = _json({**manifest, **self.about})
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
            *_, name, file = key.split("/")
            found.setdefault(name, set()).add(file)
        return dict(sorted(found.items()))

    def latest(self) -> TrainState | None:
        """Load the newest valid checkpoint; None if there is none.

        Corrupt ones are quarantined with a warning. Raises UnsupportedCheckpoint as ``load`` does.
        """
        for name in reversed(self.names()):
            try:
                return self.load(name)
            except CorruptCheckpoint as error:
                logger.warning("%s; quarantined, using the previous checkpoint", error)
                self._quarantine(name, error)
        return None

    def _quarantine(self, name: str, reason: CorruptCheckpoint) -> None:
        mark = _json({"reason": str(reason)})
        self.storage.put_if_absent(f"{self.prefix}/{name}/{QUARANTINED}", mark)

    def load(self, name: str) -> TrainState:
        """Load the checkpoint called ``name``.

        Raises:
            CorruptCheckpoint: a file is missing or differs from what was written.
            UnsupportedCheckpoint: another version of the orchestrator wrote it in another format.
        """
        sums = self._manifest(name)
        files = {file: self._verified(name, file, sums[file]) for file in FILES}
        tensors = {
            kind: self._tensors(name, file, files[file]) for kind, file in TENSOR_FILES.items()
        }
        with self._parsing(name, "state.json"):
            values = json.loads(files["state.json"])
            state = TrainState(
                int(values["images_seen"]),
                settings=dict(values["optimizers"]),
                stateful=dict(values["stateful"]),
                eval_pending=bool(values["eval_pending"]),
                **tensors,
            )
        self._valid.add(name)
        return state

    def snapshot(self, name: str) -> dict[str, Tensor]:
        """Load only the weights to sample from. Raises as ``load`` does."""
        file = TENSOR_FILES["snapshot"]
        return self._tensors(name, file, self._verified(name, file, self._manifest(name)[file]))

    def manifest(self, name: str) -> dict[str, Any]:
        """Read the manifest of ``name``. Raises CorruptCheckpoint if it cannot be read."""
        content = self._get(name, MANIFEST)
        with self._parsing(name, MANIFEST):
            manifest = dict(json.loads(content))
            sizes = [entry["bytes"] for entry in dict(manifest.get("files", {})).values()]
            if not all(isinstance(n, int) for n in (*sizes, manifest.get("images_seen", 0))):
                raise ValueError("a size is not an integer")
            return manifest

    def _manifest(self, name: str) -> dict[str, tuple[int, str]]:
        """Read the size in bytes and the sha256 of each of FILES from the manifest."""
        manifest = self.manifest(name)
        with self._parsing(name, MANIFEST):
            found = manifest["format"]
            if found != FORMAT and set(manifest.get("files", ())) == set(FILES):
                raise ValueError(f"format {found!r} with the files of format {FORMAT}")
            if found != FORMAT:
                raise UnsupportedCheckpoint(
                    f"checkpoint {self._uri(name)} has format {found!r}, and this version of the "
                    f"orchestrator reads format {FORMAT}; use the version that wrote it, or start "
                    "a new run"
                )
            entries = {file: manifest["files"][file] for file in FILES}
            return {file: (int(e["bytes"]), str(e["sha256"])) for file, e in entries.items()}

    def _tensors(self, name: str, file: str, content: bytes) -> dict[str, Tensor]:
        with self._parsing(name, file):
            return load_tensors(content)

    @contextmanager
    def _parsing(self, name: str, file: str) -> Iterator[None]:
        """Raise CorruptCheckpoint for what parsers raise."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise CorruptCheckpoint(
                f"checkpoint {self._uri(name)} is corrupt: {file} cannot be read "
                f"({type(error).__name__}: {error})"
            ) from error

    def _verified(self, name: str, file: str, sums: tuple[int, str]) -> bytes:
        content = self._get(name, file)
        if (len(content), hashlib.sha256(content).hexdigest()) != sums:
            raise CorruptCheckpoint(f"checkpoint {self._uri(name)} is corrupt: {file} has changed")
        return content

    def _get(self, name: str, file: str) -> bytes:
        try:
            return self.storage.get(f"{self.prefix}/{name}/{file}")
        except NotFound as error:
            problem = f"checkpoint {self._uri(name)} is corrupt: no {file}"
            raise CorruptCheckpoint(problem) from error

    def _uri(self, name: str) -> str:
        return f"{self.storage.uri.rstrip('/')}/{self.prefix}/{name}"

    def _retain(self) -> None:
        """Delete what is older than the KEEP newest valid checkpoints.

        That includes uncommitted ones; quarantined ones are kept for inspection.
        """
        found = self.listed()
        valid = [name for name in _usable(found) if name in self._valid][-KEEP:]
        if len(valid) < KEEP:
            return
        for name, files in found.items():
            if name < valid[0] and QUARANTINED not in files:
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete the files of ``name``, the manifest first."""
        folder = f"{self.prefix}/{name}/"
        self.storage.delete(f"{folder}{MANIFEST}")
        for key in self.storage.list(folder):
            self.storage.delete(key)


def checkpoints_at(uri: str) -> tuple[Checkpoints, str | None]:
    """Open the checkpoints at ``uri``; return also the name if it is a single checkpoint.

    ``uri`` is STORAGE/RUN or STORAGE/RUN/checkpoints/NAME. Raises UsageError if there is none.
    """
    folder, name = uri.rstrip("/"), None
    parent, _, last = folder.rpartition("/")
    if parent.endswith("/checkpoints") or parent == "checkpoints":
        folder, name = parent, last
    root, run = folder.removesuffix("/checkpoints").rpartition("/")[::2]
    checkpoints = Checkpoints(open_storage(root or "."), f"{run}/checkpoints", "")
    found = checkpoints.listed()
    if not found or (name is not None and name not in found):
        raise UsageError(
            f"there are no checkpoints at {mask(uri)}; use a run's folder, such as runs/NAME, "
            "which `orchestrator run` prints when it starts"
        )
    return checkpoints, name


def _usable(listed: Mapping[str, set[str]]) -> list[str]:
    return [n for n, files in listed.items() if MANIFEST in files and QUARANTINED not in files]


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
