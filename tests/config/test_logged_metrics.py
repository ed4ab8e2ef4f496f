"""A sweep may name exactly the metrics that its trials log: compared with what small runs log."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.config.logged_metrics import logged_metrics
from orchestrator.config.metric_descriptions import (
    BINARIZED_SUFFIXES,
    COST_METRICS,
    DATA_METRICS,
    LOOP_METRICS,
    PHASE_METRICS,
    SAMPLE_METRICS,
    VALIDATION_METRICS,
    describe_metric,
)
from orchestrator.errors import JobFileError
from orchestrator.models.base import Batch, model_module, model_names
from orchestrator.runs.usage import compute_usage
from orchestrator.training.data_monitor import _name_by_rank
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from services.fixtures_jobs import Load
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream
from support.small import small_batch, small_config
from support.sweep_jobs import VALIDATING, edited


class _SmallStream(MemoryStream):
    """Samples for a small model, of which the first four are the validation set if there is one."""

    def __init__(self, job: Job) -> None:
        super().__init__(size=4)
        self.config, self.validated = job.model, job.data.validation is not None

    def validation(self) -> Iterator[Batch]:
        if self.validated:
            yield small_batch(self.config)

    def _at(self, positions: torch.Tensor) -> Batch:
        return small_batch(self.config, len(positions), int(positions[0]) % self.num_samples)


def names_of_a_run(job: Job) -> set[str]:
    """Train the job for a step and return the names of all that it logs."""
    recorder = ListRecorder()
    worker = Worker(recorder, MemoryCheckpoints(), torch.device("cpu"))
    train(job, _SmallStream(job), worker)
    usage = compute_usage(job.cluster, 1, 3600, job.cost).metrics()
    return {name for _, values in recorder.points for name in values} | set(usage)


def small_job(name: str, model: dict[str, Any], **sections: dict[str, Any]) -> Job:
    config = small_config(name, **model)
    return Job.model_validate(
        {
            "name": "a",
            "model": config.model_dump(),
            "data": {"train": "x", **sections.pop("data", {})},
            "train": {"batch_size": 4, "images": 4},
            **sections,
        }
    )


VALIDATION = {"data": {"validation": "y"}}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {}, VALIDATION) for name in model_names()),
    ("pix2pix", {}, {}),
    ("cyclegan", {"identity_weight": 0.0}, VALIDATION),
    ("text2image", {"interpolation_weight": 0.0}, VALIDATION),
    ("vae", {}, {"data": {"validation": "y", "binarize": "fixed"}}),
    ("pixelcnn", {}, {"data": {"validation": "y", "binarize": "dynamic"}}),
    ("gan", {}, {"guard": {"gradients": "off", "collapse": "off"}}),
    ("autoencoder", {}, {"cost": {"cpu_hour": 1.0}}),
]


@pytest.mark.parametrize(("name", "model", "sections"), CASES)
def test_the_names_are_exactly_those_that_a_small_run_logs(
    name: str, model: dict[str, Any], sections: dict[str, Any]
) -> None:
    job = small_job(name, model, **sections)
    names = logged_metrics(job)
    if not sections.get("data"):
        names["validation"] = ()
    listed = [name for group in names.values() for name in group]
    assert len(set(listed)) == len(listed)
    assert set(listed) == names_of_a_run(job)


@pytest.mark.parametrize(("name", "model", "sections"), CASES)
def test_every_metric_that_is_logged_has_a_description(
    name: str, model: dict[str, Any], sections: dict[str, Any]
) -> None:
    own = getattr(model_module(name), "METRICS", {})
    listed = [
        n for group in logged_metrics(small_job(name, model, **sections)).values() for n in group
    ]
    assert [metric for metric in listed if not describe_metric(metric, own)] == []


def test_a_description_is_that_of_the_metric_itself() -> None:
    own = {"a/loss": "own"}
    assert describe_metric("a/loss", own) == "own"
    assert describe_metric("b/loss", own) == PHASE_METRICS["loss"]
    assert describe_metric("data/rank_12/retries", {}) == DATA_METRICS["data/rank_0/retries"]
    assert describe_metric("data/max/retries", {}) == DATA_METRICS["data/rank_0/retries"]
    found = describe_metric("validation/nll_nats_binarized_fixed", {})
    assert found.startswith(VALIDATION_METRICS["nll_nats"])
    assert found.endswith(BINARIZED_SUFFIXES["_binarized_fixed"])
    assert describe_metric("my/own", {}) == ""


def test_the_data_metrics_are_those_that_every_allowed_number_of_workers_logs() -> None:
    def data_metrics(workers: Any) -> set[str]:
        job = small_job("autoencoder", {}, cluster={"workers": workers}, train=TRAIN)
        return {n for n in logged_metrics(job)["run"] if n.startswith(("data/rank", "data/m"))}

    def logged(world_size: int) -> set[str]:
        """What the monitor names, with one value per rank."""
        return set(_name_by_rank({"retries": [0.0] * world_size}))

    for workers in (1, 3, 16, 17):
        assert {n for n in data_metrics(workers) if n.endswith("/retries")} == logged(workers)
    for low, high in ((1, 4), (2, 16), (16, 17), (17, 40)):
        allowed = {n for n in data_metrics({"min": low, "max": high}) if n.endswith("/retries")}
        always = set.intersection(*(logged(size) for size in range(low, high + 1)))
        assert allowed == always


TRAIN = {"batch_size": 6800, "images": 6800}

REFUSED = {
    "a typo in a validation metric": (
        "validation/l1 ", "validation/l11 ",
        "the model autoencoder has no metric validation/l11; did you mean validation/l1? it has: ",
    ),
    "a validation metric of other models": (
        "validation/l1 ", "validation/nll_nats ",
        "has no metric validation/nll_nats; did you mean validation/l1? it has: autoencoder/mse, ",
    ),
    "a metric of the loss that is another phase's": (
        "validation/l1 ", "generator/loss ",
        "has no metric generator/loss; did you mean autoencoder/loss? it has: ",
    ),
    "a guard metric with the guard off": (
        "train:\n", "guard: {collapse: 'off'}\ntrain:\n", "has no metric guard/collapse; ",
    ),
    "a binarized name without binarize": (
        "validation/l1 ", "validation/bits_per_dim_binarized_fixed ", "has no metric validation/",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_metric_that_is_not_logged_is_refused_with_those_that_are(load: Load, case: str) -> None:
    old, new, expected = REFUSED[case]
    text = edited(old, new, VALIDATING)
    if "guard" in expected:
        text = text.replace("validation/l1 ", "guard/collapse ")
    with pytest.raises(JobFileError) as caught:
        load(text)
    assert "sweep.metric: the model autoencoder has no metric" in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_logged_name_is_accepted_by_validate(load: Load) -> None:
    for names in logged_metrics(load(VALIDATING).job).values():
        for name in names:
            assert load(edited("validation/l1 ", f"{name} ", VALIDATING)).job.sweep


def test_a_value_of_the_space_that_takes_the_metric_away_is_refused(load: Load) -> None:
    text = VALIDATING.replace("model.latent: {randint: [4, 8]}", "guard.collapse: {choice: %s}")
    text = text.replace("validation/l1 ", "guard/collapse ")
    assert load(text % "[warn, stop]").job.sweep
    with pytest.raises(JobFileError) as caught:
        load(text % "[warn, 'off']")
    assert 'with "off", sweep.metric: the model autoencoder has no metric guard/collapse' in str(
        caught.value
    )


def test_every_name_is_described() -> None:
    shared = {**COST_METRICS, **DATA_METRICS, **LOOP_METRICS, **SAMPLE_METRICS}
    for name, model, sections in CASES:
        job = small_job(name, model, **sections)
        for metric in logged_metrics(job)["run"]:
            assert metric in shared
        for metric in logged_metrics(job)["validation"]:
            bare = metric.removeprefix("validation/")
            for suffix in BINARIZED_SUFFIXES:
                bare = bare.removesuffix(suffix)
            assert bare in VALIDATION_METRICS
        own = model_module(name).METRICS
        for metric in logged_metrics(job)["model"]:
            known = metric in own or metric in SAMPLE_METRICS
            assert known or metric.partition("/")[2] in PHASE_METRICS
