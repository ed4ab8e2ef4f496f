"""Line plots as SVG, read back."""

import math
import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report import line_plot as module
from orchestrator.report.line_plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_LINES,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    line_plot,
    thin_out,
)

VALUES = st.floats(allow_nan=True, allow_infinity=True, width=32)


def paths(svg: str, kind: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [p.attrib["d"] for p in root.iter("path") if p.attrib["class"].startswith(kind)]


def corners(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


@given(st.dictionaries(st.integers(0, 10**9), VALUES, max_size=300), st.integers(8, 100))
def test_thinning_keeps_ends_and_peaks_and_makes_nothing_up(
    given_points: dict[int, float], most: int
) -> None:
    points = dict(sorted(given_points.items()))
    kept = thin_out(points, most)
    assert len(kept) <= max(most, 8)
    assert list(kept) == sorted(kept)
    assert all(repr(points[step]) == repr(value) for step, value in kept.items())
    if points:
        assert {min(points), max(points)} <= kept.keys()
    finite = [value for value in points.values() if math.isfinite(value)]
    if finite:
        found = [value for value in kept.values() if math.isfinite(value)]
        assert (min(found), max(found)) == (min(finite), max(finite))
    if len(finite) < len(points):
        assert any(not math.isfinite(value) for value in kept.values())


def test_a_line_goes_through_its_points() -> None:
    points = {0: 1.0, 50: 3.0, 100: 2.0}
    [path] = paths(line_plot("loss", [Line(0, "a", points)]), "line")
    found = corners(path)
    width = WIDTH - LEFT - RIGHT
    assert [x for x, _ in found] == [LEFT, LEFT + width / 2, LEFT + width]
    (_, first), (_, second), (_, third) = found
    assert TOP < second < third < first < HEIGHT - BOTTOM
    assert math.isclose(third, (first + second) / 2, abs_tol=0.11)


def test_a_value_that_is_not_finite_leaves_a_gap_a_cross_and_a_word() -> None:
    points = {1: 1.0, 2: math.nan, 3: 2.0, 4: 2.5, 5: math.inf}
    svg = line_plot("loss", [Line(0, "a", points)])
    [path] = paths(svg, "line")
    assert path.count("M") == 2
    [crosses] = paths(svg, "cross")
    assert crosses.count("M") == 2
    assert "2 values are not finite" in svg


def test_a_logarithmic_axis_is_named_and_can_be_refused() -> None:
    points = {0: 1.0, 50: 10.0, 100: 100.0}
    svg = line_plot("cost", [Line(0, "a", points)])
    heights = [y for _, y in corners(paths(svg, "line")[0])]
    assert math.isclose(heights[0] - heights[1], heights[1] - heights[2], abs_tol=0.11)
    assert "values on a log scale" in svg
    svg = line_plot("cost", [Line(0, "a", points)], may_be_log=False)
    heights = [y for _, y in corners(paths(svg, "line")[0])]
    assert heights[1] - heights[2] > 8 * (heights[0] - heights[1])
    assert "log scale" not in svg


def test_an_interval_is_a_bar_inside_the_plot() -> None:
    svg = line_plot("kid", [Line(0, "a", {10: 2.0}, {10: (1.0, 5.0)})])
    [bar] = paths(svg, "bar")
    low, high = map(float, re.findall(r"[\d.]+ ([\d.]+)V([\d.]+)", bar)[0])
    assert TOP < high < low < HEIGHT - BOTTOM


def test_the_label_says_the_ends_for_those_who_do_not_see_it() -> None:
    svg = line_plot("<loss>", [Line(0, "a&b", {0: 4.0, 10: 9.0, 20: 5.0})])
    label = ElementTree.fromstring(svg).attrib["aria-label"]
    assert label == (
        "<loss> over images seen. a&b: from 4 at 0 images to 5 at 20, between 4 and 9."
    )


def test_every_line_has_a_colour_in_light_and_dark() -> None:
    style = Path(module.__file__).with_suffix(".css").read_text()
    for number in range(MAX_LINES):
        assert style.count(f"--l{number}: #") == 2
        assert f".l{number} {{ stroke: var(--l{number}); }}" in style


def luminance(colour: str) -> float:
    """As the WCAG define it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_stand_out_from_the_page_in_light_and_dark() -> None:
    folder = Path(module.__file__).parent
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    for name in ("base.css", "line_plot.css"):
        first, second = (folder / name).read_text().split("prefers-color-scheme: dark", 1)
        light.update(re.findall(r"--(\w+): (#\w+)", first))
        dark.update(re.findall(r"--(\w+): (#\w+)", second))
    for scheme in (light, dark):
        full = {
            name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:])
            for name, c in scheme.items()
        }
        back = luminance(full["back"])
        for name in ("text", "quiet", "link", "bad", *(f"l{k}" for k in range(MAX_LINES))):
            lighter, darker = sorted((back, luminance(full[name])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{name} {full[name]}"
