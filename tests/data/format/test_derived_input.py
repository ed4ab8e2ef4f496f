"""Inputs that are made from targets: grey values, edges and holes."""

import numpy
import pytest
from PIL import Image

from orchestrator.data.datasets.drawn_scenes import DAY, Scene, draw_view
from orchestrator.data.datasets.svg import render_svg
from orchestrator.data.format.derived_input import derive_input
from orchestrator.derived_input_kinds import DERIVED_INPUTS, DerivedInput

MAGENTA = (255, 0, 255)


def noise(seed: int, side: int = 48) -> Image.Image:
    values = numpy.random.default_rng(seed).integers(0, 256, (side, side, 3), numpy.uint8)
    return Image.fromarray(values)


def test_grey_is_the_luma_of_the_target_in_all_channels() -> None:
    target = noise(1)
    made = numpy.asarray(derive_input(target, "grey")).astype(float)
    luma = numpy.asarray(target).astype(float) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert numpy.abs(made - luma[..., None]).max() <= 1


def test_edges_are_black_lines_where_the_colour_changes_and_nowhere_else() -> None:
    target = Image.new("RGB", (64, 64), (30, 60, 200))
    target.paste((240, 220, 40), (20, 12, 52, 40))
    made = numpy.asarray(derive_input(target, "edges"))
    assert set(numpy.unique(made)) == {0, 255}
    assert (made == made[..., :1]).all()
    rows, columns = numpy.where(made[..., 0] == 0)
    inside = numpy.minimum.reduce([rows - 12, 39 - rows, columns - 20, 51 - columns])
    assert numpy.abs(inside + 0.5).max() <= 1.5, "each line is at the border of the box"
    assert {*range(22, 50)} <= {*columns[rows < 26]}, "without gaps"


def test_a_low_resolution_has_the_means_of_blocks_and_no_detail() -> None:
    flat = Image.new("RGB", (64, 64), (30, 60, 200))
    assert derive_input(flat, "lowres").tobytes() == flat.tobytes()
    target = noise(3, 64)
    before, after = (
        numpy.asarray(image).astype(float) for image in (target, derive_input(target, "lowres"))
    )
    blocks = before.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    found = after.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert numpy.corrcoef(blocks.ravel(), found.ravel())[0, 1] > 0.95
    assert abs(before.mean() - after.mean()) < 1
    assert (
        numpy.abs(numpy.diff(after, axis=0)).mean()
        < 0.2 * numpy.abs(numpy.diff(before, axis=0)).mean()
    )


@pytest.mark.parametrize("channels", ["RGB", "L"])
def test_edges_keep_the_size_and_the_channels(channels: str) -> None:
    made = derive_input(noise(2).convert(channels), "edges")
    assert (made.mode, made.size) == (channels, (48, 48))


def test_outside_its_holes_the_image_is_unchanged() -> None:
    shares = []
    for seed in range(100):
        target = noise(seed)
        before, after = numpy.asarray(target), numpy.asarray(derive_input(target, "holes"))
        hole = (after == MAGENTA).all(axis=-1)
        assert (after[~hole] == before[~hole]).all()
        shares.append(hole.mean())
    assert min(shares) > 0.005
    assert max(shares) < 0.6
    assert 0.05 < sum(shares) / len(shares) < 0.3


@pytest.mark.parametrize("kind", DERIVED_INPUTS)
def test_an_input_depends_on_the_pixels_alone(kind: DerivedInput) -> None:
    first, again = (derive_input(noise(5), kind) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != derive_input(noise(6), kind).tobytes()


def test_no_drawn_street_has_the_colour_of_holes() -> None:
    for number in range(20):
        drawn = numpy.asarray(render_svg(draw_view(Scene(number), DAY), 64))
        assert not (drawn == MAGENTA).all(axis=-1).any()
