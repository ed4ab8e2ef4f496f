"""Checkpoints in a folder and in a real S3 bucket: whole, or not there."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.errors import DataError
from orchestrator.runs.checkpoints import KEEP, Checkpoints
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.training.state import TrainState


def state(images_seen: int) -> TrainState:
    torch.manual_seed(images_seen)
    return TrainState(
        images_seen,
        networks={"net.weight": torch.randn(3, 4), "net.steps": torch.tensor(7)},
        snapshot={"weight": torch.randn(3, 4).t()},
        optimizers={"net.0.exp_avg": torch.randn(3, 4), "net.0.step": torch.tensor(2.0)},
        settings={"net": {"groups": [{"lr": 1e-4, "params": [0]}], "state": {"0": {}}}},
        owing=True,
        guard={"updates": {"in_a_row": {"net": 2}, "norms": {"net": [3, 0.1]}}},
        recorder={"last": 16, "points": {"loss": [0.1, 2.5]}, "have": []},
        own={"0.pool": torch.randn(2, 3), "1.pool": torch.randn(2, 3)},
    ).on_host()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    uri = str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3")
    return open_storage(uri)


def checkpoints(storage: Storage) -> Checkpoints:
    return Checkpoints(storage, "run/checkpoints", "name: small\n", {"job": "small"})


def damage(storage: Storage, name: str, file: str) -> None:
    key = f"run/checkpoints/{name}/{file}"
    content = bytearray(storage.get(key))
    content[len(content) // 2] ^= 1
    storage.put(key, bytes(content))


def test_what_was_saved_comes_back_bit_for_bit(storage: Storage) -> None:
    kept, saved = checkpoints(storage), state(512)
    assert kept.latest() is None
    kept.save(saved)
    loaded = kept.latest()
    assert loaded is not None
    assert (loaded.images_seen, loaded.settings) == (512, saved.settings)
    assert loaded.guard == saved.guard
    for kind in ("networks", "snapshot", "optimizers"):
        torch.testing.assert_close(getattr(loaded, kind), getattr(saved, kind), rtol=0, atol=0)
    torch.testing.assert_close(kept.snapshot(kept.names()[-1]), saved.snapshot, rtol=0, atol=0)


def test_a_checkpoint_of_before_there_was_a_guard_loads(storage: Storage) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    folder = f"run/checkpoints/{kept.names()[0]}"
    content = json.loads(storage.get(f"{folder}/state.json"))
    del content["guard"]
    storage.put(f"{folder}/state.json", (old := json.dumps(content).encode()))
    manifest = json.loads(storage.get(f"{folder}/manifest.json"))
    manifest["files"]["state.json"] = {
        "bytes": len(old),
        "sha256": hashlib.sha256(old).hexdigest(),
    }
    storage.put(f"{folder}/manifest.json", json.dumps(manifest).encode())
    loaded = kept.latest()
    assert loaded is not None
    assert (loaded.images_seen, loaded.guard) == (100, {})


@pytest.mark.parametrize("file", ["networks.safetensors", "optimizers.safetensors", "state.json"])
def test_a_flipped_bit_in_the_newest_gives_the_one_before(storage: Storage, file: str) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    damage(storage, kept.names()[-1], file)
    with pytest.raises(DataError, match=f"{file} has changed"):
        kept.load(kept.names()[-1])
    latest = kept.latest()
    assert latest is not None
    assert latest.images_seen == 100


def test_without_its_manifest_a_checkpoint_does_not_exist(storage: Storage) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    storage.delete(f"run/checkpoints/{kept.names()[-1]}/manifest.json")
    assert [name.split("-")[0] for name in kept.names()] == ["000000000100"]


def test_a_file_that_is_gone_gives_the_checkpoint_before(storage: Storage) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    storage.delete(f"run/checkpoints/{kept.names()[-1]}/networks.safetensors")
    latest = kept.latest()
    assert latest is not None
    assert latest.images_seen == 100


def test_the_newest_three_are_kept_and_nothing_is_left_of_the_others(storage: Storage) -> None:
    kept = checkpoints(storage)
    for images_seen in (100, 200, 300, 400, 1000):
        kept.save(state(images_seen))
    assert [int(name.split("-")[0]) for name in kept.names()] == [300, 400, 1000]
    assert len(storage.list("run/checkpoints/")) == KEEP * 7


def test_a_step_that_is_saved_again_does_not_touch_the_first(storage: Storage) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    first = kept.names()[0]
    kept.save(state(100))
    assert len(kept.names()) == 2
    kept.load(first)


def test_the_manifest_says_what_it_belongs_to_and_no_file_is_a_pickle(storage: Storage) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    keys = storage.list("run/checkpoints/")
    assert sorted({key.rsplit(".", 1)[1] for key in keys}) == ["json", "safetensors", "yaml"]
    manifest = json.loads(storage.get(next(k for k in keys if k.endswith("manifest.json"))))
    assert manifest["job"] == "small"
    assert manifest["images_seen"] == 100


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (b"", r"is damaged: manifest\.json cannot be read \(JSONDecodeError"),
        (b'{"format": 2, "fi', r"is damaged: manifest\.json cannot be read"),
        (b"\xff\xfe\x00", r"is damaged: manifest\.json cannot be read"),
        (b"[]", r"is damaged: manifest\.json cannot be read"),
        (b"{}", r"is damaged: manifest\.json cannot be read"),
        (b'{"format": 2, "files": {}}', r"is damaged: manifest\.json cannot be read"),
        (b'{"format": 2, "files": []}', r"is damaged: manifest\.json cannot be read"),
        (b'{"format": 1}', "has format 1, .* reads format 2; use the version that wrote it"),
    ],
)
def test_a_manifest_that_cannot_be_read_gives_the_checkpoint_before(
    storage: Storage, manifest: bytes, told: str
) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    newest = kept.names()[-1]
    storage.put(f"run/checkpoints/{newest}/manifest.json", manifest)
    for read in (kept.load, kept.snapshot):
        with pytest.raises(DataError, match=told):
            read(newest)
    latest = kept.latest()
    assert latest is not None
    assert latest.images_seen == 100


@pytest.mark.parametrize("file", ["state.json", "snapshot.safetensors"])
def test_a_file_of_another_shape_is_damage_though_its_sum_is_right(
    tmp_path: Path, file: str
) -> None:
    storage = open_storage(str(tmp_path))
    kept = checkpoints(storage)
    kept.save(state(100))
    folder = f"run/checkpoints/{kept.names()[0]}"
    manifest, content = json.loads(storage.get(f"{folder}/manifest.json")), b"[1, 2]"
    manifest["files"][file] = {"bytes": 6, "sha256": hashlib.sha256(content).hexdigest()}
    storage.put(f"{folder}/{file}", content)
    storage.put(f"{folder}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match=f"is damaged: {file} cannot be read"):
        kept.load(kept.names()[0])
    assert kept.latest() is None


def test_tied_and_strided_tensors_are_saved_each_with_its_own_values(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tied = {"in.weight": weight, "out.weight": weight, "turned": weight.t(), "row": weight[1]}
    kept = checkpoints(open_storage(str(tmp_path)))
    kept.save(replace(state(100), networks=tied).on_host())
    loaded = kept.latest()
    assert loaded is not None
    torch.testing.assert_close(loaded.networks, tied, rtol=0, atol=0)


def test_a_damaged_checkpoint_is_quarantined_and_stays_to_be_looked_at(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    good, bad = kept.names()
    damage(storage, bad, "networks.safetensors")
    for _ in range(2):
        loaded = kept.latest()
        assert loaded is not None
        assert loaded.images_seen == 100
    assert [r.message for r in caplog.records if "quarantined" in r.message] == [
        f"checkpoint {storage.uri}/run/checkpoints/{bad} is damaged: networks.safetensors has "
        "changed; it is quarantined, and the one before is taken"
    ], "told once: from then on it is passed over"
    assert kept.names() == [good]
    mark = json.loads(storage.get(f"run/checkpoints/{bad}/quarantined.json"))
    assert "networks.safetensors has changed" in mark["reason"]
    assert storage.exists(f"run/checkpoints/{bad}/networks.safetensors")
    for images in (300, 400, 500):
        kept.save(state(images))
    assert [int(name[:12]) for name in kept.names()] == [300, 400, 500]
    assert storage.exists(f"run/checkpoints/{bad}/quarantined.json")


def test_every_flipped_bit_and_every_cut_is_found_and_recovered_from(tmp_path: Path) -> None:
    """200 flips and 50 cuts of the newest checkpoint, in all of its files."""
    storage = open_storage(str(tmp_path))
    kept = checkpoints(storage)
    kept.save(state(100))
    kept.save(state(200))
    newest = kept.names()[-1]
    files = sorted(kept.listed()[newest])
    draw = random.Random(5)
    for number in range(250):
        key = f"run/checkpoints/{newest}/{draw.choice(files)}"
        whole = storage.get(key)
        if number < 200:
            hurt = bytearray(whole)
            hurt[draw.randrange(len(hurt))] ^= 1 << draw.randrange(8)
        else:
            hurt = bytearray(whole[: draw.randrange(len(whole))])
        storage.put(key, bytes(hurt))
        found = kept.latest()
        assert found is not None
        if found.images_seen == 200:  # of the manifest, what nobody reads
            assert key.endswith("/manifest.json")
            torch.testing.assert_close(found.networks, state(200).networks, rtol=0, atol=0)
        else:
            torch.testing.assert_close(found.networks, state(100).networks, rtol=0, atol=0)
            storage.delete(f"run/checkpoints/{newest}/quarantined.json")
        storage.put(key, whole)
