"""Checkpoints are written in the background, through outages and on full disks."""

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.checkpoint_reader import MANIFEST
from orchestrator.runs.checkpoints import KEEP, Checkpoints
from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.open import open_storage
from services.disks import fill
from support.checkpoints import flip_bit, make_checkpoints, make_state
from support.waiting import wait_until


class Gate(WrappedStorage):
    """A storage whose writes wait until it is open, and fail while ``fault`` is set."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.open = threading.Event()
        self.fault: Exception | None = None
        self.num_writes = 0

    def put(self, key: str, data: bytes) -> None:
        self.num_writes += 1
        self.open.wait()
        if self.fault is not None:
            raise self.fault
        super().put(key, data)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(open_storage(str(tmp_path / "runs")))


def committed(checkpoints: Checkpoints) -> list[int]:
    return [int(name.split("-")[0]) for name in checkpoints.names()]


def test_save_returns_before_anything_is_written_and_keeps_the_values_of_that_moment(
    gate: Gate,
) -> None:
    checkpoints = make_checkpoints(gate)
    store = AsyncCheckpointStore(checkpoints, retry_timeout_s=5)
    living = dataclasses.replace(make_state(100))
    before = {name: value.clone() for name, value in living.networks.items()}
    store.save(living)
    for value in living.networks.values():
        value.add_(1)
    assert committed(checkpoints) == []
    gate.open.set()
    store.flush()
    loaded = store.latest()
    assert loaded is not None
    assert all(torch.equal(loaded.networks[name], value) for name, value in before.items())


def test_if_states_come_faster_than_they_are_written_only_the_newest_is_written(
    gate: Gate,
) -> None:
    checkpoints = make_checkpoints(gate)
    store = AsyncCheckpointStore(checkpoints, retry_timeout_s=5)
    store.save(make_state(100))
    wait_until(lambda: gate.num_writes, 60, "the first write")
    for images in (200, 300, 400):
        store.save(make_state(images))
    gate.open.set()
    store.flush()
    assert committed(checkpoints) == [100, 400]


def test_after_an_outage_the_newest_state_is_written(gate: Gate) -> None:
    checkpoints = make_checkpoints(gate)
    store = AsyncCheckpointStore(checkpoints, retry_timeout_s=30)
    gate.fault = TryAgain("the store is restarting")
    gate.open.set()
    store.save(make_state(100))
    wait_until(lambda: gate.num_writes, 60, "the first write")
    store.save(make_state(200))
    assert committed(checkpoints) == []
    gate.fault = None
    store.flush()
    assert committed(checkpoints) == [200]


def test_the_next_call_raises_if_an_outage_outlasts_the_retry_timeout(gate: Gate) -> None:
    store = AsyncCheckpointStore(make_checkpoints(gate), retry_timeout_s=0.2)
    gate.fault = TryAgain("the store is gone")
    gate.open.set()
    store.save(make_state(100))
    with pytest.raises(EnvironmentProblem, match=r"of 100 images could not be .*the store is gone"):
        store.flush()


def test_a_full_disk_delays_a_checkpoint_and_keeps_no_partial_files(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = fill(small_disk)
    checkpoints = make_checkpoints(open_storage(str(small_disk / "runs")))
    store = AsyncCheckpointStore(checkpoints, retry_timeout_s=30)
    store.save(make_state(100))
    wait_until(lambda: "writing is retried" in caplog.text, 60, "the first failure")
    assert committed(checkpoints) == []
    partial = [path for path in small_disk.rglob("*.safetensors*") if path.is_file()]
    assert partial == []
    ballast.unlink()
    store.flush()
    assert committed(checkpoints) == [100]
    assert checkpoints.latest() is not None


class Rotting(WrappedStorage):
    """A disk that returns another byte than was written, ``times`` times."""

    times = 2

    def get(self, key: str) -> bytes:
        content = super().get(key)
        if key.endswith("networks.safetensors") and self.times:
            self.times -= 1
            return content[:-1] + bytes([content[-1] ^ 1])
        return content


def test_a_checkpoint_that_reads_back_differently_is_quarantined_and_written_again(
    tmp_path: Path,
) -> None:
    checkpoints = make_checkpoints(Rotting(open_storage(str(tmp_path))))
    store = AsyncCheckpointStore(checkpoints, retry_timeout_s=30)
    store.save(make_state(100))
    store.flush()
    assert committed(checkpoints) == [100]
    listed = checkpoints.listed()
    assert len([name for name, files in listed.items() if "quarantined.json" in files]) == 1


def test_a_checkpoint_that_was_corrupted_on_the_way_once_is_read_again(tmp_path: Path) -> None:
    storage = Rotting(open_storage(str(tmp_path)))
    storage.times = 0
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    storage.times = 1
    loaded = checkpoints.latest()
    assert loaded is not None
    assert storage.times == 0
    storage.times = 1
    weights = checkpoints.snapshot(checkpoints.names()[0])
    assert torch.equal(weights["weight"], loaded.snapshot["weight"])
    assert committed(checkpoints) == [100], "it is not quarantined"


def test_another_process_deletes_nothing_before_it_knows_three_valid_checkpoints(
    tmp_path: Path,
) -> None:
    """An earlier process's checkpoints may have become corrupt: they count once they are read."""
    storage = open_storage(str(tmp_path))
    earlier = make_checkpoints(storage)
    for images in (100, 200, 300):
        earlier.save(make_state(images))
    for name in earlier.names()[1:]:
        flip_bit(storage, name, "networks.safetensors")
    later = make_checkpoints(storage)
    latest = later.latest()
    assert latest is not None
    assert latest.images_seen == 100, "the corrupt ones are quarantined"
    later.save(make_state(400))
    assert committed(later) == [100, 400], "only two are known to be valid: none is deleted"
    later.save(make_state(500))
    later.save(make_state(600))
    assert committed(later) == [400, 500, 600]
    assert KEEP == 3


def test_unfinished_checkpoints_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("run/checkpoints/000000000050-aaaaaaaa/networks.safetensors", b"cut off")
    checkpoints = make_checkpoints(storage)
    for images in (100, 200, 300):
        checkpoints.save(make_state(images))
    assert all(MANIFEST in files for files in checkpoints.listed().values())
