"""What `cluster.gpus_per_worker: auto` becomes, and the line that says what stands idle."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.gpus import describe_gpus, resolve_gpus
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.errors import JobFileError, UsageError

JOB = """\
name: cats
model: {name: pix2pix}
data: {train: x}
train: {batch_size: 48, epochs: 1}
"""


def load(*overrides: str) -> LoadedJob:
    return load_text(JOB, Path("x.yaml"), overrides, {})


def test_auto_is_the_default_and_is_one_where_there_is_a_gpu() -> None:
    assert load().job.cluster.gpus_per_worker == "auto"
    for num_gpus, expected in ((0, 0), (1, 1), (8, 1)):
        resolved = resolve_gpus(load(), num_gpus)
        assert resolved.job.cluster.gpus_per_worker == expected
        assert f"gpus_per_worker: {expected}\n" in resolved.render(), "recorded with the run"


@pytest.mark.parametrize("given", [0, 1])
def test_a_number_in_the_job_is_not_changed_by_what_the_cluster_has(given: int) -> None:
    loaded = load(f"cluster.gpus_per_worker={given}")
    for num_gpus in (0, 8):
        assert resolve_gpus(loaded, num_gpus) == loaded


@pytest.mark.parametrize("before", [0, 1])
def test_a_resumed_run_keeps_its_kind_of_device(before: int) -> None:
    """On another device the same steps round differently."""
    recorded = resolve_gpus(load(), before).render()
    for num_gpus in (0, 8):
        resumed = resolve_gpus(load(), num_gpus, recorded)
        assert resumed.job.cluster.gpus_per_worker == before
        other = load(f"cluster.gpus_per_worker={1 - before}")
        assert resolve_gpus(other, num_gpus, recorded) == other, "the user's word counts more"


def test_auto_from_the_environment_is_recorded_as_its_number() -> None:
    overrides = ("cluster.gpus_per_worker=${env:GPUS}", "train.seed=${env:SEED}")
    loaded = load_text(JOB, Path("x.yaml"), overrides, {"GPUS": "auto", "SEED": "3"})
    recorded = resolve_gpus(loaded, 1).render()
    assert "gpus_per_worker: 1\n" in recorded
    assert "seed: ${env:SEED}\n" in recorded
    assert resolve_gpus(loaded, 0, recorded).job.cluster.gpus == 1


def test_a_price_without_gpus_is_refused_once_the_workers_get_gpus() -> None:
    loaded = load("cost={cpu_hour: 1}")
    assert resolve_gpus(loaded, 0).job.cluster.gpus == 0
    with pytest.raises(UsageError, match=r"^cost: has no gpu_hour, and cluster.gpus_per_worker is"):
        resolve_gpus(loaded, 2)


@pytest.mark.parametrize("value", ["2", "-1", "true", "0.5", "'1'", "all"])
def test_another_value_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(JobFileError, match="expected auto, 0 or 1"):
        load(f"cluster.gpus_per_worker={value}")


LINES = [
    (2, 8, "2 workers on 2 of 8 GPUs; 6 GPUs idle: cluster.workers: 8"),
    (1, 1, "1 worker on 1 of 1 GPU"),
    (4, 5, "4 workers on 4 of 5 GPUs; 1 GPU idle (train.batch_size is 48)"),
    (4, 7, "4 workers on 4 of 7 GPUs; 3 GPUs idle: cluster.workers: 6"),
    (2, 0, "2 workers on CPUs; no GPU"),
    (3, 2, "3 workers need 3 GPUs, and there is only 2: cluster.gpus_per_worker: 0"),
]


@pytest.mark.parametrize(("workers", "num_gpus", "line"), LINES)
def test_the_line_says_what_is_used_and_how_to_use_the_rest(
    workers: int, num_gpus: int, line: str
) -> None:
    job = resolve_gpus(load(f"cluster.workers={workers}"), num_gpus).job
    assert describe_gpus(job, num_gpus) == line


def test_the_line_of_an_elastic_run_and_of_one_on_cpus() -> None:
    elastic = resolve_gpus(load("cluster.workers={min: 1, max: 4}"), 8).job
    assert describe_gpus(elastic, 8) == (
        "1 to 4 workers on 4 of 8 GPUs; 4 GPUs idle: cluster.workers.max: 8"
    )
    cpus = load("cluster.gpus_per_worker=0").job
    assert describe_gpus(cpus, 4) == "1 worker on CPUs; 4 GPUs idle: cluster.gpus_per_worker: 1"
    gpus = load("cluster.gpus_per_worker=1").job
    assert describe_gpus(gpus, 0) == (
        "1 worker needs 1 GPU, and there is none: cluster.gpus_per_worker: 0"
    )


TRIALS = [
    ("trials: 9", "workers: 1", 4, "up to 4 trials at once, each with 1 worker, on 4 of 4 GPUs"),
    (
        "trials: 2",
        "workers: 1",
        4,
        "up to 2 trials at once, each with 1 worker, on 2 of 4 GPUs; 2 GPUs idle",
    ),
    (
        "trials: 9, max_concurrent: 1",
        "workers: 2",
        5,
        "up to 1 trial at once, each with 2 workers, on 2 of 5 GPUs; 3 GPUs idle: "
        "sweep.max_concurrent: 2",
    ),
    (
        "trials: 9",
        "workers: {min: 1, max: 3}",
        2,
        "3 workers need 3 GPUs, and there is only 2: cluster.gpus_per_worker: 0",
    ),
    ("trials: 9", "workers: 1", 0, "1 worker on CPUs; no GPU"),
]


@pytest.mark.parametrize(("trials", "workers", "num_gpus", "line"), TRIALS)
def test_the_line_of_a_sweep_counts_the_trials_that_run_at_once(
    trials: str, workers: str, num_gpus: int, line: str
) -> None:
    sweep = f"sweep={{{trials}, metric: generator/loss, space: {{model.filters: {{choice: [4]}}}}}}"
    gpus = f"gpus_per_worker: {min(1, num_gpus)}"
    job = load(sweep, f"cluster={{{workers}, {gpus}}}").job
    assert describe_gpus(job, num_gpus) == line


@given(workers=st.integers(1, 16), factor=st.integers(1, 8), num_gpus=st.integers(1, 32))
def test_the_suggested_number_of_workers_is_the_largest_that_validates(
    workers: int, factor: int, num_gpus: int
) -> None:
    batch = workers * factor
    job = resolve_gpus(load(f"cluster.workers={workers}", f"train.batch_size={batch}"), 1).job
    line = describe_gpus(job, num_gpus)
    fits = [n for n in range(workers + 1, num_gpus + 1) if math.gcd(batch, n) == n]
    suggested = line.rpartition("cluster.workers: ")[2] if "cluster.workers: " in line else None
    assert suggested == (str(fits[-1]) if fits else None)
    if suggested is not None:
        load(f"cluster.workers={suggested}", f"train.batch_size={batch}")


def test_a_resolved_job_keeps_all_else() -> None:
    loaded = load("cluster.workers=2")
    resolved = resolve_gpus(loaded, 1)
    cluster = resolved.job.cluster.model_copy(update={"gpus_per_worker": "auto"})
    assert replace(resolved, job=resolved.job.model_copy(update={"cluster": cluster})) == loaded
