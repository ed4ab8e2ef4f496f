"""Checkpoints of every format are read or refused with the remedy; none is marked as corrupt."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.runs.checkpoint_manifest import UnsupportedCheckpoint
from orchestrator.runs.checkpoint_reader import CorruptCheckpoint
from orchestrator.runs.checkpoints import NoCheckpointLeft
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from support.checkpoints import flip_bit, make_checkpoints, make_state
from support.old_checkpoints import NAME, write_checkpoint


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_a_checkpoint_of_0_2_0_is_read(storage: Storage) -> None:
    write_checkpoint(storage, 3)
    state = make_checkpoints(storage).resume()
    assert state is not None
    assert state.images_seen == 100
    assert torch.equal(state.networks["w"], torch.arange(6.0))


@pytest.mark.parametrize(
    ("format_", "version", "reader"),
    [
        (1, None, "orchestrator 0.1.0 before 2026-11-26, or"),
        (2, None, "orchestrator 0.1.0, or"),
        (4, "9.1.0", "orchestrator 9.1.0 or later, or"),
        (4, None, "orchestrator newer than this one, or"),
    ],
)
def test_another_format_is_refused_with_the_version_that_reads_it_and_left_as_it_is(
    storage: Storage, format_: int, version: str | None, reader: str
) -> None:
    written = write_checkpoint(storage, format_, version)
    checkpoints = make_checkpoints(storage)
    for read in (checkpoints.resume, checkpoints.latest, checkpoints.latest_snapshot):
        with pytest.raises(UnsupportedCheckpoint) as caught:
            read()
        line = str(caught.value)
        assert f"{NAME} has format {format_}, and this version of the orchestrator reads" in line
        assert reader in line
        assert "start a new run with --no-resume" in line
        assert "\n" not in line
        assert caught.value.exit_code == 3
    assert {key: storage.get(key) for key in storage.list()} == written


def test_a_changed_format_number_alone_is_refused_too_and_nothing_is_lost(
    storage: Storage,
) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    (name,) = checkpoints.names()
    key = f"run/checkpoints/{name}/manifest.json"
    for number in (1, 2, 4):
        storage.put(key, json.dumps({**json.loads(storage.get(key)), "format": number}).encode())
        with pytest.raises(UnsupportedCheckpoint, match=f"has format {number}"):
            checkpoints.resume()
        assert checkpoints.names() == [name]


@pytest.mark.parametrize("other", ["000000009999-deadbeef", "999999999999-x", "000000000001-y"])
def test_a_renamed_checkpoint_is_corrupt(storage: Storage, other: str) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    first, second = checkpoints.names()
    for key in storage.list(f"run/checkpoints/{first}/"):
        storage.put(key.replace(first, other), storage.get(key))
        storage.delete(key)
    for load in (checkpoints.load, checkpoints.snapshot):
        with pytest.raises(CorruptCheckpoint, match=f"of 100 images, .* is called {other}"):
            load(other)
    assert checkpoints.latest_snapshot()[0] == second
    state = checkpoints.resume()
    assert state is not None
    assert state.images_seen == 200


def test_a_manifest_that_agrees_with_the_name_and_not_with_the_state_is_corrupt(
    storage: Storage,
) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    (name,) = checkpoints.names()
    manifest = json.loads(storage.get(f"run/checkpoints/{name}/manifest.json"))
    for key in storage.list(f"run/checkpoints/{name}/"):
        storage.put(key.replace("000000000100", "000000000900"), storage.get(key))
    other = name.replace("000000000100", "000000000900")
    changed = json.dumps({**manifest, "images_seen": 900}).encode()
    storage.put(f"run/checkpoints/{other}/manifest.json", changed)
    with pytest.raises(CorruptCheckpoint, match=r"state\.json .*of 100 images"):
        checkpoints.load(other)


def test_a_checkpoint_of_another_job_is_corrupt(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.about = {"job": "large"}
    with pytest.raises(CorruptCheckpoint, match="it belongs to job small, not large"):
        checkpoints.load(checkpoints.names()[0])


def lose(storage: Storage, how: str) -> None:
    checkpoints = make_checkpoints(storage)
    for name in checkpoints.names():
        if how == "damaged":
            flip_bit(storage, name, "networks.safetensors")
        for key in storage.list(f"run/checkpoints/{name}/") if how == "gone" else ():
            storage.delete(key)


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_run_that_has_lost_all_its_checkpoints_starts_again_only_if_asked(
    storage: Storage, how: str
) -> None:
    checkpoints = make_checkpoints(storage)
    assert checkpoints.resume() is None, "it died before its first checkpoint"
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    lose(storage, how)
    for _ in range(2):
        with pytest.raises(NoCheckpointLeft, match="--restart-from-scratch") as caught:
            make_checkpoints(storage).resume()
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    checkpoints.forget_saved()
    for _ in range(2):
        assert make_checkpoints(storage).resume() is None, "also when its workers restart"
    make_checkpoints(storage).save(make_state(50))
    lose(storage, how)
    with pytest.raises(NoCheckpointLeft):
        make_checkpoints(storage).resume()


def test_a_run_of_a_version_without_the_mark_is_known_by_its_damaged_checkpoints(
    storage: Storage,
) -> None:
    write_checkpoint(storage, 3)
    flip_bit(storage, NAME, "state.json")
    with pytest.raises(NoCheckpointLeft):
        make_checkpoints(storage).resume()


def test_a_checkpoint_that_was_never_committed_does_not_count(storage: Storage) -> None:
    storage.put(f"run/checkpoints/{NAME}/networks.safetensors", b"half of it")
    assert make_checkpoints(storage).resume() is None
