"""No command shows a password: canaries in all places where users have them, searched for in all
that the commands print, write and start.

`pytest -rP` shows how many places were searched.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.cli import app
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from services.mlflow_server import MlflowServer
from services.s3 import SECRET_KEY, S3Server
from support.canaries import Canaries, plant_environment
from support.commands import all_commands
from support.drawings import draw_pairs
from support.hostile_inputs import JOB
from support.small_runs import JOB as SMALL_JOB
from support.small_runs import SWEEP, pack_pairs

ROOT = Path(__file__).parents[2]
LONGEST_S = 300
NUM_FORMS = 5
"""Forms of passwords tried per place, in turn."""
NO_ANSWER = {
    # Nothing answers, and nobody waits for an answer.
    "RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "COLUMNS": "2000",
}  # fmt: skip
ARGUMENTS: dict[tuple[str, ...], list[str]] = {
    ("run",): ["job.yaml"],
    ("submit",): ["job.yaml"],
    ("manifest",): ["job.yaml"],
    ("doctor",): ["job.yaml"],
    ("scaling",): ["job.yaml"],
    ("verify-resume",): ["job.yaml"],
    ("sample",): ["model@candidate", "--output", "out", "--input", "images"],
    ("evaluate",): ["model@candidate", "--data", "images"],
    ("up",): ["--folder", "images"],
    ("down",): ["--folder", "nostack"],
    ("status",): ["--folder", "nostack"],
    ("relocate",): ["images"],
    ("validate",): ["job.yaml"],
    ("plan",): ["job.yaml"],
    ("schema",): [],
    ("data", "fetch"): ["openmoji", "dest", "--from", "nowhere"],
    ("data", "pack"): ["images", "/dev/null/dest"],
    ("data", "import"): ["nowhere", "dest"],
    ("data", "ls"): ["set"],
    ("data", "export"): ["set", "/dev/null/out"],
    ("data", "index"): ["nowhere"],
    ("data", "cp"): ["set", "/dev/null/copy"],
    ("data", "check"): ["set"],
    ("checkpoints", "ls"): ["runs/x"],
    ("checkpoints", "verify"): ["runs/x"],
    ("checkpoints", "show"): ["runs/x"],
    ("sweep", "ls"): ["--storage", "runs"],
    ("sweep", "show"): ["x", "--storage", "runs"],
    ("sweep", "resume"): ["x", "--storage", "runs"],
    ("sweep", "stop"): ["x", "--storage", "runs"],
    ("sweep", "report"): ["x", "--storage", "runs"],
    ("sweep", "best"): ["x", "--storage", "runs"],
    ("models", "ls"): [],
    ("models", "catalog"): [],
    ("models", "pull"): ["model", "dest"],
    ("models", "upgrade"): ["model"],
    ("models", "export"): ["model", "dest", "--format", "onnx"],
    ("models", "show"): ["model"],
    ("models", "compare"): ["model", "other", "--job", "job.yaml"],
    ("models", "promote"): ["model", "--alias", "champion", "--force", "why"],
    ("models", "rollback"): ["model", "--alias", "champion", "--reason", "why"],
    ("tracking", "replay"): ["x", "--storage", "runs"],
    ("serve",): ["model", "--port", "0"],
    ("report",): ["x", "--storage", "runs"],
    ("watch",): ["x", "--storage", "runs", "--port", "0"],
}
"""Arguments of every command, with which it fails before it trains, starts servers or downloads."""
STARTS_ANYWHERE = {("up",)}
"""Commands that take any text for the name of a new folder; tried below."""
READS_SETTINGS = (
    ("plan",), ("doctor",), ("submit",), ("models", "ls"), ("sweep", "ls"), ("run",),
    ("data", "import"),
)  # fmt: skip
JOB_KEYS = (
    "name", "model", "model.name", "model.image_size", "data", "data.train", "data.validation",
    "data.cache", "data.cache.folder", "data.source.name", "train.batch_size", "cluster.workers",
    "tracking.uri", "tracking.experiment", "storage", "register.name", "s3", "s3.sse",
    "cost.prices",
    "sweep.metric", "nosuch", "nosuch.key", "tracking.password", "train.images", "model.norm",
)  # fmt: skip
SETTINGS = (
    "MLFLOW_TRACKING_URI", "ORCHESTRATOR_STORAGE", "ORCHESTRATOR_DATA", "AWS_ENDPOINT_URL_S3",
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "AZURE_STORAGE_CONNECTION_STRING", "HF_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL", "HTTP_PROXY", "ORCHESTRATOR_S3_SSE", "RAY_TMPDIR",
)  # fmt: skip


COMMANDS = all_commands()


class Shell:
    """Runs commands in this process, and searches what they print."""

    def __init__(self, canaries: Canaries, capfd: pytest.CaptureFixture[str]) -> None:
        self.canaries, self.capfd = canaries, capfd
        self.environ = {**plant_environment(canaries), **NO_ANSWER}
        self.printed = ""

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> int:
        signal.alarm(LONGEST_S)
        with (
            mock.patch.dict(os.environ, {**self.environ, **(environ or {})}),
            mock.patch("sys.argv", ["orchestrator", *arguments]),
            pytest.raises(SystemExit) as end,
        ):
            app.main()
        signal.alarm(0)
        printed = self.capfd.readouterr()
        where = f"{arguments} {dict(environ or {})} ended with {end.value.code}"
        self.canaries.search("outputs", where, printed.out)
        self.canaries.search("error outputs", where, printed.err)
        self.printed = printed.out + printed.err
        return int(end.value.code or 0)

    def works(self, *arguments: str) -> None:
        """Run a command that must succeed."""
        assert self.run(*arguments) == 0, self.printed


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """A shell in a folder of its own, with a home and a temporary folder."""
    for name in ("home", "temp", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path / "work")
    Path("images").mkdir()
    Path("images/x.txt").touch()
    Path("job.yaml").write_text(JOB)

    def time_out(*_: object) -> None:
        raise AssertionError(f"no answer within {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, time_out)
    yield Shell(Canaries(), capfd)
    signal.signal(signal.SIGALRM, before)
    urllib.request.install_opener(None)  # else urlopen keeps the proxies that were tried here


@pytest.mark.slow
def test_no_command_shows_a_password_of_its_arguments(shell: Shell, tmp_path: Path) -> None:
    assert ARGUMENTS.keys() == COMMANDS.keys(), "a new command needs arguments to try it with"
    canaries = shell.canaries
    for path, command in COMMANDS.items():
        shell.run(*path, *ARGUMENTS[path])
        takes_value = [each for each in command.params if not getattr(each, "is_flag", False)]
        positional = [each for each in takes_value if not each.opts[0].startswith("-")]
        for parameter in takes_value if path not in STARTS_ANYWHERE else ():
            for _ in range(3):
                arguments = list(ARGUMENTS[path])
                if parameter in positional:
                    arguments[positional.index(parameter)] = canaries.form()
                else:
                    arguments += [parameter.opts[0], canaries.form()]
                shell.run(*path, *arguments)
        for extra in ("", "--"):
            shell.run(*path, *ARGUMENTS[path], extra + canaries.form())
    finish(shell, tmp_path)


@pytest.mark.slow
def test_no_command_shows_a_password_of_its_job_or_environment(
    shell: Shell, tmp_path: Path
) -> None:
    canaries, job = shell.canaries, Path("job.yaml")
    jobs = ("validate", "plan", "manifest")
    for key in JOB_KEYS:
        for number in range(NUM_FORMS):
            value, command = canaries.form(), jobs[number % 3]
            shell.run("validate", "job.yaml", "--resolved", "--set", f"{key}={value}")
            shell.run(command, "job.yaml", "--set", f"{key}={json.dumps(value)}")
            written = with_key(key, json.dumps(value))
            for text in (written, f"{written}# {value}\n", f"{written}{value}: [\n"):
                job.write_text(text)
                shell.run(command, "job.yaml")
            reference = '"${env:CANARY_URL}"', "http://u:${env:CANARY_PASSWORD}@127.0.0.1:1"
            job.write_text(with_key(key, reference[number % 2]))
            shell.run(command, "job.yaml", environ={"CANARY_URL": value})
            job.write_text(with_key(key, f"${{env:NOT_SET,{value}}}"))
            shell.run(command, "job.yaml")
            job.write_text(JOB)
    for name in SETTINGS:
        for number in range(NUM_FORMS):
            path = READS_SETTINGS[number % len(READS_SETTINGS)]
            shell.run(*path, *ARGUMENTS[path], environ={name: canaries.form()})
        shell.run("doctor", environ={name: canaries.form()})
        shell.run("doctor", "--cluster", environ={name: canaries.form()})
    finish(shell, tmp_path)


@pytest.mark.slow
def test_no_command_shows_a_password_with_which_it_works(
    shell: Shell, tmp_path: Path, running_mlflow: MlflowServer, running_s3: S3Server, s3: str
) -> None:
    canaries = shell.canaries
    canaries.secrets = (SECRET_KEY,)
    shell.environ = {**shell.environ, **running_s3.environment, "no_proxy": "127.0.0.1"}
    shell.environ |= {"NO_PROXY": "127.0.0.1", "AWS_SESSION_TOKEN": "", "RAY_ADDRESS": ""}
    port, pairs = running_mlflow.port, draw_pairs(tmp_path / "pairs", count=20, size=16)
    uri = f"http://user:{canaries.new()}@127.0.0.1:{port}"
    shell.environ["SERVER"] = f"http://user:{canaries.new()}@127.0.0.1:{port}"
    pack = ("data", "pack", str(pairs), "data", "--size", "16", "--validation-share", "0.2")
    shell.works(*pack)
    text = f"# {canaries.form()}\n" + SMALL_JOB.format(data="data", folder="", storage=s3)
    job = Path("job.yaml")
    for place in (f'"{uri}"', '"${env:SERVER}"'):
        job.write_text(re.sub(r"tracking: .*", f"tracking: {{uri: {place}}}", text))
        for name in ("plan", "doctor", "manifest", "validate"):
            shell.run(name, "job.yaml")
        shell.run("validate", "job.yaml", "--resolved")
        shell.works("run", "job.yaml", "--local")
    shell.works("run", "job.yaml", "--local", "--set", f"tracking.uri={uri}")
    names = [key.split("/")[0] for key in open_storage_as(shell, s3).list()]
    run = f"{s3}/{max(name for name in names if name.startswith('small-'))}"
    for command in ("ls", "verify", "show"):
        shell.run("checkpoints", command, run)
    shell.works("run", "job.yaml", "--local", "--init-from", run, "--set", "train.images=48")
    shell.works("data", "cp", "data/train", f"{s3}/copy")
    shell.works("data", "ls", f"{s3}/copy")
    shell.works("data", "check", f"{s3}/copy")
    shell.works("models", "ls", "--tracking-uri", uri)
    shell.works("models", "pull", "small@candidate", "pulled", "--tracking-uri", uri)
    sample = ("sample", "small@candidate", "--input", str(pairs), "--output", "out")
    shell.run(*sample, "--tracking-uri", uri)
    search_storage(shell, s3)
    canaries.search_folder("MLflow's folder", running_mlflow.folder)
    finish(shell, tmp_path)


def open_storage_as(shell: Shell, uri: str) -> Storage:
    """Open a storage with the keys of the shell."""
    with mock.patch.dict(os.environ, shell.environ):
        return open_storage(uri)


def search_storage(shell: Shell, uri: str) -> None:
    """Search all objects of a storage, and their names."""
    storage = open_storage_as(shell, uri)
    for key in storage.list():
        shell.canaries.search("objects of the storage", key, storage.get(key))
        shell.canaries.search("names of objects", key, key)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.server
def test_no_process_of_a_cluster_or_a_stack_shows_a_password(
    tmp_path: Path, running_mlflow: MlflowServer
) -> None:
    canaries = Canaries()
    data, uri = (
        pack_pairs(tmp_path),
        f"http://user:{canaries.new()}@127.0.0.1:{running_mlflow.port}",
    )
    job, sweep = tmp_path / "job.yaml", tmp_path / "sweep.yaml"
    text = SMALL_JOB.format(data=data, folder=tmp_path, storage=tmp_path / "runs")
    job.write_text(re.sub("tracking: .*", 'tracking: {uri: "${env:SERVER}"}', text))
    sweep.write_text(job.read_text() + SWEEP)
    environ = {**os.environ, **plant_environment(canaries), "no_proxy": "127.0.0.1"}
    environ |= {"NO_PROXY": "127.0.0.1", "SERVER": uri, "PYTHONPATH": str(ROOT)}
    for name in ("RAY_AUTH_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_ADDRESS"):
        environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="c-", ignore_cleanup_errors=True) as temp:
        environ |= {"TMPDIR": temp, "HOME": temp}
        for arguments in (
            ("run", str(job), "--set", f"tracking.uri={uri}"),
            ("run", str(sweep)),
            ("up", "--folder", str(tmp_path / "stack"), "--num-cpus", "2"),
            ("status", "--folder", str(tmp_path / "stack")),
            ("down", "--folder", str(tmp_path / "stack")),
        ):
            command = [sys.executable, "-m", "orchestrator", *arguments]
            assert watch(canaries, command, environ, tmp_path) == 0, canaries.found
            canaries.search_folder("temporary folder", Path(temp))
    for name in ("stack", "runs"):
        canaries.search_folder(name, tmp_path / name)
    canaries.search_folder("MLflow's folder", running_mlflow.folder)
    canaries.assert_none_found()


def watch(canaries: Canaries, command: list[str], environ: Mapping[str, str], folder: Path) -> int:
    """Run a command to its end; search its output and the command lines of its processes."""
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(
            command, env=environ, cwd=folder, stdout=output, stderr=output, text=True
        ) as process:
            while process.poll() is None:
                canaries.search_processes(process.pid)
                time.sleep(0.5)
        output.seek(0)
        printed = output.read()
    canaries.search("outputs", f"{command}", printed)
    return process.returncode


def with_key(key: str, value: str) -> str:
    """The job with ``key`` set to ``value``, in its text."""
    section, _, name = key.partition(".")
    lines = [line for line in JOB.splitlines() if not line.startswith(f"{section}:")]
    old = next((line for line in JOB.splitlines() if line.startswith(f"{section}: {{")), "")
    if not name:
        return "\n".join([*lines, f"{section}: {value}", ""])
    kept = re.sub(rf"\b{name}: [^,}}]*,? ?", "", old.partition("{")[2].rstrip("}"))
    return "\n".join([*lines, f"{section}: {{{name}: {value}, {kept}}}", ""])


def finish(shell: Shell, folder: Path) -> None:
    """Search the files, say how much was searched, and fail if a canary was found."""
    canaries = shell.canaries
    Path("job.yaml").unlink()  # which has them by right
    for name in ("temp", "home", "work"):
        canaries.search_folder(name, folder / name)
    canaries.assert_none_found()
