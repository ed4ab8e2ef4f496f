"""A sweep in the storage: what is written, what is read again, and its state."""

import json
import math
import random
import time
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.runs.record import driver_key, driving
from orchestrator.storage.base import WrappedStorage
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Leg, Look
from orchestrator.sweeps.store import SweepStore, sweep_at, sweeps
from orchestrator.sweeps.trial_job import trial_job
from services.fixtures_jobs import Load
from support.sweep_jobs import VALID, edited, proposed, stored

SECRETS = {
    "DATA": "hidden-bucket-name",
    "TOKEN": "swordfish-token",
    "TRACK": "https://me:pass%20word@mlflow.example",
}
SECRET_JOB = (
    edited("faces/train", "${env:DATA}/train")
    .replace("faces/validation", "${env:DATA}/validation")
    .replace("train:\n  images", 'tracking: {uri: "${env:TRACK}"}\ntrain:\n  images')
)


def test_a_secret_of_the_environment_never_comes_into_the_storage(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    text = edited(
        "name: balance", "name: balance\nstorage: s3://key:plain-password@b/c", SECRET_JOB
    )
    loaded = load(text, "data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}")
    store = stored(open_storage(str(tmp_path / "store")), loaded)
    for number in range(3):
        trial = proposed(loaded, number)
        trial_job(loaded, store.record(), trial)
        store.save(trial)
    store.ask_to_stop()
    store.finish()
    written = {p: p.read_text() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert len(written) == 6
    for text in written.values():
        for secret in ("hidden-bucket", "swordfish", "pass%20word", "plain-password"):
            assert secret not in text
    record = store.record()
    assert "${env:DATA}/train" in record.text
    assert "${env:DATA}/train" in record.rendered
    assert record.overrides == ("data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}",)
    assert record.tracking_uri == "https://***@mlflow.example"


def test_a_sweep_is_read_as_it_was_written(load: Load, tmp_path: Path) -> None:
    loaded = load(VALID, "sweep.seeds_per_config=2", "sweep.scheduler=asha")
    store = stored(open_storage(str(tmp_path / "store")), loaded)
    trials = [proposed(loaded, number) for number in range(12)]
    trials[3].looks = [Look(400, (math.nan,), 0), Look(800, (0.25,), 1)]
    trials[4].legs.append(Leg("r", {"a": None, "b": True}, "store/x", 3, 800, "m"))
    for trial in random.Random(0).sample(trials, 12):
        store.save(trial)
    again = SweepStore(open_storage(str(tmp_path / "store")), "balance-1")
    assert again.record() == store.record()
    assert again.record().sweep == loaded.job.sweep
    sweep = again.sweep()
    assert repr(sweep.trials) == repr(trials)  # where NaN is the same as NaN
    assert (sweep.name, sweep.job, sweep.total_images) == ("balance-1", "balance", 8000)
    assert (sweep.num_trials, sweep.has_all_trials) == (12, True)
    assert "NaN" not in (tmp_path / "store/sweeps/balance-1/trials/0003.json").read_text()


def test_the_state_of_a_sweep_is_that_of_its_driver(load: Load, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    store = stored(storage, load())
    assert store.state() == "stopped", "nobody has driven it yet"
    with driving(storage, store.key) as driver:
        beat = json.loads(storage.get(driver_key(store.key)))
        driver.stopping()
        deadline = time.monotonic() + 10
        while json.loads(storage.get(driver_key(store.key)))["stopping"] is False:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.state() == "stopped", "it is no accident, whatever comes of it"
    assert store.state() == "stopped"
    dead = next(pid for pid in range(2**22, 2**23) if not Path(f"/proc/{pid}").exists())
    storage.put(driver_key(store.key), json.dumps({**beat, "pid": dead}).encode())
    assert store.state() == "lost"
    store.finish()
    assert store.state() == "finished"


def test_a_sweep_whose_driver_writes_runs(load: Load, tmp_path: Path) -> None:
    """Seen from another machine, where its process cannot be looked for."""

    class Beating(WrappedStorage):
        """A driver writes between any two reads."""

        beats = 0

        def get(self, key: str) -> bytes:
            self.beats += 1
            return json.dumps({**json.loads(super().get(key)), "beat": self.beats}).encode()

    storage = open_storage(str(tmp_path / "store"))
    store = stored(storage, load())
    beat = {"host": "another", "pid": 1, "id": "x", "beat": 1, "ended": False, "stopping": False}
    storage.put(driver_key(store.key), json.dumps(beat).encode())
    assert SweepStore(Beating(storage), store.name).state() == "running"


def test_a_wish_to_stop_is_there_until_it_is_taken_back(load: Load, tmp_path: Path) -> None:
    store = stored(open_storage(str(tmp_path / "store")), load())
    assert not store.asked_to_stop()
    store.forget_stop()
    store.ask_to_stop()
    store.ask_to_stop()
    assert store.asked_to_stop()
    store.forget_stop()
    assert not store.asked_to_stop()


def test_sweeps_are_found_by_name_and_by_place(load: Load, tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    storage, loaded = open_storage(place), load()
    with pytest.raises(UsageError, match=r"there is no sweep x in .*, and no other one either"):
        sweep_at("x", place).record()
    for name in ("b-2", "a-1", "c-3"):
        stored(storage, loaded, name=name)
    storage.put("a-1/run.json", b"{}")
    storage.put("sweeps/d-4/t000/run.json", b"{}")
    assert [store.name for store in sweeps(storage)] == ["a-1", "b-2", "c-3"]
    assert sweep_at("b-2", place).record().name == "b-2"
    assert sweep_at(f"{place}/sweeps/b-2/", "elsewhere").record().name == "b-2"
    with pytest.raises(UsageError, match=r"there is no sweep x in .*; it has: a-1, b-2, c-3"):
        sweep_at("x", place).record()
