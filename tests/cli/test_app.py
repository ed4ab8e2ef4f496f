"""The command line: output streams, exit codes, messages, and no tracebacks."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli import app

ROOT = Path(__file__).parents[2]
JOB = """\
name: cats
model: {name: pix2pix, image_size: 64, filters: 8, discriminator_filters: 8, receptive_field: 34}
data: {train: data/train}
train: {batch_size: 4, epochs: 3}
"""


@dataclass
class Done:
    """Result of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a job, with an environment that names no servers."""
    (tmp_path / "x.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, which has imported torch already."""

    def command(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        return Done(code, *capsys.readouterr())

    return command


def orchestrator(*arguments: str) -> Done:
    """Run the command in a new process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_help_names_the_commands(folder: Path) -> None:
    done = orchestrator("--help")
    assert done.returncode == 0
    for command in ("validate", "plan", "schema", "doctor", "data"):
        assert command in done.stdout


def test_a_short_option_gives_the_help_of_every_command(run: Run) -> None:
    for command in ([], ["run"], ["data", "pack"], ["models", "promote"]):
        assert run(*command, "-h") == run(*command, "--help")
        assert run(*command, "-h").returncode == 0


def test_version_prints_the_version_of_pyproject(folder: Path, run: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = f"orchestrator {project['version']}\n"
    assert run("--version") == Done(0, expected, "")
    assert run("--version", "plan", "no-such-file.yaml") == Done(0, expected, "")


def test_version_works_where_the_package_is_not_installed() -> None:
    code = (
        "import importlib.metadata as metadata, sys\n"
        "def version(name):\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "sys.argv[1:] = ['--version']\n"
        "from orchestrator.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout == "orchestrator, version unknown: the package is not installed\n"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, orchestrator.cli.app; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_valid_job_is_ok_and_the_resolved_job_goes_to_stdout(folder: Path, run: Run) -> None:
    done = run("validate", "x.yaml", "--resolved", "--set", "name=dogs")
    assert done.returncode == 0
    assert done.stdout.startswith("name: dogs\nmodel:\n")
    assert done.stderr.startswith("x.yaml: ok\nnote: x.yaml cannot be run as a command: ")
    assert done.stderr.endswith("\nnext:\n  orchestrator plan x.yaml\n  orchestrator run x.yaml\n")


def test_one_mistake_is_one_line_and_several_are_counted(folder: Path, run: Run) -> None:
    one = orchestrator("validate", "x.yaml", "--set", "cluster.workers=3")
    assert (one.returncode, one.stdout) == (2, "")
    assert one.stderr == (
        "error: x.yaml:4:9: train.batch_size: 4 cannot be split over 3 workers "
        "(cluster.workers); use a multiple of 3\n"
    )
    (folder / "x.yaml").write_text(JOB.replace("cats", "my cats").replace("size: 4", "size: '4'"))
    two = run("plan", "x.yaml")
    assert two.returncode == 2
    assert two.stderr.splitlines() == [
        "error: 2 mistakes",
        "x.yaml:1:1: name: 'my cats' is not allowed here (Name of the job: letters, digits, "
        "dots and dashes); use my-cats",
        "x.yaml:4:9: train.batch_size: '4' is a string; expected an integer; remove the quotes",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["plan"],
        ["plan", "x.yaml", "--no-such-option"],
        ["validate", "x.yaml", "--set", "name"],
        ["validate", "nowhere.yaml"],
        ["data", "fetch", "nothing", "here", "--size", "64"],
        ["data", "fetch", "openmoji", "here", "--size", "none"],
    ],
)
def test_invalid_usage_exits_with_2(folder: Path, run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout + done.stderr


def test_a_plan_goes_to_stdout(folder: Path) -> None:
    done = orchestrator("plan", "x.yaml", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["workers"] == 1
    assert "\nnext:\n  orchestrator doctor x.yaml\n" in done.stderr


def test_doctor_exits_with_3_if_something_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = run("doctor", "--json")
    assert done.returncode == 3
    status = {check["name"]: check["status"] for check in json.loads(done.stdout)}
    assert (status["ray cluster"], status["storage"]) == ("fail", "ok")
    assert done.stderr == "error: not ready: ray cluster; follow the remedies above\n"


def test_doctor_checks_the_storage_of_a_job(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_TOKEN", str(folder / "x.yaml"))
    (folder / "x.yaml").write_text(JOB + 'storage: "${env:STORE_TOKEN}"\n')
    done = run("doctor", "x.yaml")
    assert done.returncode == 3
    assert "${env:STORE_TOKEN}" in done.stdout
    assert "storage: grant read, list, write and delete access" in done.stderr
    assert str(folder / "x.yaml") not in done.stdout + done.stderr


def test_a_dataset_is_packed_listed_and_checked(folder: Path, run: Run) -> None:
    (folder / "raw").mkdir()
    for number in range(12):
        Image.new("RGB", (16, 8), (20 * number, 0, 0)).save(folder / f"raw/{number}.png")
    done = run("data", "pack", "raw", "set", "--side-by-side")
    assert (done.returncode, done.stdout) == (0, "")
    assert "packing: 12 of 12" in done.stderr
    listed = run("data", "ls", "set/train", "--json")
    assert json.loads(listed.stdout)["fields"] == ["a", "b"]
    assert run("data", "ls", "set/train").stdout.startswith("uri ")
    assert run("data", "check", "set/train").returncode == 0

    shard = folder / "set/train/000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[600] ^= 1
    shard.write_bytes(damaged)
    checked = run("data", "check", "set/train", "--json")
    assert checked.returncode == 4
    assert json.loads(checked.stdout)["ok"] is False
    assert "error: set/train has 2 problems; pack or fetch it again" in checked.stderr


def test_a_missing_dataset_exits_with_4(folder: Path, run: Run) -> None:
    done = run("data", "ls", "nowhere")
    assert done.returncode == 4
    assert done.stderr.startswith("error: there is no packed set at nowhere")


def test_an_interrupt_exits_with_130() -> None:
    code = (
        "import orchestrator.cli.app as cli\n"
        "@cli.app.command()\n"
        "def hang():\n"
        "    raise KeyboardInterrupt\n"
        "import sys; sys.argv[1:] = ['hang']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
