"""Tar files and packed sets of images of random noise."""

import io
import tarfile
from pathlib import Path

import numpy
from PIL import Image

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter


def noise_image(
    seed: int, size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    """Encode an image of uniform noise; ``size`` is width and height."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write_tar(
    path: Path, files: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT, mtime: float = 0
) -> Path:
    """Write a tar of ``files`` in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            archive.addfile(info, io.BytesIO(content))
    return path


def labelled_samples(first: int, count: int) -> dict[str, bytes]:
    """Return the files of ``count`` samples: a JPEG, one of three classes and a caption each."""
    files: dict[str, bytes] = {}
    for n in range(first, first + count):
        files |= {f"s{n}.jpg": noise_image(n, kind="JPEG"), f"s{n}.cls": str(n % 3).encode()}
        files[f"s{n}.txt"] = f"picture {n}".encode()
    return files


def write_noise_set(uri: Path, seeds: list[int], shard_bytes: int = 4000) -> str:
    """Pack one noise image per seed, two to a shard."""
    writer = ShardWriter(str(uri), ("image",), image_size=8, channels=3, shard_bytes=shard_bytes)
    for n, seed in enumerate(seeds):
        writer.add(f"k{n}", {"image": noise_image(seed)})
    writer.finish()
    return str(uri)


def all_samples(uri: Path | str) -> list[dict[str, bytes]]:
    """Return the members of every sample of the set, in order."""
    packed = open_set(str(uri))
    locations = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    return [{k: bytes(v) for k, v in packed.read(*each).items()} for each in locations]
