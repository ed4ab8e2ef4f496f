"""Film strips: which pictures are shown, how large they are, and which are left out."""

import base64
import dataclasses
import io
import itertools
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.report.pictures import to_webp
from orchestrator.run_report import film_strip
from orchestrator.run_report.film_strip import MAX_FRAMES, PictureCache, film_strips
from orchestrator.run_report.run_data import LoggedPicture, RunData, read_run
from orchestrator.run_report.run_page import MAX_BYTES, render_page
from support.logged_runs import logged_run, noise, shade
from support.report_page import ReportPage


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    return read_run(logged_run(tmp_path, "a-1", {"loss": {1: 1.0}}))


def with_files(run: RunData, **series: dict[int, Path]) -> RunData:
    pictures = {
        key: {step: LoggedPicture(file=path) for step, path in files.items()}
        for key, files in series.items()
    }
    return dataclasses.replace(run, pictures=pictures)


def grey_at(page: ReportPage) -> dict[int, int]:
    """The grey of each picture in the page, by the images that it says it was logged at."""
    found = {}
    for attrs in page.of("img"):
        kind, _, content = str(attrs["src"]).partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content)), formats=("WEBP",)) as image:
            assert image.size == (int(str(attrs["width"])), int(str(attrs["height"])))
            found[int(str(attrs["data-at"]))] = image.convert("L").getpixel((9, 9))
    return found  # type: ignore[return-value]


def test_each_picture_is_the_one_that_mlflow_has_of_that_step(tmp_path: Path) -> None:
    run = read_run(logged_run(tmp_path, "a-1", {"loss": {1: 1.0}}, {"samples": [30, 90, 200]}))
    found = grey_at(ReportPage(render_page([run])))
    assert found.keys() == {30, 90, 200}
    assert all(abs(grey - step) <= 2 for step, grey in found.items())


def test_of_many_pictures_evenly_spaced_ones_and_the_last_are_shown(
    run: RunData, tmp_path: Path
) -> None:
    shade(7).save(tmp_path / "x.png")
    run = with_files(run, samples=dict.fromkeys(range(10, 2010, 10), tmp_path / "x.png"))
    page = ReportPage(film_strips([run], 10**6, PictureCache()))
    steps = [int(str(attrs["data-at"])) for attrs in page.of("img")]
    assert len(steps) == MAX_FRAMES
    assert (steps[0], steps[-1]) == (10, 2000)
    gaps = {later - earlier for earlier, later in itertools.pairwise(steps)}
    assert max(gaps) - min(gaps) <= 10
    assert f"{MAX_FRAMES} of 200 pictures are shown" in page.text


@pytest.mark.slow
def test_a_page_with_many_large_noisy_pictures_keeps_its_size(run: RunData, tmp_path: Path) -> None:
    files = [noise(tmp_path / f"{k}.png", 1100, k) for k in range(3)]
    series = {step: files[step % 3] for step in range(300)}
    many = with_files(run, samples=series, copies=series)
    page = render_page([many, dataclasses.replace(many)])
    assert len(page.encode()) <= MAX_BYTES
    shown = len(ReportPage(page).of("img"))
    assert shown >= 4 * 4
    per_series = shown // 2
    assert f"{per_series} of 600 pictures are shown" in ReportPage(page).text


def test_a_damaged_picture_is_left_out_and_counted(run: RunData, tmp_path: Path) -> None:
    shade(7).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    series = {1: tmp_path / "cut.png", 2: tmp_path / "whole.png", 3: tmp_path / "gone.png"}
    page = ReportPage(film_strips([with_files(run, samples=series)], 10**6, PictureCache()))
    assert [attrs["data-at"] for attrs in page.of("img")] == ["2"]
    assert "Left out: 2 damaged or deleted" in page.text


def test_a_page_that_is_made_again_encodes_only_what_is_new(
    run: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def count(image: Image.Image, side: int, quality: int) -> bytes:
        encoded.append(side)
        return to_webp(image, side, quality)

    monkeypatch.setattr(film_strip.__name__ + ".to_webp", count)
    files = {}
    for step in (1, 2, 3):
        files[step] = tmp_path / f"{step}.png"
        shade(step).save(files[step])
    cache = PictureCache()
    film_strips([with_files(run, samples={k: files[k] for k in (1, 2)})], 10**6, cache)
    film_strips([with_files(run, samples=files)], 10**6, cache)
    assert len(encoded) == 3


def test_without_pictures_the_section_says_so(run: RunData) -> None:
    assert "No pictures have been logged" in film_strips([run], 10**6, PictureCache())
