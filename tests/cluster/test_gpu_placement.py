"""`cluster.gpus_per_worker: auto` on a Ray cluster with GPUs that Ray only pretends to have."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.cluster.ray_session import cluster_gpus, missing_resources, resources_of
from orchestrator.cluster.tune_runner import max_concurrent_trials
from orchestrator.config.gpus import describe_gpus, resolve_gpus
from orchestrator.config.load import LoadedJob, load_text
from services.ray_connection import ray_in_this_process

pytestmark = pytest.mark.ray

JOB = """\
name: cats
model: {name: pix2pix}
data: {train: x}
train: {batch_size: 6, epochs: 1}
sweep: {metric: generator/l1, trials: 9, space: {model.beta1: {uniform: [0.3, 0.6]}}}
"""


@pytest.fixture(scope="module", autouse=True)
def _two_gpus() -> Iterator[None]:
    with ray_in_this_process(num_cpus=6, num_gpus=2):
        yield


def load(*overrides: str) -> LoadedJob:
    return load_text(JOB, Path("x.yaml"), overrides, {})


def test_auto_counts_the_clusters_gpus_and_places_one_worker_on_each() -> None:
    loaded = load("cluster.workers=2")
    with cluster_gpus(loaded.job) as num_gpus:
        assert num_gpus == 2
    assert ray.is_initialized(), "a connection that existed stays open"
    job = resolve_gpus(loaded, num_gpus).job
    trials = "up to 1 trial at once, each with 2 workers, on 2 of 2 GPUs"
    assert describe_gpus(job, num_gpus) == trials
    alone = resolve_gpus(load("cluster.workers=2", "sweep=null"), num_gpus).job
    assert describe_gpus(alone, num_gpus) == "2 workers on 2 of 2 GPUs"
    assert list(missing_resources(job.cluster, 2)) == []
    assert list(missing_resources(job.cluster, 3)) == [("GPU", 3.0, 2.0)]

    @ray.remote
    class Worker:
        def gpus(self) -> list[int]:
            return [int(number) for number in ray.get_gpu_ids()]

    needed = resources_of(job.cluster)
    options = {"num_cpus": needed["CPU"], "num_gpus": needed["GPU"]}
    workers = [Worker.options(**options).remote() for _ in range(2)]  # type: ignore[attr-defined]
    placed = ray.get([worker.gpus.remote() for worker in workers])
    assert sorted(placed) == [[0], [1]]


def test_a_sweep_has_as_many_trials_at_a_time_as_gpus() -> None:
    for given, room in (("auto", 2), ("0", 6)):
        job = resolve_gpus(load(f"cluster.gpus_per_worker={given}"), 2).job
        assert max_concurrent_trials(job) == room
