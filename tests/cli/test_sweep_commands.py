"""Output of `orchestrator sweep`."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.config.load import load_text
from orchestrator.errors import UsageError
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import IntermediateResult, Status
from orchestrator.sweeps.store import open_sweep
from services.fixtures_jobs import Load
from support.sweep_jobs import at, edited, store_sweep, suggest_trial
from support.trial_records import parse_trial


@pytest.fixture
def command(load: Load, tmp_path: Path) -> Callable[..., Result]:
    """Run `orchestrator sweep` on a storage with one stopped sweep."""
    loaded = load(edited("  trials: 6", "  trials: 4\n  seeds_per_config: 1"), "train.seed=5")
    store = store_sweep(open_storage(str(tmp_path / "store")), loaded)
    ends: list[tuple[Status, int, float]] = [
        ("finished", 8000, 0.5), ("stopped", 800, 0.1), ("finished", 8000, 0.25),
        ("diverged", 400, math.nan),
    ]  # fmt: skip
    for number, (status, images, value) in enumerate(ends):
        trial = suggest_trial(loaded, number)
        trial.status, trial.results = status, [IntermediateResult(images, (value,), number)]
        trial.reason = "no longer finite\nmore" if status == "diverged" else ""
        store.save_trial(trial)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(
            app.app, ["sweep", *arguments, "--storage", str(tmp_path / "store")]
        )

    return run


def test_sweeps_are_listed(command: Callable[..., Result]) -> None:
    done = command("ls", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == [{"name": "balance-1", "state": "stopped", "trials": 4}]
    heading, line = command("ls").stdout.splitlines()
    assert heading.split() == ["name", "state", "trials", "over", "best"]
    assert line.startswith(
        "balance-1  stopped  4 of 4       began/m_global 0.25 with model.gamma 0."
    )


def test_a_sweep_is_shown_with_the_best_first(command: Callable[..., Result], load: Load) -> None:
    done = command("show", "balance-1", "--json")
    told = json.loads(done.stdout)
    assert (told["name"], told["state"], told["metric"]) == (
        "balance-1",
        "stopped",
        ["began/m_global"],
    )
    assert [ranked["trials"] for ranked in told["ranking"]] == [[2], [0], [1]]
    assert [ranked["means"] for ranked in told["ranking"]] == [[0.25], [0.5], [0.1]]
    trials = [parse_trial(json.dumps(trial)) for trial in told["trials"]]
    assert [trial.status for trial in trials] == ["finished", "stopped", "finished", "diverged"]
    assert told["trials"][3]["results"][0]["values"] == [None]
    rows = [line.split() for line in command("show", "balance-1").stdout.splitlines()]
    assert [row[:4] for row in rows[1:]] == [
        ["2", "finished", "8,000", "0.25"],
        ["0", "finished", "8,000", "0.5"],
        ["1", "stopped", "800", "0.1"],
        ["3", "diverged", "400", "nan"],
    ]
    assert rows[4][-3:] == ["no", "longer", "finite"]


def test_the_best_job_is_printed_ready_to_run(
    command: Callable[..., Result], load: Load, tmp_path: Path
) -> None:
    before = (tmp_path / "x.yaml").read_text()
    done = command("best", "balance-1")
    assert done.exit_code == 0
    job = load_text(done.stdout, Path("best.yaml")).job
    loaded = load(before, "train.seed=5")
    values = suggest_trial(loaded, 2).values
    assert {path: at(job, path) for path in values} == values
    assert (job.sweep, job.train.seed) == (None, 5)
    assert done.stdout.splitlines()[1].startswith(
        "# Best of sweep balance-1 (trial 2 of 4, 8,000 images each): began/m_global 0.25 with "
    )


def test_a_sweep_without_results_has_no_best_and_an_ended_sweep_cannot_be_stopped(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    store = open_sweep("balance-1", str(tmp_path / "store"))
    for trial in store.trials():
        store.save_trial(replace(trial, status="failed"))
    for arguments, words in (
        (("best", "balance-1"), "no trial of sweep balance-1 has ended with a finite metric yet"),
        (("stop", "balance-1"), "sweep balance-1 is not running but stopped"),
        (("show", "other"), "there is no sweep other in"),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, UsageError)
        assert words in str(done.exception)
    assert not store.is_stop_requested()


def test_an_empty_storage_lists_nothing(load: Load, tmp_path: Path) -> None:
    runner = CliRunner()
    given = ["sweep", "ls", "--storage", str(tmp_path / "none")]
    assert json.loads(runner.invoke(app.app, [*given, "--json"]).stdout) == []
    listed = runner.invoke(app.app, given)
    assert listed.stdout == ""
    assert listed.stderr.startswith(f"no sweeps in {tmp_path}/none; `orchestrator run` on a job")


def test_a_sweep_of_another_format_is_listed_only_in_the_log(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "store/sweeps/balance-1/sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    listed = command("ls", "--json")
    assert json.loads(listed.stdout) == []
    assert "sweeps/balance-1/sweep.json has format 3" in listed.stderr
