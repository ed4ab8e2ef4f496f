"""Checkpoints are evaluated beside the training: which ones, when, and what an error changes."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator import tracking
from orchestrator.config.load import load_job
from orchestrator.errors import DataError, EnvironmentProblem, TryAgain
from orchestrator.evaluation.report import Measurement
from orchestrator.runs import evaluation_process, evaluations
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.evaluation_process import EvaluationEnd
from orchestrator.runs.evaluation_task import EvaluationRecord, record_key
from orchestrator.runs.evaluations import Evaluations
from orchestrator.runs.run_context import RunContext
from orchestrator.storage.base import Storage
from orchestrator.training.loop import Outcome
from support.checkpoints import make_state
from support.small_runs import pack_pairs, write_job
from support.waiting import wait_until

EVALUATE = "evaluate={metrics: [pairs]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("evaluations"))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "RETRY_S", 0.05)
    monkeypatch.setattr(evaluations, "POLL_S", 0.02)


@dataclass
class FakeEvaluation:
    """An evaluation that ends when the test says so."""

    context: RunContext
    checkpoint: str
    end: EvaluationEnd | None = None
    cancelled: bool = False

    def succeed(self, value: float = 0.5) -> None:
        seen = int(self.checkpoint.partition("-")[0])
        write_result(self.context.storage(), self.checkpoint, seen, value)
        self.end = EvaluationEnd()

    def poll(self) -> EvaluationEnd | None:
        return self.end

    def cancel(self) -> None:
        self.cancelled = True


def write_result(storage: Storage, checkpoint: str, seen: int, value: float) -> None:
    record = EvaluationRecord(checkpoint, seen, {}, (Measurement("l1", value, 4),))
    storage.put(record_key("run", checkpoint), record.to_json().encode())


@dataclass
class Bench:
    """Evaluations of a run whose training and evaluator are the test."""

    context: RunContext
    checkpoints: Checkpoints
    started: list[FakeEvaluation] = field(default_factory=list)
    results: list[tuple[int, float]] = field(default_factory=list)

    def open(self) -> Evaluations:
        def launch(context: RunContext, checkpoint: str) -> FakeEvaluation:
            self.started.append(FakeEvaluation(context, checkpoint))
            return self.started[-1]

        def add(record: EvaluationRecord) -> None:
            self.results.append((record.images_seen, record.points()["evaluation/l1"]))

        return Evaluations(self.context, self.checkpoints, 100, launch, add)

    def save(self, evaluations: Evaluations, images_seen: int) -> None:
        self.checkpoints.save(make_state(images_seen))
        evaluations.checkpoint_saved()

    def wait_for_start(self, number: int) -> FakeEvaluation:
        wait_until(lambda: len(self.started) >= number, 20, f"evaluation {number}", poll_s=0.01)
        return self.started[number - 1]

    def wait_for_result(self, number: int) -> None:
        wait_until(lambda: len(self.results) >= number, 20, f"result {number}", poll_s=0.01)

    def started_at(self) -> list[int]:
        return [int(each.checkpoint.partition("-")[0]) for each in self.started]


@pytest.fixture
def bench(data: str, tmp_path: Path) -> Callable[..., Bench]:
    def make(*settings: str) -> Bench:
        job = load_job(write_job(tmp_path / "job", data), [EVALUATE, *settings]).job
        run = tracking.RunRef("sqlite:///unused.db", "0", "0", 1.0)
        context = RunContext("run", job, "name: small\n", run, "0")
        return Bench(context, context.checkpoints())

    return make


def test_the_newest_checkpoint_is_next_and_those_between_are_left_out(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 10)
        first = one.wait_for_start(1)
        for seen in (20, 30, 40):
            one.save(evaluations, seen)
        time.sleep(0.2)
        assert one.started_at() == [10], "one at a time"
        first.succeed()
        one.wait_for_start(2).succeed()
        one.wait_for_result(2)
    assert one.started_at() == [10, 40]
    assert one.results == [(10, 0.5), (40, 0.5)]


def test_a_checkpoint_is_kept_while_it_is_evaluated(bench: Callable[..., Bench]) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 10)
        first = one.wait_for_start(1)
        for seen in (20, 30, 40, 50):
            one.save(evaluations, seen)
        kept = [int(name.partition("-")[0]) for name in one.checkpoints.names()]
        assert kept == [10, 30, 40, 50]
        first.succeed()
        one.wait_for_start(2)
        one.save(evaluations, 60)
        kept = [int(name.partition("-")[0]) for name in one.checkpoints.names()]
        assert kept == [40, 50, 60]


def test_the_interval_is_counted_in_images_and_the_last_checkpoint_is_always_due(
    bench: Callable[..., Bench],
) -> None:
    one = bench("evaluate.every=30")
    with closing(one.open()) as evaluations:
        expected = 0
        for seen in range(10, 101, 10):
            one.save(evaluations, seen)
            if seen in (30, 60, 90, 100):
                expected += 1
                one.wait_for_start(expected).succeed()
                one.wait_for_result(expected)
        outcome = evaluations.finish(Outcome(100, finished=True, metrics={}), lambda: False)
    assert one.started_at() == [30, 60, 90, 100]
    assert outcome.metrics == {"evaluation/l1": 0.5}


def test_results_of_an_earlier_process_are_passed_on_and_not_made_again(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 100)
        one.wait_for_start(1).succeed(0.25)
        one.wait_for_result(1)
    with closing(one.open()) as evaluations:
        outcome = evaluations.finish(Outcome(100, finished=True, metrics={}), lambda: False)
    assert one.results == [(100, 0.25), (100, 0.25)]
    assert len(one.started) == 1
    assert outcome.metrics == {"evaluation/l1": 0.25}


def test_an_evaluation_that_the_run_left_behind_is_made_again(bench: Callable[..., Bench]) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 10)
        first = one.wait_for_start(1)
    assert first.cancelled
    with closing(one.open()):
        one.wait_for_start(2).succeed()
        one.wait_for_result(1)
    assert one.started_at() == [10, 10]


def test_a_damaged_result_is_named_and_made_again(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 100)
        one.wait_for_start(1).succeed()
        one.wait_for_result(1)
    key = record_key("run", one.started[0].checkpoint)
    one.context.storage().put(key, b'{"format": 1, "checkpoint": 3}')
    with closing(one.open()) as evaluations:
        one.wait_for_start(2).succeed(0.125)
        outcome = evaluations.finish(Outcome(100, finished=True, metrics={}), lambda: False)
    assert f"{key} is damaged: " in caplog.text
    assert outcome.metrics == {"evaluation/l1": 0.125}


def test_a_checkpoint_that_cannot_be_evaluated_is_left_out_with_its_reason(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 10)
        one.wait_for_start(1).end = EvaluationEnd("l1 is nan; check the images")
        one.save(evaluations, 20)
        one.wait_for_start(2).succeed()
        one.wait_for_result(1)
    assert one.started_at() == [10, 20]
    assert "is not evaluated: l1 is nan; check the images" in caplog.text


def test_the_end_gives_up_after_too_many_kills_and_says_how_to_evaluate_later(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture, data: str
) -> None:
    one = bench()
    gone = EvaluationEnd("its process ended with signal 9", try_again=True)

    def launch(context: RunContext, checkpoint: str) -> FakeEvaluation:
        one.started.append(FakeEvaluation(context, checkpoint, end=gone))
        return one.started[-1]

    one.checkpoints.save(make_state(100))
    with closing(Evaluations(one.context, one.checkpoints, 100, launch, print)) as evaluations:
        before = Outcome(100, finished=True, metrics={"validation/l1": 1.0})
        assert evaluations.finish(before, lambda: False) == before
    assert len(one.started) >= 25
    place = f"{one.context.job.storage}/run --data {data}/validation"
    assert f"25 times in a row; to do it later: orchestrator evaluate {place}" in caplog.text


def test_an_evaluation_that_cannot_be_started_is_tried_again(bench: Callable[..., Bench]) -> None:
    one, refusals = bench(), [BlockingIOError("Resource temporarily unavailable")] * 3

    def launch(context: RunContext, checkpoint: str) -> FakeEvaluation:
        if refusals:
            raise refusals.pop()
        return FakeEvaluation(context, checkpoint, end=EvaluationEnd("done by the test"))

    one.checkpoints.save(make_state(100))
    with closing(Evaluations(one.context, one.checkpoints, 100, launch, print)) as evaluations:
        assert evaluations.finish(Outcome(100, finished=True, metrics={}), lambda: False).finished
    assert refusals == []


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (EnvironmentProblem("s3://runs does not answer"), True),
        (TryAgain("the connection was reset"), True),
        (DataError("l1 is nan"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_an_outage_is_no_reason_to_leave_a_checkpoint_out(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, error: Exception, *, again: bool
) -> None:
    def fail(context: RunContext, checkpoint: str) -> None:
        raise error

    monkeypatch.setattr(evaluation_process, "evaluate_checkpoint", fail)
    monkeypatch.setattr(evaluation_process, "NICE", 0)
    end = evaluation_process.attempt_evaluation(bench().context, "1-a")
    assert end.try_again == again
    assert str(error) in end.problem


def test_a_run_that_is_stopped_while_it_waits_has_not_finished(bench: Callable[..., Bench]) -> None:
    one = bench()
    with closing(one.open()) as evaluations:
        one.save(evaluations, 100)
        last = one.wait_for_start(1)
        outcome = evaluations.finish(Outcome(100, finished=True, metrics={}), lambda: True)
        assert not last.cancelled
    assert not outcome.finished
    assert last.cancelled
