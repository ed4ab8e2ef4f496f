"""A distributed run with a fault of each kind ends like one without faults, bit for bit."""

import logging
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch

from orchestrator.cli.output import format_table
from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.compare_runs import compare
from orchestrator.faults.injection import FaultInjector, run_command
from orchestrator.faults.kinds import FAULTS, FaultKind, FaultyRun
from orchestrator.faults.run import run_with_faults
from orchestrator.storage.open import open_storage
from support.drawings import draw_pairs
from support.fault_jobs import (
    FAULT_INJECTION,
    IMAGES,
    assert_no_processes_left,
    run_artifacts,
    train_alone,
    trained_shares,
    write_job,
)

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BATCH = 4


KINDS = (
    "rank 0 killed",
    "worker suspended",
    "controller killed",
    "driver terminated",
    "checkpoint: a bit flipped",
)
"""One of each way that a run goes on; `verify-resume --faults` tries all kinds."""


def within_step(what: str) -> FaultKind:
    """Fault that the last rank's process injects into its own next step."""

    def inject(run: FaultyRun) -> None:
        pid = run.processes.workers()[-1]
        folder = Path(os.environ["FAULT_FOLDER"])
        (folder / f"{pid}.new").write_text(what)
        (folder / f"{pid}.new").rename(folder / f"{pid}.fault")

    return FaultKind(inject)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("faults")
    pairs = draw_pairs(folder / "pairs", count=40, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture
def fault_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the faults that processes inject into themselves."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("FAULT_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(FAULT_INJECTION))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def run(job: Path, *faults: tuple[str, FaultKind], settings: tuple[str, ...] = ()) -> str:
    """Run to the end, through the faults; return the output of all drivers."""
    storage = open_storage(str(job.parent / "runs"))
    injector = FaultInjector(run_command(job, settings), storage, os.environ, faults, logger.info)
    output = injector.run()
    logger.info(output)
    for recovery in injector.recoveries:
        logger.info("%s: %.1f s to the next checkpoint", recovery.fault, recovery.seconds)
    return output


def test_a_run_with_one_fault_of_each_kind_ends_like_the_run_without_faults(
    data: str, tmp_path: Path, fault_folder: Path
) -> None:
    baseline, faulty = write_job(tmp_path / "baseline", data), write_job(tmp_path / "faulty", data)
    run(baseline)
    for path in fault_folder.iterdir():
        path.unlink()
    faults = [(name, FAULTS[name]) for name in KINDS]
    faults += [("exit", within_step("exit")), ("exception", within_step("exception"))]
    output = run(faulty, *faults)
    differences = [
        check
        for check in compare(run_artifacts(baseline.parent), run_artifacts(faulty.parent))
        if check.difference
    ]
    assert differences == []

    shares = trained_shares(fault_folder)
    assert sorted(shares) == list(range(IMAGES // BATCH))
    for step, found in shares.items():
        seen = sorted(position for share in found for position in share)
        assert seen == list(range(step * BATCH, (step + 1) * BATCH)), "each sample once a step"

    decisions = re.findall(r"^(?:restart[^:\n]*|stop): ", output, re.M)
    assert len(decisions) == len(faults) - 1, "all faults but that of the driver"
    assert "a worker was stuck" in output
    assert "Ray Train's controller was lost" in output
    assert re.search(r"networks.safetensors has changed; quarantined", output)
    assert "train (orchestrator/training/loop.py" in output, "the stack of the stuck rank"
    assert "Traceback" not in output
    assert_no_processes_left(fault_folder)
    (name,) = os.listdir(faulty.parent / "runs")
    assert list(Path(tempfile.gettempdir()).glob(f"orchestrator-*/*/{name}")) == [], "no file left"


def test_after_a_lack_of_memory_a_pass_has_half_as_many_images(
    data: str, tmp_path: Path, fault_folder: Path
) -> None:
    baseline, faulty = (
        write_job(tmp_path / "baseline", data, 160),
        write_job(tmp_path / "faulty", data, 160),
    )
    plain = ("model.dropout=0", "train.log_every=40", "cluster.workers=1")
    train_alone(baseline, plain)
    output = run(faulty, ("out of memory", within_step("out of memory")), settings=plain)
    assert re.search(
        r"restart with smaller passes: a worker ran out of memory: .*MemoryError", output
    )
    one, two = run_artifacts(baseline.parent).state, run_artifacts(faulty.parent).state
    for name, value in one.networks.items():
        if name.endswith("bias"):  # before a normalisation their gradients are rounding alone
            continue
        torch.testing.assert_close(two.networks[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.server
def test_verify_resume_compares_a_run_whose_servers_fail(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["MLflow: stored, then 500", "S3: a bit flipped in a read", "S3: outage, driver killed"]
    monkeypatch.setattr("orchestrator.faults.run.draw_faults", lambda count, seed: names)
    path = write_job(tmp_path / "job", data)
    job = load_job(path).job
    report = run_with_faults(path, (), job, len(names), 0, logger.info, steps_per_fault=100)
    logger.info("\n\n".join(map(format_table, report.tables())))
    assert report.equal
    assert [result.recovery.fault for result in report.faults] == names
    assert [result.recovery.exit_code for result in report.faults] == [None, None, -9]
    assert all(result.num_checkpoints for result in report.faults)
    counts = {check.compared: check.count for check in report.checks}
    assert counts["points of metrics"] == counts["points once"] > 1000
    assert counts["pictures"] >= 4
    assert not (tmp_path / "job/runs").exists(), "the job's own storage is not used"
