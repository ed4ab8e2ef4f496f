"""Images in every encoding that the decoders know, and corrupted versions of them."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

SIZE = 24
RGB: NDArray[numpy.uint8] = numpy.asarray(
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (6, 6, 3), numpy.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
)
PICTURE = Image.fromarray(RGB)
GREY = PICTURE.convert("L")
CLEAR = Image.merge("RGBA", (*PICTURE.split(), GREY))
"""An image with different degrees of transparency."""
ORIENTATIONS: dict[int, Callable[[NDArray[numpy.uint8]], NDArray[numpy.uint8]]] = {
    1: lambda a: a,
    2: numpy.fliplr,
    3: lambda a: numpy.rot90(a, 2),
    4: numpy.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: numpy.rot90(a, -1),
    7: lambda a: numpy.rot90(a, 2).transpose(1, 0, 2),
    8: numpy.rot90,
}
"""The transform of each EXIF orientation."""


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    rows: bytes,
    bits: int,
    color_type: int,
    interlaced: int = 0,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, color_type, 0, 0, interlaced)
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
    """A CMYK JPEG whose Adobe marker claims that its colors are YCCK."""
    data = bytearray(encode(PICTURE.convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


ROWS = unfiltered(RGB)
DEEP = (RGB.astype(numpy.uint16) * 257 ^ 5).astype(">u2")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MORE = {"save_all": True, "append_images": [PICTURE.rotate(90), PICTURE.rotate(180)]}
LOSSLESS = {
    "PNG": encode(PICTURE, "PNG"),
    "interlaced PNG": interlaced_png(),
    "PNG in two chunks": png_of(ROWS, 8, 2).replace(
        chunk(b"IDAT", zlib.compress(ROWS)),
        chunk(b"IDAT", zlib.compress(ROWS)[:99]) + chunk(b"IDAT", zlib.compress(ROWS)[99:]),
    ),
    "PNG with gAMA": png_of(ROWS, 8, 2, before=chunk(b"gAMA", struct.pack(">I", 99000))),
    "PNG with a profile": encode(PICTURE, "PNG", icc_profile=PROFILE),
    "PNG with bytes after it": encode(PICTURE, "PNG") + b"more",
    "animated PNG": encode(PICTURE, "PNG", **MORE),
    "16-bit colour PNG": png_of(unfiltered(DEEP), 16, 2),
    "lossless WebP": encode(PICTURE, "WEBP", lossless=True),
    "animated WebP": encode(PICTURE, "WEBP", lossless=True, **MORE),
    "BMP": encode(PICTURE, "BMP"),
    "PPM": encode(PICTURE, "PPM"),
    "TIFF": encode(PICTURE, "TIFF"),
    "LZW TIFF": encode(PICTURE, "TIFF", compression="tiff_lzw"),
}
"""Lossless encodings of RGB."""
OTHERS = {
    "palette PNG": encode(PICTURE.quantize(16), "PNG"),
    "palette PNG with a clear colour": encode(PICTURE.quantize(16), "PNG", transparency=3),
    "palette PNG with degrees": encode(PICTURE.quantize(9), "PNG", transparency=bytes(range(9))),
    "RGBA PNG": encode(CLEAR, "PNG"),
    "grey and alpha PNG": encode(CLEAR.convert("LA"), "PNG"),
    "grey PNG": encode(GREY, "PNG"),
    "grey PNG with a clear grey": encode(GREY, "PNG", transparency=int(RGB[0, 0, 0])),
    "PNG with a clear colour": encode(PICTURE, "PNG", transparency=tuple(RGB[3, 4].tolist())),
    "1-bit PNG": encode(GREY.convert("1"), "PNG"),
    "16-bit grey PNG": png_of(unfiltered(DEEP[..., 0]), 16, 0),
    "JPEG": encode(PICTURE, "JPEG"),
    "fine JPEG": encode(PICTURE, "JPEG", quality=95, subsampling=0),
    "progressive JPEG": encode(PICTURE, "JPEG", progressive=True),
    "JPEG with restarts": encode(PICTURE, "JPEG", restart_marker_blocks=1),
    "grey JPEG": encode(GREY, "JPEG"),
    "CMYK JPEG": encode(PICTURE.convert("CMYK"), "JPEG"),
    "YCCK JPEG": ycck(),
    "RGB JPEG": encode(PICTURE, "JPEG", keep_rgb=True),
    "JPEG with a profile": encode(PICTURE, "JPEG", icc_profile=PROFILE),
    "JPEG with bytes after it": encode(PICTURE, "JPEG") + b"more",
    "several JPEGs": encode(PICTURE, "MPO", **MORE),
    "WebP": encode(PICTURE, "WEBP"),
    "WebP with alpha": encode(CLEAR, "WEBP", lossless=True),
    "GIF": encode(PICTURE, "GIF"),
    "GIF with a clear colour": encode(PICTURE.quantize(16), "GIF", transparency=3),
    "animated GIF": encode(PICTURE, "GIF", **MORE),
    "1-bit TIFF": encode(GREY.convert("1"), "TIFF", compression="group4"),
    "palette BMP": encode(PICTURE.quantize(16), "BMP"),
}


@st.composite
def corrupted(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of ``originals`` with flipped bits, overwritten, moved or removed bytes."""
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
