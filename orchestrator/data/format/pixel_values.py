"""Values of more than 8 bits per pixel: what an image holds, and their conversion to 8 bits.

Pillow clips such values at 255, or drops the low byte. Here they are scaled from a range: that of
the file's integers (0 to 65535), or one that is given for the whole set.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFile

from orchestrator.data.format.image_files import open_image

Values = NDArray[Any]
"""Pixels as stored: float or integer (H, W) or (H, W, C)."""

_BITS, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_WHITE_IS_ZERO = 0
_MAX_TILE_PIXELS = 1 << 20
"""Largest TIFF tile, unless the image itself is larger: libtiff allocates a whole tile."""
_LUT_SIZE = 256
_WITHOUT_TILES = ("AVIF", "WEBP")
"""Formats of 8 bits, of which Pillow lists no tiles before it has loaded them."""


@dataclass(frozen=True)
class ValueRange:
    """Values that become black and white; those outside become the nearer of the two."""

    low: float
    high: float
    of_8_bit: bool = False
    """Whether it applies to images of 8 bits per value, which else keep theirs, 0 to 255."""

    def __post_init__(self) -> None:
        # JSON and the digest of an index tell 1 from 1.0.
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))

    def __str__(self) -> str:
        return f"{self.low:.7g},{self.high:.7g}"

    def to_8_bit(self, values: Values) -> NDArray[numpy.uint8]:
        """Scale to 0 to 255, rounded.

        >>> ValueRange(-1, 1).to_8_bit(numpy.array([-2, -1, 0.5, 1])).tolist()
        [0, 0, 191, 255]
        """
        share = (values.astype(numpy.float64) - self.low) / (self.high - self.low)
        scaled: NDArray[numpy.uint8] = (share.clip(0, 1) * 255).round().astype(numpy.uint8)
        return scaled


@dataclass(frozen=True)
class ValueExtent:
    """Lowest and highest value of an image."""

    low: float
    high: float
    kind: str
    """What the values are: 8-bit, 12-bit, 16-bit, 32-bit integer or 32-bit float."""
    full_scale: int | None
    """The value of white: 255, 4095 or 65535; None if the file does not say, as for floats."""


def value_extent(image: Image.Image) -> ValueExtent | None:
    """Find the lowest and highest value of an opened file; alpha does not count.

    None for palettes, black-and-white images and colours other than RGB: they use 0 to 255. Raises
    one of images.DECODING_ERRORS if it cannot be decoded, or has a value that is not finite.
    """
    refuse_large_tiles(image)
    if (
        isinstance(image, ImageFile.ImageFile)
        and not image.tile
        and image.filename
        and image.format not in _WITHOUT_TILES
    ):
        with open_image(Path(os.fsdecode(image.filename))) as fresh:
            # A loaded one has forgotten its bits.
            return _find_extent(fresh)
    return _find_extent(image)


def _find_extent(image: Image.Image) -> ValueExtent | None:
    kind, scale = _kind(image)
    if scale is None or scale > 255:
        values = _read(image)
        return ValueExtent(float(values.min()), float(values.max()), kind, scale)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    found = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
    low, high = min(each[0] for each in found), max(each[1] for each in found)
    return ValueExtent(float(low), float(high), kind, scale)  # type: ignore[arg-type]


def refuse_large_tiles(image: Image.Image) -> None:
    """Raise DecompressionBombError if decoding an opened TIFF takes far more than its pixels."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1)
    if tile > max(_MAX_TILE_PIXELS, image.width * image.height):
        raise Image.DecompressionBombError(f"its tiles have {tile} pixels each")


def is_deep(image: Image.Image) -> bool:
    """Whether an opened file has more than 8 bits per value."""
    return _kind(image)[1] != 255


def scale_values(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Convert an opened file of more than 8 bits per value to 8 bits; return others as they are.

    Raises ValueError if the file does not say which value is white and there is no ``value_range``,
    and one of images.DECODING_ERRORS if it cannot be decoded.
    """
    kind, scale = _kind(image)
    if scale == 255 or (value_range is None and _is_colour(image)):
        return image  # of colours with 16 bits, Pillow takes the high byte
    values = _read(image)
    if value_range is None and scale is None:
        raise ValueError(
            f"its values are {kind}s from {values.min():.7g} to {values.max():.7g}; give those of "
            "black and white with --range LOW,HIGH"
        )
    pixels = (value_range or ValueRange(0, scale or 0)).to_8_bit(values)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    scaled = Image.fromarray(pixels)
    if "A" in image.getbands():
        scaled.putalpha(image.getchannel("A"))
    elif isinstance(key := image.info.get("transparency"), int):  # one value is transparent
        scaled.putalpha(Image.fromarray(numpy.where(values == key, 0, 255).astype(numpy.uint8)))
    is_upright = _is_colour(image) and image.format == "TIFF"  # OpenCV and Pillow turn them
    orientation = image.getexif().get(_ORIENTATION)
    if orientation and not is_upright:
        scaled.getexif()[_ORIENTATION] = orientation
    return scaled


def stretch_8_bit(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Scale the values of an RGB or RGBA image of 8 bits if the range applies to them."""
    if value_range is None or not value_range.of_8_bit:
        return image
    table = value_range.to_8_bit(numpy.arange(_LUT_SIZE)).tolist()
    alpha = list(range(_LUT_SIZE)) if image.mode == "RGBA" else []
    return image.point(table * 3 + alpha)


def _kind(image: Image.Image) -> tuple[str, int | None]:
    """Return the kind of a file's values and the value of white, by its header."""
    if image.mode == "F":
        return "32-bit float", None
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        return "32-bit integer", None
    if image.mode.startswith("I"):
        bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
        return ("12-bit", 4095) if bits == (12,) else ("16-bit", 65535)
    return ("16-bit", 65535) if _is_colour(image) else ("8-bit", 255)


def _is_colour(image: Image.Image) -> bool:
    """Whether it has 16 bits in each of several channels, which Pillow reduces to 8."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else None
    raw = args[0] if isinstance(args, tuple) and args else args
    return isinstance(raw, str) and ";16" in raw and image.mode in ("LA", "RGB", "RGBA")


def _read(image: Image.Image) -> Values:
    """Read the values, without alpha. Raises ValueError if one is not finite."""
    values: Values = _read_colour(image) if _is_colour(image) else numpy.asarray(image)
    if values.dtype.kind == "f" and not numpy.isfinite(values).all():
        raise ValueError("it has values that are NaN or infinite")
    return values


def _read_colour(image: Image.Image) -> Values:
    """Read 16-bit channels as RGB with OpenCV; Pillow has no such mode."""
    file = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    try:
        values = cv2.imdecode(numpy.frombuffer(file.read(), numpy.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(error.err) from error
    if values is None or values.dtype != numpy.uint16 or values.ndim != 3:
        raise ValueError("its 16-bit colours cannot be read")
    return values[..., 2::-1]
