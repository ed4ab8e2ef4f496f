"""A run whose storage folder is unmounted or moved away while it trains."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.config.load import load_job
from orchestrator.console import ProgressReport
from orchestrator.errors import OrchestratorError
from orchestrator.runs import lease
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome
from orchestrator.training.state import TrainState
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job
from support.waiting import wait_until

SETTINGS = ["train.images=40", "train.checkpoint_every=8", "train.log_every=4", "register=null"]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("vanished"))


def move_away(storage: Path) -> Callable[[], None]:
    """Move the folder away, as an unmount of a file system above it does."""
    away = storage.with_name("away")
    storage.rename(away)
    return lambda: move_back(away, storage)


def leave_empty(storage: Path) -> Callable[[], None]:
    """Leave an empty folder in its place, as a mount point is one."""
    back = move_away(storage)
    storage.mkdir()
    return back


def move_back(away: Path, storage: Path) -> None:
    if storage.exists():
        storage.rmdir()  # which fails if something was written there meanwhile
    away.rename(storage)


def unmount(storage: Path) -> Callable[[], None]:
    """Unmount the disk at ``storage``, which is mounted at ``disk`` beside it, too."""
    subprocess.run(["umount", str(storage)], check=True)
    return lambda: mount_again(storage)


def mount_again(storage: Path) -> None:
    assert list(storage.iterdir()) == []
    subprocess.run(["mount", "--bind", str(storage.with_name("disk")), str(storage)], check=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A storage at a mount point; needs root."""
    disk, storage = tmp_path / "disk", tmp_path / "runs"
    disk.mkdir()
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk needs root")
    subprocess.run(["mount", "--bind", str(disk), str(storage)], check=True)
    yield storage
    subprocess.run(["umount", "-l", str(storage)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(disk)], check=True)


Vanish = Callable[[Path], Callable[[], None]]


def vanishing(
    storage: Path, vanish: Vanish, at: int, back_after_s: float | None
) -> Callable[[RunContext, ReportCallback, StopRequest], Outcome]:
    """Train, and let the storage vanish after ``at`` images, for some time or for ever."""

    def launch(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        vanished = False

        def watch(report: ProgressReport) -> None:
            nonlocal vanished
            show(report)
            if report.images_seen == at and not vanished:
                vanished = True
                wait_until(lambda: list(storage.glob("*/checkpoints/*/manifest.json")), 60, "one")
                back = vanish(storage)
                if back_after_s is not None:
                    threading.Timer(back_after_s, back).start()

        return train_in_process(context, watch, stop)

    return launch


@pytest.mark.parametrize("vanish", [move_away, leave_empty, unmount])
def test_a_run_waits_for_its_storage_and_ends_where_the_undisturbed_run_ends(
    data: str, tmp_path: Path, vanish: Vanish, request: pytest.FixtureRequest
) -> None:
    if vanish is unmount:
        request.getfixturevalue("mounted")
    job, whole = write_job(tmp_path, data), write_job(tmp_path / "whole", data)
    run_job(load_job(whole, SETTINGS))
    run_job(load_job(job, SETTINGS), vanishing(tmp_path / "runs", vanish, 20, 3.0))
    expected, found = (newest(folder / "runs", folder) for folder in (tmp_path / "whole", tmp_path))
    assert only_run(tmp_path).info.status == "FINISHED"
    assert list(tmp_path.glob("runs/*/finished.json"))
    assert found.images_seen == expected.images_seen == 40
    for kind in ("networks", "snapshot", "optimizers"):
        one, two = getattr(found, kind), getattr(expected, kind)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def newest(storage: Path, folder: Path) -> TrainState:
    checkpoints = checkpoints_of(str(storage), only_run(folder))
    return checkpoints.load(checkpoints.names()[-1])


@pytest.mark.parametrize("at", [20, 40], ids=["in the middle", "at the end"])
@pytest.mark.parametrize("vanish", [move_away, leave_empty, unmount])
def test_a_storage_that_stays_away_ends_the_run_with_exit_code_3_and_is_not_made_anew(
    data: str,
    tmp_path: Path,
    vanish: Vanish,
    at: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if vanish is unmount:
        request.getfixturevalue("mounted")
    # The driver could not end its lease, and its process, which is this one, lives on.
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_S", 1.0)
    job, storage = write_job(tmp_path, data), tmp_path / "runs"
    settings = [*SETTINGS, "data.retry_timeout_s=2", "tracking.retry_timeout_s=2"]
    with pytest.raises(OrchestratorError) as caught:
        run_job(load_job(job, settings), vanishing(storage, vanish, at, None))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{storage} was there and is gone, or is empty now" in message
    assert caught.value.exit_code == 3
    assert storage.exists() == (vanish is not move_away)
    assert not storage.exists() or list(storage.iterdir()) == []
    assert only_run(tmp_path).info.status == "FAILED"
    mount_again(storage) if vanish is unmount else move_back(tmp_path / "away", storage)
    run_job(load_job(job, SETTINGS), resume=True)
    assert newest(storage, tmp_path).images_seen == 40
    assert only_run(tmp_path).info.status == "FINISHED"


def test_a_worker_that_is_started_while_the_storage_is_away_does_not_begin_at_image_0(
    data: str, tmp_path: Path
) -> None:
    """With an empty folder in place of the storage, no checkpoint is to be seen."""
    job, storage = write_job(tmp_path, data), tmp_path / "runs"

    def restart(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        train_in_process(context, show, stop)
        back = leave_empty(storage)
        with pytest.raises(OrchestratorError, match="cannot see"):
            train_in_process(context, show, stop)
        store = AsyncCheckpointStore(context.checkpoints(), retry_timeout_s=60)
        threading.Timer(2, back).start()
        state = store.latest()
        assert state is not None
        assert state.images_seen == 40
        return train_in_process(context, show, stop)

    run_job(load_job(job, SETTINGS), restart)
    assert len(list(storage.glob("*/run.json"))) == 1
