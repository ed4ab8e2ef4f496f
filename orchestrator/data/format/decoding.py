"""Encoded images to pixels, as they come from a shard.

Plain 8-bit PNG and JPEG, which is nearly all there is, are decoded by OpenCV; all else (palettes,
transparency, 16 bits, CMYK, other formats) by Pillow, the way that packing does. Sizes are read
from the header before anything is decoded, so that a bomb costs nothing.
"""

import io
import struct
import zlib
from typing import Literal

import cv2
import numpy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from orchestrator.data.format.images import DECODING_ERRORS, as_seen
from orchestrator.errors import DamagedSample

Pixels = NDArray[numpy.uint8]
"""An image: uint8 (H, W, C)."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_PLAIN = {1: b"\x08\0", 3: b"\x08\x02"}
"""Bits of a value, and the kind of colours."""
_CHUNK = struct.Struct(">I4s")
_JPEG_SIZES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of the JPEG segments that hold height, width and the number of components."""
_JPEG_PLAIN = frozenset({0xC4, 0xDB, 0xDD, 0xE0, *range(0xE2, 0xF0), 0xFE}) | _JPEG_SIZES
"""Markers of segments that have a length and say nothing of how the picture is turned."""
_JPEG_PIXELS = 0xDA
_MARKER = struct.Struct(">BBH")
_SIZES = struct.Struct(">BHHB")

Buffer = bytes | memoryview

# Threads decode a sample each; OpenCV's own would only get in their way, and its log tells of
# damage that DamagedSample tells of already.
cv2.setNumThreads(0)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: Buffer, size: int, channels: Literal[1, 3], where: str) -> Pixels:
    """The image in ``data``: uint8 (size, size, channels), colours in the order RGB.

    Raises DamagedSample, which starts with ``where``, if it does not decode or has another size.
    """
    shape = _plain_shape(data, channels, where)
    if shape is None:
        return _decoded_by_pillow(data, size, channels, where)
    if shape != (size, size):
        raise _other_size(shape[1], shape[0], size, where)
    try:
        pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), _FLAGS[channels])
    except cv2.error as error:
        raise DamagedSample(f"{where} does not decode: {error.err}") from error
    if pixels is None or pixels.shape[:2] != shape:
        raise DamagedSample(f"{where} does not decode: it is damaged")
    return pixels.reshape(size, size, channels)  # type: ignore[return-value]  # it is uint8


def _plain_shape(data: Buffer, channels: Literal[1, 3], where: str) -> tuple[int, int] | None:
    """Height and width of an image that OpenCV decodes as it should, by its header; else None.

    These must be what OpenCV's libraries find, for they allocate what they find.
    """
    start = bytes(data[:33])
    if start.startswith(_PNG_START):
        if _only_pixels(bytes(data), where) and start[24:26] == _PNG_PLAIN[channels]:
            return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")
    elif start.startswith(b"\xff\xd8\xff") and bytes(data[-2:]) == b"\xff\xd9":
        return _jpeg_shape(data, channels)
    return None


def _only_pixels(data: bytes, where: str) -> bool:
    """Whether nothing in a PNG may say that it is transparent, turned or moving.

    Raises DamagedSample if a chunk is damaged or the end is missing, for neither decoder finds all
    such damage, and libpng tells of it on stderr.
    """
    at, plain = 8, True
    while at + 12 <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        end = at + 8 + length
        if data[end : end + 4] != zlib.crc32(data[at + 4 : end]).to_bytes(4, "big"):
            break
        at = end + 4
        if kind == b"IEND":
            return plain and at == len(data)
        plain = plain and kind in (b"IHDR", b"IDAT")
    raise DamagedSample(f"{where} does not decode: the PNG is damaged at byte {at}")


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
        if marker in _JPEG_SIZES:
            bits, height, width, components = _SIZES.unpack_from(data, at + 4)
            if shape is not None or bits != 8 or components != channels:
                return None
            shape = height, width
        at += 2 + length
    return None


def _decoded_by_pillow(data: Buffer, size: int, channels: Literal[1, 3], where: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size != (size, size):
                raise _other_size(*image.size, size, where)
            seen = as_seen(image, channels)
    except UnidentifiedImageError as error:
        raise DamagedSample(
            f"{where} does not decode: it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        ) from error
    except DECODING_ERRORS as error:
        raise DamagedSample(f"{where} does not decode: {error}") from error
    return numpy.array(seen).reshape(size, size, channels)


def _other_size(width: int, height: int, size: int, where: str) -> DamagedSample:
    return DamagedSample(f"{where} is {width}x{height}; the index says {size}x{size}")
