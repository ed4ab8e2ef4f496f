"""Every model goes on exactly where it was broken off, and what differs would be found."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from orchestrator.cli import app
from orchestrator.config.job import Job
from orchestrator.diagnostics.compare_runs import Evidence, compare
from orchestrator.diagnostics.local_run import Interruption, Trial, train_as
from orchestrator.diagnostics.resume_check import certify, shortened
from orchestrator.models import pix2pix
from orchestrator.models.base import model_names
from orchestrator.training.state import TrainState
from support.packed_sets import write_set
from support.ranks import WORLD_SIZE, on_two_ranks
from support.small import small_config

STEPS, BATCH = 12, 4
AT = 29
"""Images after which trainings end: within a step, and two steps after a checkpoint."""
INTERRUPTIONS = {"whole": None, "stopped": Interruption(AT, False), "lost": Interruption(AT, True)}


def job_of(name: str, folder: Path, **cluster: object) -> Job:
    """A small model, its sets of 12 and 5 samples, twelve steps with EMA."""
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
    return shortened(Job.model_validate(given), STEPS)


def trials_of(name: str, folder: Path, world_size: int) -> dict[str, Trial]:
    job = job_of(name, folder / "data" / name)
    return {how: Trial(job, folder / f"{name}-{how}", world_size) for how in INTERRUPTIONS}


def train_all(rank: int, out: Path) -> None:
    """All trials of all models as one of two ranks."""
    for name in model_names():
        for how, trial in trials_of(name, out, WORLD_SIZE).items():
            trial.folder.mkdir(exist_ok=True)
            train_as(trial, rank, INTERRUPTIONS[how])
            if INTERRUPTIONS[how] is not None:
                train_as(trial, rank, None)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for name in model_names():
        job_of(name, folder / "data" / name)
    on_two_ranks(train_all, folder)
    return folder


def assert_same(trials: dict[str, Trial]) -> None:
    whole = trials["whole"].evidence()
    assert whole.state.images_seen == STEPS * BATCH
    assert len(whole.points) > STEPS
    for how, again in (("stopped", 0), ("lost", trials["lost"].world_size * 3)):
        resumed = trials[how].evidence()
        assert resumed.num_again == again, f"{how}: steps trained again"
        differences = [c.difference for c in compare(whole, resumed) if c.difference]
        assert differences == []


@pytest.mark.parametrize("name", model_names())
def test_a_model_that_was_stopped_or_lost_ends_where_the_uninterrupted_one_ends(
    name: str, tmp_path: Path
) -> None:
    trials = trials_of(name, tmp_path, 1)
    for how, trial in trials.items():
        trial.run(INTERRUPTIONS[how])
        if INTERRUPTIONS[how] is not None:
            before = trial.checkpoints().latest()
            assert before is not None
            assert before.images_seen == (AT // 4 * 4 + 4 if how == "stopped" else 20)
            trial.run()
    assert_same(trials)


@pytest.mark.parametrize("name", model_names())
def test_the_same_on_two_workers(name: str, two_workers: Path) -> None:
    assert_same(trials_of(name, two_workers, WORLD_SIZE))


def test_state_that_no_checkpoint_holds_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that counts its steps beside its buffers goes on with another number."""
    ours = pix2pix.Model.generator_loss

    def counting(self, batch, shared):  # type: ignore[no-untyped-def]
        self.calls = getattr(self, "calls", 0) + 1
        loss = ours(self, batch, shared)
        return loss._replace(value=loss.value * (1 + self.calls))

    monkeypatch.setattr(pix2pix.Model, "generator_loss", counting)
    made = certify(job_of("pix2pix", tmp_path / "data"), AT, lambda words: None)
    assert not made.equal
    found = [check.difference for part in made.parts for check in part.checks if check.difference]
    assert any("values differ, by up to" in difference for difference in found)


def state_with(**tensors: torch.Tensor) -> Evidence:
    return Evidence(TrainState(4, tensors, {}, {}, {}), {}, {})


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        (torch.zeros(3), -torch.zeros(3), "0 of 3 values differ"),
        (torch.zeros(3), torch.tensor([0, 0, 2.0]), "1 of 3 values differ, by up to 2"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), "float32 (3,) and torch.float64"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), None),
    ],
)
def test_tensors_are_the_same_only_to_the_last_bit(
    one: torch.Tensor, two: torch.Tensor, told: str | None
) -> None:
    (found,) = [c for c in compare(state_with(w=one), state_with(w=two)) if c.what[:3] == "net"]
    assert (found.difference is None) if told is None else (told in str(found.difference))


def test_a_missing_point_and_another_value_are_named() -> None:
    whole = dataclasses.replace(state_with(), points={"loss at 4": 1.0, "loss at 8": 2.0})
    gone = dataclasses.replace(whole, points={"loss at 4": 1.0})
    other = dataclasses.replace(whole, points={"loss at 4": 1.0, "loss at 8": 2.5})
    told = [
        [check.difference for check in compare(whole, each) if check.difference]
        for each in (gone, other)
    ]
    assert told == [
        ["loss at 8 is in the uninterrupted training only"],
        ["loss at 8: 2.0 and 2.5"],
    ]


def test_the_command_gives_a_certificate_and_refuses_an_interruption_at_the_end(
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
    out, told = capsys.readouterr()
    assert out == ""
    assert "--at 31 leaves nothing to go on with: 8 steps of 4 images are 32" in told
    assert run("--json", "--at", "13") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["equal"], made["model"], made["images"]) == (True, "pix2pix", 32)
    assert [part["how"] for part in made["parts"]] == [
        "stopped after 13 images",
        "lost after 13 images",
    ]
    for part in made["parts"]:
        counts = {check["what"]: check["count"] for check in part["checks"]}
        assert counts["samples (shares of batches)"] == 8
        assert counts["networks (tensors)"] > 10
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["data", "small.yaml"], "nothing is left of the trainings"
