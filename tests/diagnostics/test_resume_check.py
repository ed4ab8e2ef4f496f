"""Every model resumes exactly where it was interrupted, and any difference is found."""

import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cli import app
from orchestrator.config.job import Job
from orchestrator.diagnostics.compare_runs import RunArtifacts, compare
from orchestrator.diagnostics.local_run import Interruption, LocalRun, train_rank
from orchestrator.diagnostics.resume_check import check_resume, shorten_job
from orchestrator.errors import DataError
from orchestrator.models import pix2pix
from orchestrator.models.base import model_names
from orchestrator.training.state import TrainState
from support.listening import exposed, listening
from support.packed_sets import write_set
from support.ranks import WORLD_SIZE, on_two_ranks
from support.small import small_config

pytestmark = pytest.mark.slow

STEPS, BATCH = 12, 4
AT = 29
"""Images after which runs end: within a step, and two steps after a checkpoint."""
INTERRUPTIONS = {
    "baseline": None,
    "stopped": Interruption(AT, killed=False),
    "killed": Interruption(AT, killed=True),
}


def job_of(name: str, folder: Path, **cluster: object) -> Job:
    """A job of twelve steps with EMA for a small model, on sets of 12 and 5 samples."""
    config = small_config(name)
    for part, count, first in (("train", 12, 0), ("validation", 5, 100)):
        if not (folder / part).exists():
            write_set(folder / part, config, count, first)
    data = {"train": str(folder / "train"), "validation": str(folder / "validation")}
    given = {
        "name": name,
        "model": config.model_dump(),
        "data": {**data, "threads": 1},
        "train": {"images": 1, "batch_size": BATCH, "ema_decay": 0.9},
        "cluster": cluster,
    }
    return shorten_job(Job.model_validate(given), STEPS)


def runs_of(name: str, folder: Path, world_size: int) -> dict[str, LocalRun]:
    job = job_of(name, folder / "data" / name)
    return {how: LocalRun(job, folder / f"{name}-{how}", world_size) for how in INTERRUPTIONS}


def train_all(rank: int, out: Path) -> None:
    """All runs of all models, as one of two ranks."""
    for name in model_names():
        for how, run in runs_of(name, out, WORLD_SIZE).items():
            run.folder.mkdir(exist_ok=True)
            train_rank(run, rank, INTERRUPTIONS[how])
            if INTERRUPTIONS[how] is not None:
                train_rank(run, rank, None)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in model_names():
        job_of(name, folder / "data" / name)
    on_two_ranks(train_all, folder)
    return folder


def assert_same(runs: dict[str, LocalRun]) -> None:
    baseline = runs["baseline"].artifacts()
    assert baseline.state.images_seen == STEPS * BATCH
    assert len(baseline.points) > STEPS
    for how, num_repeated in (("stopped", 0), ("killed", runs["killed"].world_size * 3)):
        resumed = runs[how].artifacts()
        assert resumed.num_repeated == num_repeated, how
        differences = [c.difference for c in compare(baseline, resumed) if c.difference]
        assert differences == []


@pytest.mark.parametrize("name", model_names())
def test_a_run_that_was_stopped_or_killed_ends_as_the_uninterrupted_run(
    name: str, tmp_path: Path
) -> None:
    runs = runs_of(name, tmp_path, 1)
    for how, run in runs.items():
        run.run(INTERRUPTIONS[how])
        if INTERRUPTIONS[how] is not None:
            before = run.checkpoints().latest()
            assert before is not None
            assert before.images_seen == (AT // 4 * 4 + 4 if how == "stopped" else 20)
            run.run()
    assert_same(runs)


@pytest.mark.parametrize("name", model_names())
def test_the_same_holds_on_two_workers(name: str, two_workers: Path) -> None:
    assert_same(runs_of(name, two_workers, WORLD_SIZE))


def test_state_that_is_missing_in_checkpoints_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that counts its steps outside its buffers resumes with another count."""
    ours = pix2pix.Model.generator_loss

    def counting(self: Any, batch: Any, shared: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        loss = ours(self, batch, shared)
        return loss._replace(value=loss.value * (1 + self.calls))

    monkeypatch.setattr(pix2pix.Model, "generator_loss", counting)
    made = check_resume(job_of("pix2pix", tmp_path / "data"), AT, lambda line: None)
    assert not made.equal
    found = [
        check.difference
        for result in made.interruptions
        for check in result.checks
        if check.difference
    ]
    assert any("values differ, by up to" in difference for difference in found)


def test_an_error_of_one_of_several_workers_is_reported_as_that_error(tmp_path: Path) -> None:
    job = job_of("pix2pix", tmp_path / "data", workers=WORLD_SIZE)
    (shard,) = (tmp_path / "data/train").glob("*.tar")
    content = bytearray(shard.read_bytes())
    for position in range(600, len(content), 700):
        content[position] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match="corrupt samples on this worker"):
        LocalRun(job, tmp_path / "run", WORLD_SIZE).run()


def state_with(**tensors: torch.Tensor) -> RunArtifacts:
    return RunArtifacts(TrainState(4, tensors, {}, {}, {}), {}, {})


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (torch.zeros(3), -torch.zeros(3), "0 of 3 values differ"),
        (torch.zeros(3), torch.tensor([0, 0, 2.0]), "1 of 3 values differ, by up to 2"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), "float32 (3,) and torch.float64"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), None),
    ],
)
def test_tensors_are_equal_only_if_every_bit_is(
    one: torch.Tensor, two: torch.Tensor, expected: str | None
) -> None:
    (found,) = [c for c in compare(state_with(w=one), state_with(w=two)) if c.compared[:3] == "net"]
    assert (found.difference is None) if expected is None else (expected in str(found.difference))


def test_a_missing_metric_value_and_a_different_one_are_named() -> None:
    baseline = dataclasses.replace(state_with(), points={"loss at 4": 1.0, "loss at 8": 2.0})
    missing = dataclasses.replace(baseline, points={"loss at 4": 1.0})
    other = dataclasses.replace(baseline, points={"loss at 4": 1.0, "loss at 8": 2.5})
    differences = [
        [check.difference for check in compare(baseline, each) if check.difference]
        for each in (missing, other)
    ]
    assert differences == [
        ["loss at 8 is in the uninterrupted run only"],
        ["loss at 8: 2.0 and 2.5"],
    ]


def test_the_command_prints_a_report_and_rejects_an_interruption_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job_of("pix2pix", tmp_path / "data")
    config = small_config("pix2pix").model_dump(mode="json")
    job = tmp_path / "small.yaml"
    job.write_text(
        json.dumps(
            {
                "name": "small",
                "model": config,
                "data": {"train": "data/train", "validation": "data/validation"},
                "train": {"images": 1000, "batch_size": 4},
            }
        )
    )
    command = ["orchestrator", "verify-resume", str(job), "--steps", "8"]

    def run(*options: str) -> int:
        monkeypatch.setattr("sys.argv", [*command, *options])
        with pytest.raises(SystemExit) as end:
            app.main()
        return int(end.value.code or 0)

    assert run("--at", "31") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--at 31 leaves nothing to resume: 8 steps of 4 images are 32" in err
    assert run("--json", "--at", "13") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["equal"], made["model"], made["images"]) == (True, "pix2pix", 32)
    assert [result["interruption"] for result in made["interruptions"]] == [
        "stopped after 13 images",
        "killed after 13 images",
    ]
    for result in made["interruptions"]:
        counts = {check["compared"]: check["count"] for check in result["checks"]}
        assert counts["samples (shares of batches)"] == 8
        assert counts["networks (tensors)"] > 10
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["data", "small.yaml"], "the runs leave nothing behind"


def test_an_error_of_a_rank_is_the_error_of_the_run(tmp_path: Path) -> None:
    job = job_of("pix2pix", tmp_path / "data", workers=2)
    (tmp_path / "data/train/000000.tar").unlink()
    with pytest.raises(DataError, match=r"data/train/000000\.tar"):
        LocalRun(job, tmp_path / "run", 2).run()


def test_the_ranks_on_one_machine_listen_on_loopback_alone(tmp_path: Path) -> None:
    job, found, ended = job_of("pix2pix", tmp_path / "data", workers=2), set(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            found.update(listening(os.getpid()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        LocalRun(job, tmp_path / "run", 2).run()
    finally:
        ended.set()
        watching.join()
    assert found, "gloo listens"
    assert exposed(found) == set()
