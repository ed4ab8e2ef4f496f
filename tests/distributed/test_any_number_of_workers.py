"""Without batch norm the curves are the same on 1, 2, 4 and a changing number of workers."""

import pickle
from pathlib import Path

import pytest

from orchestrator.config.job import Job
from orchestrator.diagnostics.local_run import Interruption, LocalRun, train_rank
from orchestrator.diagnostics.resume_check import shorten_job
from support.packed_sets import write_set
from support.ranks import on_ranks
from support.small import small_config

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
    """One rank of the trial in ``out``."""
    trial, interruption = pickle.loads((out / "trial.pickle").read_bytes())
    train_rank(trial, rank, interruption)


def curves(
    job: Job, folder: Path, *stretches: tuple[int, int], quickly: bool = True
) -> dict[str, float]:
    """The points of a training by (workers, images until which they train).

    Args:
        quickly: start the processes as other tests do, and not as `Trial.run` does.
    """
    folder.mkdir()
    for workers, end in stretches:
        last = end >= STEPS * BATCH
        trial, interruption = LocalRun(job, folder, workers), Interruption(end, killed=False)
        if quickly and workers > 1:
            given = (trial, None if last else interruption)
            (folder / "trial.pickle").write_bytes(pickle.dumps(given))
            on_ranks(train_rank, folder, workers)
        else:
            trial.run(None if last else interruption)
    artifacts = LocalRun(job, folder).artifacts()
    assert artifacts.state.images_seen == STEPS * BATCH
    assert artifacts.num_repeated == 0, "no step was trained twice"
    return artifacts.points


def test_1_2_and_4_workers_and_a_changing_number_give_one_curve(job: Job, tmp_path: Path) -> None:
    end = STEPS * BATCH
    expected = curves(job, tmp_path / "one", (1, end))
    assert len(expected) > 3 * STEPS
    found = {
        "two": curves(job, tmp_path / "two", (2, end), quickly=False),
        "four": curves(job, tmp_path / "four", (4, end)),
        "changing": curves(job, tmp_path / "changing", (2, 80), (4, 160), (1, 240), (2, end)),
    }
    for who, points in found.items():
        assert points == pytest.approx(expected, rel=1e-5), who
