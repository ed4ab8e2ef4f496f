"""Read one checkpoint, and check each of its files against the manifest."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from orchestrator.errors import DataError
from orchestrator.file_sums import sum_bytes
from orchestrator.record_reader import DamagedRecord, parse_record
from orchestrator.redaction import mask
from orchestrator.runs.checkpoint_manifest import REMEDY, Manifest, parse_manifest
from orchestrator.storage.base import NotFound, Storage
from orchestrator.training.state import TENSORS, TrainState

TENSOR_FILES = {kind: f"{kind}.safetensors" for kind in TENSORS}
"""File of each field of TrainState that has its own."""
MANIFEST = "manifest.json"
FILES = (*TENSOR_FILES.values(), "state.json", "job.yaml")
"""Files of every checkpoint, besides its manifest."""

T = TypeVar("T")


class CorruptCheckpoint(DataError):
    """A checkpoint cannot be used: a file is missing or differs from the manifest."""


@dataclass(frozen=True)
class _Values:
    """Content of state.json."""

    images_seen: NonNegativeInt
    optimizers: dict[str, Any]
    stateful: dict[str, dict[str, Any]]
    eval_pending: bool


class CheckpointReader:
    """Reads the checkpoints of one run by name."""

    def __init__(
        self, storage: Storage, prefix: str, about: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        prefix: folder of the checkpoints within ``storage``.
        about: values that the manifests must have, which name the run.
        """
        self.storage = storage
        self.prefix = prefix.rstrip("/")
        self.about = dict(about or {})

    def load(self, name: str) -> TrainState:
        """Load the checkpoint called ``name``.

        Raises:
            CorruptCheckpoint: a file is missing or differs from what was written, read twice.
            UnsupportedCheckpoint: another version of the orchestrator wrote it in another format.
        """
        return self._twice(self._load, name)

    def _twice(self, load: Callable[[str], T], name: str) -> T:
        """Return ``load(name)``, of bytes that may be corrupted on the way once."""
        try:
            return load(name)
        except CorruptCheckpoint:
            return load(name)

    def _load(self, name: str) -> TrainState:
        manifest = self.manifest(name)
        files = {file: self._verified(name, file, manifest) for file in FILES}
        tensors = {
            kind: self._tensors(name, file, files[file]) for kind, file in TENSOR_FILES.items()
        }
        values = self._values(name, files["state.json"], manifest)
        return TrainState(
            values.images_seen,
            settings=values.optimizers,
            stateful=values.stateful,
            eval_pending=values.eval_pending,
            **tensors,
        )

    def _values(self, name: str, content: bytes, manifest: Manifest) -> _Values:
        with self._parsing(name, "state.json"):
            values = parse_record(_Values, content, "state.json", REMEDY)
            if values.images_seen != manifest.images_seen:
                raise ValueError(f"it is of {values.images_seen} images, the manifest is not")
            return values

    def stateful(self, name: str) -> dict[str, dict[str, Any]]:
        """Load only the state of the run's stateful parts. Raises as ``load`` does."""
        return self._twice(self._load_stateful, name)

    def _load_stateful(self, name: str) -> dict[str, dict[str, Any]]:
        manifest = self.manifest(name)
        content = self._verified(name, "state.json", manifest)
        return self._values(name, content, manifest).stateful

    def snapshot(self, name: str) -> dict[str, Tensor]:
        """Load only the weights to sample from. Raises as ``load`` does."""
        return self._twice(self._load_snapshot, name)

    def _load_snapshot(self, name: str) -> dict[str, Tensor]:
        file = TENSOR_FILES["snapshot"]
        return self._tensors(name, file, self._verified(name, file, self.manifest(name)))

    def job_of(self, name: str) -> bytes:
        """Read the resolved job of ``name`` as YAML. Raises as ``load`` does."""
        return self._twice(lambda it: self._verified(it, "job.yaml", self.manifest(it)), name)

    def manifest(self, name: str) -> Manifest:
        """Read the manifest of ``name``. Raises as ``load`` does."""
        content = self._get(name, MANIFEST)
        with self._parsing(name, MANIFEST):
            manifest = parse_manifest(content, self._uri(name), self.about)
            if missing := set(FILES) - manifest.files.keys():
                raise ValueError(f"it does not list {', '.join(sorted(missing))}")
            return manifest

    def _tensors(self, name: str, file: str, content: bytes) -> dict[str, Tensor]:
        with self._parsing(name, file):
            return load_tensors(content)

    @contextmanager
    def _parsing(self, name: str, file: str) -> Iterator[None]:
        """Raise CorruptCheckpoint for what parsers raise."""
        try:
            yield
        except (ValueError, DamagedRecord, SafetensorError) as error:
            problem = error.problem if isinstance(error, DamagedRecord) else str(error)
            raise CorruptCheckpoint(
                f"checkpoint {self._uri(name)} is corrupt: {file} cannot be read ({problem})"
            ) from error

    def _verified(self, name: str, file: str, manifest: Manifest) -> bytes:
        content, entry = self._get(name, file), manifest.files[file]
        if sum_bytes(content) != entry:
            raise CorruptCheckpoint(f"checkpoint {self._uri(name)} is corrupt: {file} has changed")
        return content

    def _get(self, name: str, file: str) -> bytes:
        try:
            key = f"{self.prefix}/{name}/{file}"
            return self.storage.get_record(key) if file == MANIFEST else self.storage.get(key)
        except NotFound as error:
            raise CorruptCheckpoint(
                f"checkpoint {self._uri(name)} is corrupt: no {file}"
            ) from error

    def _uri(self, name: str) -> str:
        return f"{mask(self.storage.uri.rstrip('/'))}/{self.prefix}/{name}"
