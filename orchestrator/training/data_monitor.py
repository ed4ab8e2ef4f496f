"""Monitors the data of every rank: time spent waiting, bytes read, corrupt samples."""

import logging
from collections.abc import Mapping, Sequence

import torch

from orchestrator.config.logged_metrics import MAX_RANKS
from orchestrator.training.collectives import gather, gather_tensors
from orchestrator.training.interfaces import Stream, Worker

CORRUPT_SAMPLES_FILE = "corrupt_samples.txt"
MAX_WAIT_FRACTION = 0.05
WARN_AFTER_S = 30.0
"""Training time, after the first log, on which the warning about waiting is based."""

logger = logging.getLogger(__name__)


class DataMonitor:
    """Turns the counts of each worker's stream into metrics of all workers."""

    def __init__(self, stream: Stream, worker: Worker, threads: int) -> None:
        self._stream, self._worker, self._threads = stream, worker, threads
        self._counts = stream.counts()
        self._num_corrupt_logged = 0
        self._elapsed_s: float | None = None
        """Training time since the first log; None before it."""
        self._waited_s, self._read_wait_s = 0.0, 0.0
        self._warned = False

    def metrics(self, elapsed_s: float, waited_s: float, images_seen: int) -> dict[str, float]:
        """Return metrics of the last ``elapsed_s`` of training; every rank calls it.

        ``data/wait_fraction`` is that of the rank that waits longest. For each rank: the fraction
        of time that it waited for data, MB/s, retries and corrupt samples so far, and the fraction
        of blocks that were in its cache.
        """
        counts = self._stream.counts()
        since = {key: value - self._counts[key] for key, value in counts.items()}
        self._counts = counts
        blocks = since["cache_hits"] + since["cache_misses"]
        mine = {
            "wait_fraction": waited_s / elapsed_s,
            "mb_per_s": since["bytes_read"] / elapsed_s / 1e6,
            "retries": counts["retries"],
            "corrupt_samples": counts["corrupt_samples"],
            "cache_hit_fraction": since["cache_hits"] / blocks if blocks else 0.0,
        }
        values = [*mine.values(), elapsed_s, waited_s, since["read_wait_s"]]
        packed = torch.tensor(values, dtype=torch.float64, device=self._worker.device)
        rows = [row.tolist() for row in gather_tensors(packed, self._worker.world_size)]
        by_name = {name: [row[i] for row in rows] for i, name in enumerate(mine)}
        if self._worker.rank == 0:
            self._warn_about_waiting(rows)
        self._log_corrupt_samples(int(sum(by_name["corrupt_samples"])), images_seen)
        return {"data/wait_fraction": max(by_name["wait_fraction"]), **_name_by_rank(by_name)}

    def _warn_about_waiting(self, rows: list[list[float]]) -> None:
        """Warn once if waiting takes too long even after the start, and suggest what to change."""
        if self._elapsed_s is None:
            self._elapsed_s = 0.0
            return
        rank = max(range(len(rows)), key=lambda rank: rows[rank][-2])
        elapsed_s, waited_s, read_wait_s = rows[rank][-3:]
        self._elapsed_s += elapsed_s
        self._waited_s += waited_s
        self._read_wait_s += read_wait_s
        fraction = self._waited_s / self._elapsed_s
        if self._warned or self._elapsed_s < WARN_AFTER_S or fraction <= MAX_WAIT_FRACTION:
            return
        self._warned = True
        # read_wait_s is a sum over all decoding threads.
        is_reading_slow = self._read_wait_s / self._threads > self._waited_s / 2
        advice = (
            "reading from the storage is too slow: raise data.prefetch_memory to read further "
            "ahead, set a data.cache, or look at data/rank_*/retries"
            if is_reading_slow
            else f"decoding is too slow: raise data.threads (now {self._threads}) and "
            "cluster.cpus_per_worker, or pack the images at the size that is trained on"
        )
        logger.warning("%.0f %% of the time is spent waiting for data: %s", 100 * fraction, advice)

    def _log_corrupt_samples(self, count: int, images_seen: int) -> None:
        """Log all ranks' corrupt samples when there are new ones; every rank calls it."""
        if count == self._num_corrupt_logged:
            return
        self._num_corrupt_logged = count
        by_rank = gather(list(self._stream.corrupt_samples()), self._worker.world_size)
        text = "\n".join([*sorted(set().union(*by_rank)), ""])
        if self._worker.rank == 0:
            self._worker.recorder.log_text(CORRUPT_SAMPLES_FILE, text, images_seen)


def _name_by_rank(by_name: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name metrics by rank; with many ranks, return the mean and the maximum of each."""
    named: dict[str, float] = {}
    for name, values in by_name.items():
        if len(values) <= MAX_RANKS:
            named |= {f"data/rank_{rank}/{name}": value for rank, value in enumerate(values)}
        else:
            named[f"data/mean/{name}"] = sum(values) / len(values)
            named[f"data/max/{name}"] = max(values)
    return named
