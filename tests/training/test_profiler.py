"""The times of a step, with artificial delays."""

import itertools
import json
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from orchestrator.models.base import Batch
from orchestrator.training.interfaces import NullRecorder, Worker
from orchestrator.training.loop import train
from orchestrator.training.profile_run import NullCheckpointStore, time_steps
from orchestrator.training.profiler import StepProfiler, _averaging_times
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job
from support.ranks import on_two_ranks

NEVER = 10**12
ENDLESS = {
    "images": NEVER, "log_every": NEVER, "checkpoint_every": NEVER, "sample_every": NEVER,
    "validate_every": NEVER,
}  # fmt: skip
STEPS, DATA_S, COMPUTING_S = 8, 0.03, 0.2


class SlowStream(MemoryStream):
    """Each batch arrives with a delay."""

    def training(self, start: int) -> Generator[Batch, None, None]:
        for batch in super().training(start):
            time.sleep(DATA_S)
            yield batch


def rank_of_two(rank: int, out: Path) -> None:
    """Train twice, with and without a profiler; then time a run in which rank 1 is slow."""
    cpu = torch.device("cpu")
    for timed in (False, True):
        profiler, store = StepProfiler(cpu), MemoryCheckpoints()
        worker = Worker(ListRecorder(), store, cpu, rank, 2)
        if timed:
            worker = replace(worker, on_ddp=profiler.on_ddp, on_activity=profiler.on_activity)
        train(small_job(), MemoryStream(rank=rank, world=2), worker)
        if rank == 0:
            torch.save(store.states[-1].networks, out / f"{timed}.pt")
    if rank == 1:
        _slow_down()
    worker = Worker(NullRecorder(), NullCheckpointStore(), cpu, rank, 2)
    outcome = time_steps(small_job(**ENDLESS), SlowStream(rank=rank, world=2), worker, STEPS)
    if rank == 0:
        times = [[step._asdict() for step in steps_of_rank] for steps_of_rank in outcome.times]
        (out / "times.json").write_text(json.dumps([times, outcome.images_seen]))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of two ranks."""
    out = tmp_path_factory.mktemp("ranks")
    on_two_ranks(rank_of_two, out)
    return out


def _slow_down() -> None:
    """Delay each step of this process, as on a slower machine."""
    from orchestrator.training.step import TrainingStep

    original = TrainingStep.__call__

    def slow(self: TrainingStep, *args: object, **options: object) -> object:
        time.sleep(COMPUTING_S)
        return original(self, *args, **options)  # type: ignore[arg-type]

    TrainingStep.__call__ = slow  # type: ignore[assignment, method-assign]


def test_waiting_for_data_and_waiting_for_a_slower_worker_are_told_apart(
    two_ranks: Path,
) -> None:
    times, images_seen = json.loads((two_ranks / "times.json").read_text())
    num_steps = len(times[0])
    assert [len(steps_of_rank) for steps_of_rank in times] == [num_steps, num_steps]
    assert images_seen == 4 * num_steps
    assert STEPS <= num_steps <= STEPS + 2
    for step in itertools.chain(*times):
        assert step["data_s"] >= DATA_S
        assert min(step.values()) >= 0
        assert step["data_s"] + step["communication_s"] <= step["step_s"]
    fast, slow = (
        [step["communication_s"] for step in steps_of_rank[2:]] for steps_of_rank in times
    )
    assert numpy.median(fast) >= 0.8 * COMPUTING_S, "rank 0 waits for rank 1"
    assert min(slow) < 0.5 * COMPUTING_S, "rank 1 does not wait"
    seconds = [sum(step["step_s"] for step in steps_of_rank) for steps_of_rank in times]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1), "both run in lockstep"


def test_a_timed_run_takes_the_same_steps_bit_for_bit(two_ranks: Path) -> None:
    plain, timed = (torch.load(two_ranks / f"{name}.pt") for name in (False, True))
    assert plain.keys() == timed.keys()
    assert all(torch.equal(plain[name], timed[name]) for name in plain)


def test_a_single_worker_does_not_communicate() -> None:
    worker = Worker(NullRecorder(), NullCheckpointStore(), torch.device("cpu"))
    outcome = time_steps(small_job(**ENDLESS), MemoryStream(), worker, 3)
    (steps,) = outcome.times
    assert len(steps) >= 3
    assert {(step.communication_s, step.overlapped_s) for step in steps} == {(0.0, 0.0)}
    assert not outcome.finished


@pytest.mark.parametrize("seed", range(5))
def test_averaging_times_agree_with_counting_ticks(seed: int) -> None:
    """At each tick: is a bucket in flight, and has the backward pass sent its last one?"""
    noise = numpy.random.default_rng(seed)
    buckets, ticks, begin = [], [], 0
    for _ in range(3):  # phases
        sent = numpy.sort(noise.integers(begin, begin + 400, size=4))
        returned = sent + noise.integers(1, 300, size=4)
        buckets += [
            (s / 1000, b / 1000, i == 3)
            for i, (s, b) in enumerate(zip(sent, returned, strict=True))
        ]
        ticks.append((sent, returned))
        begin = int(returned.max()) + 50
    exposed = overlapped = 0
    for sent, returned in ticks:
        for tick in range(sent[0], returned.max()):
            in_flight = bool(((sent <= tick) & (tick < returned)).any())
            exposed += in_flight and tick >= sent[-1]
            overlapped += in_flight and tick < sent[-1]
    assert _averaging_times(buckets) == pytest.approx((exposed / 1000, overlapped / 1000))
