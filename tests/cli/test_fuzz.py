"""Every command with hostile arguments: a documented exit code, a line, no traceback.

150 invocations by default; ORCHESTRATOR_FUZZ sets another number, such as 2000, and
ORCHESTRATOR_FUZZ_SEED another seed.
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from orchestrator.cli import app
from support.commands import all_commands
from support.hostile_inputs import ADDRESSES, NUMBERS, OVERRIDES, TEXTS, make_hostile_files

NUM_INVOCATIONS = int(os.environ.get("ORCHESTRATOR_FUZZ", "150"))
SEED = int(os.environ.get("ORCHESTRATOR_FUZZ_SEED", "20261129"))
DOCUMENTED = {0, 2, 3, 4, 5, 6, 75, 130, 141}
"""Of README.md, without 70: a bug."""
LONGEST_S = 20
NOT_FUZZED = {("up",): "starts servers", ("data", "fetch"): "downloads"}
NEEDS_A_BROKEN_JOB = {("run",), ("scaling",), ("verify-resume",)}
"""Commands that train; a job that is not broken names data that does not exist."""
NOT_GIVEN = {"--local", "--help"}
ENVIRON = {
    # Nothing answers, and nobody waits for an answer.
    "RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "COLUMNS": "80",
}  # fmt: skip
HOSTILE_VARIABLES = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_TMPDIR", "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_DEFAULT_REGION", "ORCHESTRATOR_STORAGE",
    "ORCHESTRATOR_DATA", "ORCHESTRATOR_S3_SSE", "ORCHESTRATOR_S3_UNSIGNED",
    "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_CONNECTION_STRING",
    "HTTP_PROXY", "NO_PROXY", "COLUMNS", "XDG_CACHE_HOME",
)  # fmt: skip


def value_of(parameter: Any, files: list[str], rng: random.Random) -> str:
    """A value for an argument or an option: often of the right kind, and wrong."""
    if "--set" in parameter.opts:
        return rng.choice(OVERRIDES)
    kind = parameter.type_descriptor.annotation
    if parameter.name != "job" and rng.random() < 0.8:
        files = [name for name in files if not name.endswith(".yaml")]
    pools: list[tuple[int, Any]] = [(6, files), (2, TEXTS), (1, NUMBERS)]
    if kind in (int, float, int | None, float | None):
        pools = [(8, NUMBERS), (1, TEXTS)]
    pool = rng.choices([pool for _, pool in pools], [weight for weight, _ in pools])[0]
    return str(rng.choice(pool))


def build(path: tuple[str, ...], command: Any, files: list[str], rng: random.Random) -> list[str]:
    """The arguments of an invocation."""
    built = list(path)
    for parameter in command.params:
        is_option = parameter.opts[0].startswith("-")
        if rng.random() > (0.3 if is_option else 0.97) or NOT_GIVEN & set(parameter.opts):
            continue
        if not is_option:
            names = files
            if path in NEEDS_A_BROKEN_JOB:
                names = [name for name in files if name not in ("ok.yaml", "sweep.yaml")]
            built.append(value_of(parameter, names, rng))
        elif parameter.is_flag:
            built.append(rng.choice([*parameter.opts, *parameter.secondary_opts]))
        else:
            for _ in range(rng.randint(1, 2) if parameter.multiple else 1):
                built += [rng.choice(parameter.opts), value_of(parameter, files, rng)]
    if rng.random() < 0.03:
        built.insert(
            rng.randrange(len(built) + 1), rng.choice(("--nosuch", "-x", "extra", "--help"))
        )
    return built


def hostile_environ(files: list[str], rng: random.Random) -> dict[str, str]:
    """The environment of an invocation: usually one in which no server answers."""
    environ = dict(ENVIRON)
    if rng.random() < 0.3:
        value = rng.choice((*TEXTS, *ADDRESSES, *NUMBERS, *files))
        environ[rng.choice(HOSTILE_VARIABLES)] = value
    return environ


def time_out(*_: object) -> None:
    raise AssertionError(f"no answer within {LONGEST_S} s")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an environment in which no server answers."""
    for name in HOSTILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bugs").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "bugs"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = signal.signal(signal.SIGALRM, time_out)
    yield work
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_no_invocation_ends_in_a_traceback(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    files = make_hostile_files(workplace, rng, num_jobs=max(30, NUM_INVOCATIONS // 4))
    tree = [each for each in all_commands().items() if each[0] not in NOT_FUZZED]
    assert len(tree) > 25
    wrong = []
    for number in range(NUM_INVOCATIONS):
        arguments = build(*tree[number % len(tree)], files, rng)
        environ = hostile_environ(files, rng)
        monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
        signal.alarm(LONGEST_S)
        with mock.patch.dict(os.environ, environ), pytest.raises(SystemExit) as end:
            app.main()
        signal.alarm(0)
        printed = "".join(capfd.readouterr())
        has_line = "error: " in printed or "─ Error ─" in printed or "Usage" in printed
        if (
            end.value.code not in DOCUMENTED
            or "Traceback (most recent call last)" in printed
            or (end.value.code and not has_line)
        ):
            different = dict(environ.items() - ENVIRON.items())
            wrong.append(f"{end.value.code}: {different} {arguments}\n{printed[-1500:]}")
    assert not wrong, f"{len(wrong)} of {NUM_INVOCATIONS}:\n" + "\n\n".join(wrong[:100])
