"""Manifest of a checkpoint: what belongs to it, in which format, written by which version."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import NonNegativeInt

from orchestrator.distribution import installed_version
from orchestrator.errors import EnvironmentProblem
from orchestrator.file_sums import FileEntry
from orchestrator.record_reader import DamagedRecord, parse_format, parse_record

FORMAT = 3
READERS = {
    1: "0.1.0 before 2026-11-26",
    2: "0.1.0",
}
"""Versions that read the older formats."""
REMEDY = "restore it from a backup; a resumed run uses an older checkpoint"


class UnsupportedCheckpoint(EnvironmentProblem):
    """A checkpoint was written in another format, by another version of the orchestrator."""


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    format: int
    images_seen: NonNegativeInt
    files: dict[str, FileEntry]
    version: str | None = None
    """Of the orchestrator that wrote it."""
    run: str | None = None
    job: str | None = None
    mlflow_run_id: str | None = None

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())


def write_manifest(
    images_seen: int, files: Mapping[str, FileEntry], about: Mapping[str, str]
) -> bytes:
    """Encode the manifest of a checkpoint of this version."""
    listed = {name: asdict(entry) for name, entry in files.items()}
    values = {"format": FORMAT, "images_seen": images_seen, "files": listed, **about}
    if (version := installed_version()) is not None:
        values["version"] = version
    return json.dumps(values, indent=1, sort_keys=True).encode()


def parse_manifest(content: bytes, uri: str, about: Mapping[str, str]) -> Manifest:
    """Parse the manifest of the checkpoint at ``uri``, whose last part is its name.

    Raises:
        DamagedRecord: it cannot be read, or belongs to a checkpoint of another name, or to another
            run or job than ``about`` names.
        UnsupportedCheckpoint: another version of the orchestrator wrote it in another format.
    """
    where = f"{uri}/manifest.json"
    found = parse_format(content, where, REMEDY)
    if found != FORMAT:
        raise UnsupportedCheckpoint(_unsupported(uri, found, content))
    manifest = parse_record(Manifest, content, where, REMEDY)
    name = uri.rpartition("/")[2]
    if manifest.images_seen != int(name.partition("-")[0]):
        seen = f"it is of {manifest.images_seen} images, and its folder is called {name}"
        raise DamagedRecord(where, seen, REMEDY)
    for key in ("run", "job"):
        theirs, ours = getattr(manifest, key), about.get(key)
        if theirs is not None and ours is not None and theirs != ours:
            raise DamagedRecord(where, f"it belongs to {key} {theirs}, not {ours}", REMEDY)
    return manifest


def _unsupported(uri: str, found: int, content: bytes) -> str:
    try:
        version = parse_record(Manifest, content, uri, REMEDY).version
    except DamagedRecord:  # of a format that nobody here knows
        version = None
    newer = f"{version} or later" if version else "newer than this one"
    reader = READERS.get(found) or newer
    return (
        f"checkpoint {uri} has format {found}, and this version of the orchestrator reads format "
        f"{FORMAT}; continue the run with orchestrator {reader}, or start a new run with "
        "--no-resume; the checkpoint is left as it is"
    )
