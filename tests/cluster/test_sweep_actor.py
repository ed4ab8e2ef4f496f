"""Controller of a sweep, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cluster.sweep_actor import STOP_POLL_S, SweepController
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.store import SweepRecord, SweepStore
from orchestrator.training.state import TrainState
from support.pools import EVERY, TOTAL, make_sweep, number_of


def create_sweep(folder: Path, **section: Any) -> SweepStore:
    given = make_sweep(**section).section.model_dump(mode="json", exclude_none=True)
    store = SweepStore(open_storage(str(folder)), "s")
    store.create(
        SweepRecord(
            "s", "j", "x", "", (), "name: j", given, "d", TOTAL, EVERY, "uri", "1", "parent"
        )
    )
    return store


def save_checkpoint(folder: Path, run: str, images: int) -> None:
    checkpoints = Checkpoints(open_storage(str(folder)), f"{run}/checkpoints", "job: x")
    weights = {"net.w": torch.full((2,), float(images))}
    checkpoints.save(TrainState(images, weights, weights, {}, {"net": {}}).on_host())


def test_a_copy_names_its_parents_newest_complete_checkpoint_without_the_storage_uri(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "place-from-the-environment"
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    store = create_sweep(folder, **section)
    controller = SweepController(str(folder), "s", max_failures=3)
    for number in range(2):
        trial = controller.next_trial(f"a{number}")
        assert number_of(trial) == number
        controller.started(number, f"mlflow-{number}")
        assert controller.report_result(number, 100, (float(number),)).action == "pause"
        for images in (50, 100):
            save_checkpoint(folder, f"sweeps/s/t{number:03d}", images)
        controller.ended(number, f"a{number}", "paused", "waits")
    copy = controller.next_trial("a2")
    assert copy is not None
    source = copy.segments[-1].source_checkpoint
    assert source is not None
    assert source.startswith("sweeps/s/t000/checkpoints/000000000100-")
    assert (folder / source / "manifest.json").exists()
    assert [trial.segments for trial in store.trials()] == [
        trial.segments for trial in controller.status(0).sweep.trials
    ]
    for path in (folder / "sweeps/s/trials").iterdir():
        assert "place-from" not in path.read_text()


def controller_of_two_paused_trials(folder: Path) -> SweepController:
    """Run two trials of a PBT sweep to the end of the first round."""
    create_sweep(folder, scheduler="pbt", trials=2, grace_images=100)
    controller = SweepController(str(folder), "s", max_failures=3)
    for number in range(2):
        controller.next_trial(f"a{number}")
        controller.report_result(number, 100, (float(number),))
        controller.ended(number, f"a{number}", "paused", "waits")
    return controller


def test_a_trial_continues_with_its_own_state_if_there_is_no_checkpoint_to_copy(
    tmp_path: Path,
) -> None:
    controller = controller_of_two_paused_trials(tmp_path)
    found = [controller.next_trial("a2"), controller.next_trial("a3")]
    assert sorted(trial.number for trial in found if trial) == [0, 1]
    second = controller.status(0).sweep.trials[1]
    assert len(second.segments) == 1
    record = json.loads((tmp_path / "sweeps/s/trials/0001.json").read_text())
    assert record["segments"][0]["values"] == second.values


def test_the_controller_finds_a_stop_request_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("orchestrator.cluster.sweep_actor.time.monotonic", lambda: now[0])
    store = create_sweep(tmp_path, trials=3)
    controller = SweepController(str(tmp_path), "s", max_failures=3)
    controller.next_trial("a0")
    store.request_stop()
    assert controller.requested_action(0, 50) is None, "it does not look all the time"
    assert controller.status(0).images_seen == {0: 50}
    now[0] += STOP_POLL_S
    said = controller.requested_action(0, 100)
    assert said is not None
    assert (said.action, said.reason) == ("pause", "someone stopped the sweep")
    assert controller.next_trial("a1") is None
    assert controller.is_over()
    controller.ended(0, "a0", "paused", said.reason)
    status = controller.status(0)
    assert (status.stopped, status.images_seen) == (True, {})
    assert [trial.status for trial in store.trials()] == ["waiting"]


def test_the_controller_delivers_messages_in_order_and_once(tmp_path: Path) -> None:
    create_sweep(tmp_path, trials=1)
    controller = SweepController(str(tmp_path), "s", max_failures=3)
    for text in ("a", "b", "c"):
        controller.add_message(text)
    assert controller.status(0).messages == ["a", "b", "c"]
    assert controller.status(2).messages == ["c"]
    assert controller.status(3).messages == []


def test_a_late_message_of_an_ended_attempt_does_not_affect_the_current_one(
    tmp_path: Path,
) -> None:
    controller = controller_of_two_paused_trials(tmp_path)
    again = controller.next_trial("a2")
    assert again is not None
    late = f"a{again.number}"
    controller.lost(again.number, late, "its process was lost")  # as Tune tells of each end
    controller.ended(again.number, late, "finished", "")
    trial = controller.status(0).sweep.trials[again.number]
    assert (trial.status, trial.num_failures) == ("running", 0)
    controller.lost(again.number, "a2", "its process was lost")
    controller.lost(again.number, "a2", "its process was lost")
    trial = controller.status(0).sweep.trials[again.number]
    assert (trial.status, trial.num_failures) == ("waiting", 1)
