"""Commands that are printed can be pasted into a shell."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import app
from services.databases import create_mlflow_database
from support.mlflow_runs import start_tiny_run

JOB = """\
name: cats
model: {name: pix2pix, image_size: 64, filters: 8, discriminator_filters: 8, receptive_field: 34}
data: {train: data/train}
train: {batch_size: 4, epochs: 3}
storage: "${env:STORE,runs}"
"""
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    return command


def next_commands(printed: str) -> list[list[str]]:
    """The commands after `next:` as a shell splits them."""
    lines = printed.partition("next:\n")[2].splitlines()
    return [shlex.split(line) for line in lines if line.startswith("  ")]


@pytest.mark.parametrize("name", ["my job.yaml", "it's.yaml", "a&b;c.yaml", "$HOME.yaml"])
@pytest.mark.parametrize("command", ["validate", "plan"])
def test_the_next_commands_name_the_file(run: Run, name: str, command: str) -> None:
    Path(name).write_text(JOB)
    code, printed = run(command, name)
    assert code == 0
    assert [words[-1] for words in next_commands(printed)] == [name, name]


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_note_says_why_a_job_is_no_command(run: Run, command: str) -> None:
    Path("x.yaml").write_text(JOB)
    code, printed = run(command, "x.yaml")
    assert code == 0
    assert "note: x.yaml cannot be run as a command: no first line" in printed
    assert "`chmod +x x.yaml`" in printed
    Path("x.yaml").write_text("#!/usr/bin/env -S orchestrator run\n" + JOB)
    Path("x.yaml").chmod(0o755)
    assert "note:" not in run(command, "x.yaml")[1]


def test_doctor_notes_it_too(run: Run) -> None:
    Path("x.yaml").write_text(JOB)
    assert "note: x.yaml cannot be run as a command" in run("doctor", "x.yaml")[1]


def test_a_plan_shows_where_a_reference_leads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "s3://bucket/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@host.invalid")
    Path("x.yaml").write_text(JOB)
    printed = run("plan", "x.yaml")[1]
    assert "s3://bucket/runs/cats-<time>/checkpoints" in printed
    assert "geheim" not in printed


def test_relocate_prints_and_then_changes_the_places(run: Run, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    old.mkdir()
    tiny = start_tiny_run(f"sqlite:///{create_mlflow_database(old / 'mlflow.db')}")
    old.rename(new)
    before = (new / "mlflow.db").read_bytes()
    code, printed = run("relocate", str(new), "--dry-run")
    assert code == 0
    assert f"{(new / 'mlartifacts').as_uri()}/{tiny.run_id}/artifacts" in printed
    assert (new / "mlflow.db").read_bytes() == before
    assert next_commands(printed) == [["orchestrator", "relocate", str(new)]]
    code, printed = run("relocate", str(new))
    assert code == 0
    assert f"places from {old} changed; the database as it was: {new}/mlflow.db." in printed
    assert "nothing to change" in run("relocate", str(new))[1]
    start_tiny_run(f"sqlite:///{new}/mlflow.db", run_name="tiny-2")
    assert not old.exists()


def test_relocate_without_a_database_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    code, printed = run("relocate", str(tmp_path))
    assert code == 2
    assert "there is no SQLite file of MLflow in" in printed
    assert "an MLflow server has its places itself" in printed


def test_a_destination_that_cannot_be_used_is_refused_before_every_file_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("it reads the folder")

    monkeypatch.setattr("orchestrator.data.prepare.folder_scan.scan_folder", read)
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/index.json").write_text("{}")
    (tmp_path / "in").mkdir()
    code, printed = run("data", "pack", str(tmp_path / "in"), str(tmp_path / "set"))
    assert code == 4
    assert "already a packed set" in printed
    assert run("data", "pack", str(tmp_path / "in"), "gs:/bucket/x")[0] == 2
