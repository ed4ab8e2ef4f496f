"""Checkpoints in a storage: written under a new name, hashed, the manifest last.

    <run>/checkpoints/000000512000-3f9a1c2e/networks.safetensors    the model's state dict
                                            snapshot.safetensors    weights to sample from
                                            optimizers.safetensors  the optimizers' tensors
                                            own.safetensors         what each rank has for itself
                                            state.json              the rest: no pickle anywhere
                                            job.yaml                the job as resolved
                                            manifest.json           sizes and sha256 of the others
                                            quarantined.json        that it is damaged, and how

The number is images seen. A folder without a manifest, or with files that differ from it, is no
checkpoint; a damaged one is marked, is passed over from then on, and stays to be looked at. The
name is new for each attempt, so a file that a manifest vouches for is never written again. What
was written is read back before older ones may go.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator, Mapping
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
from orchestrator.training.state import TrainState

FORMAT = 2
KEEP = 3
"""The newest so many that were read back whole are kept, and all that are newer than these."""
TENSOR_FILES = ("networks", "snapshot", "optimizers", "own")
MANIFEST, QUARANTINED = "manifest.json", "quarantined.json"
SNAPSHOT = "snapshot.safetensors"
FILES = (*(f"{kind}.safetensors" for kind in TENSOR_FILES), "state.json", "job.yaml")
"""What every checkpoint has, beside its manifest."""

logger = logging.getLogger(__name__)


class DamagedCheckpoint(DataError):
    """A checkpoint cannot be used: a file is missing, or is not what its manifest says."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, storage: Storage, prefix: str, job: str, about: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        prefix: folder of the checkpoints within ``storage``.
        job: the resolved job as YAML, without secrets.
        about: what they belong to, for the manifest.
        """
        self.storage = storage
        self.prefix = prefix.rstrip("/")
        self.job = job
        self.about = dict(about or {})
        self._known_whole: set[str] = set()
        """Those that this process has read back whole."""

    def save(self, state: TrainState) -> None:
        """Commit ``state``, which is on the host; read it back; delete what need not be kept.

        Raises:
            DamagedCheckpoint: what the storage gives back is not what was written. It is marked.
        """
        name = f"{state.images_seen:012d}-{uuid.uuid4().hex[:8]}"
        try:
            self._commit(name, state)
        except BaseException:
            with suppress(OrchestratorError):  # a disk that is full must not be filled with pieces
                self._delete(name)
            raise
        try:
            self.load(name)
        except DamagedCheckpoint as error:
            self._quarantine(name, error)
            raise
        with suppress(OrchestratorError):  # it is committed; the next one tidies up
            self._retain()

    def _commit(self, name: str, state: TrainState) -> None:
        listed = {}
        for file, content in self._contents(state):
            self.storage.put(f"{self.prefix}/{name}/{file}", content)
            listed[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"format": FORMAT, "images_seen": state.images_seen, "files": listed}
        self.storage.put_if_absent(
            f"{self.prefix}/{name}/{MANIFEST}", _json({**manifest, **self.about})
        )

    def _contents(self, state: TrainState) -> Iterator[tuple[str, bytes]]:
        """The files of a checkpoint, one at a time: each may be large."""
        for kind in TENSOR_FILES:
            yield f"{kind}.safetensors", save_tensors(getattr(state, kind))
        values = {"optimizers": state.settings, "guard": state.guard, "owing": state.owing}
        values["recorder"] = state.recorder
        yield "state.json", _json({"images_seen": state.images_seen, **values})
        yield "job.yaml", self.job.encode()

    def names(self) -> list[str]:
        """The committed checkpoints that nobody found damaged, oldest first."""
        return _usable(self.listed())

    def listed(self) -> dict[str, set[str]]:
        """The files of every attempt, committed or not, by its name."""
        found: dict[str, set[str]] = {}
        for key in self.storage.list(f"{self.prefix}/"):
            *_, name, file = key.split("/")
            found.setdefault(name, set()).add(file)
        return dict(sorted(found.items()))

    def latest(self) -> TrainState | None:
        """The newest checkpoint that its manifest's sums confirm; None if there is none.

        Others are quarantined: told of, marked and passed over from then on.
        """
        for name in reversed(self.names()):
            try:
                return self.load(name)
            except DamagedCheckpoint as error:
                logger.warning("%s; it is quarantined, and the one before is taken", error)
                self._quarantine(name, error)
        return None

    def _quarantine(self, name: str, reason: DamagedCheckpoint) -> None:
        mark = _json({"reason": str(reason)})
        self.storage.put_if_absent(f"{self.prefix}/{name}/{QUARANTINED}", mark)

    def load(self, name: str) -> TrainState:
        """The state in the checkpoint ``name``.

        Raises:
            DamagedCheckpoint: a file is missing or is not what was written, or another version of
                the orchestrator wrote it in a format of its own.
        """
        sums = self._manifest(name)
        files = {file: self._verified(name, file, sums[file]) for file in FILES}
        with self._parsing(name, "state.json"):
            values = json.loads(files["state.json"])
            images_seen, settings = int(values["images_seen"]), dict(values["optimizers"])
            others: dict[str, Any] = {
                "guard": dict(values.get("guard", {})),
                "owing": bool(values.get("owing", False)),
                "recorder": dict(values.get("recorder", {})),
            }
        for kind in TENSOR_FILES:
            others[kind] = self._tensors(name, f"{kind}.safetensors", files)
        self._known_whole.add(name)
        return TrainState(images_seen, settings=settings, **others)

    def snapshot(self, name: str) -> dict[str, Tensor]:
        """The weights to sample from, of the checkpoint ``name``. Raises as ``load`` does."""
        content = self._verified(name, SNAPSHOT, self._manifest(name)[SNAPSHOT])
        return self._tensors(name, SNAPSHOT, {SNAPSHOT: content})

    def manifest(self, name: str) -> dict[str, Any]:
        """All that the manifest of ``name`` says. Raises DamagedCheckpoint if it cannot be read."""
        content = self._get(name, MANIFEST)
        with self._parsing(name, MANIFEST):
            return dict(json.loads(content))

    def _manifest(self, name: str) -> dict[str, tuple[int, str]]:
        """Bytes and sha256 of each of FILES, as the manifest has them."""
        manifest = self.manifest(name)
        with self._parsing(name, MANIFEST):
            found = manifest["format"]
            if found != FORMAT:
                raise DamagedCheckpoint(
                    f"checkpoint {self._uri(name)} has format {found!r}, and this version of the "
                    f"orchestrator reads format {FORMAT}; use the version that wrote it"
                )
            entries = {file: manifest["files"][file] for file in FILES}
            return {file: (int(e["bytes"]), str(e["sha256"])) for file, e in entries.items()}

    def _tensors(self, name: str, file: str, files: Mapping[str, bytes]) -> dict[str, Tensor]:
        with self._parsing(name, file):
            return load_tensors(files[file])

    @contextmanager
    def _parsing(self, name: str, file: str) -> Iterator[None]:
        """Turn what parsers raise for content of another shape into DataError."""
        try:
            yield
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DamagedCheckpoint(
                f"checkpoint {self._uri(name)} is damaged: {file} cannot be read "
                f"({type(error).__name__}: {error})"
            ) from error

    def _verified(self, name: str, file: str, sums: tuple[int, str]) -> bytes:
        content = self._get(name, file)
        if (len(content), hashlib.sha256(content).hexdigest()) != sums:
            raise DamagedCheckpoint(f"checkpoint {self._uri(name)} is damaged: {file} has changed")
        return content

    def _get(self, name: str, file: str) -> bytes:
        try:
            return self.storage.get(f"{self.prefix}/{name}/{file}")
        except NotFound as error:
            raise DamagedCheckpoint(
                f"checkpoint {self._uri(name)} is damaged: no {file}"
            ) from error

    def _uri(self, name: str) -> str:
        return f"{self.storage.uri.rstrip('/')}/{self.prefix}/{name}"

    def _retain(self) -> None:
        """Keep the newest that are known to be whole, and what is newer than the oldest of them.

        What was never finished goes too; what is quarantined stays, to be looked at.
        """
        found = self.listed()
        whole = [name for name in _usable(found) if name in self._known_whole][-KEEP:]
        if len(whole) < KEEP:
            return
        for name, files in found.items():
            if name < whole[0] and QUARANTINED not in files:
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete the files of ``name``, its manifest first."""
        folder = f"{self.prefix}/{name}/"
        self.storage.delete(f"{folder}{MANIFEST}")
        for key in self.storage.list(folder):
            self.storage.delete(key)


def checkpoints_at(uri: str) -> tuple[Checkpoints, str | None]:
    """The checkpoints at ``uri``, and the name of the one that it is, if it is one.

    Args:
        uri: STORAGE/RUN or STORAGE/RUN/checkpoints/NAME.

    Raises:
        UsageError: there are none.
    """
    place, only = uri.rstrip("/"), None
    folder, _, last = place.rpartition("/")
    if folder.endswith("/checkpoints") or folder == "checkpoints":
        place, only = folder, last
    root, run = place.removesuffix("/checkpoints").rpartition("/")[::2]
    checkpoints = Checkpoints(open_storage(root or "."), f"{run}/checkpoints", "")
    found = checkpoints.listed()
    if not found or (only is not None and only not in found):
        raise UsageError(
            f"there are no checkpoints at {mask(uri)}; give a run's folder, such as runs/NAME, "
            "which `orchestrator run` names when it starts"
        )
    return checkpoints, only


def _usable(listed: Mapping[str, set[str]]) -> list[str]:
    return [n for n, files in listed.items() if MANIFEST in files and QUARANTINED not in files]


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
