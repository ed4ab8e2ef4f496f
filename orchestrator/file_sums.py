"""Sizes and hashes of files, by which damage is found."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of a file."""

    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def sum_bytes(content: bytes) -> FileEntry:
    """Return the size and hash of a file with this content."""
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def sum_file(path: Path) -> FileEntry:
    """Read a file of any size and return its size and hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(file.tell(), digest)
