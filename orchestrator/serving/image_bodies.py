"""Decode images that clients send, within limits, and encode those that they get."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.images import (
    DECODING_ERRORS,
    Fit,
    convert_image,
    fit_image,
    undo_fit,
)
from orchestrator.data.format.preparation import Preparation
from orchestrator.models.base import ModelConfig
from orchestrator.sampling.image_inputs import DEFAULT_FIT
from orchestrator.serving.refused_request import Refused

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
"""Formats that are accepted, and their content types."""
SMALL_PIXELS = 128 * 128
"""Up to here an image is coded faster than a thread is told to do it."""


class UploadedImage:
    """An image in the body of a request, of which only the header has been read."""

    def __init__(self, body: bytes, max_pixels: int) -> None:
        """Read the header of a PNG, JPEG or WebP.

        Raises Refused: 413 if it has too many pixels, 415 if it is no such image.
        """
        with _refusing(max_pixels):
            self._image = open_image(io.BytesIO(body), tuple(FORMATS))
        width, height = self._image.size
        if width * height > max_pixels:
            raise Refused(
                413, f"the image has {width} x {height} pixels; at most {max_pixels:,} in all"
            )
        self._max_pixels, self._upright = max_pixels, (width, height)
        self.is_small = width * height <= SMALL_PIXELS

    def as_input(self, config: ModelConfig, preparation: Preparation) -> NDArray[np.uint8]:
        """Decode it and make it square, as `orchestrator sample` does: levels (1, C, H, W).

        Raises Refused: 415 if it is damaged.
        """
        with _refusing(self._max_pixels):
            converted = convert_image(
                self._image, 1 if config.channels == 1 else 3, preparation.value_range
            )
        self._upright = converted.size
        square = fit_image(converted, config.image_size, preparation.fit or DEFAULT_FIT)
        return _to_levels(square)[None]

    def in_proportions(self, levels: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
        """Give its translation, uint8 (C, H, W), its proportions; see ``undo_fit``."""
        width, height = self._upright
        if width == height:
            return levels
        return _to_levels(undo_fit(_to_pillow(levels), (width, height), fit))


@contextmanager
def _refusing(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        raise Refused(413, f"the image has too many pixels; at most {max_pixels:,}") from error
    except DECODING_ERRORS as error:
        raise Refused(415, "this is no PNG, JPEG or WebP image, or it is damaged") from error


def _to_levels(image: Image.Image) -> NDArray[np.uint8]:
    """Return a grey or RGB image as uint8 (C, H, W)."""
    pixels: NDArray[np.uint8] = np.asarray(image).reshape(image.height, image.width, -1)
    levels: NDArray[np.uint8] = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return levels


def _to_pillow(levels: NDArray[np.uint8]) -> Image.Image:
    pixels = levels.transpose(1, 2, 0)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def encode_png(levels: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 (C, H, W) with 1 or 3 channels, as PNG."""
    pixels = levels.transpose(1, 2, 0)
    ordered = pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels
    is_encoded, content = cv2.imencode(".png", np.ascontiguousarray(ordered))
    assert is_encoded
    return bytes(content)


def encode_image(levels: NDArray[np.uint8], media_type: str) -> bytes:
    """Encode an image, uint8 (C, H, W), in a format of ``FORMATS``; WebP without loss."""
    if media_type == FORMATS["PNG"]:
        return encode_png(levels)
    buffer, image = io.BytesIO(), _to_pillow(levels)
    if media_type == FORMATS["WEBP"]:
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def is_small(images: NDArray[np.uint8]) -> bool:
    """Return whether images (B, C, H, W) are encoded faster than a thread is told to do it."""
    count, _, height, width = images.shape
    return bool(count * height * width <= SMALL_PIXELS)


def to_base64(levels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 (C, H, W), as PNG in base64."""
    return base64.b64encode(encode_png(levels)).decode()


def to_grid(images: NDArray[np.uint8], columns: int = 8, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange images, uint8 (B, C, H, W), in rows on white: uint8 (C, H, W); one stays as it is."""
    if len(images) == 1:
        only: NDArray[np.uint8] = images[0]
        return only
    count, channels, height, width = images.shape
    columns = min(columns, count)
    shape = (channels, -(-count // columns) * (height + gap) + gap, columns * (width + gap) + gap)
    grid = np.full(shape, 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid
