"""Page of a report: its tables, texts and sample grids."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from orchestrator.config.sweep import SweepSection
from orchestrator.report.axis_scale import short_names
from orchestrator.report.formats import format_value_short, shorten
from orchestrator.report.pictures import select_evenly, to_palette_png
from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial, TrialSegment
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.report.facts import rank_trials
from orchestrator.sweeps.report.importance import Importance, compute_importance
from orchestrator.sweeps.report.wall import (
    CELL,
    GAP,
    HEADER,
    LABEL,
    MAX_COLUMNS,
    MAX_ROWS,
)
from support.synthetic_sweeps import STEP, TOTAL, bowl, synthetic_sweep

pytestmark = pytest.mark.slow


class Reader(HTMLParser):
    """Reads a page: the attributes of each tag, all text, and the cells of the table of trials."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.in_trials = False
        self.feed(page)
        self.close()
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.in_trials = ("id", "all") in attrs
        if self.in_trials and tag == "tr":
            self.rows.append([])
        if self.in_trials and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.in_trials = False

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if self.in_trials and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write_page(
    sweep: Sweep, folder: Path, grids: Mapping[int, Mapping[int, Path]] | None = None
) -> Reader:
    return Reader(write_report(sweep, folder / "report", grids or {}).read_text(encoding="utf-8"))


def solid(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (200, 200)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_the_table_lists_all_trials_best_first(tmp_path: Path) -> None:
    sweep = synthetic_sweep(9, ends={2: ("stopped", 300), 5: ("diverged", 800), 7: ("waiting", 0)})
    naive = [t for t in sweep.trials if t.status in ("finished", "stopped")]
    for _ in naive:  # bubble sort
        for k in range(len(naive) - 1):
            one, two = naive[k], naive[k + 1]
            later = one.images_seen < two.images_seen
            if later or (
                one.images_seen == two.images_seen and one.last_value() > two.last_value()
            ):
                naive[k], naive[k + 1] = two, one
    expected = [*(t.number for t in naive), 5, 7]
    assert expected[:7] != sorted(expected[:7])
    head, *rows = write_page(sweep, tmp_path).rows
    assert head[:4] == ["trial", "lambda_k", "gamma", "learning_rate"]
    assert [int(row[0]) for row in rows] == expected
    assert rows[0][4] == f"{naive[0].last_value():.4g}"
    assert rows[-1][4] == "\N{EN DASH}"


def test_mode_max_ranks_a_high_metric_first() -> None:
    low, high = (synthetic_sweep(6, mode=mode) for mode in ("min", "max"))
    assert [t.number for t in rank_trials(low)] == [t.number for t in rank_trials(high)][::-1]


def test_the_best_configuration_is_shown_with_its_runs_and_spread(tmp_path: Path) -> None:
    trials = []
    for number, metric in enumerate([1.0, 2.0, 4.0, 5.0]):
        segment = TrialSegment(f"run-{number}", {"model.gamma": number // 2})
        results = [IntermediateResult(TOTAL, (metric,), number)]
        trials.append(Trial(number, number // 2, number % 2, [segment], "finished", "", results))
    section = SweepSection.model_validate(
        {"metric": "loss", "seeds_per_config": 2, "space": {"model.gamma": {"randint": [0, 1]}}}
    )
    page = write_page(Sweep("s", "j", section, TOTAL, trials), tmp_path)
    assert "1.5 ± 0.71" in page.text
    assert "run-0, run-1" in page.text
    assert "Only 2 configurations saw as many images" in page.text


def test_the_page_is_complete_and_needs_no_other_file(tmp_path: Path) -> None:
    grids = {0: {TOTAL: solid(tmp_path / "grid.png", (9, 9, 9))}}
    page = write_page(synthetic_sweep(10), tmp_path, grids)
    places = [attrs.get(name) for _, attrs in page.tags for name in ("src", "href")]
    linked = [place for place in places if place]
    assert all(place.startswith(("data:image/png;base64,", "#")) for place in linked)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 7
    assert all(attrs["alt"] for attrs in pictures)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {place[1:] for place in linked if place.startswith("#")} <= ids
    written = {path.name for path in (tmp_path / "report").iterdir()}
    figures = {"curves", "importance", "parallel", "map-1", "map-2", "map-3", "wall"}
    assert written == {"report.html", *(f"{name}.png" for name in figures)}


@pytest.mark.filterwarnings("error")
def test_names_are_escaped_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert('$x$')</script>" + "&amp;" * 30
    space = {
        f"model.{hostile}": {"uniform": [0.0, 1.0]},
        "model.b": {"choice": [hostile, "$\\frac$"]},
    }
    sweep = synthetic_sweep(
        9, lambda values, _: float(str(values[f"model.{hostile}"])), space=space, metric=hostile
    )
    sweep = dataclasses.replace(sweep, name=hostile, job=hostile, mlflow_run_id=hostile)
    sweep.trials[0].reason = hostile
    page = write_page(sweep, tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.text.count(hostile) >= 4


def test_the_same_sweep_makes_the_same_files(tmp_path: Path) -> None:
    grids = {0: {TOTAL: solid(tmp_path / "grid.png", (9, 9, 9))}}
    folders = [write_report(synthetic_sweep(9), tmp_path / name, grids).parent for name in "ab"]
    first, second = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert first == second


def test_importance_needs_eight_configurations(tmp_path: Path) -> None:
    assert isinstance(compute_importance(synthetic_sweep(8)), Importance)
    assert "importances: 7 can be compared" in str(
        compute_importance(synthetic_sweep(8, ends={0: ("failed", 500)}))
    )
    page = write_page(synthetic_sweep(7), tmp_path)
    assert "Too few configurations for importances" in page.text
    assert not (tmp_path / "report" / "importance.png").exists()


def test_the_wall_places_each_sample_grid_in_its_cell(tmp_path: Path) -> None:
    sweep = synthetic_sweep(3)
    colours = {
        (t.number, images): (40 * t.number + 50, images // 4, 77)
        for t in sweep.trials
        for images in (300, 600, 900)
        if (t.number, images) != (1, 600)
    }
    grids: dict[int, dict[int, Path]] = {}
    for (number, images), colour in colours.items():
        path = tmp_path / f"{number}-{images}.png"
        grids.setdefault(number, {})[images] = solid(path, colour)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    grids[1][600] = tmp_path / "broken.png"
    write_page(sweep, tmp_path, grids)
    with Image.open(tmp_path / "report" / "wall.png") as file:
        wall = file.convert("RGB")
    assert wall.size == (LABEL + GAP + 3 * (CELL + GAP), HEADER + GAP + 3 * (CELL + GAP))
    for row, trial in enumerate(sorted(sweep.trials, key=lambda t: t.last_value())):
        for column, images in enumerate((300, 600, 900)):
            left, top = LABEL + GAP + column * (CELL + GAP), HEADER + GAP + row * (CELL + GAP)
            expected = colours.get((trial.number, images), (255, 255, 255))
            for x, y in ((50, 50), (CELL - 1, CELL - 1)):
                assert wall.getpixel((left + x, top + y)) == expected
            assert wall.getpixel((left + CELL + 1, top + 50)) == (255, 255, 255)


def test_the_wall_selects_evenly_spaced_columns_and_the_last() -> None:
    assert select_evenly(range(100, 1100, 100), 6) == [100, 300, 500, 600, 800, 1000]
    assert select_evenly([5, 6], 6) == [5, 6]
    assert select_evenly([5], 6) == [5]
    assert select_evenly([], 6) == []


def test_missing_sample_grids_leave_a_valid_page(tmp_path: Path) -> None:
    page = write_page(synthetic_sweep(2), tmp_path, {0: {100: tmp_path / "none.png"}, 1: {}})
    assert "trial 0" in page.text
    assert "There are no sample grids" in write_page(synthetic_sweep(2), tmp_path).text


def test_a_sweep_without_trials_says_so(tmp_path: Path) -> None:
    page = write_page(synthetic_sweep(0), tmp_path)
    for words in (
        "There are no trials yet",
        "No configuration has finished yet",
        "No trial has reported a result yet",
        "There are no sample grids",
        "Too few configurations for importances",
    ):
        assert words in page.text
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]


def unusual_sweeps() -> Iterator[Any]:
    nan, inf = math.nan, math.inf
    words = {"a.kind": {"choice": ["x", "y", None, True, 3]}}
    yield pytest.param(synthetic_sweep(1), id="one trial")
    yield pytest.param(
        synthetic_sweep(9, space={"a": {"uniform": [0, 1]}}, function=lambda *_: 1.0), id="flat"
    )
    yield pytest.param(synthetic_sweep(9, lambda *_: nan), id="no finite metric")
    yield pytest.param(
        synthetic_sweep(9, lambda v, i: inf if i == 500 else bowl(v, i)), id="infinite once"
    )
    yield pytest.param(synthetic_sweep(9, lambda v, i: nan if i % 200 else bowl(v, i)), id="gaps")
    yield pytest.param(synthetic_sweep(9, lambda v, i: -bowl(v, i), mode="max"), id="below zero")
    yield pytest.param(
        synthetic_sweep(9, lambda v, _: float(len(str(v["a.kind"]))), space=words),
        id="categories alone",
    )
    yield pytest.param(
        synthetic_sweep(9, ends=dict.fromkeys(range(9), ("running", 200))), id="none finished"
    )
    yield pytest.param(
        synthetic_sweep(9, ends=dict.fromkeys(range(9), ("waiting", 0))), id="none started"
    )
    yield pytest.param(
        synthetic_sweep(4, scheduler="pbt", ends={0: ("waiting", 0)}), id="pbt, one waits"
    )
    yield pytest.param(
        synthetic_sweep(9, lambda v, i: (bowl(v, i), nan), metric=["a", "b"]), id="no second metric"
    )
    same = synthetic_sweep(9)
    for trial in same.trials:
        trial.segments[0] = TrialSegment("run", same.trials[0].values)
    yield pytest.param(same, id="all the same")


@pytest.mark.parametrize("sweep", list(unusual_sweeps()))
@pytest.mark.filterwarnings("error")
def test_an_unusual_sweep_has_a_page(sweep: Sweep, tmp_path: Path) -> None:
    assert len(write_page(sweep, tmp_path).rows) == 1 + len(sweep.trials)


def test_a_page_of_two_hundred_trials_is_below_five_megabytes(tmp_path: Path) -> None:
    path = solid(tmp_path / "grid.png", (1, 2, 3))
    grids = {k: dict.fromkeys(range(STEP, TOTAL, STEP), path) for k in range(200)}
    page = write_page(synthetic_sweep(200), tmp_path, grids)
    assert len(page.rows) == 201
    assert "184 more trials have sample grids" in page.text
    pixels = numpy.random.default_rng(0).integers(0, 256, (CELL, CELL, 3), dtype=numpy.uint8)
    worst = MAX_ROWS * MAX_COLUMNS * len(to_palette_png(Image.fromarray(pixels))) * 4 / 3
    assert (tmp_path / "report" / "report.html").stat().st_size + worst < 5_000_000


def test_numbers_and_names_are_shortened() -> None:
    given = [0.000123456, 1234567, 20_000, True, None, "word", math.nan, -0.5]
    assert [format_value_short(value) for value in given] == [
        "0.0001235",
        "1.235e+06",
        "20000",
        "true",
        "null",
        "word",
        "\N{EN DASH}",
        "-0.5",
    ]
    assert shorten("a\nb", 9) == "a b"
    assert len(shorten("x" * 99, 20)) == 20
    assert short_names(["model.rate", "data.rate", "model.gamma"]) == {
        "model.rate": "model.rate",
        "data.rate": "data.rate",
        "model.gamma": "gamma",
    }
