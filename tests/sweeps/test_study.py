"""The decisions of a sweep, one at a time."""

import json
import random

import pytest

from orchestrator.sweeps.study import Study
from support.pools import SECTIONS, Disk, Pool, check_history, number_of, study_of


def test_trainings_are_begun_in_order_and_each_is_written_down_before_it_runs() -> None:
    disk = Disk()
    study = study_of(disk, trials=3)
    for number in range(3):
        trial = study.next()
        assert trial is not None
        assert (trial.number, trial.status) == (number, "running")
        assert json.loads(disk.records[number])["status"] == "running"
        assert trial.legs[0].run == f"sweeps/s/t{number:03d}"
    assert study.next() is None
    assert not study.stopping_or_done
    for number in range(3):
        assert not study.is_over
        study.ended(number, "finished")
    assert study.stopping_or_done
    assert study.is_over
    assert study.sweep.num_trials == 3
    assert [trial.seconds for trial in disk.trials()] == [6.0, 6.0, 6.0]


def test_repeats_share_their_values_and_differ_in_the_number_of_the_repeat() -> None:
    disk = Disk()
    Pool(disk, {"trials": 2, "seeds_per_config": 3}, size=4).run()
    trials = sorted(disk.trials(), key=lambda trial: trial.number)
    assert [(t.configuration, t.repeat) for t in trials] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert [t.values for t in trials] == [trials[0].values] * 3 + [trials[3].values] * 3
    assert trials[0].values != trials[3].values
    assert len({t.legs[0].run for t in trials}) == 6


def test_a_training_that_is_lost_goes_on_so_often_and_then_fails() -> None:
    disk = Disk()
    study = study_of(disk, trials=2)
    for failures in range(1, 4):
        assert number_of(study.next()) == 0
        study.lost(0, "its process was lost", max_failures=3)
        trial = disk.trials()[0]
        assert (trial.status, trial.why) == ("waiting", "its process was lost")
        assert trial.failures == failures
    assert number_of(study.next()) == 0
    study.lost(0, "its process was lost", max_failures=3)
    trial = disk.trials()[0]
    assert (trial.status, trial.failures) == ("failed", 4)
    assert trial.why == "its process was lost; cluster.max_failures is 3"
    assert number_of(study.next()) == 1


def test_failures_are_counted_over_drivers_but_a_lost_driver_is_none() -> None:
    disk = Disk()
    for failures in range(3):
        study = study_of(disk, trials=1)
        assert number_of(study.next()) == 0
        study.lost(0, "gone", max_failures=2)
        assert disk.trials()[0].failures == failures + 1
        study_of(disk, trials=1).next()  # and is killed
    assert disk.trials()[0].status == "failed"


def test_who_has_told_how_it_ended_is_not_lost() -> None:
    """Its process is gone afterwards, as every one is."""
    disk = Disk()
    study = study_of(disk, trials=1)
    study.next()
    study.ended(0, "finished")
    before = list(disk.history)
    study.lost(0, "its process was lost", max_failures=0)
    assert disk.history == before


def test_a_look_that_is_told_twice_counts_once() -> None:
    disk = Disk()
    study = study_of(disk, trials=1)
    study.next()
    assert study.look(0, 100, (1.0,)).action == "go on"
    assert study.look(0, 100, (7.0,)).action == "go on"
    assert study.look(0, 50, (7.0,)).action == "go on"
    assert [(look.images_seen, look.values) for look in disk.trials()[0].looks] == [(100, (1.0,))]


def stopped_by_median(disk: Disk) -> Study:
    """Training 3 was told to stop, and has not done so."""
    study = study_of(disk, scheduler="median", trials=4)
    for _ in range(4):
        study.next()
    for number in range(3):
        study.look(number, 100, (1.0,))
    assert study.look(3, 100, (2.0,)).action == "stop"
    return study


def test_who_was_told_to_stop_and_is_lost_before_it_did_is_stopped_all_the_same() -> None:
    whys = []
    for how in ("lost", "lost once too often", "paused", "driver lost", "time over"):
        disk = Disk()
        study = stopped_by_median(disk)
        match how:
            case "lost":
                study.lost(3, "gone", max_failures=3)
            case "lost once too often":
                study.lost(3, "gone", max_failures=0)
            case "paused":
                study.stop("someone stopped the sweep")
                assert study.wish_for(3, 100).action == "stop"  # type: ignore[union-attr]
                study.ended(3, "paused", "someone stopped the sweep")
            case "driver lost":
                study_of(disk, scheduler="median", trials=4)
            case "time over":
                study.end_early("sweep.max_hours is 1")
                study.lost(3, "gone", max_failures=3)
        [trial] = [t for t in disk.trials() if t.number == 3]
        assert trial.status == "stopped", how
        whys.append(trial.why)
    assert set(whys) == {"2 at best in 100 images; the median of the means of 3 others is 1"}


def test_what_was_told_at_a_look_is_not_judged_again_by_what_is_known_later() -> None:
    """At its look training 0 was the first at its rung; others were better there since."""
    disk = Disk()
    study = study_of(disk, scheduler="median", trials=5, grace_images=100)
    for _ in range(5):
        study.next()
    assert study.look(0, 100, (9.0,)).action == "go on"
    for number in range(1, 5):
        study.look(number, 100, (1.0,))
    again = study_of(disk, scheduler="median", trials=5, grace_images=100)
    assert {t.number: t.status for t in again.trials} == dict.fromkeys(range(5), "waiting")


@pytest.mark.parametrize("scheduler", ["hyperband", "pbt"])
def test_who_was_told_to_wait_and_is_lost_saves_at_its_look_and_waits(scheduler: str) -> None:
    disk = Disk()
    section = {"scheduler": scheduler, "trials": 3, "grace_images": 100}
    study = study_of(disk, **section)
    trials = [study.next() for _ in range(3)]
    assert [number_of(trial) for trial in trials] == [0, 1, 2]
    for number in range(3):
        assert study.look(number, 100, (float(number),)).action == "pause"
    for number in (1, 2):
        disk.save_state(study.trials[number].legs[0].run, 100, 0.0)
        study.ended(number, "paused", "waits for others at 100 images")
    study.lost(0, "gone", max_failures=3)
    for again in (study, study_of(disk, **section)):
        [trial] = [t for t in again.trials if t.number == 0]
        assert (trial.status, trial.why) == ("waiting", "waits for others at 100 images")
    assert number_of(study.next()) == 0, "nobody goes on before it is there"
    assert study.wish_for(0, 50) is None
    said = study.wish_for(0, 100)
    assert said is not None
    assert (said.action, said.why) == ("pause", "waits for others at 100 images")
    disk.save_state(study.trials[0].legs[0].run, 100, 0.0)
    study.ended(0, said.action + "d", said.why)  # type: ignore[arg-type]
    assert number_of(study.next()) == (0 if scheduler == "hyperband" else 1)
    if scheduler == "hyperband":
        assert [trial.status for trial in study.trials] == ["running", "stopped", "stopped"]
        assert study.wish_for(0, 150) is None, "it was let go on"
    else:
        assert study.trials[2].legs[-1].parent == 0


def test_a_sweep_that_is_stopped_leaves_trainings_that_can_go_on() -> None:
    """At whatever moment someone stops it; who resumes it comes to the same end."""
    for name in ("fifo", "asha", "hyperband", "pbt"):
        whole = Disk()
        turns = [0]

        def count(pool: Pool, turn: int, turns: list[int] = turns) -> None:
            turns[0] = turn

        Pool(whole, SECTIONS[name], at_turn=count).run()
        for moment in range(0, turns[0], 7):
            disk = Disk()

            def stop(pool: Pool, turn: int, moment: int = moment) -> None:
                if turn == moment:
                    pool.study.stop("someone stopped the sweep")

            pool = Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=stop).run()
            assert pool.study.next() is None
            assert "running" not in {trial.status for trial in disk.trials()}
            left = [trial for trial in disk.trials() if not trial.is_over]
            assert {trial.status for trial in left} <= {"waiting", "paused"}
            for trial in left:
                assert max(disk.checkpoints[trial.legs[-1].run], default=0) >= trial.images_seen
            Pool(disk, SECTIONS[name], 3, random.Random(moment)).run()
            check_history(disk)
            assert len(disk.records) == len(whole.records)


def test_a_stopped_sweep_tells_all_that_run_to_save_and_starts_nothing() -> None:
    disk = Disk()
    study = study_of(disk, trials=3)
    study.next()
    study.next()
    assert study.wish is None
    study.stop("someone stopped the sweep")
    assert study.next() is None
    assert study.stopping_or_done
    assert not study.is_over
    said = study.look(0, 100, (1.0,))
    assert said == study.wish == study.wish_for(1, 10)
    assert (said.action, said.why) == ("pause", "someone stopped the sweep")
    study.ended(0, "paused", said.why)
    study.ended(1, "paused", said.why)
    assert study.is_over
    assert [trial.status for trial in disk.trials()] == ["waiting", "waiting"]
    resumed = study_of(disk, trials=3)
    assert [number_of(resumed.next()) for _ in range(3)] == [0, 1, 2]


def test_a_sweep_whose_time_is_over_ends_all_for_good() -> None:
    disk = Disk()
    study = study_of(disk, scheduler="hyperband", trials=5)
    for _ in range(4):
        study.next()
    study.look(0, 100, (1.0,))
    study.ended(0, "paused", "waits for others at 100 images")
    study.look(1, 50, (1.0,))
    study.lost(2, "gone", max_failures=3)
    study.end_early("sweep.max_hours is 2")
    assert study.next() is None
    states = {trial.number: (trial.status, trial.why) for trial in disk.trials()}
    assert states[0] == ("stopped", "sweep.max_hours is 2")
    assert states[2] == ("failed", "sweep.max_hours is 2"), "it has shown nothing"
    said = study.look(1, 100, (1.0,))
    assert said == study.wish_for(3, 0)
    assert (said.action, said.why) == ("stop", "sweep.max_hours is 2")
    assert not study.is_over
    study.ended(1, "stopped", said.why)
    study.lost(3, "gone", max_failures=3)
    assert study.is_over
    states = {trial.number: (trial.status, trial.why) for trial in disk.trials()}
    assert states[1] == ("stopped", "sweep.max_hours is 2")
    assert states[3] == ("failed", "sweep.max_hours is 2"), "nobody would let it go on"


def test_who_comes_to_wait_when_the_time_is_over_is_ended() -> None:
    disk = Disk()
    study = study_of(disk, scheduler="hyperband", trials=2)
    study.next()
    assert study.look(0, 100, (1.0,)).action == "pause"
    study.end_early("sweep.max_hours is 2")
    study.ended(0, "paused", "waits for others at 100 images")
    assert (disk.trials()[0].status, disk.trials()[0].why) == ("stopped", "sweep.max_hours is 2")


@pytest.mark.parametrize("moment", range(0, 200, 9))
def test_a_sweep_that_ends_early_leaves_nothing_that_is_not_over(moment: int) -> None:
    for name in ("asha", "hyperband", "pbt"):
        disk = Disk()

        def end(pool: Pool, turn: int) -> None:
            if turn == moment:
                pool.study.end_early("sweep.max_hours is 2")

        Pool(disk, SECTIONS[name], 3, random.Random(moment), at_turn=end).run()
        check_history(disk)


def test_a_parent_goes_on_when_its_copies_have_started_and_not_before() -> None:
    """Going on it deletes old checkpoints, among them the one that they start from."""
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 3, "grace_images": 100, "quantile": 0.3}
    study = study_of(disk, **section)
    for number in range(3):
        study.next()
        study.look(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.ended(number, "paused", "waits")
    assert number_of(study.next()) == 1
    copy = study.next()
    assert copy is not None
    leg = copy.legs[-1]
    assert (copy.number, len(copy.legs)) == (2, 2)
    assert leg.run == "sweeps/s/t002-1"
    assert (leg.parent, leg.from_images) == (0, 100)
    assert leg.source == "sweeps/s/t000/checkpoints/100"
    assert leg.values != study.trials[0].values
    assert study.next() is None, "the parent waits"
    for again in (study, study_of(disk, **section)):  # also for a driver that finds it so
        if again is not study:
            assert [number_of(again.next()) for _ in range(3)] == [1, 2, None]
        again.started(2, "mlflow-id")
        assert number_of(again.next()) == 0


def test_a_parent_whose_copy_will_never_start_goes_on() -> None:
    disk = Disk()
    section = {"scheduler": "pbt", "trials": 2, "grace_images": 100}
    study = study_of(disk, **section)
    for number in range(2):
        study.next()
        study.look(number, 100, (float(number),))
        disk.save_state(f"sweeps/s/t{number:03d}", 100, 0.0)
        study.ended(number, "paused", "waits")
    assert [number_of(study.next()) for _ in range(2)] == [1, None]
    study.ended(1, "failed", "its values do not go together")
    assert number_of(study.next()) == 0


def test_each_copy_names_the_checkpoint_of_its_parent_at_that_round() -> None:
    disk = Disk()
    Pool(disk, SECTIONS["pbt with many rounds"], 3, random.Random(0)).run()
    trials = {trial.number: trial for trial in disk.trials()}
    legs = [leg for trial in trials.values() for leg in trial.legs if leg.parent is not None]
    assert len(legs) == 8
    assert sorted(leg.from_images for leg in legs) == list(range(100, 900, 100))
    for leg in legs:
        assert leg.parent is not None
        runs = [parent_leg.run for parent_leg in trials[leg.parent].legs]
        assert leg.source in {f"{run}/checkpoints/{leg.from_images}" for run in runs}
    for trial in trials.values():
        first = trial.legs[0].run
        expected = [first, *(f"{first}-{n}" for n in range(1, len(trial.legs)))]
        assert [leg.run for leg in trial.legs] == expected
