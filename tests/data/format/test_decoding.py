"""Encoded images come out as packing and Pillow see them, whichever decoder took them."""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from orchestrator.data.format.decoding import decode
from orchestrator.data.format.images import load_image
from orchestrator.errors import DamagedSample

SIZE = 24
RGB: NDArray[numpy.uint8] = numpy.asarray(
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (6, 6, 3), numpy.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
)
PICTURE = Image.fromarray(RGB)
GREY = PICTURE.convert("L")
CLEAR = Image.merge("RGBA", (*PICTURE.split(), GREY))
"""See-through to different degrees."""
TURNS: dict[int, Callable[[NDArray[numpy.uint8]], NDArray[numpy.uint8]]] = {
    1: lambda a: a,
    2: numpy.fliplr,
    3: lambda a: numpy.rot90(a, 2),
    4: numpy.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: numpy.rot90(a, -1),
    7: lambda a: numpy.rot90(a, 2).transpose(1, 0, 2),
    8: numpy.rot90,
}
"""How a picture is to be turned, by EXIF's number."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    rows: bytes,
    bits: int,
    colours: int,
    interlaced: int = 0,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, colours, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    end = after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + end


def unfiltered(pixels: NDArray[numpy.generic]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced_png() -> bytes:
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = [unfiltered(RGB[y::dy, x::dx]) for y, x, dy, dx in (*passes, (1, 0, 2, 1))]
    return png_of(b"".join(rows), 8, 2, interlaced=1)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its colours were changed to YCCK."""
    data = bytearray(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


ROWS = unfiltered(RGB)
DEEP = (RGB.astype(numpy.uint16) * 257 ^ 5).astype(">u2")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MORE = {"save_all": True, "append_images": [PICTURE.rotate(90), PICTURE.rotate(180)]}
LOSSLESS = {
    "PNG": encoded(PICTURE, "PNG"),
    "interlaced PNG": interlaced_png(),
    "PNG in two chunks": png_of(ROWS, 8, 2).replace(
        chunk(b"IDAT", zlib.compress(ROWS)),
        chunk(b"IDAT", zlib.compress(ROWS)[:99]) + chunk(b"IDAT", zlib.compress(ROWS)[99:]),
    ),
    "PNG with gAMA": png_of(ROWS, 8, 2, before=chunk(b"gAMA", struct.pack(">I", 99000))),
    "PNG with a profile": encoded(PICTURE, "PNG", icc_profile=PROFILE),
    "PNG with bytes after it": encoded(PICTURE, "PNG") + b"more",
    "animated PNG": encoded(PICTURE, "PNG", **MORE),
    "16-bit colour PNG": png_of(unfiltered(DEEP), 16, 2),
    "lossless WebP": encoded(PICTURE, "WEBP", lossless=True),
    "animated WebP": encoded(PICTURE, "WEBP", lossless=True, **MORE),
    "BMP": encoded(PICTURE, "BMP"),
    "PPM": encoded(PICTURE, "PPM"),
    "TIFF": encoded(PICTURE, "TIFF"),
    "LZW TIFF": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
}
"""The very pixels of RGB."""
OTHERS = {
    "palette PNG": encoded(PICTURE.quantize(16), "PNG"),
    "palette PNG with a clear colour": encoded(PICTURE.quantize(16), "PNG", transparency=3),
    "palette PNG with degrees": encoded(PICTURE.quantize(9), "PNG", transparency=bytes(range(9))),
    "RGBA PNG": encoded(CLEAR, "PNG"),
    "grey and alpha PNG": encoded(CLEAR.convert("LA"), "PNG"),
    "grey PNG": encoded(GREY, "PNG"),
    "grey PNG with a clear grey": encoded(GREY, "PNG", transparency=int(RGB[0, 0, 0])),
    "PNG with a clear colour": encoded(PICTURE, "PNG", transparency=tuple(RGB[3, 4].tolist())),
    "1-bit PNG": encoded(GREY.convert("1"), "PNG"),
    "16-bit grey PNG": png_of(unfiltered(DEEP[..., 0]), 16, 0),
    "JPEG": encoded(PICTURE, "JPEG"),
    "fine JPEG": encoded(PICTURE, "JPEG", quality=95, subsampling=0),
    "progressive JPEG": encoded(PICTURE, "JPEG", progressive=True),
    "JPEG with restarts": encoded(PICTURE, "JPEG", restart_marker_blocks=1),
    "grey JPEG": encoded(GREY, "JPEG"),
    "CMYK JPEG": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "YCCK JPEG": ycck(),
    "RGB JPEG": encoded(PICTURE, "JPEG", keep_rgb=True),
    "JPEG with a profile": encoded(PICTURE, "JPEG", icc_profile=PROFILE),
    "JPEG with bytes after it": encoded(PICTURE, "JPEG") + b"more",
    "several JPEGs": encoded(PICTURE, "MPO", **MORE),
    "WebP": encoded(PICTURE, "WEBP"),
    "WebP with alpha": encoded(CLEAR, "WEBP", lossless=True),
    "GIF": encoded(PICTURE, "GIF"),
    "GIF with a clear colour": encoded(PICTURE.quantize(16), "GIF", transparency=3),
    "animated GIF": encoded(PICTURE, "GIF", **MORE),
    "1-bit TIFF": encoded(GREY.convert("1"), "TIFF", compression="group4"),
    "float TIFF": encoded(GREY.convert("F"), "TIFF"),
    "palette BMP": encoded(PICTURE.quantize(16), "BMP"),
}


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of ``originals`` with flipped bits, other bytes, pieces moved, or cut."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from([64, 512, len(data)]))
        at = draw(st.integers(0, max(0, min(near, len(data)) - 1)))
        end = draw(st.integers(at, min(len(data), at + 600)))
        match draw(st.sampled_from(["flip", "write", "move", "cut"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                new = draw(st.binary(min_size=1, max_size=12))
                data[at : at + len(new)] = new
            case "move":
                data[at:at] = data[end : end + 512]
            case "cut":
                del data[at : end if draw(st.booleans()) else len(data)]
    return bytes(data)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_images_are_decoded_to_the_very_pixels(kind: str) -> None:
    found = decode(LOSSLESS[kind], SIZE, 3, "here")
    assert (found.shape, found.dtype) == ((SIZE, SIZE, 3), numpy.uint8)
    numpy.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [*LOSSLESS, *OTHERS])
def test_images_are_decoded_to_what_packing_makes_of_them(
    tmp_path: Path, kind: str, channels: Literal[1, 3]
) -> None:
    data = {**LOSSLESS, **OTHERS}[kind]
    path = tmp_path / "no matter what it is called.png"
    path.write_bytes(data)
    packed = numpy.asarray(load_image(path, channels), numpy.int16).reshape(SIZE, SIZE, channels)
    found = decode(memoryview(data), SIZE, channels, "here")
    assert abs(found - packed).max() <= (1 if "JPEG" in kind else 0)


@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_come_upright_whichever_way_the_camera_was_held(orientation: int) -> None:
    upright, exif = TURNS[orientation](RGB), turned(orientation)
    late = png_of(ROWS, 8, 2, after=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    for data in (
        encoded(PICTURE, "PNG", exif=exif),
        encoded(PICTURE, "WEBP", lossless=True, exif=exif),
        encoded(PICTURE, "TIFF", exif=exif),
        late,
    ):
        numpy.testing.assert_array_equal(decode(data, SIZE, 3, "here"), upright)
    plain = decode(encoded(PICTURE, "JPEG"), SIZE, 3, "here")
    jpeg = encoded(PICTURE, "JPEG", exif=exif)
    numpy.testing.assert_array_equal(decode(jpeg, SIZE, 3, "here"), TURNS[orientation](plain))
    start = jpeg.index(b"\xff\xe1")
    app1 = jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")]
    late = jpeg.replace(app1, b"").replace(b"\xff\xda", app1 + b"\xff\xda", 1)
    numpy.testing.assert_array_equal(decode(late, SIZE, 3, "here"), TURNS[orientation](plain))


def test_what_is_clear_shows_white() -> None:
    clear = encoded(Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 0)), "PNG")
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
def test_an_image_of_another_size_is_damaged_and_both_sizes_are_told(kind: str) -> None:
    with pytest.raises(DamagedSample, match=r"^here is 24x24; the index says 25x25$"):
        decode(LOSSLESS[kind], 25, 3, "here")


def test_decoded_pixels_may_be_written_to_and_are_nobody_elses() -> None:
    for kind in ("PNG", "BMP"):
        first = decode(LOSSLESS[kind], SIZE, 3, "here")
        first[:] = 0
        numpy.testing.assert_array_equal(decode(LOSSLESS[kind], SIZE, 3, "here"), RGB)


def test_threads_decode_side_by_side_and_opencv_starts_none() -> None:
    assert cv2.getNumThreads() == 1
    kinds = [data for data in [*LOSSLESS.values(), *OTHERS.values()] for _ in range(20)]
    alone = [decode(data, SIZE, 3, "here") for data in kinds]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda data: decode(data, SIZE, 3, "here"), kinds)
        for one, other in zip(alone, together, strict=True):
            numpy.testing.assert_array_equal(one, other)
