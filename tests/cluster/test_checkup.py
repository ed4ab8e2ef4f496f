"""The checkup of a real Ray cluster of two nodes on this machine."""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from services.ray_cluster import BIN

from orchestrator.checkup.report import BANDWIDTH_BYTES, LATENCY_BYTES
from orchestrator.cluster.checkup import OBJECT_BYTES, examine
from orchestrator.storage import open_storage


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A head and a second node, which the last test takes away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
            options = {"num_cpus": 1, "temp_dir": temp, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=options)
            cluster.second = cluster.add_node(num_cpus=3)  # type: ignore[attr-defined]
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
            cluster.shutdown()


def test_every_node_has_a_row_and_nothing_is_left_in_the_storage(
    machines: Any, s3: str, tmp_path: Path
) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [BIN / "orchestrator", "doctor", "--cluster", "--json"],
        cwd=tmp_path, env={**os.environ, "ORCHESTRATOR_STORAGE": s3},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    assert sorted(node["resources"]["CPU"] for node in told["nodes"]) == [1, 3]
    python = ".".join(map(str, sys.version_info[:3]))
    for node in told["nodes"]:
        assert node["problem"] == ""
        assert node["facts"]["versions"] == told["here"]
        assert node["facts"]["versions"]["python"] == python
        assert abs(node["clock"]["offset_s"]) <= node["clock"]["error_s"] + 1e-3, "one clock"
        stored = node["services"]["storage"]
        assert stored["shared"]
        assert stored["num_bytes"] == OBJECT_BYTES
        assert 0 < stored["put_s"] + stored["get_s"] < elapsed_s
    assert checks["ray authentication"]["status"] == "warn"
    assert "2 CPUs" not in checks["room"]["found"]
    assert checks["room"]["found"] == "4 CPUs, 0 GPUs"
    measured = told["all_reduce"]
    assert sorted(measured["nodes"]) == sorted(node["name"] for node in told["nodes"])
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


def test_a_node_that_hangs_is_a_failed_check_and_not_a_hang(machines: Any, tmp_path: Path) -> None:
    from orchestrator.checkup.judging import judge
    from orchestrator.checkup.report import Wanted

    raylet = machines.second.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        started = time.monotonic()
        checkup = examine(f"sqlite:///{tmp_path}/m.db", str(tmp_path / "runs"), ("m", "runs"), 8)
        elapsed_s = time.monotonic() - started
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert elapsed_s < 45
    silent = [node for node in checkup.nodes if node.facts is None]
    answered = [node for node in checkup.nodes if node.facts is not None]
    assert [node.resources["CPU"] for node in silent] == [3]
    assert [node.resources["CPU"] for node in answered] == [1]
    checks = {check.name: check for check in judge(checkup, Wanted())}
    assert checks["nodes"].status == "fail"
    assert checks["nodes"].found == (f"{silent[0].name}: its process gave no answer within 8 s")
    assert checks["storage"].status == "ok", "of the other node"
    assert list(tmp_path.iterdir()) == []
