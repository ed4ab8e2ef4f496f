"""What a run would refuse about the data: plan and doctor find it, and the run leaves nothing."""

from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config.load import LoadedJob, load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.doctor import Check
from orchestrator.diagnostics.job_checks import check_data
from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import DataError, JobFileError
from orchestrator.runs.driver import run_job
from services.ports import free_port

JOB = """\
name: cats
model: {name: pix2pix, image_size: 32, filters: 8, discriminator_filters: 8, receptive_field: 16}
data: {train: data/train, validation: data/validation}
train: {batch_size: 4, epochs: 1}
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed sets of 32 px: 8 and 4 pairs in colour, and 8 and 4 single grey images."""
    folder = tmp_path_factory.mktemp("sets")
    for name, mode, width in (("data", "RGB", 64), ("grey", "L", 32)):
        (folder / f"raw-{name}").mkdir()
        for number in range(12):
            image = Image.new(mode, (width, 32), number * 9)
            image.save(folder / f"raw-{name}" / f"{number}.png")
        raw, packed = str(folder / f"raw-{name}"), str(folder / name)
        pairs = mode == "RGB"
        pack_folder(
            raw,
            packed,
            size=32,
            validation_share=0.34,
            side_by_side=pairs,
            channels=3 if pairs else 1,
        )
    return folder


def load(sets: Path, *overrides: str) -> LoadedJob:
    Path("x.yaml").write_text(JOB.replace("data/", f"{sets}/data/"))
    return load_job("x.yaml", overrides)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


REFUSED = {
    "images of another size": (["model.image_size=64"], "packed at 32 px, but model.image_size is"),
    "fewer samples than a batch": (["train.batch_size=64"], "fewer than one batch"),
    "grey images for colour": (["data.train=SETS/grey/train"], "has images of 1 channels"),
    "a validation set of another kind": (
        ["data.validation=SETS/grey/validation"], "has images of 1 channels",
    ),
    "single images for pairs": (
        ["model.channels=1", "data.train=SETS/grey/train", "data.validation=null"],
        "has single images, but model pix2pix translates",
    ),
    "a set that is not there": (["data.train=SETS/nothing"], "there is no packed set at"),
    "no validation set": (["data.validation=SETS/nothing"], "there is no packed set at"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_refuses_about_the_data_is_found_first_and_leaves_no_run(
    sets: Path, case: str
) -> None:
    overrides, expected = REFUSED[case]
    loaded = load(sets, *(text.replace("SETS", str(sets)) for text in overrides))
    with pytest.raises(DataError, match=expected):
        run_job(loaded)
    assert sorted(path.name for path in Path().iterdir()) == ["x.yaml"], "no MLflow run, no storage"
    found = check_data(loaded)
    assert (found.name, found.status) == ("data", "fail")
    assert expected in found.found
    if "not there" in case or "no validation" in case:
        made = make_plan(loaded)
        assert "missing" in {made.train.status, made.validation and made.validation.status}
        return
    with pytest.raises(DataError, match=expected):
        make_plan(loaded)


def test_sets_that_fit_pass(sets: Path) -> None:
    loaded = load(sets)
    assert make_plan(loaded).train.num_samples == 8
    assert check_data(loaded) == Check("data", "ok", f"{sets}/data/train fits: 8 samples")


def test_a_set_that_the_run_fetches_is_no_mistake_and_one_it_cannot_is(sets: Path) -> None:
    source = "data.source={name: openmoji, size: 32}"
    local = load(sets, "data.train=new/train", "data.validation=null", source)
    found = check_data(local)
    assert (found.status, found.found) == (
        "ok", "new/train is not there yet; the run fetches it first",
    )  # fmt: skip
    with pytest.raises(JobFileError, match=r"data.source.size: 64 is not model.image_size, which"):
        load(sets, "data.train=new/train", "data.validation=null", source.replace("32", "64"))


def test_a_store_that_is_out_of_reach_is_a_warning_without_its_secrets(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("DATA_TOKEN", "s3://k3y-bucket/set")
    found = check_data(load(sets, "data.train=${env:DATA_TOKEN}"))
    assert found.status == "warn"
    assert "k3y" not in found.found
    assert "is unreachable" in found.found
