"""Drawn pairs, any number of them: stand-ins for the photographs that no package ships.

Pair n is a pure function of n, at every size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from orchestrator.data.datasets.drawn_plans import draw_front, draw_town
from orchestrator.data.datasets.drawn_scenes import (
    BASELINE,
    DAY,
    NIGHT,
    WINTER,
    Scene,
    draw_attention,
    draw_depth,
    draw_view,
)
from orchestrator.data.datasets.request import FetchRequest, missing_package, pack_samples
from orchestrator.data.datasets.svg import draw_all, render_svg
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out

DEFAULT_COUNT = 2000


@dataclass(frozen=True)
class DrawnPairs:
    """A kind of pairs."""

    a: str
    """What the first image shows."""
    b: str
    draw: Callable[[int], tuple[str, str]]
    """Draw pair n as two SVGs."""


def _day(number: int) -> str:
    return draw_view(Scene(number), DAY)


def _night(number: int) -> tuple[str, str]:
    return _day(number), draw_view(Scene(number), NIGHT)


def _season(number: int) -> tuple[str, str]:
    # Another scene on each side: as with photographs, nobody knows the partner of an image.
    return _day(2 * number), draw_view(Scene(2 * number + 1), WINTER)


def _depth(number: int) -> tuple[str, str]:
    return draw_depth(Scene(number)), _day(number)


def _views(number: int) -> tuple[str, str]:
    scene = Scene(number)
    return _day(number), draw_view(scene, DAY, BASELINE)


def _attention(number: int) -> tuple[str, str]:
    return _day(number), draw_attention(Scene(number))


KINDS: Mapping[str, DrawnPairs] = {
    "drawn_facades": DrawnPairs("a building's front", "the map of its parts", draw_front),
    "drawn_maps": DrawnPairs("a town from above", "its map", draw_town),
    "drawn_nights": DrawnPairs("a street by day", "the same street by night", _night),
    "drawn_seasons": DrawnPairs("a street in summer", "another street in winter", _season),
    "drawn_depths": DrawnPairs("the depth of a street, white is near", "the street", _depth),
    "drawn_views": DrawnPairs("a street", "the same street from further right", _views),
    "drawn_attention": DrawnPairs("a street", "where the eye goes, by rule", _attention),
}


def draw_pair(number: int, name: str, size: int) -> PackedSample:
    """Render pair ``number`` of the kind ``name``, at ``size`` px."""
    first, second = KINDS[name].draw(number)
    return PackedSample(
        key=f"{number:07d}",
        images={"a": to_png(render_svg(first, size)), "b": to_png(render_svg(second, size))},
        # A hash of the drawings, not of the pixels: every size has the same pairs in the same sets.
        for_validation=is_held_out((first + second).encode(), VALIDATION_SHARE),
        image_size=size,
    )


def pack(request: FetchRequest, name: str) -> PackSummary:
    """Draw ``count`` pairs of the kind ``name``, by default 2,000, a tenth held out by a hash.

    Raises EnvironmentProblem if the packages of the ``data`` extra are not installed.
    """
    try:
        import resvg_py  # noqa: F401 - fail here and not in every process that draws
    except ImportError as error:
        raise missing_package(error.name) from error
    count = request.count or DEFAULT_COUNT
    kind = KINDS[name]
    readme = f"""# {name}: {count} drawn pairs, {request.size} px

Drawn by a program, not photographed. Field `a` is {kind.a}, field `b` is {kind.b}. A tenth is held
out for validation, by a hash of the drawing. Packed by `orchestrator data fetch {name}`.
"""
    samples = draw_all(partial(draw_pair, name=name, size=request.size), range(count))
    return pack_samples(request, samples, count, files={"README.md": readme.encode()})
