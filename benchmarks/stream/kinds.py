"""Synthetic images for the benchmark, from a fixed seed, with realistic sizes and content.

They consist of smooth fields, shapes and a little noise, because decoding time depends on content:
neither pure noise nor pure white is like photographs and drawings.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

SEED = 20261126
VERSION = 1
"""Increase when the images change, since they are cached between runs."""

Sample = tuple[str, dict[str, bytes]]
"""Key and encoded images by field."""


@dataclass(frozen=True)
class Kind:
    """One kind of data set."""

    name: str
    title: str
    fields: tuple[str, ...]
    size: int
    channels: Literal[1, 3]
    suffix: str
    count: int

    def images(self, rng: Generator) -> dict[str, Image.Image]:
        """Draw the images of one sample by field."""
        if self.name == "digits":
            return {"image": digit(self.size, rng)}
        drawn, photo = scene(self.size, rng)
        return {"a": drawn, "b": photo} if self.name == "pairs" else {"image": photo}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("photos", "256 px JPEG, quality 90", ("image",), 256, 3, "jpg", 6144),
        Kind("pairs", "256 px PNG pairs", ("a", "b"), 256, 3, "png", 2048),
        Kind("digits", "28 px grey PNG", ("image",), 28, 1, "png", 30720),
    )
}


def scene(size: int, rng: Generator) -> tuple[Image.Image, Image.Image]:
    """Draw shapes as a line drawing, and the same in colour on a smooth background."""
    coarse, middle, fine = (
        numpy.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), numpy.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            ),
            numpy.float32,
        )
        for cells in (5, 40, 128)
    )
    photo = Image.fromarray((0.7 * coarse + 0.2 * middle + 0.1 * fine).astype(numpy.uint8))
    drawing = Image.new("RGB", (size, size), "white")
    on_photo, on_drawing = ImageDraw.Draw(photo), ImageDraw.Draw(drawing)
    for _ in range(int(rng.integers(6, 14))):
        corners = [tuple(map(int, rng.integers(0, size, 2))) for _ in range(3)]
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        if rng.random() < 0.5:
            on_photo.polygon(corners, fill=colour)
            on_drawing.polygon(corners, outline="black", width=2)
        else:
            (x, y), radius = corners[0], int(rng.integers(size // 16, size // 4))
            box = (x - radius, y - radius, x + radius, y + radius)
            on_photo.ellipse(box, fill=colour)
            on_drawing.ellipse(box, outline="black", width=2)
    noise = rng.normal(0, 2.5, (size, size, 3)).astype(numpy.float32)
    noisy = numpy.asarray(photo, numpy.float32) + noise
    return drawing, Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8))


def digit(size: int, rng: Generator) -> Image.Image:
    """Draw a digit, white on black, slightly rotated and shifted, with uneven ink."""
    canvas = Image.new("L", (size, size))
    font = ImageFont.load_default(size=size * 0.8)
    x, y = (size // 2 + int(shift) for shift in rng.integers(-2, 3, 2))
    ImageDraw.Draw(canvas).text((x, y), str(rng.integers(10)), 255, font, anchor="mm")
    turned = canvas.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR)
    ink = numpy.asarray(turned) * rng.uniform(0.8, 1, (size, size))
    return Image.fromarray(ink.astype(numpy.uint8))


def encode(image: Image.Image, suffix: str) -> bytes:
    """Encode ``image`` as JPEG or PNG."""
    buffer = io.BytesIO()
    if suffix == "jpg":
        image.save(buffer, "JPEG", quality=90)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def write_source(kind: Kind, count: int, path: Path) -> None:
    """Write ``count`` samples to a tar file, from which each tool packs its set."""
    rng = numpy.random.default_rng(SEED)
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for number in range(count):
            for field, image in kind.images(rng).items():
                data = encode(image, kind.suffix)
                member = tarfile.TarInfo(f"{number:08d}.{field}.{kind.suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    partial.rename(path)


def read_source(path: Path) -> Iterator[Sample]:
    """Read the samples written by ``write_source``."""
    with tarfile.open(path) as tar:
        members = ((member.name.split("."), tar.extractfile(member)) for member in tar)
        for key, group in groupby(members, lambda member: member[0][0]):
            yield key, {name[1]: file.read() for name, file in group if file is not None}
