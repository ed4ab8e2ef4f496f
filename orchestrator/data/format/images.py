"""Convert image files of any kind to square 8-bit images on white, and encode PNG and JPEG.

pixel_values.py has the values of more than 8 bits, colour_profiles.py the colour spaces.
"""

import io
import struct
import warnings
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageOps

from orchestrator.data.format.colour_profiles import to_srgb
from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.pixel_values import (
    ValueRange,
    refuse_large_tiles,
    scale_values,
    stretch_8_bit,
)
from orchestrator.errors import DataError

Channels = Literal[1, 3]
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
"""I;16 and the like count as I."""
Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
"""How an image becomes square: see ``fit_image``."""
MODES: dict[Channels, str] = {1: "L", 3: "RGB"}
MAX_PADDED_PIXELS = 89_478_485
"""Most pixels of a square that is padded at full size: one of a narrow image may be far larger."""
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

# Errors contain what is wrong with a file; users cannot act on Pillow's warnings. Filtered globally
# because catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def is_grey(mode: str) -> bool:
    """Whether images of a mode of Pillow have one channel, besides transparency."""
    return mode.partition(";")[0] in GREY_MODES


def load_image(
    path: Path, channels: Channels = 3, value_range: ValueRange | None = None
) -> Image.Image:
    """Load an image file: upright, on white, RGB or grey.

    Raises DataError, naming the file, if it cannot be decoded; see ``convert_image``.
    """
    try:
        with open_image(path) as file:
            return convert_image(file, channels, value_range)
    except DECODING_ERRORS as error:
        raise undecodable(path, error) from error


def load_encoded(
    data: bytes, where: str, channels: Channels = 3, value_range: ValueRange | None = None
) -> Image.Image:
    """Load an encoded image that is at ``where``; see ``load_image``."""
    try:
        with open_image(io.BytesIO(data)) as file:
            return convert_image(file, channels, value_range)
    except DECODING_ERRORS as error:
        raise undecodable(where, error) from error


def undecodable(path: Path | str, error: BaseException) -> DataError:
    """Return the error for an image file that cannot be decoded."""
    return DataError(f"{path} cannot be decoded as an image ({error}); repair or remove it")


def convert_image(
    image: Image.Image, channels: Channels, value_range: ValueRange | None = None
) -> Image.Image:
    """Convert an opened file to an upright image on white, RGB or grey, of 8 bits per value.

    Args:
        value_range: the values of black and white in the whole set, by choose_value_range; needed
            for 32-bit floats and integers. Without it, integers of 16 bits go up to 65535.

    Raises one of DECODING_ERRORS if it cannot be decoded, has a value that is NaN or infinite, or
    needs ``value_range``.
    """
    refuse_large_tiles(image)
    upright = ImageOps.exif_transpose(scale_values(image, value_range))
    return flatten_on_white(upright, value_range).convert(MODES[channels])


def flatten_on_white(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Convert an 8-bit image to sRGB without transparency, on a white background."""
    if image.mode == "La":  # premultiplied, which Pillow only converts to LA
        image = image.convert("LA")
    image = to_srgb(image)
    if not image.has_transparency_data:
        return stretch_8_bit(image.convert("RGB"), value_range)
    rgba = stretch_8_bit(image.convert("RGBA"), value_range)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def fit_image(image: Image.Image, size: int | None, fit: Fit) -> Image.Image:
    """Make an 8-bit image square and resize it to ``size`` x ``size``, bicubic and antialiased.

    Args:
        size: height and width; None keeps the size of the square (the longer side of the image
            for pad and stretch, the shorter for crop).
        fit: crop keeps the square in the middle, pad adds white on both sides, stretch changes
            the proportions.

    >>> [fit_image(Image.new("L", (6, 4)), None, fit).size for fit in FITS]
    [(4, 4), (6, 6), (6, 6)]
    """
    side = min(image.size) if fit == "crop" else max(image.size)
    target = size or side
    if fit == "pad" and side > target and side**2 > MAX_PADDED_PIXELS:
        width, height = (max(1, round(n * target / side)) for n in image.size)
        image, side = image.resize((width, height), Image.Resampling.BICUBIC), target
    if image.size != (side, side) and fit != "stretch":
        if fit == "crop":
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        else:
            canvas = Image.new(image.mode, (side, side), "white")
            canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = canvas
    if image.size == (target, target):
        return image
    return image.resize((target, target), Image.Resampling.BICUBIC)


def undo_fit(image: Image.Image, original: tuple[int, int], fit: Fit) -> Image.Image:
    """Give an image of ``fit_image`` the proportions of the original, of (width, height).

    Cuts the padding off, or shrinks the shorter side; what crop cut off does not come back.

    >>> [undo_fit(Image.new("L", (8, 8)), (30, 20), fit).size for fit in FITS]
    [(8, 8), (8, 5), (8, 5)]
    """
    if fit == "crop" or original[0] == original[1]:
        return image
    width, height = (max(1, round(n * image.width / max(original))) for n in original)
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
