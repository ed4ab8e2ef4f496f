"""Drawn faces: deterministic, with ages that change only what age may change."""

import re
from pathlib import Path
from typing import Any

import numpy
import pytest

from orchestrator.data.datasets import faces
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.datasets.svg import render_svg
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.models.parts.text import CAPTION_BYTES
from support.fetched import pixels, samples

COUNT = 60


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    fetch("faces", str(folder), size=24, count=COUNT)
    return folder


def test_the_requested_number_of_faces_is_drawn_with_classes_and_captions(packed: Path) -> None:
    train, held_out = (open_set(str(packed / part)) for part in ("train", "validation"))
    assert train.num_samples + held_out.num_samples == COUNT
    assert 0 < held_out.num_samples < COUNT / 4
    assert train.index.classes == ("child", "young", "middle_aged", "old")
    assert train.index.captions
    assert (train.image_size, train.channels) == (24, 3)
    assert check_set(str(packed / "train")).ok
    labels = [int(s["cls"]) for part in ("train", "validation") for s in samples(packed / part)]
    assert numpy.bincount(labels).tolist() == [COUNT / 4] * 4
    assert "CC BY 4.0" in (packed / "README.md").read_text()
    assert "not photographs" in (packed / "README.md").read_text()


def test_any_number_of_processes_draws_the_same_faces(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    fetch("faces", str(tmp_path), size=24, count=COUNT)
    for part in ("train", "validation"):
        digests = [open_set(str(folder / part)).digest for folder in (packed, tmp_path)]
        assert digests[0] == digests[1]


def test_a_face_and_its_split_depend_neither_on_the_size_nor_on_the_count() -> None:
    small, large = (faces.draw_face(7, size) for size in (16, 40))
    assert (small.key, small.label, small.caption) == ("0000007", 3, large.caption)
    held_out = [[faces.draw_face(n, s).for_validation for n in range(40)] for s in (8, 13)]
    assert held_out[0] == held_out[1]
    assert any(held_out[0])


def resolved(number: int, age: str) -> dict[str, Any]:
    """Return all of DiceBear's options of a face, as they were drawn."""
    from dicebear import Avatar

    face = Avatar(faces._style(), faces.describe_face(number, age).options)
    options: dict[str, Any] = face.to_json()["options"]
    return options


def test_age_changes_only_the_options_of_age() -> None:
    changed = set()
    for number in range(40):
        child, *others = (resolved(number, age) for age in faces.AGES)
        for other in others:
            keys = child.keys() | other.keys()
            differing = {key for key in keys if child.get(key) != other.get(key)}
            # A face without a beard has no options for its position and colour.
            changed |= {key for key in differing if not key.startswith("facialHair")}
    assert changed <= {
        "eyesVariant",
        "hairColor",
        "hairVariant",
        "noseVariant",
        "scale",
        "translateY",
    }
    assert {"hairVariant", "hairColor", "noseVariant", "scale"} <= changed


def test_all_ages_of_a_person_look_different() -> None:
    for number in range(10):
        drawn = {render_svg(faces.draw_svg(number, age), 32).tobytes() for age in faces.AGES}
        assert len(drawn) == len(faces.AGES)


def test_people_look_different() -> None:
    drawn = [faces.draw_svg(number, "old") for number in range(400)]
    assert len(set(drawn)) > 380


def test_glasses_are_kept_at_every_later_age() -> None:
    for number in range(60):
        eyes = [faces.describe_face(number, age).options["eyesVariant"] for age in faces.AGES]
        assert eyes == sorted(eyes, key=lambda variant: variant == "glasses")


COLOURS = {**faces.HAIR_COLOURS, **faces.OLD_HAIR_COLOURS}


@pytest.mark.parametrize("age", faces.AGES)
def test_a_caption_describes_what_is_drawn(age: str) -> None:
    words = {
        "child": "a child",
        "young": "a young person",
        "middle_aged": "a middle-aged person",
        "old": "an old person",
    }
    for number in range(100):
        drawn, caption = resolved(number, age), faces.describe_face(number, age).caption
        assert caption.startswith(f"a drawn face of {words[age]} with ")
        assert ("glasses" in caption) == (drawn["eyesVariant"] == "glasses")
        beards = "stubble|soul patch|goatee|moustache|full beard"
        assert bool(re.search(beards, caption)) == ("facialHairVariant" in drawn)
        assert ("checkered shirt" in caption) == (drawn["clothesVariant"] == "checkered")
        assert ("pigtails" in caption) == (drawn["hairVariant"] == "pigtails")
        assert ("a frown" in caption) == (drawn["mouthVariant"] == "frown")
        clothing = faces.CLOTHES_COLOURS[caption.partition(", in a ")[2].split()[0]]
        assert drawn["clothingColor"] == [clothing]
        hair = caption.partition(" with ")[2].partition(",")[0]
        named = [hexcode for name, hexcode in COLOURS.items() if re.search(rf"\b{name}\b", hair)]
        if drawn["hairVariant"] != "buzzcut":
            assert drawn["hairColor"][0] in named
        assert len(caption.encode()) <= CAPTION_BYTES


def test_old_people_have_grey_or_white_hair_and_children_no_beard() -> None:
    for number in range(60):
        assert resolved(number, "old")["hairColor"][0] in faces.OLD_HAIR_COLOURS.values()
        assert resolved(number, "young")["hairColor"][0] in faces.HAIR_COLOURS.values()
        assert "facialHairVariant" not in resolved(number, "child")


def test_a_face_is_drawn_on_white_and_fills_the_image() -> None:
    for label, age in enumerate(faces.AGES):
        sample = faces.draw_face(400 + label, 64)
        assert sample.label == faces.AGES.index(age)
        picture = pixels(sample.images["image"])
        assert picture.shape == (64, 64, 3)
        assert (picture[0, [0, -1]] == 255).all()
        assert (picture[28:36, 28:36] < 255).any(axis=2).all(), "the face is in the middle"


def test_a_count_is_refused_for_a_data_set_of_fixed_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="omit the count, which is only for faces"):
        fetch("digits", str(tmp_path), size=8, count=5)


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dicebear", None)
    faces._style.cache_clear()
    with pytest.raises(EnvironmentProblem, match=r"pip install -e '\.\[data\]'"):
        fetch("faces", str(tmp_path), size=8, count=1)
