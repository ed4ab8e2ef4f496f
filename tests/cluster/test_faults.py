"""A distributed run that meets a fault of each kind ends where the calm one ends, bit for bit."""

import logging
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import mlflow
import pytest
import torch

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.compare_runs import Evidence, compare, of_the_clock
from orchestrator.diagnostics.fault_injection import FAULTS, Fault, Processes, Punisher, command_of
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from support.drawings import draw_pairs

logger = logging.getLogger(__name__)

PUNISHER = Path(__file__).parents[1] / "support/fault_injection"
BATCH, IMAGES = 4, 1200
JOB = """\
name: small
model:
  name: pix2pix
  image_size: 16
  filters: 4
  discriminator_filters: 4
  receptive_field: 16
  norm: instance
data: {{train: {data}/train, validation: {data}/validation, augment: {{flip: true}}, threads: 1}}
train: {{images: {images}, batch_size: 4, ema_decay: 0.9, log_every: 4, checkpoint_every: 40,
  validate_every: 200, sample_every: 1200}}
cluster: {{workers: 2, max_failures: 20}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
"""


def within(what: str) -> Fault:
    """A fault that the last rank's process does to itself in its next step."""

    def fault(processes: Processes) -> None:
        pid = processes.workers()[-1]
        folder = Path(os.environ["PUNISHER_FOLDER"])
        (folder / f"{pid}.new").write_text(what)
        (folder / f"{pid}.new").rename(folder / f"{pid}.fault")

    return fault


def damaged(storage: Path) -> Fault:
    """The newest checkpoint loses a bit, and then the worker its life."""

    def fault(processes: Processes) -> None:
        newest = max(storage.glob("*/checkpoints/*/manifest.json"))
        file = newest.with_name("networks.safetensors")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        FAULTS["worker killed"](processes)

    return fault


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("faults")
    pairs = draw_pairs(folder / "pairs", count=40, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture
def punished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder through which processes are told to fail from within."""
    folder = tmp_path / "punisher"
    folder.mkdir()
    monkeypatch.setenv("PUNISHER_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(PUNISHER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def write(folder: Path, data: str, images: int = IMAGES) -> Path:
    folder.mkdir()
    path = folder / "small.yaml"
    path.write_text(JOB.format(data=data, folder=folder, images=images))
    return path


def run(job: Path, *faults: tuple[str, Fault], settings: tuple[str, ...] = ()) -> str:
    """Run to the end, through the faults; all that the drivers said."""
    storage = open_storage(str(job.parent / "runs"))
    punisher = Punisher(command_of(job, settings), storage, os.environ, faults, logger.info)
    said = punisher.run()
    logger.info(said)
    for (name, _), seconds in zip(faults, punisher.recoveries_s, strict=True):
        logger.info("%s: %.1f s to the next checkpoint", name, seconds)
    return said


def train_alone(job: Path, settings: tuple[str, ...]) -> None:
    """Train the job in one process, without Ray and faults."""
    command = [*command_of(job, settings), "--local", "--set", "cluster.workers=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def evidence(folder: Path) -> Evidence:
    """What the one run in ``folder`` left in its storage and in MLflow."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    points = {}
    for name in found.data.metrics:
        if of_the_clock(name):
            continue
        history = [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
        steps = [step for step, _ in history]
        assert steps == sorted(set(steps)), f"{name}: each point once"
        points |= {f"{name} at {step}": value for step, value in history}
    storage = open_storage(str(folder / "runs"))
    state = Checkpoints(storage, f"{found.info.run_name}/checkpoints", "").latest()
    assert state is not None
    return Evidence(state, points, {})


def trained_shares(folder: Path) -> dict[int, set[tuple[int, ...]]]:
    """The shares of each step that anybody trained on."""
    steps: dict[int, set[tuple[int, ...]]] = {}
    for path in folder.glob("*.shares"):
        for line in path.read_text().splitlines():
            step, *positions = map(int, line.split())
            steps.setdefault(step, set()).add(tuple(positions))
    return steps


def left_over(folder: Path) -> list[str]:
    """Processes that have the punisher's folder in their environment, a few seconds later."""
    deadline = time.monotonic() + 60
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if str(folder).encode() in (entry / "environ").read_bytes():
                        found.append((entry / "cmdline").read_bytes().decode()[:80])
                except OSError:
                    continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_a_run_that_meets_one_fault_of_each_kind_ends_as_the_calm_one(
    data: str, tmp_path: Path, punished: Path
) -> None:
    calm, hit = write(tmp_path / "calm", data), write(tmp_path / "hit", data)
    run(calm)
    for path in punished.iterdir():
        path.unlink()
    faults = [(name, FAULTS[name]) for name in FAULTS]
    faults += [("exit", within("exit")), ("exception", within("exception"))]
    faults += [("damaged checkpoint", damaged(tmp_path / "hit/runs"))]
    said = run(hit, *faults)
    differences = [
        check for check in compare(evidence(calm.parent), evidence(hit.parent)) if check.difference
    ]
    assert differences == []

    shares = trained_shares(punished)
    assert sorted(shares) == list(range(IMAGES // BATCH))
    for step, found in shares.items():
        seen = sorted(position for share in found for position in share)
        assert seen == list(range(step * BATCH, (step + 1) * BATCH)), "each sample once a step"

    decisions = re.findall(r"^(?:restart|give up)[^\n]*", said, re.M)
    assert len(decisions) == len(faults) - 2, "all but those of the driver are Ray Train's"
    assert "a worker was stuck" in said
    assert "Ray Train's controller was lost" in said
    assert re.search(r"networks.safetensors has changed; it is quarantined", said)
    assert "train (orchestrator/training/loop.py" in said, "where the stuck rank stood"
    assert "Traceback" not in said
    assert left_over(punished) == []
    (name,) = os.listdir(hit.parent / "runs")
    assert list(Path(tempfile.gettempdir()).glob(f"orchestrator-*/*/{name}")) == [], "no file left"


def test_too_little_memory_is_met_with_passes_of_half_as_many_images(
    data: str, tmp_path: Path, punished: Path
) -> None:
    calm, hit = write(tmp_path / "calm", data, 160), write(tmp_path / "hit", data, 160)
    plain = ("model.dropout=0", "train.log_every=40", "cluster.workers=1")
    train_alone(calm, plain)
    said = run(hit, ("out of memory", within("out of memory")), settings=plain)
    assert re.search(r"restart smaller: a worker had too little memory: .*MemoryError", said)
    one, two = evidence(calm.parent).state, evidence(hit.parent).state
    for name, value in one.networks.items():
        if name.endswith("bias"):  # before a normalisation their gradients are rounding alone
            continue
        torch.testing.assert_close(two.networks[name], value, rtol=1e-3, atol=1e-4)
