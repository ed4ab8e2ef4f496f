"""Manifest of a trained model's files: a damaged model draws other pictures without an error.

Any flipped bit is found: one in a file by its hash, and one in the manifest because that is no
longer what ``write_manifest`` writes, or no longer fits its files.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import DataError, UsageError
from orchestrator.file_sums import FileEntry, sum_file
from orchestrator.record_reader import MAX_RECORD_BYTES, DamagedRecord, parse_record

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class BundleManifest:
    """Content of manifest.json."""

    format: int
    files: dict[str, FileEntry]


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """Write the sizes and hashes of the files called ``names`` to ``folder``."""
    manifest = BundleManifest(FORMAT, {name: sum_file(folder / name) for name in sorted(names)})
    (folder / MANIFEST).write_bytes(_encode(manifest))


def check_files(
    folder: Path, names: Sequence[str], place: str, remedy: str, *, optional: Sequence[str] = ()
) -> None:
    """Compare the files in ``folder`` with its manifest.

    Args:
        folder: that ``write_manifest`` wrote to.
        names: files that the manifest must list.
        place: stands before the name of a file in messages, such as ``folder/``.
        remedy: what to do.
        optional: files that it may list besides.

    Raises:
        DataError: a file, or the manifest, is not what was written; it ends with ``remedy``.
        UsageError: a file is missing.
    """
    path = folder / MANIFEST
    for name in (*names, MANIFEST):
        if not (folder / name).is_file():
            raise UsageError(f"{place}{name} does not exist; {remedy}")
    content = path.read_bytes() if path.stat().st_size <= MAX_RECORD_BYTES else b""
    try:
        manifest = parse_record(BundleManifest, content, f"{place}{MANIFEST}", remedy)
    except DamagedRecord as error:
        raise DataError(str(error)) from error
    if _encode(manifest) != content or not (
        set(names) <= set(manifest.files) <= {*names, *optional}
    ):
        raise DataError(f"{place}{MANIFEST} is damaged: it is not what was written; {remedy}")
    for name, entry in manifest.files.items():
        if not (folder / name).is_file():
            raise UsageError(f"{place}{name} does not exist; {remedy}")
        found = sum_file(folder / name)
        if found.bytes != entry.bytes:
            what = f"it has {found.bytes:,} bytes, not {entry.bytes:,}"
        elif found.sha256 != entry.sha256:
            what = f"its sha256 is {found.sha256[:12]}..., not {entry.sha256[:12]}..."
        else:
            continue
        raise DataError(f"{place}{name} is damaged: {what}; {remedy}")


def _encode(manifest: BundleManifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode()
