"""The best checkpoint of a run, against the metrics' history and the list of its checkpoints."""

import json
import math

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.config.register_section import BestSection
from orchestrator.training.best_checkpoint import BestCheckpoint, ScoredCheckpoint, best_images
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.state import TrainState
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job

INTERVALS = {"images": 40, "log_every": 4, "validate_every": 4, "checkpoint_every": 8}


def job_with(metric: str, mode: str, **intervals: int) -> Job:
    values = small_job(**{**INTERVALS, **intervals}).model_dump(by_alias=True)
    values["register"] = {"name": "x", "best": {"metric": metric, "mode": mode}}
    return Job.model_validate(values, strict=True)


def run(
    job: Job, states: list[TrainState], stop_at: int = 0
) -> tuple[Outcome, ListRecorder, MemoryCheckpoints]:
    recorder, checkpoints, steps = ListRecorder(), MemoryCheckpoints(states), 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    worker = Worker(recorder, checkpoints, torch.device("cpu"), should_stop=should_stop)
    return train(job, MemoryStream(), worker), recorder, checkpoints


def oracle(metric: str, mode: str, recorder: ListRecorder, saved: list[TrainState]) -> int:
    """The images seen at the first best of the checkpoints with a finite value."""
    history, images = dict(recorder.curve(metric)), {state.images_seen for state in saved}
    values = {n: history[n] for n in sorted(images) if math.isfinite(history.get(n, math.nan))}
    best = (max if mode == "max" else min)(values.values())
    return next(n for n, value in values.items() if value == best)


@pytest.mark.parametrize(("metric", "mode"), [("validation/l1", "min"), ("generator/loss", "max")])
def test_it_is_the_one_that_the_history_and_the_list_of_checkpoints_name(
    metric: str, mode: str
) -> None:
    outcome, recorder, checkpoints = run(job_with(metric, mode), [])
    assert [state.images_seen for state in checkpoints.states] == [8, 16, 24, 32, 40]
    assert outcome.best is not None
    assert outcome.best.images_seen == oracle(metric, mode, recorder, checkpoints.states)
    assert outcome.best.metrics[metric] == dict(recorder.curve(metric))[outcome.best.images_seen]


@pytest.mark.slow
def test_a_run_stopped_in_any_step_chooses_as_the_uninterrupted_one() -> None:
    job = job_with("validation/l1", "max")
    whole, _, _ = run(job, [])
    for stop_at in (1, 2, 4, 9, 10):  # with and without a checkpoint due, and in the last
        _, _, stopped = run(job, [], stop_at)
        as_stored = [
            TrainState(**{**vars(s), "stateful": json.loads(json.dumps(s.stateful))})
            for s in stopped.states
        ]
        resumed, _, _ = run(job, as_stored)
        assert resumed.best == whole.best, f"stopped in step {stop_at}"


def test_checkpoints_between_two_validations_do_not_count() -> None:
    job = job_with("validation/l1", "max", validate_every=12)
    outcome, recorder, checkpoints = run(job, [])
    assert [n for n, _ in recorder.curve("validation/l1")] == [12, 24, 36, 40]
    assert outcome.best is not None
    assert outcome.best.images_seen in (24, 40)
    assert outcome.best.images_seen == oracle("validation/l1", "max", recorder, checkpoints.states)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_never_wins_and_the_first_of_equal_ones_does(mode: str) -> None:
    best = BestCheckpoint(BestSection.model_validate({"metric": "x", "mode": mode}))
    values = [math.nan, math.inf, -math.inf, 2.0, math.nan, 2.0, -math.inf]
    for number, value in enumerate(values):
        best.add({"x": value, "validation/l1": math.nan}, number)
        best.judge(number)
    assert best.best == ScoredCheckpoint(3, {"x": 2.0}, {})
    assert best_images({"best_checkpoint": json.loads(json.dumps(best.state_dict()))}) == 3
    assert best_images({}) is None
