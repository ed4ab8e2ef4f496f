"""Decisions of a study, one at a time."""

import json
import random

import pytest

from orchestrator.sweeps.study import Study
from support.pools import SECTIONS, Disk, Pool, check_history, make_study, number_of


def test_trials_start_in_order_and_are_recorded_before_they_run() -> None:
    disk = Disk()
    study = make_study(disk, trials=3)
    for number in range(3):
        trial = study.next_trial()
        assert trial is not None
        assert (trial.number, trial.status) == (number, "running")
        assert json.loads(disk.records[number])["status"] == "running"
        assert trial.segments[0].run == f"sweeps/s/t{number:03d}"
    assert study.next_trial() is None
    assert not study.is_exhausted
    for number in range(3):
        assert not study.is_over
        study.record_end(number, "finished")
    assert study.is_exhausted
    assert study.is_over
    assert study.sweep.num_trials == 3
    assert [trial.runtime_s for trial in disk.trials()] == [6.0, 6.0, 6.0]


def test_trials_of_a_configuration_differ_only_in_their_seed() -> None:
    disk = Disk()
    Pool(disk, {"trials": 2, "seeds_per_config": 3}, size=4).run()
    trials = sorted(disk.trials(), key=lambda trial: trial.number)
    assert [(t.configuration, t.seed_index) for t in trials] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert [t.values for t in trials] == [trials[0].values] * 3 + [trials[3].values] * 3
    assert trials[0].values != trials[3].values
    assert len({t.segments[0].run for t in trials}) == 6


def test_a_trial_resumes_up_to_max_failures_times_and_then_fails() -> None:
    disk = Disk()
    study = make_study(disk, trials=2)
    for num_failures in range(1, 4):
        assert number_of(study.next_trial()) == 0
        study.record_process_loss(0, "its process died", max_failures=3)
        trial = disk.trials()[0]
        assert (trial.status, trial.reason) == ("waiting", "its process died")
        assert trial.num_failures == num_failures
    assert number_of(study.next_trial()) == 0
    study.record_process_loss(0, "its process died", max_failures=3)
    trial = disk.trials()[0]
    assert (trial.status, trial.num_failures) == ("failed", 4)
    assert trial.reason == "its process died; cluster.max_failures is 3"
    assert number_of(study.next_trial()) == 1


def test_failures_add_up_over_drivers_and_a_dead_driver_is_no_failure() -> None:
    disk = Disk()
    for num_failures in range(3):
        study = make_study(disk, trials=1)
        assert number_of(study.next_trial()) == 0
        study.record_process_loss(0, "its process died", max_failures=2)
        assert disk.trials()[0].num_failures == num_failures + 1
        make_study(disk, trials=1).next_trial()  # and its driver is killed
    assert disk.trials()[0].status == "failed"


def test_a_trial_that_reported_its_end_is_not_lost() -> None:
    """Every process is gone after it has reported its end."""
    disk = Disk()
    study = make_study(disk, trials=1)
    study.next_trial()
    study.record_end(0, "finished")
    before = list(disk.history)
    study.record_process_loss(0, "its process died", max_failures=0)
    assert disk.history == before


def test_a_result_that_is_reported_twice_counts_once() -> None:
    disk = Disk()
    study = make_study(disk, trials=1)
    study.next_trial()
    assert study.report_result(0, 100, (1.0,)).action == "continue"
    assert study.report_result(0, 100, (7.0,)).action == "continue"
    assert study.report_result(0, 50, (7.0,)).action == "continue"
    assert [(result.images_seen, result.values) for result in disk.trials()[0].results] == [
        (100, (1.0,))
    ]


def study_with_a_stopped_trial(disk: Disk) -> Study:
    """Make a study that has decided to stop trial 3, which has not stopped yet."""
    study = make_study(disk, scheduler="median", trials=4)
    for _ in range(4):
        study.next_trial()
    for number in range(3):
        study.report_result(number, 100, (1.0,))
    assert study.report_result(3, 100, (2.0,)).action == "stop"
    return study


def test_a_trial_whose_process_dies_before_it_obeys_a_stop_is_stopped() -> None:
    reasons = []
    for how in ("died", "died too often", "paused", "driver died", "out of time"):
        disk = Disk()
        study = study_with_a_stopped_trial(disk)
        match how:
            case "died":
                study.record_process_loss(3, "its process died", max_failures=3)
            case "died too often":
                study.record_process_loss(3, "its process died", max_failures=0)
            case "paused":
                study.stop("someone stopped the sweep")
                assert study.requested_action(3, 100).action == "stop"  # type: ignore[union-attr]
                study.record_end(3, "paused", "someone stopped the sweep")
            case "driver died":
                make_study(disk, scheduler="median", trials=4)
            case "out of time":
                study.end_early("sweep.max_hours is 1")
                study.record_process_loss(3, "its process died", max_failures=3)
        [trial] = [t for t in disk.trials() if t.number == 3]
        assert trial.status == "stopped", how
        reasons.append(trial.reason)
    assert set(reasons) == {
        "best value 2 in 100 images; the median of the means of 3 other trials is 1"
    }


def test_a_decision_is_not_revised_by_later_results() -> None:
    """Trial 0 was the first to report; others were better since."""
    disk = Disk()
    study = make_study(disk, scheduler="median", trials=5, grace_images=100)
    for _ in range(5):
        study.next_trial()
    assert study.report_result(0, 100, (9.0,)).action == "continue"
    for number in range(1, 5):
        study.report_result(number, 100, (1.0,))
    again = make_study(disk, scheduler="median", trials=5, grace_images=100)
    assert {t.number: t.status for t in again.trials} == dict.fromkeys(range(5), "waiting")


@pytest.mark.parametrize("scheduler", ["hyperband", "pbt"])
def test_a_trial_whose_process_dies_before_it_pauses_resumes_and_pauses(scheduler: str) -> None:
    disk = Disk()
    section = {"scheduler": scheduler, "trials": 3, "grace_images": 100}
    study = make_study(disk, **section)
    trials = [study.next_trial() for _ in range(3)]
    assert [number_of(trial) for trial in trials] == [0, 1, 2]
    for number in range(3):
        assert study.report_result(number, 100, (float(number),)).action == "pause"
    for number in (1, 2):
        disk.save_state(study.trials[number].segments[0].run, 100, 0.0)
        study.record_end(number, "paused", "waits for other trials at 100 images")
    study.record_process_loss(0, "its process died", max_failures=3)
    for again in (study, make_study(disk, **section)):
        [trial] = [t for t in again.trials if t.number == 0]
        assert (trial.status, trial.reason) == ("waiting", "waits for other trials at 100 images")
    assert number_of(study.next_trial()) == 0, "no trial is promoted before all have paused"
    assert study.requested_action(0, 50) is None
    decision = study.requested_action(0, 100)
    assert decision is not None
    assert (decision.action, decision.reason) == ("pause", "waits for other trials at 100 images")
    disk.save_state(study.trials[0].segments[0].run, 100, 0.0)
    study.record_end(0, decision.action + "d", decision.reason)  # type: ignore[arg-type]
    assert number_of(study.next_trial()) == (0 if scheduler == "hyperband" else 1)
    if scheduler == "hyperband":
        assert [trial.status for trial in study.trials] == ["running", "stopped", "stopped"]
        assert study.requested_action(0, 150) is None, "it was promoted"
    else:
        assert study.trials[2].segments[-1].parent == 0


def test_a_stopped_sweep_can_be_resumed() -> None:
    """At any moment; the resumed sweep ends with all trials."""
    for name in ("fifo", "asha", "hyperband", "pbt"):
        uninterrupted = Disk()
        turns = [0]

        def count(pool: Pool, turn: int, turns: list[int] = turns) -> None:
            turns[0] = turn

        Pool(uninterrupted, SECTIONS[name], at_turn=count).run()
        for moment in range(0, turns[0], 7):
            disk = Disk()

            def stop(pool: Pool, turn: int, moment: int = moment) -> None:
                if turn == moment:
                    pool.study.stop("someone stopped the sweep")

            pool = Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=stop).run()
            assert pool.study.next_trial() is None
            assert "running" not in {trial.status for trial in disk.trials()}
            left = [trial for trial in disk.trials() if not trial.is_over]
            assert {trial.status for trial in left} <= {"waiting", "paused"}
            for trial in left:
                assert max(disk.checkpoints[trial.segments[-1].run], default=0) >= trial.images_seen
            Pool(disk, SECTIONS[name], 3, random.Random(moment)).run()
            check_history(disk)
            assert len(disk.records) == len(uninterrupted.records)


def test_a_stopped_sweep_pauses_running_trials_and_starts_none() -> None:
    disk = Disk()
    study = make_study(disk, trials=3)
    study.next_trial()
    study.next_trial()
    assert study.sweep_action is None
    study.stop("someone stopped the sweep")
    assert study.next_trial() is None
    assert study.is_exhausted
    assert not study.is_over
    decision = study.report_result(0, 100, (1.0,))
    assert decision == study.sweep_action == study.requested_action(1, 10)
    assert (decision.action, decision.reason) == ("pause", "someone stopped the sweep")
    study.record_end(0, "paused", decision.reason)
    study.record_end(1, "paused", decision.reason)
    assert study.is_over
    assert [trial.status for trial in disk.trials()] == ["waiting", "waiting"]
    resumed = make_study(disk, trials=3)
    assert [number_of(resumed.next_trial()) for _ in range(3)] == [0, 1, 2]


def test_a_sweep_out_of_time_stops_all_trials_for_good() -> None:
    disk = Disk()
    study = make_study(disk, scheduler="hyperband", trials=5)
    for _ in range(4):
        study.next_trial()
    study.report_result(0, 100, (1.0,))
    study.record_end(0, "paused", "waits for other trials at 100 images")
    study.report_result(1, 50, (1.0,))
    study.record_process_loss(2, "its process died", max_failures=3)
    study.end_early("sweep.max_hours is 2")
    assert study.next_trial() is None
    states = {trial.number: (trial.status, trial.reason) for trial in disk.trials()}
    assert states[0] == ("stopped", "sweep.max_hours is 2")
    assert states[2] == ("failed", "sweep.max_hours is 2"), "it has no result"
    decision = study.report_result(1, 100, (1.0,))
    assert decision == study.requested_action(3, 0)
    assert (decision.action, decision.reason) == ("stop", "sweep.max_hours is 2")
    assert not study.is_over
    study.record_end(1, "stopped", decision.reason)
    study.record_process_loss(3, "its process died", max_failures=3)
    assert study.is_over
    states = {trial.number: (trial.status, trial.reason) for trial in disk.trials()}
    assert states[1] == ("stopped", "sweep.max_hours is 2")
    assert states[3] == ("failed", "sweep.max_hours is 2"), "no driver would resume it"


def test_a_trial_that_pauses_after_the_time_is_up_is_stopped() -> None:
    disk = Disk()
    study = make_study(disk, scheduler="hyperband", trials=2)
    study.next_trial()
    assert study.report_result(0, 100, (1.0,)).action == "pause"
    study.end_early("sweep.max_hours is 2")
    study.record_end(0, "paused", "waits for other trials at 100 images")
    assert (disk.trials()[0].status, disk.trials()[0].reason) == ("stopped", "sweep.max_hours is 2")


@pytest.mark.parametrize("moment", range(0, 200, 9))
def test_a_sweep_that_ends_early_leaves_no_unfinished_trial(moment: int) -> None:
    for name in ("asha", "hyperband", "pbt"):
        disk = Disk()

        def end(pool: Pool, turn: int) -> None:
            if turn == moment:
                pool.study.end_early("sweep.max_hours is 2")

        Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=end).run()
        check_history(disk)


def test_a_parent_resumes_only_after_its_copies_have_started() -> None:
    """A resumed parent deletes old checkpoints, among them the one that its copies start from."""
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 3, "grace_images": 100, "quantile": 0.3}
    study = make_study(disk, **section)
    for number in range(3):
        study.next_trial()
        study.report_result(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.record_end(number, "paused", "waits")
    assert number_of(study.next_trial()) == 1
    copy = study.next_trial()
    assert copy is not None
    segment = copy.segments[-1]
    assert (copy.number, len(copy.segments)) == (2, 2)
    assert segment.run == "sweeps/s/t002-1"
    assert (segment.parent, segment.start_images) == (0, 100)
    assert segment.source_checkpoint == "sweeps/s/t000/checkpoints/100"
    assert segment.values != study.trials[0].values
    assert study.next_trial() is None, "the parent must wait"
    for again in (study, make_study(disk, **section)):  # also for the next driver
        if again is not study:
            assert [number_of(again.next_trial()) for _ in range(3)] == [1, 2, None]
        again.record_start(2, "mlflow-id")
        assert number_of(again.next_trial()) == 0


def test_a_parent_resumes_if_its_copy_will_never_start() -> None:
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    study = make_study(disk, **section)
    for number in range(2):
        study.next_trial()
        study.report_result(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.record_end(number, "paused", "waits")
    assert [number_of(study.next_trial()) for _ in range(2)] == [1, None]
    study.record_end(1, "failed", "its values are invalid together")
    assert number_of(study.next_trial()) == 0


def test_each_copy_names_its_parents_checkpoint_of_that_interval() -> None:
    disk = Disk()
    Pool(disk, SECTIONS["pbt with many intervals"], 3, random.Random(0)).run()
    trials = {trial.number: trial for trial in disk.trials()}
    segments = [
        segment
        for trial in trials.values()
        for segment in trial.segments
        if segment.parent is not None
    ]
    assert len(segments) == 8
    assert sorted(segment.start_images for segment in segments) == list(range(100, 900, 100))
    for segment in segments:
        assert segment.parent is not None
        runs = [parent_leg.run for parent_leg in trials[segment.parent].segments]
        assert segment.source_checkpoint in {
            f"{run}/checkpoints/{segment.start_images}" for run in runs
        }
    for trial in trials.values():
        first = trial.segments[0].run
        expected = [first, *(f"{first}-{n}" for n in range(1, len(trial.segments)))]
        assert [segment.run for segment in trial.segments] == expected
