"""Augmentation and the way between pixels and the numbers that models see."""

import pytest
import torch
from PIL import Image

from orchestrator.data.transforms import augment, binarised, resized, to_float
from orchestrator.job import AugmentSection
from orchestrator.randomness import seed_of

KEYS = [seed_of("augment", 0, position) for position in range(400)]


def coordinates(size: int) -> torch.Tensor:
    """An image whose every pixel says where it is: row, column, 7."""
    rows = torch.arange(size, dtype=torch.uint8).view(1, size, 1).expand(1, size, size)
    return torch.cat([rows, rows.transpose(1, 2), torch.full_like(rows, 7)])


def smooth(size: int) -> torch.Tensor:
    ramp = torch.linspace(0, 255, size)
    image = torch.stack(
        [ramp.expand(size, size), ramp.expand(size, size).T, ramp.flip(0).expand(size, size)]
    )
    return image.round().to(torch.uint8)


def test_without_a_section_nothing_changes() -> None:
    image = coordinates(16)
    (same,) = augment({"image": image}, AugmentSection(), 16, KEYS[0]).values()
    assert torch.equal(same, image)


def test_both_images_of_a_pair_are_cut_and_mirrored_alike() -> None:
    pair = {"a": coordinates(16), "b": 255 - coordinates(16)}
    section = AugmentSection(crop=12, flip=True)
    for key in KEYS[:50]:
        changed = augment(pair, section, 12, key)
        assert changed["a"].shape == (3, 12, 12)
        assert torch.equal(changed["a"], 255 - changed["b"])


def test_crops_and_mirrors_are_all_drawn_about_equally_often() -> None:
    section, seen = AugmentSection(crop=14, flip=True), []
    for key in KEYS:
        image = augment({"image": coordinates(16)}, section, 14, key)["image"]
        top, left = int(image[0, 0, 0]), int(image[1, 0].min())
        mirrored = bool(image[1, 0, 0] > image[1, 0, -1])
        assert image[0, -1, 0] == top + 13, "a crop is made of neighbouring rows"
        seen.append((top, left, mirrored))
    counts = {place: seen.count(place) for place in seen}
    assert len(counts) == 3 * 3 * 2
    assert all(5 < count < 45 for count in counts.values()), "400 draws of 18 give 22 each"


def test_the_draw_depends_on_the_key_alone() -> None:
    section = AugmentSection(resize=20, crop=16, flip=True)
    one = [augment({"i": smooth(16)}, section, 16, key)["i"] for key in KEYS[:20]]
    two = [augment({"i": smooth(16)}, section, 16, key)["i"] for key in reversed(KEYS[:20])]
    assert all(map(torch.equal, one, reversed(two)))
    assert not torch.equal(one[0], one[1])


def test_without_flip_nothing_is_mirrored() -> None:
    section = AugmentSection(crop=8)
    for key in KEYS[:50]:
        row = augment({"i": coordinates(16)}, section, 8, key)["i"][1, 0]
        assert row[0] < row[-1]


@pytest.mark.parametrize("size", [12, 24, 71])
def test_resizing_is_pillows_antialiased_bicubic(size: int) -> None:
    image = smooth(48)
    image[:, 10:20, 30:33] = 255
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = pillow.resize((size, size), Image.Resampling.BICUBIC)
    channels = [list(expected.getchannel(c).tobytes()) for c in "RGB"]
    oracle = torch.tensor(channels).view(3, size, size)
    difference = (resized(image, size).int() - oracle).abs()
    assert difference.max() <= 1


def test_pixels_become_numbers_from_minus_one_to_one() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels)
    assert floats.dtype == torch.float32
    assert floats[0] == -1
    assert floats[255] == 1
    assert torch.allclose(floats.double(), pixels.double() / 127.5 - 1, atol=1e-6)


def test_binarised_values_are_black_or_white_with_the_grey_level_as_probability() -> None:
    levels = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).view(4, 1, 1).expand(4, 64, 64)
    drawn = torch.stack([binarised(levels, key) for key in KEYS[:20]])
    assert set(drawn.unique().tolist()) == {0, 255}
    white = (drawn == 255).double().mean(dim=(0, 2, 3))
    # 81,920 draws each: four standard deviations are 0.007.
    assert torch.allclose(white, torch.tensor([0, 64, 128, 255]).double() / 255, atol=0.007)
    assert white[0] == 0
    assert white[3] == 1


def test_binarised_is_decided_by_its_key() -> None:
    grey = torch.full((1, 32, 32), 128, dtype=torch.uint8)
    assert torch.equal(binarised(grey, 5), binarised(grey, 5))
    assert 0.4 < (binarised(grey, 5) != binarised(grey, 6)).double().mean() < 0.6
