"""Checkpoints in a folder and in buckets are complete, or do not exist."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.errors import DataError
from orchestrator.runs.checkpoint_manifest import UnsupportedCheckpoint
from orchestrator.runs.checkpoints import KEEP, MOST
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from support.checkpoints import flip_bit, make_checkpoints, make_state

pytestmark = pytest.mark.server


@pytest.fixture(params=["folder", "s3", "gcs", "az"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uri = str(tmp_path) if request.param == "folder" else request.getfixturevalue(request.param)
    return open_storage(uri)


def test_a_loaded_state_equals_the_saved_one_bit_for_bit(storage: Storage) -> None:
    checkpoints, saved = make_checkpoints(storage), make_state(512)
    assert checkpoints.latest() is None
    checkpoints.save(saved)
    loaded = checkpoints.latest()
    assert loaded is not None
    assert (loaded.images_seen, loaded.settings) == (512, saved.settings)
    assert (loaded.stateful, loaded.eval_pending) == (saved.stateful, True)
    for kind in ("networks", "snapshot", "optimizers", "per_rank_buffers"):
        torch.testing.assert_close(getattr(loaded, kind), getattr(saved, kind), rtol=0, atol=0)
    snapshot = checkpoints.snapshot(checkpoints.names()[-1])
    torch.testing.assert_close(snapshot, saved.snapshot, rtol=0, atol=0)


@pytest.mark.parametrize("file", ["networks.safetensors", "optimizers.safetensors", "state.json"])
def test_after_a_flipped_bit_the_previous_checkpoint_is_used(storage: Storage, file: str) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    flip_bit(storage, checkpoints.names()[-1], file)
    with pytest.raises(DataError, match=f"{file} has changed"):
        checkpoints.load(checkpoints.names()[-1])
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.images_seen == 100


def test_a_checkpoint_without_a_manifest_does_not_exist(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    storage.delete(f"run/checkpoints/{checkpoints.names()[-1]}/manifest.json")
    assert [name.split("-")[0] for name in checkpoints.names()] == ["000000000100"]


def test_if_a_file_is_missing_the_previous_checkpoint_is_used(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    storage.delete(f"run/checkpoints/{checkpoints.names()[-1]}/networks.safetensors")
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.images_seen == 100


def test_the_newest_three_are_kept_and_nothing_remains_of_the_others(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    for images_seen in (100, 200, 300, 400, 1000):
        checkpoints.save(make_state(images_seen))
    assert [int(name.split("-")[0]) for name in checkpoints.names()] == [300, 400, 1000]
    assert len(storage.list("run/checkpoints/")) == KEEP * 7


def test_a_run_that_is_killed_after_every_checkpoint_does_not_keep_them_all(
    storage: Storage,
) -> None:
    kept = []
    for images_seen in range(100, 1500, 100):
        restarted = make_checkpoints(storage)
        restarted.resume()
        restarted.save(make_state(images_seen))
        kept.append(len(restarted.names()))
    assert max(kept) < MOST
    assert min(kept[KEEP:]) >= KEEP
    latest = make_checkpoints(storage).latest()
    assert latest is not None
    assert latest.images_seen == 1400


def test_a_corrupt_checkpoint_does_not_count_among_those_that_are_kept(storage: Storage) -> None:
    for images_seen in (100, 200, 300, 400, 500):
        make_checkpoints(storage).save(make_state(images_seen))
    flip_bit(storage, make_checkpoints(storage).names()[-1], "networks.safetensors")
    restarted = make_checkpoints(storage)
    restarted.save(make_state(600))
    kept = [int(name.split("-")[0]) for name in restarted.names()]
    assert kept == [300, 400, 500, 600], "500 is the damaged one"


def test_saving_a_step_again_does_not_overwrite_the_first_checkpoint(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    first = checkpoints.names()[0]
    checkpoints.save(make_state(100))
    assert len(checkpoints.names()) == 2
    checkpoints.load(first)


def test_the_manifest_names_its_run_and_no_file_is_a_pickle(storage: Storage) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    keys = storage.list("run/checkpoints/")
    assert sorted({key.rsplit(".", 1)[1] for key in keys}) == ["json", "safetensors", "yaml"]
    manifest = json.loads(storage.get(next(k for k in keys if k.endswith("manifest.json"))))
    assert manifest["job"] == "small"
    assert manifest["images_seen"] == 100


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", r"is corrupt: manifest\.json cannot be read \(Invalid JSON"),
        (b'{"format": 3, "fi', r"is corrupt: manifest\.json cannot be read"),
        (b"\xff\xfe\x00", r"is corrupt: manifest\.json cannot be read"),
        (b"[]", r"is corrupt: manifest\.json cannot be read"),
        (b"{}", r"is corrupt: manifest\.json cannot be read"),
        (b'{"format": 3, "files": {}}', r"is corrupt: manifest\.json cannot be read"),
        (b'{"format": 3, "files": []}', r"is corrupt: manifest\.json cannot be read"),
    ],
)
def test_if_the_manifest_cannot_be_read_the_previous_checkpoint_is_used(
    storage: Storage, manifest: bytes, message: str
) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    newest = checkpoints.names()[-1]
    storage.put(f"run/checkpoints/{newest}/manifest.json", manifest)
    for load in (checkpoints.load, checkpoints.snapshot):
        with pytest.raises(DataError, match=message):
            load(newest)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.images_seen == 100


@pytest.mark.parametrize("file", ["state.json", "snapshot.safetensors"])
def test_a_file_with_the_right_hash_and_a_wrong_structure_is_corrupt(
    tmp_path: Path, file: str
) -> None:
    storage = open_storage(str(tmp_path))
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    folder = f"run/checkpoints/{checkpoints.names()[0]}"
    manifest, content = json.loads(storage.get(f"{folder}/manifest.json")), b"[1, 2]"
    manifest["files"][file] = {"bytes": 6, "sha256": hashlib.sha256(content).hexdigest()}
    storage.put(f"{folder}/{file}", content)
    storage.put(f"{folder}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match=f"is corrupt: {file} cannot be read"):
        checkpoints.load(checkpoints.names()[0])
    assert checkpoints.latest() is None


def test_tied_and_strided_tensors_are_saved_separately_with_their_values(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tied = {"in.weight": weight, "out.weight": weight, "turned": weight.t(), "row": weight[1]}
    checkpoints = make_checkpoints(open_storage(str(tmp_path)))
    checkpoints.save(replace(make_state(100), networks=tied).on_host())
    loaded = checkpoints.latest()
    assert loaded is not None
    torch.testing.assert_close(loaded.networks, tied, rtol=0, atol=0)


def test_a_corrupt_checkpoint_is_quarantined_and_kept_for_inspection(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    good, corrupt = checkpoints.names()
    flip_bit(storage, corrupt, "networks.safetensors")
    for _ in range(2):
        loaded = checkpoints.latest()
        assert loaded is not None
        assert loaded.images_seen == 100
    assert [r.message for r in caplog.records if "quarantined" in r.message] == [
        f"checkpoint {storage.uri}/run/checkpoints/{corrupt} is corrupt: networks.safetensors has "
        "changed; quarantined, using the previous checkpoint"
    ], "one warning: from then on it is skipped"
    assert checkpoints.names() == [good]
    mark = json.loads(storage.get(f"run/checkpoints/{corrupt}/quarantined.json"))
    assert "networks.safetensors has changed" in mark["reason"]
    assert storage.exists(f"run/checkpoints/{corrupt}/networks.safetensors")
    for images in (300, 400, 500):
        checkpoints.save(make_state(images))
    assert [int(name[:12]) for name in checkpoints.names()] == [300, 400, 500]
    assert storage.exists(f"run/checkpoints/{corrupt}/quarantined.json")


def test_every_flipped_bit_and_every_truncation_is_found_and_recovered_from(
    tmp_path: Path,
) -> None:
    """200 flipped bits and 50 truncations of the newest checkpoint, in all of its files."""
    storage = open_storage(str(tmp_path))
    checkpoints = make_checkpoints(storage)
    checkpoints.save(make_state(100))
    checkpoints.save(make_state(200))
    newest = checkpoints.names()[-1]
    files = sorted(checkpoints.listed()[newest])
    dice = random.Random(5)
    for number in range(250):
        key = f"run/checkpoints/{newest}/{dice.choice(files)}"
        original = storage.get(key)
        if number < 200:
            changed = bytearray(original)
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        else:
            changed = bytearray(original[: dice.randrange(len(original))])
        storage.put(key, bytes(changed))
        try:
            found = checkpoints.latest()
        except UnsupportedCheckpoint:  # the bit of the format number
            assert key.endswith("/manifest.json")
            storage.put(key, original)
            continue
        assert found is not None
        if found.images_seen == 200:  # parts of the manifest that are never read
            assert key.endswith("/manifest.json")
            expected = make_state(200)
        else:
            expected = make_state(100)
            storage.delete(f"run/checkpoints/{newest}/quarantined.json")
        torch.testing.assert_close(found.networks, expected.networks, rtol=0, atol=0)
        storage.put(key, original)
