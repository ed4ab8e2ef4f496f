"""Decoded images equal what packing and Pillow produce, whichever decoder is used."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy
import pytest
from PIL import Image

from orchestrator.data.format.decoding import decode
from orchestrator.data.format.images import load_image
from orchestrator.errors import CorruptSample
from support.encoded_images import (
    GREY,
    LOSSLESS,
    ORIENTATIONS,
    OTHERS,
    PICTURE,
    RGB,
    ROWS,
    SIZE,
    chunk,
    encode,
    exif_of,
    png_of,
)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_images_are_decoded_exactly(kind: str) -> None:
    found = decode(LOSSLESS[kind], SIZE, 3, "here")
    assert found.shape == (SIZE, SIZE, 3)
    assert found.dtype == numpy.uint8
    numpy.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [*LOSSLESS, *OTHERS])
def test_images_are_decoded_as_packing_decodes_them(
    tmp_path: Path, kind: str, channels: Literal[1, 3]
) -> None:
    data = {**LOSSLESS, **OTHERS}[kind]
    path = tmp_path / "any name.png"
    path.write_bytes(data)
    packed = numpy.asarray(load_image(path, channels), numpy.int16).reshape(SIZE, SIZE, channels)
    found = decode(memoryview(data), SIZE, channels, "here")
    assert abs(found - packed).max() <= (1 if "JPEG" in kind else 0)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_rotated_by_their_exif_orientation(orientation: int) -> None:
    transform, exif = ORIENTATIONS[orientation], exif_of(orientation)
    upright = transform(RGB)
    late = png_of(ROWS, 8, 2, after=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    for data in (
        encode(PICTURE, "PNG", exif=exif),
        encode(PICTURE, "WEBP", lossless=True, exif=exif),
        encode(PICTURE, "TIFF", exif=exif),
        late,
    ):
        numpy.testing.assert_array_equal(decode(data, SIZE, 3, "here"), upright)
    plain = decode(encode(PICTURE, "JPEG"), SIZE, 3, "here")
    jpeg = encode(PICTURE, "JPEG", exif=exif)
    numpy.testing.assert_array_equal(decode(jpeg, SIZE, 3, "here"), transform(plain))
    start = jpeg.index(b"\xff\xe1")
    app1 = jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")]
    late = jpeg.replace(app1, b"").replace(b"\xff\xda", app1 + b"\xff\xda", 1)
    numpy.testing.assert_array_equal(decode(late, SIZE, 3, "here"), transform(plain))


def test_transparent_pixels_become_white() -> None:
    clear = encode(Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 0)), "PNG")
    assert (decode(clear, SIZE, 3, "here") == 255).all()
    assert (decode(clear, SIZE, 1, "here") == 255).all()


def test_plain_png_and_jpeg_do_not_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    for kind in ("PNG", "interlaced PNG", "PNG in two chunks"):
        numpy.testing.assert_array_equal(decode(LOSSLESS[kind], SIZE, 3, "here"), RGB)
    for kind in ("JPEG", "progressive JPEG", "RGB JPEG", "JPEG with a profile"):
        assert decode(OTHERS[kind], SIZE, 3, "here").shape == (SIZE, SIZE, 3)
    grey = decode(OTHERS["grey PNG"], SIZE, 1, "here")
    numpy.testing.assert_array_equal(grey[..., 0], numpy.asarray(GREY))
    assert decode(OTHERS["grey JPEG"], SIZE, 1, "here").shape == (SIZE, SIZE, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "lossless WebP"])
def test_an_image_of_another_size_is_corrupt_and_both_sizes_are_reported(kind: str) -> None:
    with pytest.raises(CorruptSample, match=r"^here is 24x24; the index lists 25x25$"):
        decode(LOSSLESS[kind], 25, 3, "here")


def test_decoded_pixels_are_writable_and_not_shared() -> None:
    for kind in ("PNG", "BMP"):
        first = decode(LOSSLESS[kind], SIZE, 3, "here")
        first[:] = 0
        numpy.testing.assert_array_equal(decode(LOSSLESS[kind], SIZE, 3, "here"), RGB)


def test_threads_decode_in_parallel_without_opencv_threads() -> None:
    assert cv2.getNumThreads() == 1
    kinds = [data for data in [*LOSSLESS.values(), *OTHERS.values()] for _ in range(20)]
    alone = [decode(data, SIZE, 3, "here") for data in kinds]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda data: decode(data, SIZE, 3, "here"), kinds)
        for one, other in zip(alone, together, strict=True):
            numpy.testing.assert_array_equal(one, other)
