"""Helpers for tests of fetched data sets."""

import io
from pathlib import Path

import numpy
import pytest
from PIL import Image

from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import EnvironmentProblem
from orchestrator.package_download import Download


def download_or_skip(download: Download) -> Path:
    """Download a file, or skip the test without a network or a package client."""
    try:
        return download.get()
    except EnvironmentProblem as error:
        pytest.skip(f"cannot be downloaded here: {error}")


def samples(uri: Path | str) -> list[dict[str, bytes]]:
    """Return the members of every sample by their endings, and its key, in order.

    Parses the tars itself, because tarfile takes too long for 60,000 samples.
    """
    packed = open_set(str(uri))
    found: dict[str, dict[str, bytes]] = {}
    for shard in packed.index.shards:
        data, place = packed.storage.get(shard.name), 0
        while data[place]:
            name = data[place : place + 100].rstrip(b"\0").decode()
            size = int(data[place + 124 : place + 135], 8)
            key, _, ending = name.partition(".")
            content = data[place + 512 : place + 512 + size]
            found.setdefault(key, {"key": key.encode()})[ending.removesuffix(".png")] = content
            place += 512 + -(-size // 512) * 512
    return list(found.values())


def pixels(png: bytes) -> numpy.ndarray:
    """Decode a PNG."""
    return numpy.asarray(Image.open(io.BytesIO(png)))
