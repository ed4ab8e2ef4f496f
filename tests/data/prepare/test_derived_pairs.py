"""Pairs of single images, whose input is made from each: data pack, import and fetch."""

import io
import json
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.config.data_section import DataSection, SourceSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.datasets.sources import ensure_data, fetch
from orchestrator.data.format.derived_input import derive_input
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.loading.training_set import TrainingSet
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.derived_input_kinds import DERIVED_INPUTS, DerivedInput
from orchestrator.errors import DataError, UsageError
from support.fetched import samples
from support.small import small_config


def write_photos(folder: Path, count: int = 12) -> Path:
    folder.mkdir()
    for number in range(count):
        photo = Image.linear_gradient("L").rotate(90 * number).resize((40, 24))
        Image.merge("RGB", (photo, photo.rotate(180), Image.new("L", (40, 24), 9 * number))).save(
            folder / f"{number:02d}.png"
        )
    return folder


def decoded(sample: dict[str, bytes], side: str) -> Image.Image:
    return Image.open(io.BytesIO(sample[side])).convert("RGB")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.app, arguments)


@pytest.mark.parametrize("kind", DERIVED_INPUTS)
def test_the_input_is_made_of_the_target_as_it_is_packed(
    kind: DerivedInput, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    pack_folder(photos, str(tmp_path / "single"), size=16)
    pack_folder(photos, str(tmp_path / "pairs"), size=16, derived_input=kind)
    for part in ("train", "validation"):
        single, pairs = (samples(tmp_path / name / part) for name in ("single", "pairs"))
        assert len(single) == len(pairs), "the split is that of the images"
        for image, pair in zip(single, pairs, strict=True):
            assert pair["b"] == image["image"]
            assert decoded(pair, "a").tobytes() == derive_input(decoded(pair, "b"), kind).tobytes()
    index = open_set(str(tmp_path / "pairs/train")).index
    assert (index.fields, index.derived_input) == ({"a": "a.png", "b": "b.png"}, kind)
    assert "derived_input" not in json.loads((tmp_path / "single/train/index.json").read_text())


def test_the_commands_make_and_copy_such_pairs_and_say_so(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "metadata.csv").write_text(
        "file_name\n" + "".join(f"{path.name}\n" for path in sorted(photos.glob("*.png")))
    )
    common = ("--size", "16", "--derive-input", "holes")
    for command in ("pack", "import"):
        done = invoke("data", command, str(photos), str(tmp_path / command), *common)
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        assert "each image becomes a pair: b is the image, a is the image with holes" in said
    packed, imported = (
        [decoded(sample, "a").tobytes() for sample in samples(tmp_path / name / "train")]
        for name in ("pack", "import")
    )
    assert packed == imported
    smaller = invoke("data", "cp", str(tmp_path / "pack"), str(tmp_path / "cp"), "--size", "8")
    assert smaller.exit_code == 0, smaller.output
    assert open_set(str(tmp_path / "cp/train")).index.derived_input == "holes"


def test_pairs_have_their_input_and_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)  # where the report of a refusal goes
    for side in "AB":
        write_photos(tmp_path / side)
    arguments = ("data", "pack", str(tmp_path), str(tmp_path / "out"), "--size", "16")
    refused = invoke(*arguments, "--derive-input", "grey")
    assert isinstance(refused.exception, DataError)
    assert "the images are pairs, whose input is given" in str(refused.exception)
    wrong = invoke(*arguments, "--derive-input", "grey", "--pairs")
    assert isinstance(wrong.exception, UsageError)
    assert "--derive-input makes pairs of single images" in str(wrong.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["grey", "holes"])
def test_grey_sets_have_no_colour_to_hide(kind: DerivedInput, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match=f"--derive-input {kind} makes inputs from colour images"):
        pack_folder(photos, str(tmp_path / "out"), size=16, channels=1, derived_input=kind)
    others: tuple[DerivedInput, ...] = ("edges", "lowres")
    for other in others:
        pack_folder(photos, str(tmp_path / other), size=16, channels=1, derived_input=other)
        assert open_set(str(tmp_path / other / "train")).channels == 1


def test_a_fetched_set_of_single_images_becomes_pairs_and_one_of_pairs_is_refused(
    tmp_path: Path,
) -> None:
    fetch("faces", str(tmp_path / "plain"), size=16, count=24)
    fetch("faces", str(tmp_path / "pairs"), size=16, count=24, derive_input="grey")
    plain, pairs = (samples(tmp_path / name / "train") for name in ("plain", "pairs"))
    for image, pair in zip(plain, pairs, strict=True):
        assert pair["b"] == image["image"]
        assert decoded(pair, "a").tobytes() == derive_input(decoded(pair, "b"), "grey").tobytes()
        assert (pair["cls"], pair["txt"]) == (image["cls"], image["txt"])
    with pytest.raises(UsageError, match="openmoji is not a set of single colour images"):
        fetch("openmoji", str(tmp_path / "none"), size=16, derive_input="grey")


def test_mixed_sets_have_a_derived_input_if_all_have_the_same(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    kinds: dict[str, DerivedInput | None] = {
        "grey": "grey", "holes": "holes", "again": "grey", "given": None,
    }  # fmt: skip
    sets = {}
    for name, kind in kinds.items():
        pack_folder(photos, str(tmp_path / name), size=16, derived_input=kind)
        sets[name] = open_set(str(tmp_path / name / "train"))

    def mixed(*names: str) -> str | None:
        return TrainingSet(tuple(sets[n] for n in names), (1.0,) * len(names)).derived_input

    assert mixed("grey") == mixed("grey", "again") == "grey"
    assert mixed("grey", "holes") is mixed("grey", "given") is mixed("given") is None


@pytest.mark.parametrize(
    ("model", "direction", "noted"),
    [("pix2pix", "AtoB", True), ("pix2pix", "BtoA", False), ("dcgan", "AtoB", False)],
)
def test_a_model_notes_how_its_input_was_made_if_that_is_its_input(
    model: str, direction: Literal["AtoB", "BtoA"], noted: bool, tmp_path: Path
) -> None:
    config = small_config(model)
    photos, out = write_photos(tmp_path / "photos"), str(tmp_path / "out")
    pack_folder(photos, out, size=config.image_size, derived_input="grey")
    data = DataSection(train=f"{out}/train", direction=direction)
    job = Job(name="x", model=config, data=data, train=TrainSection(images=4, batch_size=4))
    notes = ShardStream(job, rank=0, world_size=1).note(4)
    assert notes.get("derived_input") == ("grey" if noted else None)


def test_a_job_does_not_train_on_a_set_with_another_derived_input(tmp_path: Path) -> None:
    fetch("faces", str(tmp_path), size=16, count=24, derive_input="grey")

    def data(kind: DerivedInput | None) -> DataSection:
        source = SourceSection(name="faces", size=16, count=24, derive_input=kind)
        return DataSection(train=f"{tmp_path}/train", source=source)

    ensure_data(data("grey"), print)
    for other, said in (("edges", "is edges"), (None, "is null")):
        with pytest.raises(DataError, match=f"derive_input grey, but .* {said}; remove"):
            ensure_data(data(other), print)  # type: ignore[arg-type]
