"""Convert image files of any kind to square 8-bit images on white, and encode PNG and JPEG."""

import io
import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy
from PIL import Image, ImageOps

from orchestrator.errors import DataError

Channels = Literal[1, 3]
Fit = Literal["crop", "pad", "stretch"]
"""How to make an image square: cut the longer sides, pad the shorter ones with white, or change the
aspect ratio."""
MODES: dict[Channels, str] = {1: "L", 3: "RGB"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Extensions of image files, in upper or lower case."""
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
"""What Pillow raises for a corrupt file: mostly OSError, but its TIFF decoder raises them all."""
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_MAX_TILE_PIXELS = 1 << 20
"""Largest TIFF tile, unless the image itself is larger: libtiff allocates a whole tile."""

# Errors contain what is wrong with a file; users cannot act on Pillow's warnings. Filtered globally
# because catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path: Path, channels: Channels = 3) -> Image.Image:
    """Load an image file: upright, on white, RGB or grey.

    Raises DataError, naming the file, if it cannot be decoded.
    """
    try:
        with Image.open(path) as file:
            return convert_image(file, channels)
    except DECODING_ERRORS as error:
        raise DataError(
            f"{path} cannot be decoded as an image ({error}); repair or remove it"
        ) from error


def convert_image(image: Image.Image, channels: Channels) -> Image.Image:
    """Convert an opened file to an upright image on white, RGB or grey.

    Raises one of DECODING_ERRORS if it cannot be decoded.
    """
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1)
    if tile > max(_MAX_TILE_PIXELS, image.width * image.height):
        raise Image.DecompressionBombError(f"its tiles have {tile} pixels each")
    return flatten_on_white(ImageOps.exif_transpose(image)).convert(MODES[channels])


def flatten_on_white(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB without transparency, on a white background."""
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip at 255
        values = numpy.asarray(image).astype(numpy.float64)
        image = Image.fromarray(numpy.clip(values / 257, 0, 255).round().astype(numpy.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def pad_and_resize(image: Image.Image, size: int | None) -> Image.Image:
    """Pad with white to a square and resize to ``size`` x ``size``; None returns it unchanged."""
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


def fit_image(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Make an image square by ``fit`` and resize it to ``size`` x ``size``."""
    if fit == "pad":
        return pad_and_resize(image, size)
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def to_png(image: Image.Image) -> bytes:
    """Encode as PNG; equal images give equal bytes with the same version of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def to_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode as JPEG of ``quality`` 1 to 95; equal images give equal bytes as for PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
