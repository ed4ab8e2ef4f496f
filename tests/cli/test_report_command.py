"""`orchestrator report`: runs by their names, and one line for each mistake."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.cli import app
from services.mlflow_server import MlflowServer
from support.logged_runs import database, logged_run, shade
from support.mlflow_runs import start_tiny_run
from support.report_page import ReportPage

Run = Callable[..., tuple[int, str]]
LOSS = {"loss": {8: 0.5, 16: 0.25}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "ORCHESTRATOR_STORAGE"):
        monkeypatch.delenv(name, raising=False)

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


def refused(run: Run, code: int, *words: str, arguments: tuple[str, ...] = ("a-1",)) -> None:
    """Check that a report is refused with one line that has these words."""
    found, printed = run("report", *arguments)
    assert found == code, printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    for word in words:
        assert word in printed


def test_a_run_may_be_given_by_its_name_its_folder_or_its_mlflow_id(
    run: Run, tmp_path: Path
) -> None:
    address = logged_run(tmp_path, "a-1", LOSS)
    for given in ("a-1", "runs/a-1/", str(tmp_path / "runs/a-1"), address.mlflow_run_id):
        assert run("report", given) == (0, "a-1-report.html\n")
        page = ReportPage(Path("a-1-report.html").read_text())
        assert page.series("loss") == LOSS["loss"]
        assert str(tmp_path / "runs/a-1") in page.text
        os.unlink("a-1-report.html")


def test_several_runs_are_one_file(run: Run, tmp_path: Path) -> None:
    for name in ("a-1", "b-2"):
        logged_run(tmp_path, name, LOSS)
    assert run("report", "a-1", "b-2") == (0, "runs-report.html\n")
    assert ReportPage(Path("runs-report.html").read_text()).points["runs"] == ["a-1", "b-2"]


def test_a_run_that_only_mlflow_knows_is_reported_with_what_is_lacking(
    run: Run, tmp_path: Path
) -> None:
    address = logged_run(tmp_path, "a-1", LOSS)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    code, printed = run("report", address.mlflow_run_id, "--output", "x.html")
    assert code == 0
    assert "The storage of the run is not known here" in printed
    page = ReportPage(Path("x.html").read_text())
    assert page.series("loss") == LOSS["loss"]
    assert "The storage of the run is not known here" in page.text


def test_an_unknown_run_is_refused_with_a_near_name(run: Run, tmp_path: Path) -> None:
    logged_run(tmp_path, "faces-1", LOSS)
    refused(run, 2, "'faces-2'", "did you mean 'faces-1'", arguments=("faces-2",))
    refused(run, 2, "--storage", arguments=("../..",))
    (tmp_path / "mlflow.db").rename(tmp_path / "x.db")
    uri = ("--tracking-uri", f"sqlite:///{tmp_path}/x.db")
    refused(run, 2, "has no run", "--tracking-uri", arguments=("f" * 32, *uri))


def test_a_run_without_points_is_refused_with_the_command_that_waits(
    run: Run, tmp_path: Path
) -> None:
    logged_run(tmp_path, "a-1", {})
    refused(run, 4, "has logged no points yet", "orchestrator watch")


@pytest.mark.parametrize("file", ["run.json", "job.yaml"])
def test_a_damaged_record_is_named(run: Run, tmp_path: Path, file: str) -> None:
    logged_run(tmp_path, "a-1", LOSS)
    (tmp_path / "runs/a-1" / file).write_text("{")
    refused(run, 4, f"runs/a-1/{file} is damaged", "restore it from a backup")


def test_a_damaged_record_of_an_evaluation_is_left_out_and_named(run: Run, tmp_path: Path) -> None:
    logged_run(tmp_path, "a-1", LOSS)
    folder = tmp_path / "runs/a-1/evaluations"
    folder.mkdir()
    (folder / "000000000008-aa.json").write_text("{")
    code, printed = run("report", "a-1")
    assert code == 0
    assert "000000000008-aa.json is damaged" in printed
    assert "000000000008-aa.json is damaged" in ReportPage(Path("a-1-report.html").read_text()).text


def test_an_mlflow_that_is_out_of_reach_is_a_line_and_exit_code_3(run: Run, tmp_path: Path) -> None:
    logged_run(tmp_path, "a-1", LOSS)
    server = ("a-1", "--tracking-uri", "http://127.0.0.1:1")
    refused(run, 3, "MLflow at http://127.0.0.1:1", arguments=server)
    (tmp_path / "mlflow.db").unlink()
    refused(run, 3, "there is no MLflow database", "--tracking-uri")
    assert not (tmp_path / "mlflow.db").exists()


def test_an_output_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    logged_run(tmp_path, "a-1", LOSS)
    (tmp_path / "folder").mkdir()
    for output in ("folder", "none/x.html"):
        refused(run, 2, f"--output {output}", "a file in an", arguments=("a-1", "--output", output))
    output = "/proc/x.html"
    refused(run, 2, "cannot write it", arguments=("a-1", "--output", output))


def test_a_page_has_one_to_eight_different_runs(run: Run) -> None:
    refused(run, 2, "1 to 8 different runs", arguments=("a", "a"))
    refused(run, 2, "1 to 8 different runs", arguments=tuple("abcdefghi"))


def test_a_secret_of_the_environment_is_not_in_the_page(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_SECRET_KEY", "hunter2hunter2")
    logged_run(tmp_path, "a-1", LOSS)
    job = tmp_path / "runs/a-1/job.yaml"
    job.write_text(job.read_text() + "note: hunter2hunter2\nplace: ${env:STORE_SECRET_KEY}\n")
    assert run("report", "a-1")[0] == 0
    page = Path("a-1-report.html").read_text()
    assert "hunter2" not in page
    assert "${env:STORE_SECRET_KEY}" in page


def test_the_tracking_uri_of_a_job_may_come_from_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_run(tmp_path, "a-1", LOSS)
    job = tmp_path / "runs/a-1/job.yaml"
    job.write_text(job.read_text().replace(database(tmp_path), "${env:MY_MLFLOW}"))
    monkeypatch.setenv("MY_MLFLOW", database(tmp_path))
    assert run("report", "a-1")[0] == 0
    monkeypatch.delenv("MY_MLFLOW")
    assert run("report", "a-1", "--output", "x.html")[0] == 0, "mlflow.db is the default"


def test_a_run_of_an_mlflow_server_is_reported_by_its_id(
    run: Run, running_mlflow: MlflowServer
) -> None:
    uri = running_mlflow.uri
    started = start_tiny_run(uri, run_name="served-1")
    client = MlflowClient(uri)
    for step, value in LOSS["loss"].items():
        client.log_metric(started.run_id, "loss", value, step=step)
    client.log_image(started.run_id, shade(90), key="samples", step=16)
    code, printed = run("report", started.run_id, "--tracking-uri", uri, "--output", "x.html")
    assert code == 0, printed
    page = ReportPage(Path("x.html").read_text())
    assert page.series("loss") == LOSS["loss"]
    assert [attrs["data-at"] for attrs in page.of("img")] == ["16"]
    assert "geheim" not in page.source
