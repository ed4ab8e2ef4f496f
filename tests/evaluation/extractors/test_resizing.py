"""Resizing against Pillow and against TensorFlow 1's formula."""

from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from orchestrator.evaluation.extractors.resizing import resize


def pixels(height: int, width: int) -> Tensor:
    noise = Generator().manual_seed(1)
    return torch.randint(256, (1, 3, height, width), generator=noise, dtype=torch.uint8)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(40, 24), (301, 97)])
def test_it_resizes_as_pillow_up_and_down(
    mode: Literal["bicubic", "bilinear"], height: int, width: int
) -> None:
    """Pillow rounds and cuts off after each direction: the tolerance allows for the former."""
    image = pixels(height, width) // 4 + 96
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((64, 64), filters[mode])
    found = resize(image, 64, mode)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - np.asarray(pillow, dtype=np.float32)).max() < 1.6
    assert (found.min(), found.max()) >= (0, 0)
    assert found.max() <= 255


@pytest.mark.parametrize(("height", "width", "size"), [(4, 7, 9), (9, 4, 4), (5, 5, 5)])
def test_it_resizes_as_tensorflow_1_by_its_formula(height: int, width: int, size: int) -> None:
    """Pixel (i, j) is interpolated at (i * H / size, j * W / size), without half-pixel centres."""
    image = pixels(height, width)
    values = image[0].double().numpy()
    found = resize(image, size, "tensorflow")[0]
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            dy, dx = y - top, x - left
            expected = (1 - dy) * ((1 - dx) * values[:, top, left] + dx * values[:, top, right])
            expected += dy * ((1 - dx) * values[:, bottom, left] + dx * values[:, bottom, right])
            assert found[:, i, j].tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_it_equals_torch_fidelity_to_the_bit() -> None:
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    for height, width in ((32, 32), (64, 48), (500, 333)):
        image = pixels(height, width)
        expected = interpolate_bilinear_2d_like_tensorflow1x(
            image.float(), size=(299, 299), align_corners=False
        )
        assert torch.equal(resize(image, 299, "tensorflow"), expected)


def test_modes_differ_where_an_image_is_made_smaller() -> None:
    image = pixels(128, 128)
    spread = {
        "bicubic": resize(image, 32, "bicubic").std(),
        "bilinear": resize(image, 32, "bilinear").std(),
        "tensorflow": resize(image, 32, "tensorflow").std(),
    }
    assert spread["tensorflow"] > 1.5 * spread["bicubic"] > 1.5 * spread["bilinear"]
