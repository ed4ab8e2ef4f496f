"""Endings and formats of the image files that can be read.

A file is a candidate by its ending, and an image by its content: a .jpg that holds a PNG is fine.
"""

from pathlib import Path
from typing import IO

from PIL import Image, features

_ENDINGS_BY_FORMAT = {
    "BMP": (".bmp",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Formats by Pillow's names. Left out are icons, which hold several images of one thing, formats
that need other programs (EPS, WMF) or are not pictures (PDF, HDF5), and video."""
if features.check("avif"):
    _ENDINGS_BY_FORMAT["AVIF"] = (".avif", ".avifs")
if not features.check("jpg_2000"):
    del _ENDINGS_BY_FORMAT["JPEG2000"]

FILE_FORMATS = tuple(_ENDINGS_BY_FORMAT)
"""Formats that an image file may have, whatever its ending."""
FILE_ENDINGS = tuple(sorted(e for endings in _ENDINGS_BY_FORMAT.values() for e in endings))
"""Endings of image files, in lower case; files may have them in capitals."""
SHORT_ENDINGS = ".png, .jpg, .webp, .tif and others"
"""The endings in a message; docs/data.md lists all."""

_FOREIGN = (
    # offset, bytes, what it is
    (4, b"ftyphei", "it is a HEIC photograph, which cannot be read: convert it to JPEG"),
    (4, b"ftyphev", "it is a HEIC photograph, which cannot be read: convert it to JPEG"),
    (4, b"ftypmif1", "it is a HEIF photograph, which cannot be read: convert it to JPEG"),
    (0, b"%PDF", "it is a PDF"),
    (0, b"%!PS", "it is PostScript"),
    (0, b"<svg", "it is an SVG drawing: render it to PNG"),
    (0, b"<!doctype html", "it is a web page, perhaps of a failed download"),
    (0, b"<html", "it is a web page, perhaps of a failed download"),
    (0, b"version https://git-lfs", "it is a pointer of Git LFS: run git lfs pull"),
    (0, b"\x1f\x8b", "it is compressed with gzip"),
    (0, b"PK\x03\x04", "it is a zip archive"),
)


def open_image(file: Path | IO[bytes], formats: tuple[str, ...] = FILE_FORMATS) -> Image.Image:
    """Open an image of one of ``formats``, whatever its name.

    Pillow alone would try every format that it knows, and hand PostScript to Ghostscript.
    """
    return Image.open(file, formats=formats)


def describe_foreign(start: bytes) -> str:
    """Say what a file is that is not an image, by its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for offset, magic, what in _FOREIGN:
        if start[offset:].startswith(magic) or (not offset and text.startswith(magic.lower())):
            return what
    if not start:
        return "it is empty"
    if not start.strip(b"\0"):
        return "it is nothing but zeros"
    return "its content is not that of any image format"
