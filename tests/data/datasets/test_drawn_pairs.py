"""Drawn pairs: two views of one geometry, at any size."""

import io
from pathlib import Path

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image

from orchestrator.config.datasets import DRAWN_PAIRS
from orchestrator.data.datasets.drawn_pairs import KINDS, draw_pair
from orchestrator.data.datasets.drawn_plans import PART_COLOURS
from orchestrator.data.datasets.drawn_scenes import BALLOONS, BASELINE, Scene
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set

SIZE = 96


def colour(text: str) -> NDArray[numpy.int64]:
    return numpy.array([int(text[place : place + 2], 16) for place in (1, 3, 5)])


def pair(name: str, number: int) -> tuple[NDArray[numpy.int64], NDArray[numpy.int64]]:
    images = draw_pair(number, name, SIZE).images
    a, b = (numpy.asarray(Image.open(io.BytesIO(images[side])), numpy.int64) for side in "ab")
    return a, b


def close(pixels: NDArray[numpy.int64], text: str) -> NDArray[numpy.bool_]:
    """Where ``pixels`` have a colour, to rounding."""
    found: NDArray[numpy.bool_] = numpy.abs(pixels - colour(text)).max(axis=-1) <= 1
    return found


def test_the_sets_that_a_job_may_name_are_those_that_are_drawn() -> None:
    assert set(KINDS) == set(DRAWN_PAIRS)


@pytest.mark.parametrize("name", DRAWN_PAIRS)
def test_a_set_has_the_asked_number_of_pairs_and_is_the_same_at_every_size(
    name: str, tmp_path: Path
) -> None:
    parts = []
    for size in (16, 24):
        fetch(name, str(tmp_path / str(size)), size=size, count=40)
        train, held_out = (
            open_set(str(tmp_path / str(size) / part)) for part in ("train", "validation")
        )
        assert train.num_samples + held_out.num_samples == 40
        assert train.fields == ("a", "b")
        assert check_set(train.uri).ok
        parts.append(held_out.num_samples)
    assert parts[0] == parts[1] > 0
    assert "Drawn by a program" in (tmp_path / "16/README.md").read_text()


def test_night_falls_on_the_same_street() -> None:
    for number in range(10):
        day, night = pair("drawn_nights", number)
        dark = close(night, "#141b3c")
        assert dark.mean() > 0.1
        blue = close(day, "#a7d3f2")[dark].mean()
        assert blue > 0.99, "the dark sky is where the blue one was, but for blended edges"
        assert day.mean() > 1.5 * night.mean()


def test_the_depth_is_black_in_the_sky_and_brighter_the_nearer() -> None:
    for number in range(10):
        depth, street = pair("drawn_depths", number)
        sky = close(street, "#a7d3f2")
        assert sky.any()
        assert (depth[sky] == 0).all()
        ground = close(street, "#8cc26b")
        rows = [depth[row][ground[row]].mean() for row in range(SIZE) if ground[row].any()]
        assert (numpy.diff(rows) >= -1e-9).all(), "downwards the ground comes nearer"
        things = sorted(Scene(number).things, key=lambda thing: thing.depth)
        (balloon,) = (thing for thing in things if thing.kind == "balloon")
        left, top = balloon.left, balloon.foot - balloon.size * balloon.scale
        if 2 < left < 98 and things[0] is not balloon:
            found = depth[int(top * SIZE / 100), int(left * SIZE / 100)].mean()
            nearest = max(255 * (1 - thing.depth) for thing in things)
            assert 255 * (1 - balloon.depth) - 1 <= found <= nearest + 1


def test_near_things_move_further_between_two_views_than_far_ones() -> None:
    shifts = {}
    for number in range(40):
        (balloon,) = (thing for thing in Scene(number).things if thing.kind == "balloon")
        centres = []
        for view in pair("drawn_views", number):
            mask = close(view, balloon.colours[0])
            columns = numpy.where(mask)[1] + 0.5
            centres.append(columns.mean() * 100 / SIZE if mask.sum() > 30 else numpy.nan)
        whole = 25 < balloon.left < 85 and not numpy.isnan(centres).any()
        if whole:
            shifts[balloon.depth] = centres[0] - centres[1]
    assert len(shifts) > 10
    expected = numpy.array([BASELINE * (1 - depth) for depth in shifts])
    errors = numpy.abs(numpy.array(list(shifts.values())) - expected)
    assert numpy.median(errors) < 0.3, "the shift is the baseline times the nearness"


def test_attention_is_on_the_balloon_first() -> None:
    for number in range(20):
        street, attention = pair("drawn_attention", number)
        row, column = numpy.unravel_index(attention[..., 0].argmax(), (SIZE, SIZE))
        around = street[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        assert any(close(around, each).any() for each in BALLOONS)
        assert (attention == attention[..., :1]).all(), "a grey map"


def test_the_parts_of_a_front_are_where_they_are_painted() -> None:
    for number in range(10):
        front, parts = pair("drawn_facades", number)
        sky = close(parts, "#0000aa")
        assert close(front, "#bcd7ea")[sky].all()
        wall = front[close(parts, PART_COLOURS["wall"])]
        common = numpy.unique(wall, axis=0, return_counts=True)
        assert common[1].max() > 0.8 * len(wall), "a wall has one colour"
        window = close(parts, PART_COLOURS["window"])
        assert window.any()
        assert not (front[window] == common[0][common[1].argmax()]).all(axis=-1).any()


def test_a_street_of_the_map_is_a_street_from_above() -> None:
    for number in range(10):
        view, plan = pair("drawn_maps", number)
        roads = close(plan, "#ffffff")
        assert roads.any()
        assert close(view, "#77787b")[roads].all()


def test_the_two_sides_of_the_seasons_are_different_streets() -> None:
    assert Scene(0).things != Scene(1).things
    for number in range(10):
        summer, winter = pair("drawn_seasons", number)
        assert close(winter, "#f4f7fa").mean() > 0.05, "snow"
        assert not close(summer, "#f4f7fa").any()
