"""Records of a sweep in a storage, and its state."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.runs.lease import hold_lease, lease_key
from orchestrator.storage.base import WrappedStorage
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import IntermediateResult, TrialSegment
from orchestrator.sweeps.store import SweepStore, UnsupportedFormat, list_sweeps, open_sweep
from orchestrator.sweeps.trial_job import load_trial_job
from services.fixtures_jobs import Load
from support.sweep_jobs import VALID, edited, store_sweep, suggest_trial
from support.waiting import wait_until

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


def test_secrets_from_the_environment_never_reach_the_storage(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    loaded = load(SECRET_JOB, "data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}")
    store = store_sweep(open_storage(str(tmp_path / "store")), loaded)
    for number in range(3):
        trial = suggest_trial(loaded, number)
        load_trial_job(loaded, store.read_record(), trial)
        store.save_trial(trial)
    store.request_stop()
    store.mark_finished()
    written = {p: p.read_text() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    assert len(written) == 6
    for text in written.values():
        for secret in ("hidden-bucket", "swordfish", "pass%20word"):
            assert secret not in text
    record = store.read_record()
    assert "${env:DATA}/train" in record.text
    assert "${env:DATA}/train" in record.rendered
    assert record.overrides == ("data.cache={folder: '${env:TOKEN}/cache', limit: 1GiB}",)
    assert record.tracking_uri == "https://***@mlflow.example"


def test_a_sweep_is_read_as_it_was_written(load: Load, tmp_path: Path) -> None:
    loaded = load(VALID, "sweep.seeds_per_config=2", "sweep.scheduler=asha")
    store = store_sweep(open_storage(str(tmp_path / "store")), loaded)
    trials = [suggest_trial(loaded, number) for number in range(12)]
    trials[3].results = [
        IntermediateResult(400, (math.nan,), 0),
        IntermediateResult(800, (0.25,), 1),
    ]
    trials[4].segments.append(TrialSegment("r", {"a": None, "b": True}, "store/x", 3, 800, "m"))
    for trial in random.Random(0).sample(trials, 12):
        store.save_trial(trial)
    again = SweepStore(open_storage(str(tmp_path / "store")), "balance-1")
    assert again.read_record() == store.read_record()
    assert again.read_record().sweep == loaded.job.sweep
    sweep = again.load()
    assert repr(sweep.trials) == repr(trials)  # where NaN is the same as NaN
    assert (sweep.name, sweep.job, sweep.total_images) == ("balance-1", "balance", 8000)
    assert (sweep.num_trials, sweep.has_all_trials) == (12, True)
    assert "NaN" not in (tmp_path / "store/sweeps/balance-1/trials/0003.json").read_text()


def test_the_state_of_a_sweep_follows_its_driver(load: Load, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    store = store_sweep(storage, load())
    assert store.state() == "stopped", "no driver has started yet"

    def read_lease() -> dict[str, Any]:
        lease: dict[str, Any] = json.loads(storage.get(lease_key(store.key, 1)))
        return lease

    with hold_lease(storage, store.key) as driver:
        lease = read_lease()
        driver.mark_stopping()
        wait_until(lambda: read_lease()["stopping"], 10, "the lease records the stop")
        assert store.state() == "stopped", "a requested stop does not orphan the sweep"
    assert store.state() == "stopped"
    dead = next(pid for pid in range(2**22, 2**23) if not Path(f"/proc/{pid}").exists())
    storage.put(lease_key(store.key, 1), json.dumps({**lease, "pid": dead}).encode())
    assert store.state() == "orphaned"
    store.mark_finished()
    assert store.state() == "finished"


def test_a_sweep_whose_driver_renews_its_lease_is_running(load: Load, tmp_path: Path) -> None:
    """Seen from another machine, which cannot check the driver's process."""

    class RenewingStorage(WrappedStorage):
        """Storage where the driver renews its lease between any two reads."""

        heartbeats = 0

        def get(self, key: str) -> bytes:
            lease = json.loads(super().get(key))
            self.heartbeats += 1
            return json.dumps({**lease, "heartbeat": self.heartbeats}).encode()

    storage = open_storage(str(tmp_path / "store"))
    store = store_sweep(storage, load())
    with hold_lease(storage, store.key):
        lease = json.loads(storage.get(lease_key(store.key, 1)))
    storage.put(lease_key(store.key, 1), json.dumps({**lease, "host": "another"}).encode())
    assert SweepStore(RenewingStorage(storage), store.name).state() == "running"


def test_a_stop_request_holds_until_it_is_cleared(load: Load, tmp_path: Path) -> None:
    store = store_sweep(open_storage(str(tmp_path / "store")), load())
    assert not store.is_stop_requested()
    store.clear_stop_request()
    store.request_stop()
    store.request_stop()
    assert store.is_stop_requested()
    store.clear_stop_request()
    assert not store.is_stop_requested()


@pytest.mark.parametrize("name", ["", ".", "../x", "a//b", "a\\b", "s3://bucket/sweeps/..", "/"])
def test_what_cannot_be_a_sweep_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is not a sweep; give its name, or its folder as STOR"):
        open_sweep(name, str(tmp_path))


def test_sweeps_are_opened_by_name_and_by_uri(load: Load, tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    storage, loaded = open_storage(place), load()
    with pytest.raises(UsageError, match=r"there is no sweep x in .*; it has no sweeps"):
        open_sweep("x", place).read_record()
    for name in ("b-2", "a-1", "c-3"):
        store_sweep(storage, loaded, name=name)
    storage.put("a-1/run.json", b"{}")
    storage.put("sweeps/d-4/t000/run.json", b"{}")
    assert [store.name for store in list_sweeps(storage)] == ["a-1", "b-2", "c-3"]
    assert open_sweep("b-2", place).read_record().name == "b-2"
    assert open_sweep(f"{place}/sweeps/b-2/", "elsewhere").read_record().name == "b-2"
    with pytest.raises(UsageError, match=r"there is no sweep x in .*; it has: a-1, b-2, c-3"):
        open_sweep("x", place).read_record()


@pytest.mark.parametrize("found", [None, 3])
def test_a_record_of_another_format_is_refused_with_a_cure(
    load: Load, tmp_path: Path, found: int | None
) -> None:
    """Format 1 had no key for it."""
    storage = open_storage(str(tmp_path / "store"))
    store = store_sweep(storage, load())
    record = json.loads(storage.get("sweeps/balance-1/sweep.json"))
    assert record.pop("format") == 2
    written = record if found is None else {"format": found, **record}
    storage.put("sweeps/balance-1/sweep.json", json.dumps(written).encode())
    for read in (store.read_record, store.load):
        with pytest.raises(
            UnsupportedFormat,
            match=rf"sweeps/balance-1/sweep.json has format {found or 1}, and this version of the "
            r"orchestrator reads format 2; finish sweep balance-1 with the version that started "
            r"it, or start a new sweep with --no-resume",
        ):
            read()
