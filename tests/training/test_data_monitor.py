"""Metrics of each rank's data, the warning about waiting, and the list of corrupt samples."""

from pathlib import Path

import pytest
import torch

from orchestrator.training.data_monitor import CORRUPT_SAMPLES_FILE, DataMonitor, _name_by_rank
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import train
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job
from support.ranks import WORLD_SIZE, on_two_ranks


class CountedStream(MemoryStream):
    """A stream whose counts are set by a test."""

    def __init__(self, **counts: float) -> None:
        super().__init__()
        self.now = {**super().counts(), **counts}
        self.lines: list[str] = []

    def counts(self) -> dict[str, float]:
        return dict(self.now)

    def corrupt_samples(self) -> list[str]:
        return list(self.lines)

    def add(self, **counts: float) -> None:
        for name, value in counts.items():
            self.now[name] += value


def worker(rank: int = 0, world_size: int = 1) -> Worker:
    return Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"), rank, world_size)


def test_rates_are_measured_since_the_last_log_and_counts_since_the_start() -> None:
    stream = CountedStream(bytes_read=5e6, retries=1)
    monitor = DataMonitor(stream, worker(), threads=2)
    stream.add(bytes_read=4e6, retries=2, cache_hits=3, cache_misses=1)
    assert monitor.metrics(2.0, 0.5, 10) == {
        "data/wait_fraction": 0.25,
        "data/rank_0/wait_fraction": 0.25,
        "data/rank_0/mb_per_s": 2.0,
        "data/rank_0/retries": 3,
        "data/rank_0/corrupt_samples": 0,
        "data/rank_0/cache_hit_fraction": 0.75,
    }
    again = monitor.metrics(1.0, 0.0, 20)
    assert (again["data/rank_0/mb_per_s"], again["data/rank_0/cache_hit_fraction"]) == (0, 0)


def run_rank(rank: int, out: Path) -> None:
    stream = CountedStream()
    here = worker(rank, WORLD_SIZE)
    monitor = DataMonitor(stream, here, threads=1)
    first = monitor.metrics(1.0, 0.1 + 0.2 * rank, 4)
    stream.add(corrupt_samples=rank, bytes_read=1e6 * (1 + rank))
    stream.lines = [f"corrupt on {rank}"] * rank
    second = monitor.metrics(1.0, 0.0, 8)
    recorder = here.recorder
    assert isinstance(recorder, ListRecorder)
    torch.save((first, second, recorder.texts), out / f"{rank}.pt")


def test_rank_0_logs_what_each_rank_has_read_and_all_corrupt_samples(tmp_path: Path) -> None:
    on_two_ranks(run_rank, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one[:2] == other[:2]
    first, second, texts = one
    assert first["data/rank_0/wait_fraction"] == pytest.approx(0.1)
    assert first["data/rank_1/wait_fraction"] == first["data/wait_fraction"] == pytest.approx(0.3)
    assert (second["data/rank_0/mb_per_s"], second["data/rank_1/mb_per_s"]) == (1, 2)
    assert (second["data/rank_0/corrupt_samples"], second["data/rank_1/corrupt_samples"]) == (0, 1)
    assert texts == {CORRUPT_SAMPLES_FILE: "corrupt on 1\n"}
    assert other[2] == {}


def test_with_many_ranks_the_mean_and_the_maximum_are_logged() -> None:
    assert _name_by_rank({"retries": [float(n) for n in range(17)]}) == {
        "data/mean/retries": 8,
        "data/max/retries": 16,
    }
    assert len(_name_by_rank({"retries": [0.0] * 16})) == 16


@pytest.mark.parametrize(
    ("waited_s", "read_wait_s", "advice"),
    [
        (
            4.0,
            7.0,
            "13 % of the time is spent waiting for data: reading from the storage is",
        ),
        (4.0, 1.0, r"decoding is too slow: raise data.threads (now 2)"),
        (1.4, 2.8, None),
    ],
)
def test_too_much_waiting_is_reported_once_with_what_to_change(
    caplog: pytest.LogCaptureFixture, waited_s: float, read_wait_s: float, advice: str | None
) -> None:
    stream = CountedStream()
    monitor = DataMonitor(stream, worker(), threads=2)
    monitor.metrics(30.0, 30.0, 1)  # a cold start does not count
    for _ in range(3):
        stream.add(read_wait_s=read_wait_s / 2)
        monitor.metrics(15.0, waited_s / 2, 2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (advice is not None)
    assert advice is None or advice in messages[0]


def test_a_run_logs_the_metrics_of_its_data() -> None:
    recorder = ListRecorder()
    here = Worker(recorder, MemoryCheckpoints(), torch.device("cpu"))
    train(small_job(log_every=4), MemoryStream(), here)
    point = recorder.points[0][1]
    assert {
        "data/wait_fraction",
        "data/rank_0/wait_fraction",
        "data/rank_0/mb_per_s",
    } <= point.keys()
    assert 0 <= point["data/wait_fraction"] <= 1
