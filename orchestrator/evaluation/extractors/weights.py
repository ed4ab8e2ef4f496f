"""Files of extractors: nothing of a file is used before its sha256 is known to be right."""

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.errors import DataError, UsageError


def read_checked(path: Path, sha256: str, name: str) -> bytes:
    """Read the file of the extractor ``name``.

    The bytes that were checked are those that are used: the file is not opened again.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        DataError: its sha256 is another one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the file of the extractor {name}: {error.strerror}"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path}: this is not the file of the extractor {name}: its sha256 is {found}, "
            f"expected {sha256}; use the original file"
        )
    return data


def load_tensors(data: bytes) -> dict[str, Tensor]:
    """Load a file of torch.save that holds tensors alone; anything else in it is refused."""
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    assert isinstance(loaded, dict)
    return loaded
