"""Machines that are taken away and that come: the training moves, and loses no step."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from test_faults import PUNISHER, evidence, train_alone, trained_shares, write

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.fault_injection import command_of
from orchestrator.storage.open import open_storage
from services.ray_cluster import BIN
from support.drawings import draw_pairs

SETTINGS = ("model.dropout=0", "train.ema_decay=null", "train.images=1200")


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of a head without CPUs for workers; tests add and remove nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "temp_dir": temp, "include_dashboard": False},
        )
        yield cluster
        cluster.shutdown()


@contextlib.contextmanager
def running(job: Path, address: str, settings: tuple[str, ...]) -> Iterator[Any]:
    environ = {**os.environ, "RAY_ADDRESS": address}
    with tempfile.TemporaryFile("a+") as log:
        process = subprocess.Popen(command_of(job, settings), env=environ, stdout=log, stderr=log)

        def said() -> str:
            log.seek(0)
            return log.read()

        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def wait_for(
    what: Callable[[], Any], said: Callable[[], str], process: Any, s: float = 150
) -> None:
    deadline = time.monotonic() + s
    while not what():
        assert process.poll() is None, said()
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)


def num_working(shares: Path) -> int:
    """Workers that have made a step within the last two seconds."""
    return sum(time.time() - path.stat().st_mtime < 2 for path in shares.glob("*.shares"))


def drain(cluster: Any, node: Any) -> None:
    """Give notice that the node will be taken away in a minute."""
    command = [
        str(BIN / "ray"), "drain-node", "--address", cluster.address,
        "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot", "--deadline-remaining-seconds", "60",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def test_a_drained_machine_and_a_new_one_move_the_workers_without_losing_a_step(
    machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = draw_pairs(tmp_path / "pairs", count=40, size=16)
    pack_folder(pairs, str(tmp_path / "data"), size=16, validation_share=0.2)
    data, shares = str(tmp_path / "data"), tmp_path / "punisher"
    shares.mkdir()
    slow = shares / "slow"
    slow.touch()
    monkeypatch.setenv("PYTHONPATH", str(PUNISHER))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calm, moved = write(tmp_path / "calm", data), write(tmp_path / "moved", data)
    train_alone(calm, SETTINGS)
    monkeypatch.setenv("PUNISHER_FOLDER", str(shares))
    going, staying = machines.add_node(num_cpus=1), machines.add_node(num_cpus=1)
    storage = open_storage(str(moved.parent / "runs"))
    elastic = (*SETTINGS, "cluster.workers={min: 1, max: 2}", "cluster.max_failures=0")
    with running(moved, machines.address, elastic) as (process, said):
        wait_for(lambda: any("manifest" in key for key in storage.list()), said, process)
        drain(machines, going)
        wait_for(lambda: "restart: a machine is being taken away" in said(), said, process)
        wait_for(lambda: num_working(shares) == 1, said, process)
        machines.remove_node(going)
        time.sleep(1)
        machines.add_node(num_cpus=1)
        wait_for(lambda: "restart: there is room for more workers" in said(), said, process)
        wait_for(lambda: num_working(shares) == 2, said, process)
        drain(machines, staying)
        slow.unlink()
        assert process.wait(300) == 0, said()
        text = said()
    # Ray may see a new machine late: then there are moves to as many workers as before.
    reasons = re.findall(r"^restart: (.*?):", text, re.M)
    away, room = "a machine is being taken away", "there is room for more workers"
    assert (reasons[0], reasons[-1], set(reasons)) == (away, away, {away, room})
    steps = [
        int(line.split()[0])
        for path in shares.glob("*.shares")
        for line in path.read_text().splitlines()
    ]
    worked = trained_shares(shares)
    assert sorted(worked) == list(range(300))
    assert len(steps) == sum(len(found) for found in worked.values()), "no step was trained twice"
    for step, found in worked.items():
        assert sorted(p for share in found for p in share) == list(range(4 * step, 4 * step + 4))
    sizes = [len(worked[step]) for step in sorted(worked)]
    changes = [b for a, b in zip([0, *sizes], sizes, strict=False) if a != b]
    assert changes == [2, 1, 2, 1], "workers"
    one, two = evidence(calm.parent), evidence(moved.parent)
    assert one.points.keys() == two.points.keys()
    early = [name for name in one.points if int(name.rpartition(" ")[2]) <= 250]
    for name in early:
        assert two.points[name] == pytest.approx(one.points[name], rel=1e-3), name
