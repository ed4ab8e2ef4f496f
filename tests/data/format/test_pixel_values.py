"""Every kind of pixels, converted as a slow loop over its values converts them, or refused."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.format.decoding import decode
from orchestrator.data.format.images import FITS, Fit, convert_image, fit_image, load_image
from orchestrator.data.format.pixel_values import ValueRange, value_extent
from orchestrator.errors import CorruptSample, DataError
from support.encoded_images import chunk, encode, exif_of

RAMP: NDArray[numpy.float64] = numpy.linspace(0, 1, 8 * 8).reshape(8, 8)


def as_levels(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Each value on its own: below low is 0, above high 255, else the nearest level."""
    levels = [
        0 if v <= low else 255 if v >= high else round((v - low) * 255 / (high - low))
        for v in values.ravel().tolist()
    ]
    return numpy.array(levels).reshape(values.shape)


def tiff(values: NDArray[Any], **options: object) -> bytes:
    return encode(Image.fromarray(values), "TIFF", **options)


def tiff_of_colours(pixels: NDArray[Any], orientation: int) -> bytes:
    """An uncompressed TIFF of three channels of 16 bits, which Pillow does not write."""
    height, width, _ = pixels.shape
    data, bits = pixels.astype("<u2").tobytes(), 8 + 2 + 10 * 12 + 4
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, bits + 6), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return head + table + struct.pack("<HHH", 16, 16, 16) + data


def converted(data: bytes, value_range: ValueRange | None = None) -> NDArray[Any]:
    with Image.open(io.BytesIO(data)) as image:
        return numpy.asarray(convert_image(image, 3, value_range))


def assert_levels(data: bytes, expected: NDArray[Any], value_range: ValueRange | None) -> None:
    grey = expected if expected.ndim == 3 else numpy.stack([expected] * 3, -1)
    numpy.testing.assert_array_equal(converted(data, value_range), grey)
    found = decode(data, 8, 3, "here", value_range=value_range)
    numpy.testing.assert_array_equal(found, grey)


DEEP: dict[str, tuple[Callable[[], bytes], NDArray[Any], float, float]] = {
    "floats from 0 to 1": (lambda: tiff(RAMP.astype("f4")), RAMP.astype("f4"), 0, 1),
    "floats from -1 to 1": (
        lambda: tiff((RAMP * 2 - 1).astype("f4")),
        (RAMP * 2 - 1).astype("f4"),
        -1,
        1,
    ),
    "floats from 0 to 255": (
        lambda: tiff((RAMP * 255).astype("f4")),
        (RAMP * 255).astype("f4"),
        0,
        255,
    ),
    "floats outside the range": (
        lambda: tiff((RAMP * 900 - 300).astype("f4")),
        (RAMP * 900 - 300).astype("f4"),
        -100,
        200,
    ),
    "32-bit integers with negative ones": (
        lambda: tiff((RAMP * 5000 - 1000).astype("i4")),
        (RAMP * 5000 - 1000).astype("i4"),
        -1000,
        4000,
    ),
    "12 bits in a PNG of 16": (
        lambda: encode(Image.fromarray((RAMP * 4095).astype("u2")), "PNG"),
        (RAMP * 4095).astype("u2"),
        0,
        4095,
    ),
    "12 bits in a TIFF of 16, big-endian": (
        lambda: tiff((RAMP * 4095).astype(">u2")),
        (RAMP * 4095).astype("u2"),
        0,
        4095,
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_values_of_more_than_8_bits_are_scaled_from_the_range(kind: str) -> None:
    make, values, low, high = DEEP[kind]
    assert_levels(make(), as_levels(values, low, high), ValueRange(low, high))
    with Image.open(io.BytesIO(make())) as image:
        extent = value_extent(image)
    assert extent is not None
    assert (extent.low, extent.high) == (values.min(), values.max())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_integers_of_16_bits_go_up_to_65535_by_themselves(kind: str) -> None:
    values = (RAMP * 65535).astype("u2")
    data = encode(Image.fromarray(values), kind)
    assert_levels(data, as_levels(values, 0, 65535), None)


def test_a_16_bit_pgm_goes_up_to_its_own_maximum() -> None:
    values = (RAMP * 4095).astype(">u2")
    data = b"P5 8 8 4095\n" + values.tobytes()
    assert abs(converted(data)[..., 0] - as_levels(values, 0, 4095)).max() == 0


@pytest.mark.parametrize("ending", [".png", ".tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_12_bits_in_16_bit_colours_keep_their_levels(ending: str, alpha: bool) -> None:
    rgb = numpy.stack([RAMP * 4095, RAMP[::-1] * 4095, RAMP.T * 4000], -1).astype("u2")
    bands = [2, 1, 0] + ([3] if alpha else [])
    full = numpy.concatenate([rgb, numpy.full((8, 8, 1), 65535, "u2")], -1)
    data = cv2.imencode(ending, full[..., bands])[1].tobytes()
    assert_levels(data, as_levels(rgb, 0, 4095), ValueRange(0, 4095))
    assert converted(data).max() <= 15  # Pillow's high bytes: what the note on --range is about
    with Image.open(io.BytesIO(data)) as image:
        extent = value_extent(image)
        again = numpy.asarray(convert_image(image, 3, ValueRange(0, 4095)))
    assert extent is not None
    assert (extent.low, extent.high, extent.full_scale) == (0, 4095, 65535)
    numpy.testing.assert_array_equal(again, as_levels(rgb, 0, 4095))


def test_floats_without_a_range_are_refused_with_their_values_and_the_option(
    tmp_path: Path,
) -> None:
    (tmp_path / "depth.tif").write_bytes(tiff((RAMP * 3 - 1).astype("f4")))
    expected = r"depth\.tif .*values are 32-bit floats from -1 to 2; .* --range LOW,HIGH"
    with pytest.raises(DataError, match=expected):
        load_image(tmp_path / "depth.tif")
    with pytest.raises(CorruptSample, match="here cannot be decoded: its values are 32-bit floats"):
        decode(tiff(RAMP.astype("f4")), 8, 3, "here")


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_values_that_are_not_finite_make_a_broken_file(value: float, tmp_path: Path) -> None:
    values = RAMP.astype("f4")
    values[3, 4] = value
    (tmp_path / "hole.tif").write_bytes(tiff(values))
    with pytest.raises(DataError, match=r"hole\.tif .*NaN or infinite"):
        load_image(tmp_path / "hole.tif", value_range=ValueRange(0, 1))
    with Image.open(tmp_path / "hole.tif") as image, pytest.raises(ValueError, match="NaN"):
        value_extent(image)


@pytest.mark.parametrize("values", [RAMP.astype("f4"), (RAMP * 65535).astype("u2")])
def test_white_is_zero_is_inverted(values: NDArray[Any]) -> None:
    top = float(values.max())
    data = tiff(values, tiffinfo={262: 0})
    expected = 255 - as_levels(values, 0, top)
    numpy.testing.assert_array_equal(converted(data, ValueRange(0, top))[..., 0], expected)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_deep_images_are_turned_by_their_orientation(orientation: int, ending: str) -> None:
    values = (RAMP * 4095).astype("u2")[:, :5]
    turned = numpy.rot90(values, {3: 2, 6: -1}[orientation])
    found = encode(Image.fromarray(values), ending[1:].upper(), exif=exif_of(orientation))
    expected = as_levels(turned, 0, 4095)
    numpy.testing.assert_array_equal(converted(found, ValueRange(0, 4095))[..., 0], expected)
    colours = numpy.stack([values] * 3, -1)
    if ending == ".tiff":
        data = tiff_of_colours(colours, orientation)
    else:
        exif = chunk(b"eXIf", exif_of(orientation).tobytes().removeprefix(b"Exif\0\0"))
        png = cv2.imencode(ending, colours)[1].tobytes()
        data = png[:33] + exif + png[33:]
    upright = converted(data, ValueRange(0, 4095))
    numpy.testing.assert_array_equal(upright[..., 1], expected)


def test_a_clear_grey_of_16_bits_becomes_white() -> None:
    values = (RAMP * 65535).astype("u2")
    data = encode(Image.fromarray(values), "PNG", transparency=int(values[2, 2]))
    expected = as_levels(values, 0, 65535)
    expected[2, 2] = 255
    assert_levels(data, expected, None)


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image.putalpha(alpha)
    return image


RED = (200, 40, 30)
MODES: dict[str, Image.Image] = {
    "1": Image.new("1", (4, 4), 0),
    "L": Image.new("L", (4, 4), 100),
    "P": Image.new("RGB", (4, 4), RED).quantize(4),
    "RGB": Image.new("RGB", (4, 4), RED),
    "CMYK": Image.new("CMYK", (4, 4), (55, 215, 225, 0)),
    "YCbCr": Image.new("RGB", (4, 4), RED).convert("YCbCr"),
    "HSV": Image.new("RGB", (4, 4), RED).convert("HSV"),
    "LA": Image.new("LA", (4, 4), (100, 51)),
    "La": Image.new("LA", (4, 4), (100, 51)).convert("La"),
    "PA": with_alpha(Image.new("L", (4, 4), 100).convert("P"), 51),
    "RGBA": Image.new("RGBA", (4, 4), (*RED, 51)),
    "RGBa": Image.new("RGBA", (4, 4), (*RED, 51)).convert("RGBa"),
    "LAB": Image.merge("LAB", [Image.new("L", (4, 4), v) for v in (136, 208, 195)]),
}
SHOWN = {
    "1": (0, 0, 0),
    "L": (100, 100, 100),
    # a fifth of the colour on four fifths of white
    **dict.fromkeys(("LA", "La", "PA"), (224, 224, 224)),
    **dict.fromkeys(("RGBA", "RGBa"), (244, 212, 210)),
    "LAB": (255, 0, 0),  # CIE L*a*b* 53, 80, 67 is the red of sRGB
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_becomes_the_colours_that_viewers_show(mode: str) -> None:
    image = MODES[mode]
    assert image.mode == mode
    found = convert_image(image, 3)
    shown = found.getpixel((1, 1))
    tolerance = 12 if mode == "LAB" else 3
    assert abs(numpy.array(shown) - SHOWN.get(mode, RED)).max() <= tolerance
    assert convert_image(image, 1).mode == "L"


def test_a_cmyk_jpeg_of_adobe_is_not_a_negative() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in data
    assert converted(data).min() >= 250


def test_a_range_applies_to_8_bits_only_when_it_says_so() -> None:
    image = Image.fromarray((RAMP * 40).astype("u1"))
    data = encode(image, "PNG")
    plain = numpy.stack([numpy.asarray(image)] * 3, -1)
    assert_levels(data, plain, ValueRange(0, 40))
    stretched = as_levels(plain, 0, 40)
    numpy.testing.assert_array_equal(converted(data, ValueRange(0, 40, of_8_bit=True)), stretched)
    clear = Image.merge("RGBA", [image, image, image, Image.new("L", (8, 8), 0)])
    assert converted(encode(clear, "PNG"), ValueRange(0, 40, of_8_bit=True)).min() == 255


def slow_fit(pixels: NDArray[Any], fit: Fit) -> NDArray[Any]:
    """The square before it is resized, pixel by pixel; nearest for stretch."""
    height, width = pixels.shape
    side = min(height, width) if fit == "crop" else max(height, width)
    found = numpy.full((side, side), 255)
    for y in range(side):
        for x in range(side):
            if fit == "stretch":
                found[y, x] = pixels[y * height // side, x * width // side]
                continue
            row = y + (height - side) // 2 if fit == "crop" else y - (side - height) // 2
            column = x + (width - side) // 2 if fit == "crop" else x - (side - width) // 2
            if 0 <= row < height and 0 <= column < width:
                found[y, x] = pixels[row, column]
    return found


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(12, 8), (8, 12), (9, 4), (8, 8)])
def test_images_are_fit_as_a_loop_over_pixels_fits_them(fit: Fit, size: tuple[int, int]) -> None:
    pixels = numpy.add.outer(numpy.arange(size[1]) * 9, numpy.arange(size[0]) * 11).astype("u1")
    found = numpy.asarray(fit_image(Image.fromarray(pixels), None, fit)).astype(int)
    # Stretched, the smooth picture is that of the nearest pixels within one step.
    assert abs(found - slow_fit(pixels, fit)).max() <= (11 if fit == "stretch" else 0)
    small = fit_image(Image.fromarray(pixels), 2, fit)
    assert small.size == (2, 2)


@pytest.mark.parametrize("fit", FITS)
def test_scaling_down_averages_instead_of_picking_pixels(fit: Fit) -> None:
    checks = numpy.indices((96, 64)).sum(0) % 2 * 255
    found = numpy.asarray(fit_image(Image.fromarray(checks.astype("u1")), 8, fit)).astype(int)
    middle = found[:, 3:5]
    assert abs(middle - 127).max() < 10


def test_a_file_that_was_loaded_has_the_same_extent(tmp_path: Path) -> None:
    values = numpy.stack([RAMP * 4095] * 3, -1).astype("u2")
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    with Image.open(tmp_path / "deep.png") as image:
        image.getexif()  # loads a PNG, after which Pillow no longer knows that it has 16 bits
        extent = value_extent(image)
    assert extent is not None
    assert (extent.low, extent.high) == (0, 4095)
    # Pillow has nothing left to load of a WebP from the start.
    Image.fromarray((RAMP * 200).astype("u1")).save(tmp_path / "x.webp", lossless=True)
    with Image.open(tmp_path / "x.webp") as image:
        extent = value_extent(image)
    assert extent is not None
    assert (extent.low, extent.high) == (0, 200)
