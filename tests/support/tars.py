"""Tar files as other tools write them."""

import io
import tarfile
from pathlib import Path

import numpy
from PIL import Image


def image(seed: int, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def tar(
    path: Path, files: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT, mtime: float = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            archive.addfile(info, io.BytesIO(content))
    return path


def labelled(first: int, count: int) -> dict[str, bytes]:
    files = {}
    for n in range(first, first + count):
        files |= {f"s{n}.jpg": image(n, kind="JPEG"), f"s{n}.cls": str(n % 3).encode()}
        files[f"s{n}.txt"] = f"picture {n}".encode()
    return files
