"""Image files of any kind to square 8-bit pictures on white, and these to PNG or JPEG."""

import io
import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy
from PIL import Image, ImageOps

from orchestrator.errors import DataError

Channels = Literal[1, 3]
MODES: dict[Channels, str] = {1: "L", 3: "RGB"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that are taken for images, in any case of letters."""
DECODING_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for a damaged file: mostly OSError, but TIFF alone has them all."""
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LARGEST_TILE = 1 << 20
"""Pixels of a TIFF's tile, if the picture is not larger itself: libtiff allocates a whole one."""

# What is wrong with a file is in the error; the rest is not for the user to act upon. Once for
# all, for catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path: Path, channels: Channels = 3) -> Image.Image:
    """The picture in ``path`` as it is meant to be seen: upright, on white, RGB or grey.

    Raises DataError, naming the file, if it does not decode.
    """
    try:
        with Image.open(path) as file:
            return convert_image(file, channels)
    except DECODING_ERRORS as error:
        raise DataError(
            f"{path} does not decode as an image ({error}); repair it or take it out"
        ) from error


def convert_image(image: Image.Image, channels: Channels) -> Image.Image:
    """An opened file as it is meant to be seen: upright, on white, RGB or grey.

    Raises one of DECODING_ERRORS if it does not decode.
    """
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1)
    if tile > max(_LARGEST_TILE, image.width * image.height):
        raise Image.DecompressionBombError(f"its tiles have {tile} pixels each")
    return flatten_on_white(ImageOps.exif_transpose(image)).convert(MODES[channels])


def flatten_on_white(image: Image.Image) -> Image.Image:
    """``image`` in 8 bits without transparency; what shows through is white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        deep = numpy.asarray(image).astype(numpy.float64)
        image = Image.fromarray(numpy.clip(deep / 257, 0, 255).round().astype(numpy.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def pad_and_resize(image: Image.Image, size: int | None) -> Image.Image:
    """``image`` at ``size`` x ``size`` pixels, padded with white to a square before.

    Without a size it is left as it is.
    """
    if size is None:
        return image
    side = max(image.size)
    if image.size != (side, side):
        canvas = Image.new(image.mode, (side, side), "white")
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = canvas
    if side == size:
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC)


def to_png(image: Image.Image) -> bytes:
    """``image`` as PNG; equal pictures give equal bytes with the same Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def to_jpeg(image: Image.Image, quality: int) -> bytes:
    """``image`` as JPEG of ``quality``, 1 to 95; equal bytes as for PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
