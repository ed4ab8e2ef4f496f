"""Without batch norm, metrics are the same on 1, 2, 4 and a changing number of workers."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.config.job import Job
from orchestrator.diagnostics import local_run
from orchestrator.diagnostics.local_run import Interruption, LocalRun
from orchestrator.diagnostics.resume_check import shorten_job
from support.packed_sets import write_set
from support.ranks import on_ranks
from support.small import small_config

pytestmark = pytest.mark.slow

STEPS, BATCH = 40, 8


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder, config = tmp_path_factory.mktemp("elastic"), small_config("vae")
    for part, count, first in (("train", 48, 0), ("validation", 9, 100)):
        write_set(folder / part, config, count, first)
    data = {"train": str(folder / "train"), "validation": str(folder / "validation")}
    given = {
        "name": "vae",
        "model": config.model_dump(),
        "data": {**data, "threads": 1, "augment": {"flip": True}},
        "train": {"images": 1, "batch_size": BATCH, "ema_decay": 0.9},
    }
    return shorten_job(Job.model_validate(given), STEPS)


def train_rank(rank: int, out: Path) -> None:
    """Train as one rank of the run in ``out``."""
    run, interruption = pickle.loads((out / "run.pickle").read_bytes())
    local_run.train_rank(run, rank, interruption)


def curves(
    job: Job, folder: Path, *segments: tuple[int, int], quickly: bool = True
) -> Mapping[str, float]:
    """Return the metrics of a run in segments of (workers, images at their end).

    Args:
        quickly: fork the processes as other tests do, instead of starting them as `LocalRun` does.
    """
    folder.mkdir()
    for workers, end in segments:
        last = end >= STEPS * BATCH
        run, interruption = LocalRun(job, folder, workers), Interruption(end, killed=False)
        if quickly and workers > 1:
            arguments = (run, None if last else interruption)
            (folder / "run.pickle").write_bytes(pickle.dumps(arguments))
            on_ranks(train_rank, folder, workers)
        else:
            run.run(None if last else interruption)
    artifacts = LocalRun(job, folder).artifacts()
    assert artifacts.state.images_seen == STEPS * BATCH
    assert artifacts.num_repeated == 0, "no step was trained twice"
    return artifacts.points


def test_1_2_4_and_a_changing_number_of_workers_give_the_same_metrics(
    job: Job, tmp_path: Path
) -> None:
    end = STEPS * BATCH
    expected = curves(job, tmp_path / "one", (1, end))
    assert len(expected) > 3 * STEPS
    found = {
        "two": curves(job, tmp_path / "two", (2, end), quickly=False),
        "four": curves(job, tmp_path / "four", (4, end)),
        "changing": curves(job, tmp_path / "changing", (2, 80), (4, 160), (1, 240), (2, end)),
    }
    for workers, points in found.items():
        assert points == pytest.approx(expected, rel=1e-5), workers
