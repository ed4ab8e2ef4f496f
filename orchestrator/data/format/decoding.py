"""Decode the images of a shard to pixels.

OpenCV decodes plain 8-bit PNG and JPEG, which is nearly everything; Pillow decodes the rest
(palettes, transparency, 16 bits, CMYK, other formats) as packing does. The size is read from the
header before decoding, so that a decompression bomb costs nothing.
"""

import io
import struct
import zlib
from dataclasses import replace
from typing import Literal

import cv2
import numpy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from orchestrator.data.format.colour_profiles import changes_colours
from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.images import DECODING_ERRORS, MODES, Fit, convert_image, fit_image
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.errors import CorruptSample

Pixels = NDArray[numpy.uint8]
"""An image: uint8 (H, W, C)."""

MAX_PIXELS = 89_478_485
"""Most pixels of an image of another size than the set's, from its header: as Pillow warns of."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_PLAIN = {1: b"\x08\0", 3: b"\x08\x02"}
"""Bit depth and color type."""
_CHUNK = struct.Struct(">I4s")
_JPEG_SIZES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of the JPEG segments with height, width and number of components."""
_JPEG_PLAIN = frozenset({0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE}) | _JPEG_SIZES
"""Markers of segments that have a length and cannot contain an orientation."""
_APP2, _PROFILE = 0xE2, b"ICC_PROFILE\0"
_JPEG_PIXELS = 0xDA
_MARKER = struct.Struct(">BBH")
_SIZES = struct.Struct(">BHHB")

Buffer = bytes | memoryview

# Each decoding thread handles one sample, so OpenCV's own threads would only compete with them; its
# log repeats what CorruptSample reports.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(
    data: Buffer,
    size: int,
    channels: Literal[1, 3],
    where: str,
    fit: Fit | None = None,
    value_range: ValueRange | None = None,
) -> Pixels:
    """Decode an image to uint8 (size, size, channels), RGB.

    ``fit`` makes images of other sizes fit. ``value_range`` applies to images of more than 8 bits
    per value; see ``convert_image``. Raises CorruptSample, prefixed by ``where``, if it cannot be
    decoded, or has another size without ``fit``.
    """
    shape = _plain_shape(data, channels, where)
    if shape is None:
        return _decode_with_pillow(data, size, channels, where, fit, value_range)
    _check_size(shape[1], shape[0], size, fit, where)
    try:
        pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), _FLAGS[channels])
    except cv2.error as error:
        raise CorruptSample(f"{where} cannot be decoded: {error.err}") from error
    if pixels is None or pixels.shape[:2] != shape:
        raise CorruptSample(f"{where} cannot be decoded: it is corrupt")
    if shape != (size, size) and fit is not None:
        pixels = numpy.asarray(fit_image(Image.fromarray(pixels), size, fit))
    return pixels.reshape(size, size, channels)  # type: ignore[return-value]  # it is uint8


def _plain_shape(data: Buffer, channels: Literal[1, 3], where: str) -> tuple[int, int] | None:
    """Return height and width from the header if OpenCV decodes the image correctly, else None.

    They must be what OpenCV's libraries read, which allocate that many pixels.
    """
    start = bytes(data[:33])
    if start.startswith(_PNG_START):
        if _has_only_pixels(bytes(data), where) and start[24:26] == _PNG_PLAIN[channels]:
            return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")
    elif start.startswith(b"\xff\xd8\xff") and bytes(data[-2:]) == b"\xff\xd9":
        return _jpeg_shape(data, channels)
    return None


def _has_only_pixels(data: bytes, where: str) -> bool:
    """Return whether a PNG has no chunks for transparency, orientation or animation.

    Raises CorruptSample if a chunk is corrupt or the end is missing: neither decoder detects all
    such errors, and libpng prints them to stderr.
    """
    at, has_only_pixels = 8, True
    while at + 12 <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        end = at + 8 + length
        if data[end : end + 4] != zlib.crc32(data[at + 4 : end]).to_bytes(4, "big"):
            break
        at = end + 4
        if kind == b"IEND":
            return has_only_pixels and at == len(data)
        has_only_pixels &= kind in (b"IHDR", b"IDAT")
    raise CorruptSample(f"{where} cannot be decoded: the PNG is corrupt at byte {at}")


def _jpeg_shape(data: Buffer, channels: Literal[1, 3]) -> tuple[int, int] | None:
    at, shape = 2, None
    while at + 10 <= len(data):
        start, marker, length = _MARKER.unpack_from(data, at)
        if start != 0xFF or length < 2:
            return None
        if marker == _JPEG_PIXELS:
            return shape
        if marker not in _JPEG_PLAIN:
            return None
        if marker == _APP2 and _changes_colours(bytes(data[at + 4 : at + 2 + length]), channels):
            return None
        if marker in _JPEG_SIZES:
            bits, height, width, components = _SIZES.unpack_from(data, at + 4)
            if shape is not None or bits != 8 or components != channels:
                return None
            shape = height, width
        at += 2 + length
    return None


def _changes_colours(segment: bytes, channels: Literal[1, 3]) -> bool:
    """Whether a JPEG segment holds a colour profile to convert from, or a part of one."""
    if not segment.startswith(_PROFILE):
        return False
    part, profile = segment[len(_PROFILE) : len(_PROFILE) + 2], segment[len(_PROFILE) + 2 :]
    return part != b"\1\1" or changes_colours(profile, MODES[channels])


def _decode_with_pillow(
    data: Buffer,
    size: int,
    channels: Literal[1, 3],
    where: str,
    fit: Fit | None,
    value_range: ValueRange | None,
) -> Pixels:
    if value_range is not None:  # packing has applied it to images of 8 bits
        value_range = replace(value_range, of_8_bit=False)
    try:
        with open_image(io.BytesIO(data), FORMATS) as image:
            _check_size(*image.size, size, fit, where)
            converted = convert_image(image, channels, value_range)
            if converted.size != (size, size) and fit is not None:
                converted = fit_image(converted, size, fit)
    except UnidentifiedImageError as error:
        raise CorruptSample(
            f"{where} cannot be decoded: it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        ) from error
    except DECODING_ERRORS as error:
        raise CorruptSample(f"{where} cannot be decoded: {error}") from error
    return numpy.array(converted).reshape(size, size, channels)


def _check_size(width: int, height: int, size: int, fit: Fit | None, where: str) -> None:
    """Raise CorruptSample, before anything is decoded, unless an image may have this size."""
    if fit is None and (width, height) != (size, size):
        raise CorruptSample(f"{where} is {width}x{height}; the index lists {size}x{size}")
    if width * height > max(MAX_PIXELS, size * size):
        raise CorruptSample(f"{where} is {width}x{height}; at most {MAX_PIXELS:,} pixels are read")
