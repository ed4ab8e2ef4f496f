"""Watches how fast data come, on every rank: how much waiting, how many bytes, what was damaged."""

import logging
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from orchestrator.training.interfaces import Stream, Worker

MOST_RANKS = 16
"""Up to so many ranks have metrics of their own; of more, the mean and the largest are told."""
CORRUPT_SAMPLES_FILE = "corrupt_samples.txt"
TOO_MUCH_WAITING = 0.05
SURE_AFTER_S = 30.0
"""Training seconds, after the first log, that the warning of too much waiting is based on."""

logger = logging.getLogger(__name__)


class DataMonitor:
    """Turns a worker's counts into metrics of all workers."""

    def __init__(self, stream: Stream, worker: Worker, threads: int) -> None:
        self._stream, self._worker, self._threads = stream, worker, threads
        self._counts = stream.counts()
        self._num_damaged_told = 0
        self._elapsed_s: float | None = None
        """Seconds since the first log, which are what is judged; None before it."""
        self._waited_s, self._read_wait_s = 0.0, 0.0
        self._warned = False

    def metrics(self, elapsed_s: float, waited_s: float, images_seen: int) -> dict[str, float]:
        """Metrics of the last ``elapsed_s`` of training; every rank calls it.

        ``data_wait_share`` is that of the rank that waits longest. Of each rank: the share of time
        in which it waited for data, MB/s, retries and damaged samples so far, and the share of
        the blocks that its cache had.
        """
        counts = self._stream.counts()
        since = {key: value - self._counts[key] for key, value in counts.items()}
        self._counts = counts
        blocks = since["cache_hits"] + since["cache_misses"]
        mine = {
            "wait_share": waited_s / elapsed_s,
            "mb_per_s": since["bytes_read"] / elapsed_s / 1e6,
            "retries": counts["retries"],
            "corrupt_samples": counts["corrupt_samples"],
            "cache_hit_share": since["cache_hits"] / blocks if blocks else 0.0,
        }
        rows = self._gathered([*mine.values(), elapsed_s, waited_s, since["read_wait_s"]])
        by_name = {name: [row[i] for row in rows] for i, name in enumerate(mine)}
        if self._worker.rank == 0:
            self._warn_of_waiting(rows)
        self._tell_of_damage(int(sum(by_name["corrupt_samples"])), images_seen)
        return {"data_wait_share": max(by_name["wait_share"]), **_named(by_name)}

    def _gathered(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all ranks, by rank."""
        if self._worker.world_size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=self._worker.device)
        rows = [torch.empty_like(mine) for _ in range(self._worker.world_size)]
        dist.all_gather(rows, mine)
        return [row.tolist() for row in rows]

    def _warn_of_waiting(self, rows: list[list[float]]) -> None:
        """Say once what to change, when waiting is more than a start that is still cold."""
        if self._elapsed_s is None:
            self._elapsed_s = 0.0
            return
        rank = max(range(len(rows)), key=lambda rank: rows[rank][-2])
        elapsed_s, waited_s, read_wait_s = rows[rank][-3:]
        self._elapsed_s += elapsed_s
        self._waited_s += waited_s
        self._read_wait_s += read_wait_s
        share = self._waited_s / self._elapsed_s
        if self._warned or self._elapsed_s < SURE_AFTER_S or share <= TOO_MUCH_WAITING:
            return
        self._warned = True
        # Each decoding thread that waits for bytes counts for itself.
        reading = self._read_wait_s / self._threads > self._waited_s / 2
        advice = (
            "the store does not deliver in time: raise data.prefetch_memory, which reads further "
            "ahead, give a data.cache, or look at data/rank_*/retries"
            if reading
            else f"decoding is too slow: raise data.threads (now {self._threads}) and "
            "cluster.cpus_per_worker, or pack the images at the size that is trained on"
        )
        logger.warning("%.0f %% of the time goes into waiting for data: %s", 100 * share, advice)

    def _tell_of_damage(self, count: int, images_seen: int) -> None:
        """Record all ranks' damaged samples when there are new ones; every rank calls it."""
        if count == self._num_damaged_told:
            return
        self._num_damaged_told = count
        lines: list[list[str] | None] = [list(self._stream.corrupt_samples())]
        if self._worker.world_size > 1:
            lines = [None] * self._worker.world_size
            dist.all_gather_object(lines, list(self._stream.corrupt_samples()))
        told = sorted({line for of_rank in lines for line in of_rank or ()})
        if self._worker.rank == 0:
            self._worker.recorder.text(CORRUPT_SAMPLES_FILE, "\n".join([*told, ""]), images_seen)


def _named(by_name: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Metrics by rank, or of all ranks together where they are many."""
    named: dict[str, float] = {}
    for name, values in by_name.items():
        if len(values) <= MOST_RANKS:
            named |= {f"data/rank_{rank}/{name}": value for rank, value in enumerate(values)}
        else:
            named[f"data/mean/{name}"] = sum(values) / len(values)
            named[f"data/max/{name}"] = max(values)
    return named
