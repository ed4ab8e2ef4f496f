"""Embedded profiles, against the formulas of the colour spaces."""

import io
import struct
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from orchestrator.data.format.colour_profiles import converted_profile
from orchestrator.data.format.decoding import decode
from orchestrator.data.format.images import convert_image
from support.encoded_images import PROFILE, encode

# Linear RGB to XYZ under D50 (Bruce Lindbloom's tables), and the gamma of Adobe RGB (1998).
ADOBE = numpy.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197],
     [0.0194811, 0.0608902, 0.7448387]]
)  # fmt: skip
SRGB = numpy.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
     [0.0139322, 0.0971045, 0.7141733]]
)  # fmt: skip
GAMMA = 563 / 256
NAME = "Adobe RGB (1998)"


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def adobe_rgb(name: str = NAME) -> bytes:
    """A profile of version 2, built from the numbers above."""
    text = name.encode() + b"\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"desc": described, b"cprt": b"text" + bytes(4) + b"none\0"}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)
    for number, band in enumerate(b"rgb"):
        tags[bytes([band]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*ADOBE[:, number])
        tags[bytes([band]) + b"TRC"] = curve
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", 132 + 12 * len(tags) + len(data), b"", 0x02100000, b"mntr",
                       b"RGB ", b"XYZ ") + bytes(12) + b"acsp" + bytes(28)  # fmt: skip
    return head + fixed(0.9642, 1, 0.8249) + bytes(128 - len(head) - 12) + table + data


def to_srgb(colour: tuple[int, int, int]) -> NDArray[Any]:
    """One colour of Adobe RGB in sRGB, by the formulas."""
    linear = numpy.linalg.solve(SRGB, ADOBE @ (numpy.array(colour) / 255) ** GAMMA).clip(0, 1)
    curved = [12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in linear]
    return numpy.array(curved) * 255


COLOURS = [(120, 90, 60), (60, 130, 90), (200, 180, 170), (40, 60, 140), (255, 255, 255)]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_adobe_rgb_becomes_srgb(colour: tuple[int, int, int], kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = Image.new("RGB", (8, 8), colour)
    data = encode(image, kind, icc_profile=adobe_rgb(), **options)
    with Image.open(io.BytesIO(data)) as file:
        assert converted_profile(file) == NAME
        packed = numpy.asarray(convert_image(file, 3))
    # A level of the input is up to two of the output; JPEG may move the input by one.
    assert abs(packed[4, 4] - to_srgb(colour)).max() <= (3.5 if kind == "JPEG" else 2)
    numpy.testing.assert_array_equal(decode(data, 8, 3, "here"), packed)


def test_transparency_survives_the_conversion() -> None:
    image = Image.new("RGBA", (8, 8), (60, 130, 90, 0))
    image.putpixel((1, 1), (60, 130, 90, 255))
    data = encode(image, "PNG", icc_profile=adobe_rgb())
    found = decode(data, 8, 3, "here")
    assert found[0, 0].tolist() == [255, 255, 255]
    assert abs(found[1, 1] - to_srgb((60, 130, 90))).max() <= 2.5


def test_a_profile_in_parts_of_a_jpeg_is_read_as_a_whole() -> None:
    long = adobe_rgb("x" * 70_000)
    data = encode(Image.new("RGB", (8, 8), (60, 130, 90)), "JPEG", quality=100, icc_profile=long)
    assert data.count(b"ICC_PROFILE") == 2
    assert abs(decode(data, 8, 3, "here")[4, 4] - to_srgb((60, 130, 90))).max() <= 3.5


BUILT_IN = {
    "sRGB": PROFILE,
    "no profile": b"",
    "a corrupt profile": adobe_rgb()[:200],
    "a profile of Lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
}


@pytest.mark.parametrize("kind", BUILT_IN)
def test_other_profiles_leave_the_pixels_as_they_are(kind: str) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (8, 8, 3), "u1")
    data = encode(Image.fromarray(pixels), "PNG", icc_profile=BUILT_IN[kind])
    numpy.testing.assert_array_equal(decode(data, 8, 3, "here"), pixels)
    with Image.open(io.BytesIO(data)) as file:
        assert converted_profile(file) == ""
