"""Options of `run` and `submit`."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from support.sweep_jobs import VALID


def test_submit_hands_the_options_of_a_resumed_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[str] = []

    def submit(job: str, options: Sequence[str], **_: object) -> int:
        handed.extend(options)
        return 0

    monkeypatch.setattr("orchestrator.cluster.job_submission.submit", submit)
    arguments = ["submit", "jobs/x.yaml", "--resume", "--restart-from-scratch"]
    assert CliRunner().invoke(app.app, arguments).exit_code == 0
    assert handed == ["--resume", "--restart-from-scratch"]


def test_a_sweep_does_not_take_the_option(tmp_path: Path) -> None:
    job = tmp_path / "sweep.yaml"
    job.write_text(VALID)
    done = CliRunner().invoke(app.app, ["run", str(job), "--restart-from-scratch"])
    assert "--restart-from-scratch is for a single run" in str(done.exception)
