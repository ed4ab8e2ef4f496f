"""A real Ray cluster of two nodes on this machine: the doctor's probe, and how a job scales."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.node_probe import OBJECT_BYTES, probe_nodes
from orchestrator.cluster.scaling_runs import train_each
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.node_report import BANDWIDTH_BYTES, LATENCY_BYTES
from orchestrator.diagnostics.scaling import WARMUP_STEPS, load_jobs, measure_scaling
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.open import open_storage
from services.ray_cluster import BIN, start_head
from services.s3 import BUCKET, S3Server
from support.drawings import draw_pairs
from support.fault_jobs import FAULT_INJECTION, JOB

ROOT = Path(__file__).parents[2]
PAUSE_S = 0.03
"""Time that the fault injection adds to each step."""
pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, running_s3: S3Server) -> Iterator[Any]:
    """A head and a second node, which the last test stops; the shares of each step are recorded."""
    shares = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(FAULT_INJECTION), str(ROOT)]))
        patch.setenv("FAULT_FOLDER", str(shares))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.delenv("AWS_PROFILE", raising=False)
        for name, value in running_s3.environment.items():  # nodes inherit it when they start
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
            options = {"num_cpus": 1, "temp_dir": temp, "include_dashboard": False}
            cluster = start_head(**options)
            cluster.second = cluster.add_node(num_cpus=3)
            cluster.shares = shares
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
            cluster.shutdown()


def test_every_node_is_reported_and_nothing_is_left_in_the_storage(
    machines: Any, tmp_path: Path
) -> None:
    s3, started = f"s3://{BUCKET}/{uuid.uuid4().hex}", time.perf_counter()
    done = subprocess.run(
        [BIN / "orchestrator", "doctor", "--cluster", "--json"],
        cwd=tmp_path, env={**os.environ, "ORCHESTRATOR_STORAGE": s3},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout)
    checks = {check["name"]: check for check in printed["checks"]}
    assert sorted(node["resources"]["CPU"] for node in printed["nodes"]) == [1, 3]
    python = ".".join(map(str, sys.version_info[:3]))
    for node in printed["nodes"]:
        assert node["problem"] == ""
        assert node["facts"]["versions"] == printed["driver_versions"]
        assert node["facts"]["versions"]["python"] == python
        assert abs(node["clock"]["offset_s"]) <= node["clock"]["error_s"] + 1e-3, "one clock"
        stored = node["services"]["storage"]
        assert stored["shared"]
        assert stored["num_bytes"] == OBJECT_BYTES
        assert 0 < stored["put_s"] + stored["get_s"] < elapsed_s
    assert checks["ray authentication"]["status"] == "warn"
    assert checks["resources"]["found"] == "4 CPUs, 0 GPUs"
    measured = printed["all_reduce"]
    assert sorted(measured["nodes"]) == sorted(node["name"] for node in printed["nodes"])
    large = sorted(measured["seconds"][str(BANDWIDTH_BYTES)])
    middle = (large[4] + large[5]) / 2
    assert len(large) == 10
    assert measured["bandwidth_bytes_per_s"] == pytest.approx(BANDWIDTH_BYTES / middle)
    small = measured["seconds"][str(LATENCY_BYTES)]
    assert measured["latency_s"] == pytest.approx(statistics.median(small))
    assert measured["latency_s"] < middle, "4 KiB are summed sooner than 16 MiB"
    assert sum(large) + sum(small) < elapsed_s
    assert open_storage(s3).list() == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pix2pix job with batches of 4, alone in its folder."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("job")
    pairs = draw_pairs(data / "pairs", count=20, size=16)
    pack_folder(pairs, str(data / "packed"), size=16, validation_share=0.2)
    (folder / "small.yaml").write_text(JOB.format(data=data / "packed", images=8, folder=folder))
    return folder / "small.yaml"


def test_more_workers_than_fit_on_the_cluster_are_an_error_before_any_run_starts(
    machines: Any, job: Path
) -> None:
    before = sorted(machines.shares.iterdir())
    with pytest.raises(
        EnvironmentProblem, match="8 workers need 8 CPUs and the cluster has 4"
    ) as e:
        measure_scaling(load_jobs(job, ("train.batch_size=8",), [1, 8]), 8, train_each)
    assert "use at most --workers 4" in str(e.value)
    assert sorted(machines.shares.iterdir()) == before


def test_a_job_is_timed_with_one_worker_and_with_two_and_leaves_only_its_results(
    machines: Any, job: Path
) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [BIN / "orchestrator", "scaling", job.name, "--workers", "2,1", "--images", "78",
         "--output", "out"],
        cwd=job.parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in job.parent.rglob("*")) == [
        "out", "scaling.json", "scaling.png", job.name,
    ]  # fmt: skip
    results = json.loads((job.parent / "out/scaling.json").read_text())["results"]
    steps = 20  # 78 images are 19.5 batches
    rates, table = {}, [line.split() for line in done.stdout.splitlines()]
    for result, line in zip(results, table[1:], strict=True):
        workers = result["workers"]
        assert [len(rank) for rank in result["ranks"]] == [steps] * workers
        every = [step for rank in result["ranks"] for step in rank]
        for step in every:
            computed = step["step_s"] - step["data_s"] - step["communication_s"]
            assert computed >= max(PAUSE_S, step["overlapped_s"])
            assert (step["communication_s"] > 0) == (workers > 1)
        total_s = sum(step["step_s"] for step in every) / workers
        assert total_s < elapsed_s
        rates[workers] = 4 * steps / total_s
        assert result["images_per_s"] == pytest.approx(rates[workers])
        parts = [result[f"{part}_s"] for part in ("computation", "communication", "data")]
        assert sum(parts) == pytest.approx(total_s / steps)
        efficiency = rates[workers] / rates[1] / workers
        assert result["efficiency"] == pytest.approx(efficiency)
        assert line[:3] == [str(workers), str(4 // workers), f"{rates[workers]:.1f}"]
        assert line[3] == f"{100 * efficiency:.0f}"
    assert list(rates) == [1, 2]
    assert _images_of_each_step(machines.shares) == {1: [4], 2: [2, 2]}


def _images_of_each_step(shares: Path) -> dict[int, list[int]]:
    """Images of a step that each worker saw, by the number of workers; the same in all steps."""
    by_run: dict[int, list[list[list[int]]]] = {}
    for path in shares.glob("*.shares"):
        lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        assert [line[0] for line in lines] == list(range(len(lines)))
        assert len(lines) >= WARMUP_STEPS + 20
        by_run.setdefault(4 // len(lines[0][1:]), []).append(lines)
    for ranks in by_run.values():
        for number, of_step in enumerate(zip(*ranks, strict=True)):
            seen = sorted(position for line in of_step for position in line[1:])
            assert seen == list(range(4 * number, 4 * number + 4))
    return {n: [len(lines[0]) - 1 for lines in ranks] for n, ranks in by_run.items()}


def test_a_node_that_hangs_fails_its_check(machines: Any, tmp_path: Path) -> None:
    from orchestrator.diagnostics.checks import check_cluster
    from orchestrator.diagnostics.node_report import ClusterRequirements

    raylet = machines.second.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        started = time.monotonic()
        report = probe_nodes(
            f"sqlite:///{tmp_path}/m.db", str(tmp_path / "runs"), ("m", "runs"), 25
        )
        elapsed_s = time.monotonic() - started
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert elapsed_s < 120, "a limit of 25 s for each of some parts"
    hanging = [node for node in report.nodes if node.facts is None]
    answered = [node for node in report.nodes if node.facts is not None]
    assert [node.resources["CPU"] for node in hanging] == [3], [n.problem for n in report.nodes]
    assert [node.resources["CPU"] for node in answered] == [1]
    checks = {check.name: check for check in check_cluster(report, ClusterRequirements())}
    assert checks["nodes"].status == "fail"
    assert checks["nodes"].found == (f"{hanging[0].name}: its process gave no answer within 25 s")
    assert checks["storage"].status == "ok", "the other node reaches it"
    assert list(tmp_path.iterdir()) == []
