"""Inputs of `data import` and an independent reading of what was packed."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app


def noise(seed: int, side: int = 8) -> NDArray[numpy.uint8]:
    return numpy.random.default_rng(seed).integers(0, 256, (side, side, 3), numpy.uint8)


def encoded(seed: int, side: int = 8, ending: str = "PNG") -> bytes:
    """An image file of ``noise``; lossless, so that its pixels can be compared."""
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, side)).save(buffer, ending)
    return buffer.getvalue()


class Packed(NamedTuple):
    """One packed sample, read with tarfile and Pillow alone."""

    images: dict[str, NDArray[numpy.uint8]]
    label: int | None
    captions: list[str]


def packed(folder: Path) -> list[Packed]:
    """The samples of a packed set, in order."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[ending] = file.read()
    return [
        Packed(
            {
                name.partition(".")[0]: numpy.asarray(Image.open(io.BytesIO(data)))
                for name, data in members.items()
                if name not in ("cls", "txt")
            },
            int(members["cls"]) if "cls" in members else None,
            members["txt"].decode().split("\n") if "txt" in members else [],
        )
        for members in found.values()
    ]


def seeds(samples: list[Packed], most: int = 100, field: str = "image") -> list[int]:
    """The seeds of noise that the images are."""
    known = {noise(seed).tobytes(): seed for seed in range(most)}
    return [known[sample.images[field].tobytes()] for sample in samples]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def import_data(source: Path | str, dest: Path, *options: str) -> str:
    """Run the command; return what it says on stderr. Raises its error."""
    command = ["data", "import", str(source), str(dest), *options]
    if not any(option == "--report" for option in options):
        command += ["--report", str(dest.with_name("report.json"))]
    return CliRunner().invoke(app.app, command, catch_exceptions=False).stderr
