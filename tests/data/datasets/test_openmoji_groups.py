"""OpenMoji as single images with classes and captions."""

from pathlib import Path

import pytest

from orchestrator.data.datasets import openmoji_groups
from orchestrator.data.datasets.openmoji import is_used
from orchestrator.data.datasets.openmoji_groups import GROUPS
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from support.fetched import download_or_skip, pixels, samples

HELD_OUT_HERE = 0.4


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, openmoji_groups.Emoji]:
    """Restrict fetching to a few rows of the table and return them by hexcode."""
    download_or_skip(openmoji_groups.TABLE)
    wanted = {"1F431", "1F408", "1F600", "1F34E", "1F44B", "1F44B-1F3FB", "1F1E9-1F1EA", "1F9B0"}
    rows = [each for each in openmoji_groups.read_table() if each.hexcode in wanted]
    assert len(rows) == len(wanted)
    monkeypatch.setattr(openmoji_groups, "read_table", lambda: rows)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(openmoji_groups, "VALIDATION_SHARE", HELD_OUT_HERE)
    return {each.hexcode: each for each in rows}


def test_2186_emoji_are_used() -> None:
    download_or_skip(openmoji_groups.TABLE)
    table = openmoji_groups.read_table()
    used = [e for e in table if e.group in GROUPS and is_used(e.hexcode)]
    assert (len(table), len(used)) == (4495, 2186)
    assert {each.group for each in used} == set(GROUPS)
    assert all(each.annotation for each in used)


def test_an_image_has_its_group_as_class_and_its_name_as_caption(
    few: dict[str, openmoji_groups.Emoji], tmp_path: Path
) -> None:
    fetch("openmoji_groups", str(tmp_path), size=32)
    assert open_set(str(tmp_path / "train")).index.classes == GROUPS
    found = {s["key"].decode(): s for p in ("train", "validation") for s in samples(tmp_path / p)}
    assert set(found) == {"1F431", "1F408", "1F600", "1F34E", "1F44B"}, "no tone, flag, component"
    cat = found["1F431"]
    assert (GROUPS[int(cat["cls"])], cat["txt"]) == ("animals-nature", b"cat face")
    assert GROUPS[int(found["1F34E"]["cls"])] == "food-drink"
    apple = pixels(found["1F34E"]["image"]).reshape(-1, 3).astype(int)
    red = (apple[:, 0] > 180) & (apple[:, 1] < 120)
    assert red.mean() > 0.1, "the apple is red"
    assert check_set(str(tmp_path / "train")).ok
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "LICENSE.txt").read_text()
    assert "animals-nature" in (tmp_path / "README.md").read_text()
