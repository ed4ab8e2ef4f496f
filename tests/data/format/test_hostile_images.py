"""Hostile images: bombs cost no memory, partial ones are corrupt, only DataError is raised."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import example, given, settings
from PIL import Image

from orchestrator.data.format import images
from orchestrator.data.format.decoding import decode
from orchestrator.data.format.images import fit_image
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import CorruptSample, DataError
from support.encoded_images import (
    LOSSLESS,
    OTHERS,
    PICTURE,
    ROWS,
    SIZE,
    chunk,
    corrupted,
    encode,
    png_of,
)

# Pytest resets the filter that images.py sets; the test of bombs verifies that it works.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
PNG, JPEG = LOSSLESS["PNG"], OTHERS["JPEG"]
HUGE = 60_000


def overwrite(data: bytes, after: bytes, skip: int, form: str, *values: int) -> bytes:
    """``data`` with other values ``skip`` bytes behind ``after``."""
    start = data.index(after) + len(after) + skip
    new = struct.pack(form, *values)
    return data[:start] + new + data[start + len(new) :]


def png_with_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = PNG[:8] + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")


def tiff_of(compression: int, pixels: bytes, **tags: int) -> bytes:
    names = {"width": 256, "height": 257, "rows": 278, "tile_width": 322, "tile_height": 323}
    tiled = "tile_width" in tags
    values = {names[name]: value for name, value in tags.items()}
    values |= {258: 8, 259: compression, 262: 1, 277: 1}
    values |= {324 if tiled else 273: 400, 325 if tiled else 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in sorted(values))
    start = b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4)
    return start.ljust(400, b"\0") + pixels


def jpeg_with_two_headers() -> bytes:
    """A marker without length for libjpeg hides another size from a careless parser."""
    bomb = overwrite(JPEG, b"\xff\xc0", 3, ">HH", 20_000, 20_000)[2:]
    small = JPEG[JPEG.index(b"\xff\xc0") :][:19]
    return b"\xff\xd8\xff\xd0" + struct.pack(">H", len(bomb) + 2) + bomb + small + b"\xff\xd9"


ZEROS = b"a\0\0" + zlib.compress(bytes(10**8))
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))
BOMBS = {
    "png": png_with_size(HUGE, HUGE),
    "png of the largest size": png_with_size(2**31 - 1, 2**31 - 1),
    "png with text": png_of(ROWS, 8, 2, before=chunk(b"zTXt", ZEROS)),
    "png with texts": png_of(ROWS, 8, 2, before=TEXT * 200),
    "png with a profile": png_of(ROWS, 8, 2, before=chunk(b"iCCP", ZEROS)),
    "jpeg": overwrite(JPEG, b"\xff\xc0", 3, ">HH", HUGE, HUGE),
    "progressive jpeg": overwrite(OTHERS["progressive JPEG"], b"\xff\xc2", 3, ">HH", HUGE, HUGE),
    "jpeg with two headers": jpeg_with_two_headers(),
    "gif": overwrite(OTHERS["GIF"], b"GIF", 3, "<HH", HUGE, HUGE),
    "gif frame": overwrite(OTHERS["GIF"], b"\x2c\0\0\0\0", 0, "<HH", HUGE, HUGE),
    "webp": overwrite(OTHERS["WebP"], b"\x9d\x01\x2a", 0, "<HH", 16383, 16383),
    "lossless webp": overwrite(LOSSLESS["lossless WebP"], b"VP8L", 5, "<I", 16382 << 14 | 16382),
    "animated webp": overwrite(LOSSLESS["animated WebP"], b"VP8X", 8, "<IH", 0xFFFFFFFF, 0xFF),
    "bmp": overwrite(LOSSLESS["BMP"], b"BM", 16, "<II", HUGE, HUGE),
    "ppm": b"P6 60000 60000 255\n" + bytes(1000),
    "tiff": tiff_of(5, bytes(1000), width=HUGE, height=HUGE, rows=HUGE),
    **{
        f"tiff with large tiles, {compression}": tiff_of(
            compression, pixels, width=SIZE, height=SIZE, tile_width=40_000, tile_height=40_000
        )
        for compression, pixels in {5: bytes(5000), 8: zlib.compress(bytes(10**7))}.items()
    },
}  # fmt: skip
NOT_IMAGES = {
    "nothing": b"",
    "text": b"a picture",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='24' height='24'/>",
    "a pickle": b"cos\nsystem\n(S'touch escaped.png'\ntR.",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n",
    "icon": encode(PICTURE, "ICO"),
    "tga": encode(PICTURE, "TGA"),
}
MEASURE = """
import sys
from pathlib import Path
from orchestrator.data.format.decoding import decode
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import CorruptSample, DataError

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

size, bombs, out = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
pack_folder(bombs / "good", out + "/good", validation_share=0)
before = peak_mib()
for folder in sorted(bombs.glob("bomb*")):
    (path,) = folder.iterdir()
    try:
        raise SystemExit(f"{path}: {decode(path.read_bytes(), size, 3, 'here').shape}")
    except CorruptSample as error:
        assert str(error).startswith("here"), error
    if "large" not in path.name:
        try:
            raise SystemExit(f"{path}: {pack_folder(folder, out + '/' + folder.name)}")
        except DataError as error:
            assert str(path) in str(error), error
    print(peak_mib() - before, path)
"""


def test_bombs_cost_no_memory_and_no_warning_when_read_or_packed(tmp_path: Path) -> None:
    good = tmp_path / "bombs" / "good"
    good.mkdir(parents=True)
    for number, data in enumerate((*LOSSLESS.values(), *OTHERS.values())):
        (good / f"{number}.png").write_bytes(data)
    # Pillow only warns about this size.
    bombs = {**BOMBS, "large png": png_with_size(12_000, 12_000)}
    for number, (name, data) in enumerate(bombs.items()):
        folder = tmp_path / "bombs" / f"bomb {number}"
        folder.mkdir()
        (folder / f"{name}.png").write_bytes(data)
    arguments = [str(SIZE), str(tmp_path / "bombs"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(bombs)
    assert [line for line in lines if int(line.split()[0]) > 32] == []


NARROW = """
import io, resource
from PIL import Image
from orchestrator.data.format.decoding import decode
narrow = io.BytesIO()
Image.new("RGB", (60_000, 1), "red").save(narrow, "PNG")
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
print(decode(narrow.getvalue(), 64, 3, "here", fit="pad").tolist()[31:34])
"""


def test_a_narrow_image_is_padded_without_the_memory_of_its_square() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NARROW], capture_output=True, text=True, check=False
    )
    white, red = [[255, 255, 255]] * 64, [[255, 0, 0]] * 64
    assert (done.stdout, done.stderr) == (f"{[red, white, white]}\n", "")


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (1600, 1500)])
def test_an_image_that_is_resized_before_it_is_padded_looks_the_same(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = PICTURE.resize(size, Image.Resampling.BICUBIC)
    expected = numpy.asarray(fit_image(picture, 150, "pad"), numpy.int16)
    monkeypatch.setattr(images, "MAX_PADDED_PIXELS", 1000)
    found = numpy.asarray(fit_image(picture, 150, "pad"), numpy.int16)
    assert found.shape == expected.shape
    # The edge of a narrow picture may move by less than a pixel.
    changed = (abs(found - expected).max(-1) > 8).mean()
    assert changed < 0.04


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_bytes_that_are_not_an_image_are_a_corrupt_sample(kind: str) -> None:
    message = r"^here cannot be decoded: it is not a BMP, .* or WEBP$"
    with pytest.raises(CorruptSample, match=message):
        decode(NOT_IMAGES[kind], SIZE, 3, "here")


@pytest.mark.parametrize("kind", [*LOSSLESS, *OTHERS])
def test_a_truncated_image_is_corrupt_or_complete_but_never_partial(kind: str) -> None:
    data = {**LOSSLESS, **OTHERS}[kind]
    whole = decode(data, SIZE, 3, "here")
    half = len(data) // 4 if kind.startswith(("animated", "several")) else len(data) // 2
    for length in [*range(0, len(data), 7), *range(len(data) - 16, len(data))]:
        try:
            found = decode(data[:length], SIZE, 3, "here")
        except CorruptSample:
            continue
        assert length > half
        numpy.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_named_and_not_packed(tmp_path: Path, kind: str) -> None:
    data = {**LOSSLESS, **OTHERS}[kind]
    path = tmp_path / "in" / "cut.png"
    path.parent.mkdir()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"in/cut\.png cannot be decoded as an image"):
        pack_folder(path.parent, str(tmp_path / "out"))
    assert not list(tmp_path.rglob("index.json"))


def test_every_flipped_bit_of_a_png_is_detected_and_the_libraries_print_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for bit in range(0, 8 * len(PNG), 5):
        data = bytearray(PNG)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSample):
            decode(bytes(data), SIZE, 3, "here")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "rows", [ROWS[: len(ROWS) // 2], b"\x09" + ROWS[1:], b""], ids=["half", "filter", "none"]
)
def test_a_png_with_invalid_pixels_and_valid_checksums_is_corrupt(rows: bytes) -> None:
    with pytest.raises(CorruptSample, match="here cannot be decoded"):
        decode(png_of(rows, 8, 2), SIZE, 3, "here")


@settings(deadline=None, max_examples=800)
@given(data=corrupted([*LOSSLESS.values(), *OTHERS.values()]))
@example(data=PNG[:20])
@example(data=b"\xff\xd8\xff\xe0\0\x02\xff\xd9")
@example(data=jpeg_with_two_headers())
def test_corrupted_images_have_the_right_shape_or_are_corrupt_samples(data: bytes) -> None:
    try:
        found = decode(data, SIZE, 3, "here")
    except CorruptSample:
        return
    assert found.shape == (SIZE, SIZE, 3)
    assert found.dtype == numpy.uint8
