"""Pictures of a report: read, thinned out and encoded."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def read_picture(path: Path) -> Image.Image | None:
    """Read a PNG file as RGB; None if it cannot be read."""
    try:
        with Image.open(path, formats=("PNG",)) as file:
            return file.convert("RGB")
    # Pillow raises all of these for broken files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def select_evenly(values: Sequence[int], most: int) -> list[int]:
    """Select at most ``most`` values: the last one and evenly spaced ones before it."""
    count = min(most, len(values))
    if count < 2:
        return list(values[-1:])
    return [values[round(k * (len(values) - 1) / (count - 1))] for k in range(count)]


def to_palette_png(picture: Image.Image) -> bytes:
    """Encode as PNG with a palette, a third of the size: a page has a hundred of them."""
    with io.BytesIO() as file:
        picture.quantize(256).save(file, format="PNG", optimize=True)
        return file.getvalue()


def to_webp(picture: Image.Image, side: int, quality: int) -> bytes:
    """Encode as WebP, at most ``side`` pixels wide and high."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        small.save(file, format="WEBP", quality=quality, method=4)
        return file.getvalue()
