"""Ray's own processes are killed under a run: it goes on, or the same command resumes it."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.compare_runs import RunArtifacts, compare
from orchestrator.faults.injection import run_command
from services.ray_cluster import start_head
from support.drawings import draw_pairs
from support.fault_jobs import FAULT_INJECTION, run_artifacts, write_job
from support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TITLES: Mapping[str, str] = {
    "GCS": "/gcs/gcs_server",
    "raylet": "/raylet/raylet",
    "status of the workers": "ray::WorkerGroupState",
    "log monitor": "/_private/log_monitor.py",
    "dashboard": "/dashboard/dashboard.py",
    "autoscaler's monitor": "/autoscaler/_private/monitor.py",
    "driver's connection": "orchestrator.cluster.ray_process",
}
"""Text in the command line of each process."""
SURVIVED = ("status of the workers", "log monitor", "dashboard", "autoscaler's monitor")
FATAL = ("GCS", "raylet", "driver's connection")
"""The raylet also goes with either of its agents; `verify-resume --faults` kills these too."""
TIMEOUT_S = 300
IMAGES = 1200


@dataclass
class Loss:
    """A driver whose cluster was lost."""

    code: int
    lines: list[str]
    """What it wrote to stderr after the fault, without progress."""
    seconds: float
    status: str
    """Of the run in MLflow."""
    left: list[str]
    """Command lines of the cluster's processes that are still there."""


@dataclass
class Drivers:
    """Drivers of one job, one after another, all started by the same command."""

    job: Path
    environ: Mapping[str, str]
    processes: dict[int, psutil.Process] = field(default_factory=dict)
    """All descendants of the current driver that were seen."""

    @contextlib.contextmanager
    def running(self, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
        with (self.job.parent / "stderr.txt").open("ab") as log:
            driver = subprocess.Popen(
                run_command(self.job, ()), env={**self.environ, **environ}, stderr=log
            )
            try:
                yield driver
            finally:
                driver.kill()
                driver.wait()

    def output(self) -> str:
        return (self.job.parent / "stderr.txt").read_text()

    def wait_for_checkpoint(self, driver: "subprocess.Popen[bytes]") -> None:
        newest = self._newest()

        def is_newer() -> bool:
            assert driver.poll() is None, self.output()
            return self._newest() > newest

        wait_until(is_newer, TIMEOUT_S, "the next checkpoint")

    def find(self, driver: "subprocess.Popen[bytes]", kind: str) -> psutil.Process:
        """Find the driver's descendant of this kind."""
        self.processes = {p.pid: p for p in psutil.Process(driver.pid).children(recursive=True)}
        return next(p for p in self.processes.values() if matches(p, TITLES[kind]))

    def lose(self, driver: "subprocess.Popen[bytes]", kill: Callable[[], None]) -> Loss:
        """Kill something that the driver cannot do without, and wait for its end."""
        before, start = len(self.output()), time.monotonic()
        kill()
        code = driver.wait(TIMEOUT_S)
        seconds = time.monotonic() - start
        left = [p.pid for p in self.processes.values() if is_alive(p)]
        written = self.output()[before:].splitlines()
        lines = [line for line in written if "images/s" not in line and "worker:" not in line]
        return Loss(code, lines, seconds, self._status(), [str(pid) for pid in left])

    def _newest(self) -> str:
        found = self.job.parent.glob("runs/*/checkpoints/*/manifest.json")
        return max((path.parent.name for path in found), default="")

    def _status(self) -> str:
        client = mlflow.MlflowClient(f"sqlite:///{self.job.parent}/mlflow.db")
        experiment = client.get_experiment_by_name("small")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        return str(run.info.status)


def matches(process: psutil.Process, text: str) -> bool:
    try:
        words = process.cmdline()[:4]
    except psutil.Error:
        return False
    return any(text in word[:300] for word in words)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def assert_resumable(loss: Loss) -> None:
    assert loss.code == 75, loss
    assert len(loss.lines) == 1, loss
    assert re.fullmatch(
        r"error: the Ray cluster was lost: .*; the same command goes on from .*", loss.lines[0]
    )
    assert loss.seconds < 90
    assert loss.status == "KILLED"
    assert loss.left == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("control-plane")
    pairs = draw_pairs(folder / "pairs", count=40, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Environment of drivers and clusters: steps take some time, so that faults hit in between."""
    without = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **without,
        "FAULT_FOLDER": str(tmp_path_factory.mktemp("shares")),
        "PYTHONPATH": os.pathsep.join(
            [str(FAULT_INJECTION), *without.get("PYTHONPATH", "").split(os.pathsep)]
        ),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }


@pytest.fixture(scope="module")
def uninterrupted(
    data: str, environ: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> RunArtifacts:
    job = write_job(tmp_path_factory.mktemp("baseline") / "job", data, IMAGES)
    subprocess.run(run_command(job, ()), env=environ, check=True, timeout=TIMEOUT_S)
    return run_artifacts(job.parent)


def differences(one: RunArtifacts, two: RunArtifacts) -> list[Any]:
    return [check for check in compare(one, two) if check.difference]


def test_a_run_with_its_own_cluster(
    data: str, environ: Mapping[str, str], uninterrupted: RunArtifacts, tmp_path: Path
) -> None:
    """Each point being in MLflow once is checked where the artifacts are loaded."""
    drivers = Drivers(write_job(tmp_path / "job", data, IMAGES), environ)
    survived: tuple[str, ...] = SURVIVED
    for fatal in FATAL:
        with drivers.running() as driver:
            drivers.wait_for_checkpoint(driver)
            for kind in survived:
                drivers.find(driver, kind).kill()
                drivers.wait_for_checkpoint(driver)
            survived = ()
            assert_resumable(drivers.lose(driver, drivers.find(driver, fatal).kill))
    with drivers.running() as driver:
        assert driver.wait(TIMEOUT_S) == 0, drivers.output()
    assert differences(uninterrupted, run_artifacts(drivers.job.parent)) == []
    output = drivers.output()
    assert output.count("restart: the actor with the status of the workers was lost") == 1
    assert output.count("resuming run") == len(FATAL)
    assert "Traceback" not in output


@contextlib.contextmanager
def connected_cluster() -> Iterator[Any]:
    """A cluster of a head, the driver's node, and a node with CPUs for the workers."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temp:
        head = {"num_cpus": 0, "temp_dir": temp, "include_dashboard": False}
        cluster = start_head(**head)
        try:
            cluster.add_node(num_cpus=2)
            yield cluster
        finally:
            cluster.shutdown()


def kill(node: Any, *kinds: str) -> None:
    """Kill processes of a node; their parent, which is this process, takes note as in real life."""
    for kind in kinds:
        process = node.all_processes[kind][0].process
        process.kill()
        process.wait()


def test_a_run_on_a_cluster(
    data: str,
    environ: Mapping[str, str],
    uninterrupted: RunArtifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The raylet of the workers' node is one that the cluster can do without."""
    for name in ("FAULT_FOLDER", "PYTHONPATH", "OMP_NUM_THREADS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, environ[name])
    # How long a driver waits for a GCS that somebody may start again; a minute by default.
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    slow = Path(environ["FAULT_FOLDER"], "slow")
    drivers = Drivers(write_job(tmp_path / "job", data, IMAGES), environ)
    for fatal in (["raylet"], ["gcs_server"]):
        with (
            connected_cluster() as cluster,
            drivers.running(RAY_ADDRESS=cluster.address, **patience) as driver,
        ):
            drivers.wait_for_checkpoint(driver)
            drivers.find(driver, "driver's connection")  # which must end too
            slow.touch()  # else the run may end before anybody notices
            if fatal == ["raylet"]:
                (node,) = cluster.worker_nodes
                cluster.add_node(num_cpus=2)
                kill(node, "raylet")
                wait_until(lambda: "failure 1 of" in drivers.output(), TIMEOUT_S, "a restart")
                drivers.wait_for_checkpoint(driver)
            assert_resumable(drivers.lose(driver, partial(kill, cluster.head_node, *fatal)))
            slow.unlink()
    with (
        connected_cluster() as cluster,
        drivers.running(RAY_ADDRESS=cluster.address) as driver,
    ):
        assert driver.wait(TIMEOUT_S) == 0, drivers.output()
    assert differences(uninterrupted, run_artifacts(drivers.job.parent)) == []
    assert "Traceback" not in drivers.output()
