"""Stored records that are damaged: one line that names the file, a documented exit code.

60 mutations by default; ORCHESTRATOR_FUZZ sets another number, and ORCHESTRATOR_FUZZ_SEED another
seed.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import app
from orchestrator.config.load import load_job
from orchestrator.errors import Stopped
from orchestrator.models.base import ModelConfig, build_model
from orchestrator.registry.bundle import Source, write_bundle, write_source
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import IntermediateResult
from orchestrator.training.loop import Outcome
from support.drawings import draw_pairs
from support.small_runs import pack_pairs, write_job
from support.sweep_jobs import VALID, store_sweep, suggest_trial

pytestmark = pytest.mark.slow

NUM_MUTATIONS = int(os.environ.get("ORCHESTRATOR_FUZZ", "60"))
SEED = int(os.environ.get("ORCHESTRATOR_FUZZ_SEED", "20261129"))
DOCUMENTED = {0, 2, 3, 4, 5, 6, 75, 130}
SETTINGS = ["train.images=16", "train.checkpoint_every=8", "register=null"]
DEEP = b"[" * 1000 + b"]" * 1000
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 10**40, 1e308, 0.5, "", "x", "../..", "../../etc/passwd", "/", "a\nb",
    "\0", "ü" * 300, [], [[]], {}, {"a": {"b": [None]}}, "9" * 5000,
)  # fmt: skip

Run = Callable[..., tuple[int, str]]
Kinds = dict[str, tuple[str, list[list[str]]]]


def stop_at_the_end(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
    outcome = train_in_process(context, show, stop)
    return Outcome(outcome.images_seen, False, outcome.metrics)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stopped run, a sweep with two trials and a pulled model."""
    top = tmp_path_factory.mktemp("records")
    job = write_job(top / "x", pack_pairs(top))
    with pytest.raises(Stopped):
        run_job(load_job(job, SETTINGS), stop_at_the_end)
    (top / "sweep.yaml").write_text(VALID)
    loaded = load_job(top / "sweep.yaml")
    store = store_sweep(open_storage(str(top / "x/runs")), loaded)
    for number in range(2):
        trial = suggest_trial(loaded, number)
        trial.status, trial.results = "finished", [IntermediateResult(8000, (0.5,), number)]
        store.save_trial(trial)
    settings = {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16}
    config = ModelConfig.model_validate(settings)
    weights = build_model(config).inference_module().state_dict()
    write_bundle(top / "x/pulled", config, weights, {"images_per_worker": 2, "job": "small"})
    write_source(top / "x/pulled", Source("small", 1))
    draw_pairs(top / "x/input", count=2, size=16)
    return job.parent


@pytest.fixture
def folder(original: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder for each test, as it was; its job names it by its path."""
    kept = original.with_name("kept")
    if not kept.exists():
        shutil.copytree(original, kept)
    restore(original)
    monkeypatch.chdir(original)
    monkeypatch.setattr("orchestrator.runs.lease.LEASE_TIMEOUT_S", 0.1)
    return original


def restore(folder: Path) -> None:
    """Bring the records back; MLflow's database stays, which this process has open."""
    for name in ("runs", "pulled"):
        shutil.rmtree(folder / name)
        shutil.copytree(folder.with_name("kept") / name, folder / name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
        code = end.value.code
        return code if isinstance(code, int) else 0, "".join(capfd.readouterr())

    return command


def kinds_of(folder: Path) -> Kinds:
    """Each kind of record: its path, and the commands that read it."""
    (path,) = (folder / "runs").glob("small-*")
    name = f"runs/{path.name}"
    newest = sorted(path.glob("checkpoints/*"))[-1].name
    checkpoint = f"{name}/checkpoints/{newest}"
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    resume = ["run", "--local", "small.yaml", "--resume", *sets]
    ls, show = ["checkpoints", "ls", name], ["checkpoints", "show", name]
    sweeps = [
        ["sweep", "ls"], ["sweep", "show", "balance-1"],
        ["sweep", "report", "balance-1", "--no-grids", "--output", "report"],
    ]  # fmt: skip
    sample = ["sample", "pulled", "--input", "input/A", "--output", "images"]
    if not (folder / "input/A").is_dir():
        sample[3] = "input"
    usage = sorted(path.glob("usage/*.json"))[0].name
    report = ["report", path.name, "--output", "run.html"]
    return {
        "run.json": (f"{name}/run.json", [report, resume]),
        "job.yaml": (f"{name}/job.yaml", [report, resume]),
        "lease": (f"{name}/drivers/000001.json", [report, resume]),
        "saved.json": (f"{name}/saved.json", [resume]),
        "usage": (f"{name}/usage/{usage}", [report, resume]),
        "manifest.json": (f"{checkpoint}/manifest.json", [ls, show, resume]),
        "state.json": (f"{checkpoint}/state.json", [show]),
        "sweep.json": ("runs/sweeps/balance-1/sweep.json", sweeps),
        "trial": ("runs/sweeps/balance-1/trials/0001.json", sweeps),
        "notes.json": ("pulled/notes.json", [sample]),
        "config.json": ("pulled/config.json", [sample]),
        "source.json": ("pulled/source.json", [sample]),
    }


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a record: its bytes, or one value of it."""
    how = rng.randrange(8)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 2:
        return rng.choice((b"", DEEP, b"{" + b'"a":{' * 1000, rng.randbytes(99), b"[]", b"7", b"-"))
    try:
        values = json.loads(content)
    except ValueError:  # YAML
        lines = content.decode().splitlines()
        odd = ("&a [*a]", "*b", "x: {", "\t- ?", "a: &a {b: *a}")
        lines[rng.randrange(len(lines))] = rng.choice(odd)
        return "\n".join(lines).encode()
    parent, key = values, rng.choice(list(values))
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.7:
        parent = parent[key]
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    if isinstance(parent, dict) and rng.random() < 0.2:
        del parent[key]
    elif rng.random() < 0.1:
        parent[key] = "@deep@"
    else:
        parent[key] = rng.choice(HOSTILE)
    return json.dumps(values).encode().replace(b'"@deep@"', DEEP)


def check(code: int, printed: str) -> str | None:
    if code not in DOCUMENTED or "Traceback (most recent" in printed or "bug in" in printed:
        return "a traceback or an undocumented exit code"
    if code and printed.count("error: ") != 1:
        return "not one error"
    return None


def test_every_command_accepts_the_records_as_they_are(folder: Path, run: Run) -> None:
    for _, commands in kinds_of(folder).values():
        for command in commands:
            code, printed = run(*command)
            assert code == 0, f"{command}\n{printed}"


def test_no_mutation_of_a_record_ends_in_a_traceback(folder: Path, run: Run) -> None:
    rng = random.Random(SEED)
    kinds, wrong = kinds_of(folder), []
    for number in range(NUM_MUTATIONS):
        kind, (path, commands) = list(kinds.items())[number % len(kinds)]
        content = mutate((folder / path).read_bytes(), rng)
        (folder / path).write_bytes(content)
        for command in commands:
            code, printed = run(*command)
            if problem := check(code, printed):
                wrong.append(f"{kind}: {problem}: {code} {content[:300]!r}\n{printed[-1500:]}")
        restore(folder)
    assert not wrong, f"{len(wrong)}:\n" + "\n\n".join(wrong[:20])


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("lease", b""),
        ("lease", b'{"format": 2, "ho'),
        ("lease", b"[]"),
        ("job.yaml", b"\x00\xff garbage"),
        ("job.yaml", b"a: [1, {"),
        ("job.yaml", b"just words"),
        ("job.yaml", b"a: &a {b: *a}"),
        ("notes.json", b"[1]"),
        ("notes.json", b'{"format": "2"}'),
        ("notes.json", DEEP),
        ("source.json", b'{"model": ["x"]}'),
        ("source.json", b'{"model": "x", "version": 0}'),
        ("config.json", b'{"name": "pix2pix", "image_size": 1e40}'),
        ("sweep.json", b'{"format": 2, "name": "../x"}'),
        ("trial", b'{"number": 1}'),
    ],
)
def test_a_damaged_record_is_one_line_with_its_place_and_what_to_do(
    folder: Path, run: Run, kind: str, content: bytes
) -> None:
    path, commands = kinds_of(folder)[kind]
    (folder / path).write_bytes(content)
    code, printed = run(*commands[-1])
    assert code == 4, printed
    (line,) = [line for line in printed.splitlines() if "error: " in line]
    assert f"{path.removeprefix('runs/')} is damaged: " in line
    assert any(remedy in line for remedy in ("restore it", "remove it", "pull the model again"))


def test_a_damaged_record_of_a_run_is_reported_by_name(folder: Path, run: Run) -> None:
    path, (_, resume) = kinds_of(folder)["run.json"]
    name = path.split("/")[1]
    content = json.loads((folder / path).read_text())
    for damage in (b"", b'{"format', json.dumps({**content, "run": "../../x"}).encode(), DEEP):
        (folder / path).write_bytes(damage)
        code, printed = run(*resume)
        assert code == 0, printed
        assert f"run {name} is passed over: " in printed
        assert f"{path} is damaged: " in printed
        restore(folder)


def test_a_damaged_sweep_is_reported_by_name_where_sweeps_are_listed(
    folder: Path, run: Run
) -> None:
    path = kinds_of(folder)["sweep.json"][0]
    (folder / path).write_bytes(b"{")
    code, printed = run("sweep", "ls")
    assert code == 0
    assert f"{path} is damaged: " in printed


def test_checkpoints_ls_shows_damaged_manifests_and_passes_over_odd_files(
    folder: Path, run: Run
) -> None:
    path, (ls, *_) = kinds_of(folder)["manifest.json"]
    checkpoint = (folder / path).parent
    (folder / path).write_bytes(b'{"a":' * 1000)
    for odd in ("notes.txt", "x/manifest.json", "1-2-3/manifest.json", "a/b/c/manifest.json"):
        (checkpoint.parent / odd).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint.parent / odd).write_bytes(b"\xff")
    code, printed = run(*ls, "--json")
    assert code == 0, printed
    rows = json.loads(printed[printed.index("[") : printed.rindex("]") + 1])
    assert [row["state"] for row in rows] == ["committed", "corrupt"]
