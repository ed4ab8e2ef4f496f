"""The conductor of a sweep, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cluster.sweep_actor import STOP_POLL_S, Conductor
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.store import SweepRecord, SweepStore
from orchestrator.training.state import TrainState
from support.pools import EVERY, TOTAL, number_of, sweep_of


def announced(folder: Path, **section: Any) -> SweepStore:
    given = sweep_of(**section).section.model_dump(mode="json", exclude_none=True)
    store = SweepStore(open_storage(str(folder)), "s")
    store.announce(
        SweepRecord("s", "j", "x", "", (), "", given, "d", TOTAL, EVERY, "uri", "1", "parent")
    )
    return store


def save_checkpoint(folder: Path, run: str, images: int) -> None:
    checkpoints = Checkpoints(open_storage(str(folder)), f"{run}/checkpoints", "job: x")
    weights = {"net.w": torch.full((2,), float(images))}
    checkpoints.save(TrainState(images, weights, weights, {}, {"net": {}}).on_host())


def test_a_conductor_names_the_parents_newest_whole_checkpoint_and_not_where_the_storage_is(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "place-from-the-environment"
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    store = announced(folder, **section)
    conductor = Conductor(str(folder), "s", max_failures=3)
    for number in range(2):
        trial = conductor.next(f"a{number}")
        assert number_of(trial) == number
        conductor.started(number, f"mlflow-{number}")
        assert conductor.look(number, 100, (float(number),)).action == "pause"
        for images in (50, 100):
            save_checkpoint(folder, f"sweeps/s/t{number:03d}", images)
        conductor.ended(number, f"a{number}", "paused", "waits")
    copy = conductor.next("a2")
    assert copy is not None
    source = copy.legs[-1].source
    assert source is not None
    assert source.startswith("sweeps/s/t000/checkpoints/000000000100-")
    assert (folder / source / "manifest.json").exists()
    assert [trial.legs for trial in store.trials()] == [
        trial.legs for trial in conductor.progress(0).sweep.trials
    ]
    for path in (folder / "sweeps/s/trials").iterdir():
        assert "place-from" not in path.read_text()


def test_without_a_whole_checkpoint_to_copy_a_training_goes_on_as_it_is(tmp_path: Path) -> None:
    announced(tmp_path, scheduler="pbt", trials=2, grace_images=100)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for number in range(2):
        conductor.next(f"a{number}")
        conductor.look(number, 100, (float(number),))
        conductor.ended(number, f"a{number}", "paused", "waits")
    found = [conductor.next("a2"), conductor.next("a3")]
    assert sorted(trial.number for trial in found if trial) == [0, 1]
    second = conductor.progress(0).sweep.trials[1]
    assert len(second.legs) == 1
    record = json.loads((tmp_path / "sweeps/s/trials/0001.json").read_text())
    assert record["legs"][0]["values"] == second.values


def test_a_conductor_hears_of_a_wish_to_stop_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("orchestrator.cluster.sweep_actor.time.monotonic", lambda: now[0])
    store = announced(tmp_path, trials=3)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    conductor.next("a0")
    store.ask_to_stop()
    assert conductor.wish(0, 50) is None, "it does not look all the time"
    assert conductor.progress(0).images_seen == {0: 50}
    now[0] += STOP_POLL_S
    said = conductor.wish(0, 100)
    assert said is not None
    assert (said.action, said.why) == ("pause", "someone stopped the sweep")
    assert conductor.next("a1") is None
    assert conductor.is_over()
    conductor.ended(0, "a0", "paused", said.why)
    progress = conductor.progress(0)
    assert (progress.stopped, progress.images_seen) == (True, {})
    assert [trial.status for trial in store.trials()] == ["waiting"]


def test_a_conductor_keeps_notes_in_order_and_gives_each_once(tmp_path: Path) -> None:
    announced(tmp_path, trials=1)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for text in ("a", "b", "c"):
        conductor.note(text)
    assert conductor.progress(0).notes == ["a", "b", "c"]
    assert conductor.progress(2).notes == ["c"]
    assert conductor.progress(3).notes == []


def test_the_late_word_of_an_ended_attempt_does_not_touch_the_one_that_runs_now(
    tmp_path: Path,
) -> None:
    announced(tmp_path, scheduler="pbt", trials=2, grace_images=100)
    conductor = Conductor(str(tmp_path), "s", max_failures=3)
    for number in range(2):
        conductor.next(f"a{number}")
        conductor.look(number, 100, (float(number),))
        conductor.ended(number, f"a{number}", "paused", "waits")
    again = conductor.next("a2")
    assert again is not None
    late = f"a{again.number}"
    conductor.lost(again.number, late, "its process was lost")  # as Tune tells of each end
    conductor.ended(again.number, late, "finished", "")
    trial = conductor.progress(0).sweep.trials[again.number]
    assert (trial.status, trial.failures) == ("running", 0)
    conductor.lost(again.number, "a2", "its process was lost")
    conductor.lost(again.number, "a2", "its process was lost")
    trial = conductor.progress(0).sweep.trials[again.number]
    assert (trial.status, trial.failures) == ("waiting", 1)
