"""Augmentation, binarization and the conversion of pixels to floats."""

import numpy
import pytest
import torch
from PIL import Image

from orchestrator.config.data_section import AugmentSection
from orchestrator.data.format.decoding import Pixels
from orchestrator.data.loading.transforms import augment, binarize, resize, to_float, write_floats
from orchestrator.seeding import seed_of

KEYS = [seed_of("augment", 0, position) for position in range(400)]


def coordinates(size: int) -> Pixels:
    """An image whose pixels contain their coordinates: row, column, 7."""
    rows, columns = numpy.indices((size, size), dtype=numpy.uint8)
    return numpy.stack([rows, columns, numpy.full_like(rows, 7)], axis=-1)


def smooth(size: int) -> Pixels:
    ramp = numpy.tile(numpy.linspace(0, 255, size).round().astype(numpy.uint8), (size, 1))
    return numpy.stack([ramp, ramp.T, ramp[:, ::-1]], axis=-1)


def test_without_a_section_nothing_changes() -> None:
    image = coordinates(16)
    (same,) = augment({"image": image}, AugmentSection(), 16, KEYS[0]).values()
    assert numpy.array_equal(same, image)


def test_both_images_of_a_pair_are_cropped_and_mirrored_identically() -> None:
    pair = {"a": coordinates(16), "b": 255 - coordinates(16)}
    section = AugmentSection(crop=12, flip=True)
    for key in KEYS[:50]:
        changed = augment(pair, section, 12, key)
        assert changed["a"].shape == (12, 12, 3)
        assert numpy.array_equal(changed["a"], 255 - changed["b"])


def test_crops_and_mirrors_are_uniform() -> None:
    section, seen = AugmentSection(crop=14, flip=True), []
    for key in KEYS:
        image = augment({"image": coordinates(16)}, section, 14, key)["image"]
        top, left = int(image[0, 0, 0]), int(image[0, :, 1].min())
        mirrored = bool(image[0, 0, 1] > image[0, -1, 1])
        assert image[-1, 0, 0] == top + 13, "a crop consists of consecutive rows"
        seen.append((top, left, mirrored))
    counts = {place: seen.count(place) for place in seen}
    assert len(counts) == 3 * 3 * 2
    assert all(5 < count < 45 for count in counts.values()), "400 draws of 18 give 22 each"


def test_the_augmentation_depends_only_on_the_key() -> None:
    section = AugmentSection(resize=20, crop=16, flip=True)
    one = [augment({"i": smooth(16)}, section, 16, key)["i"] for key in KEYS[:20]]
    two = [augment({"i": smooth(16)}, section, 16, key)["i"] for key in reversed(KEYS[:20])]
    assert all(map(numpy.array_equal, one, reversed(two)))
    assert not numpy.array_equal(one[0], one[1])


def test_without_flip_nothing_is_mirrored() -> None:
    section = AugmentSection(crop=8)
    for key in KEYS[:50]:
        row = augment({"i": coordinates(16)}, section, 8, key)["i"][0, :, 1]
        assert row[0] < row[-1]


@pytest.mark.parametrize("size", [12, 24, 71])
def test_resize_equals_pillows_antialiased_bicubic(size: int) -> None:
    image = smooth(48)
    image[10:20, 30:33] = 255
    oracle = numpy.asarray(
        Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), numpy.int64
    )
    assert numpy.abs(resize(image, size) - oracle).max() <= 1


def test_pixels_become_floats_from_minus_one_to_one() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[255] == 1
    assert torch.allclose(floats.double(), pixels.double() / 127.5 - 1, atol=1e-6)


def test_binarized_values_are_white_with_the_grey_level_as_probability() -> None:
    levels = numpy.array([0, 64, 128, 255], numpy.uint8)
    image = numpy.broadcast_to(levels, (64, 64, 4))
    drawn = numpy.stack([binarize(image, key) for key in KEYS[:20]])
    assert set(numpy.unique(drawn)) == {0, 255}
    white = (drawn == 255).mean(axis=(0, 1, 2))
    # 81,920 draws each: four standard deviations are 0.007.
    assert white == pytest.approx(levels / 255, abs=0.007)
    assert white[0] == 0
    assert white[3] == 1


def test_binarize_depends_only_on_its_key() -> None:
    grey = numpy.full((32, 32, 1), 128, numpy.uint8)
    assert numpy.array_equal(binarize(grey, 5), binarize(grey, 5))
    assert 0.4 < (binarize(grey, 5) != binarize(grey, 6)).mean() < 0.6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", ["whole", "cut", "mirrored"])
def test_write_floats_equals_to_float_for_any_layout(channels: int, view: str) -> None:
    draw = numpy.random.default_rng(channels)
    image = draw.integers(0, 256, (20, 20, channels), numpy.uint8)
    image = {"whole": image, "cut": image[3:15, 2:14], "mirrored": image[:, ::-1]}[view]
    size = len(image)
    batch = numpy.full((3, channels, size, size), 7, numpy.float32)
    write_floats(image, batch[1])
    wanted = to_float(torch.from_numpy(image.copy()).permute(2, 0, 1)).numpy()
    assert numpy.array_equal(batch[1], wanted)
    assert (batch[[0, 2]] == 7).all()
