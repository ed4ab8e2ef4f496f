"""Mistakes in the `evaluate:` section, and which metrics a sweep may aim at with it."""

from pathlib import Path

import pytest

from orchestrator.config.gpus import check_evaluation_gpu
from orchestrator.config.load import load_job
from orchestrator.config.paths import resolve_paths
from orchestrator.errors import JobFileError, UsageError
from orchestrator.evaluation.metric_names import Metric, is_measured

JOB = """\
name: drawings
model: {name: dcgan, image_size: 32, filters: 8}
data: {train: faces/train, validation: faces/validation}
train: {images: 64, batch_size: 4}
evaluate: {}
"""
SWEEP = """\
sweep:
  metric: evaluation/kid.lite0
  trials: 2
  space: {model.learning_rate: {choice: [0.0001, 0.0002]}}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.validation=null", "evaluate: needs images that the training never sees; set data"),
        ("evaluate.metrics=[kid, frechet, kid]", "evaluate.metrics.2: kid is there twice"),
        (
            "evaluate.metrics=[pairs]",
            "evaluate.metrics.0: does not fit: the model does not tra",
        ),
        (
            "evaluate.metrics=[kid, likelihood]",
            "evaluate.metrics.1: does not fit: model dcgan has",
        ),
        ("evaluate.metrics=[fid]", "'fid' is not a valid choice; expected kid, frechet"),
        ("evaluate.metrics=[]", "evaluate.metrics: has 0 values; give at least 1"),
        ("evaluate.extractor=vgg", "evaluate.extractor: 'vgg' is no extractor; use lite0, inc"),
        ("evaluate.extractor='inception:'", "evaluate.extractor: 'inception:' is no extractor"),
        ("evaluate.gpus=2", "evaluate.gpus: 2 is not a valid choice; expected 0 or 1"),
        ("evaluate.every=0", "evaluate.every: 0 is out of range; use an integer above 0"),
        ("evaluate.interval=5", "evaluate.interval: unknown key"),
        (
            "evaluate={metrics: [diversity], extractor: 'inception:weights.pth'}",
            "evaluate.extractor: is not used by diversity; remove it, or add kid",
        ),
    ],
)
def test_each_mistake_has_its_place_and_what_to_do(job: Path, setting: str, message: str) -> None:
    with pytest.raises(JobFileError) as error:
        load_job(job, [setting])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_copies_are_looked_for_in_one_training_set(job: Path) -> None:
    several = "data.train=[{path: a, weight: 1}, {path: b, weight: 1}]"
    with pytest.raises(JobFileError, match="looks for copies in one training set"):
        load_job(job, [several, "evaluate.metrics=[nearest]"])
    load_job(job, [several, "evaluate.metrics=[kid]"])


def test_a_relative_extractor_starts_where_the_data_do(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve_paths(load_job(job, ["evaluate.extractor=inception:w.pth"]).job)
    assert resolved.evaluate is not None
    assert resolved.evaluate.extractor == f"inception:{tmp_path}/w.pth"
    lite0 = resolve_paths(load_job(job).job).evaluate
    assert lite0 is not None
    assert lite0.extractor == "lite0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], None),
        (["sweep.metric=evaluation/frechet.lite0.n1000"], None),
        (["evaluate=null"], "needs an evaluation beside the training; add `evaluate: {}`"),
        (["sweep.metric=evaluation/kid"], "has a value evaluation/kid; `kid` has"),
        (["evaluate.metrics=[diversity]"], "no evaluation of diversity with the extractor lite0"),
        (["evaluate.extractor=inception:w"], "`kid` has evaluation/kid.inception"),
        (
            ["sweep.metric=evaluation/frechet.lite0.n500"],
            "value evaluation/frechet.lite0.n500",
        ),
        (["sweep.metric=evaluation/l1"], "no evaluation of kid, frechet, prdc, diversity with"),
        (["sweep.metric=evaluation/nearest.lite0"], "has a value evaluation/nearest.lite0"),
        (["sweep.metric=evaluation/nll_nats"], "has a value evaluation/nll_nats"),
        (["sweep.scheduler=asha"], "asha compares trials while they train, and evaluation/kid"),
    ],
)
def test_a_sweep_may_aim_at_what_the_evaluation_measures(
    job: Path, settings: list[str], message: str | None
) -> None:
    job.write_text(JOB + SWEEP)
    if message is None:
        assert load_job(job, settings).job.sweep is not None
        return
    with pytest.raises(JobFileError) as error:
        load_job(job, settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "metric", "extractor"),
    [
        ("kid.lite0", "kid", "lite0"),
        ("fid.inception.n5000", "frechet", "inception:weights.pth"),
        ("recall.dinov2-1a2b3c4d.n50", "prdc", "onnx:settings.json"),
        ("kid.lite0.class_3", "kid_per_class", "lite0"),
        ("negative_elbo_nats", "likelihood", "lite0"),
        ("bits_per_dim_binarized", "likelihood", "lite0"),
        ("ms_ssim_pairs.scales3", "diversity", "lite0"),
    ],
)
def test_the_names_of_the_documentation_are_known(
    name: str, metric: Metric, extractor: str
) -> None:
    assert is_measured(name, [metric], extractor, None)
    assert not is_measured(f"{name}x", [metric], extractor, None)


def test_the_number_of_images_is_a_part_of_the_name() -> None:
    assert is_measured("frechet.lite0.n500", ["frechet"], "lite0", 500)
    assert not is_measured("frechet.lite0.n1000", ["frechet"], "lite0", 500)
    assert not is_measured("fid.lite0.n500", ["frechet"], "lite0", 500)


@pytest.mark.parametrize(
    ("workers", "gpus", "fits"), [(1, 2, True), (1, 1, False), (2, 2, False), (2, 3, True)]
)
def test_an_evaluation_on_a_gpu_needs_one_that_no_worker_has(
    job: Path, workers: int, gpus: int, *, fits: bool
) -> None:
    settings = ["evaluate.gpus=1", f"cluster.workers={workers}", "cluster.gpus_per_worker=1"]
    loaded = load_job(job, settings).job
    if fits:
        check_evaluation_gpu(loaded, gpus)
        return
    with pytest.raises(UsageError, match=rf"needs {workers + 1} GPUs, {workers} for the workers"):
        check_evaluation_gpu(loaded, gpus)
