"""A resumed run whose checkpoints are damaged, gone or of another format, from its job file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.errors import DataError, OrchestratorError, Stopped, UsageError
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome
from support.small_runs import pack_pairs, write_job

SETTINGS = ["train.images=16", "train.checkpoint_every=8", "register=null"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("lost"))


@pytest.fixture
def job(data: str, tmp_path: Path) -> Path:
    """A job with a run that was stopped after two checkpoints."""
    job = write_job(tmp_path / "x", data)
    with pytest.raises(Stopped):
        run_job(load_job(job, SETTINGS), stop_at_the_end)
    return job


def stop_at_the_end(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
    outcome = train_in_process(context, show, stop)
    return Outcome(outcome.images_seen, False, outcome.metrics)


def saved(job: Path) -> list[Path]:
    return sorted(job.parent.glob("runs/*/checkpoints/*"))


def lose_all(job: Path) -> None:
    for folder in saved(job):
        shutil.rmtree(folder)


def damage_all(job: Path) -> None:
    for folder in saved(job):
        (folder / "networks.safetensors").write_bytes(b"x")


@pytest.mark.parametrize("lose", [lose_all, damage_all])
def test_it_is_refused_and_starts_again_at_image_0_only_if_asked(
    job: Path, lose: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lose(job)
    for _ in range(2):
        with pytest.raises(DataError, match="--resume --restart-from-scratch") as caught:
            run_job(load_job(job, SETTINGS), resume=True)
        assert caught.value.exit_code == 4
    capsys.readouterr()
    run_job(load_job(job, SETTINGS), resume=True, restart_from_scratch=True)
    log = capsys.readouterr().err
    assert "has no valid checkpoint: it starts again at image 0" in log
    assert "trained on 16 images" in log
    (folder,) = job.parent.glob("runs/small-*")
    assert (folder / "finished.json").exists(), "the same run"


def test_with_a_valid_checkpoint_the_option_changes_nothing(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = saved(job)
    run_job(load_job(job, SETTINGS), resume=True, restart_from_scratch=True)
    assert "starts again" not in capsys.readouterr().err
    assert saved(job) == before


@pytest.mark.parametrize("format_", [1, 2, 4])
def test_another_format_ends_the_resumed_run_with_exit_code_3_and_marks_nothing(
    job: Path, format_: int
) -> None:
    for folder in saved(job):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": format_}))
    for from_scratch in (False, True):
        with pytest.raises(OrchestratorError, match=f"has format {format_}, ") as caught:
            run_job(load_job(job, SETTINGS), resume=True, restart_from_scratch=from_scratch)
        assert caught.value.exit_code == 3
    assert not list(job.parent.glob("runs/**/quarantined.json"))


def test_a_run_that_died_before_its_first_checkpoint_resumes_at_image_0(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path / "x", data)

    def die(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        raise Stopped("before the first step")

    with pytest.raises(Stopped):
        run_job(load_job(job, SETTINGS), die)
    run_job(load_job(job, SETTINGS), resume=True)
    assert "trained on 16 images" in capsys.readouterr().err
    assert len(list(job.parent.glob("runs/small-*"))) == 1


def test_workers_that_restart_within_one_driver_are_refused_too(job: Path) -> None:
    starts = 0

    def restart(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        nonlocal starts
        train_in_process(context, show, stop)
        starts += 1
        lose_all(job)
        return train_in_process(context, show, stop)

    with pytest.raises(DataError, match="damaged or gone"):
        run_job(load_job(job, SETTINGS), restart, resume=True)
    assert starts == 1


def test_a_renamed_checkpoint_is_neither_resumed_from_nor_registered(
    job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [*SETTINGS, "register={name: small}"]
    first, second = saved(job)
    first.rename(first.with_name("000000009999-deadbeef"))
    run_job(load_job(job, settings), resume=True)
    assert "of 8 images, and its folder is called 000000009999-deadbeef" in caplog.text
    assert second in saved(job)


@pytest.mark.parametrize("other", [{"resume": False}, {"init_from": "runs/x"}])
def test_the_option_goes_with_a_resumed_run_only(job: Path, other: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--restart-from-scratch is for a run that is resumed"):
        run_job(load_job(job, SETTINGS), restart_from_scratch=True, **other)  # type: ignore[arg-type]
