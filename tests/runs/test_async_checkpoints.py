"""Checkpoints are uploaded while the training goes on, through outages and full disks."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
import torch
from test_checkpoints import checkpoints, damage, state

from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.runs.async_checkpoints import UploadedCheckpoints
from orchestrator.runs.checkpoints import KEEP, MANIFEST, Checkpoints
from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.open import open_storage
from services.disks import fill


class Gate(WrappedStorage):
    """A storage whose writes wait until it is open, and fail while ``fault`` is set."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.open = threading.Event()
        self.fault: Exception | None = None

    def put(self, key: str, data: bytes) -> None:
        self.open.wait()
        if self.fault is not None:
            raise self.fault
        super().put(key, data)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(open_storage(str(tmp_path / "runs")))


def committed(kept: Checkpoints) -> list[int]:
    return [int(name.split("-")[0]) for name in kept.names()]


def test_save_returns_before_anything_is_written_and_keeps_the_values_of_that_moment(
    gate: Gate,
) -> None:
    kept = checkpoints(gate)
    uploads = UploadedCheckpoints(kept, retry_timeout_s=5)
    living = dataclasses.replace(state(100))
    before = {name: value.clone() for name, value in living.networks.items()}
    uploads.save(living)
    for value in living.networks.values():
        value.add_(1)
    assert committed(kept) == []
    gate.open.set()
    uploads.flush()
    loaded = uploads.latest()
    assert loaded is not None
    assert all(torch.equal(loaded.networks[name], value) for name, value in before.items())


def test_of_states_that_come_faster_than_they_are_written_the_newest_is_kept(gate: Gate) -> None:
    kept = checkpoints(gate)
    uploads = UploadedCheckpoints(kept, retry_timeout_s=5)
    uploads.save(state(100))
    time.sleep(0.1)  # the thread has taken it up
    for images in (200, 300, 400):
        uploads.save(state(images))
    gate.open.set()
    uploads.flush()
    assert committed(kept) == [100, 400]


def test_an_outage_is_waited_out_and_then_the_newest_state_is_written(gate: Gate) -> None:
    kept = checkpoints(gate)
    uploads = UploadedCheckpoints(kept, retry_timeout_s=30)
    gate.fault = TryAgain("the store is restarting")
    gate.open.set()
    uploads.save(state(100))
    time.sleep(0.2)
    uploads.save(state(200))
    assert committed(kept) == []
    gate.fault = None
    uploads.flush()
    assert committed(kept) == [200]


def test_an_outage_that_outlasts_the_patience_is_raised_by_the_next_call(gate: Gate) -> None:
    uploads = UploadedCheckpoints(checkpoints(gate), retry_timeout_s=0.2)
    gate.fault = TryAgain("the store is gone")
    gate.open.set()
    uploads.save(state(100))
    with pytest.raises(EnvironmentProblem, match=r"of 100 images could not be .*the store is gone"):
        uploads.flush()


def test_a_full_disk_delays_a_checkpoint_and_leaves_no_pieces(small_disk: Path) -> None:
    ballast = fill(small_disk)
    kept = checkpoints(open_storage(str(small_disk / "runs")))
    uploads = UploadedCheckpoints(kept, retry_timeout_s=30)
    uploads.save(state(100))
    time.sleep(1)
    assert committed(kept) == []
    assert [path for path in small_disk.rglob("*.safetensors*") if path.is_file()] == []
    ballast.unlink()
    uploads.flush()
    assert committed(kept) == [100]
    assert kept.latest() is not None


class Rotting(WrappedStorage):
    """A disk that gives back another byte than was written, ``times`` times."""

    times = 1

    def get(self, key: str) -> bytes:
        content = super().get(key)
        if key.endswith("networks.safetensors") and self.times:
            self.times -= 1
            return content[:-1] + bytes([content[-1] ^ 1])
        return content


def test_what_is_read_back_otherwise_is_marked_and_written_again(tmp_path: Path) -> None:
    kept = checkpoints(Rotting(open_storage(str(tmp_path))))
    uploads = UploadedCheckpoints(kept, retry_timeout_s=30)
    uploads.save(state(100))
    uploads.flush()
    assert committed(kept) == [100]
    marked = [name for name, files in kept.listed().items() if "quarantined.json" in files]
    assert len(marked) == 1


def test_another_process_deletes_nothing_before_it_knows_three_whole_ones(tmp_path: Path) -> None:
    """Those of an earlier process may have rotted since: they do not count until they are read."""
    storage = open_storage(str(tmp_path))
    earlier = checkpoints(storage)
    for images in (100, 200, 300):
        earlier.save(state(images))
    for name in earlier.names()[1:]:
        damage(storage, name, "networks.safetensors")
    later = checkpoints(storage)
    latest = later.latest()
    assert latest is not None
    assert latest.images_seen == 100, "the damaged ones are quarantined"
    later.save(state(400))
    assert committed(later) == [100, 400], "two that are known to be whole: none may go"
    later.save(state(500))
    later.save(state(600))
    assert committed(later) == [400, 500, 600]
    assert KEEP == 3


def test_what_a_killed_process_left_unfinished_is_tidied_up(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("run/checkpoints/000000000050-aaaaaaaa/networks.safetensors", b"cut off")
    kept = checkpoints(storage)
    for images in (100, 200, 300):
        kept.save(state(images))
    assert all(MANIFEST in files for files in kept.listed().values())
