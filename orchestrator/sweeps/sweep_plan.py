"""Plan of a sweep: its size, concurrency and largest cost, before it starts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from orchestrator.config.job import Job
from orchestrator.config.search_space import num_configurations
from orchestrator.runs.usage import compute_usage


@dataclass(frozen=True)
class SweepPlan:
    """Number of trials, how many run concurrently, and what they cost at most."""

    metrics: tuple[str, ...]
    modes: tuple[str, ...]
    searcher: str
    scheduler: str
    space: dict[str, str]
    num_configurations: int
    seeds_per_config: int
    num_concurrent: int
    """Concurrent trials on a cluster of this machine alone."""
    max_images: int | None
    """Of all trials together, if none stops early; None if the training set is not there yet."""
    max_hours: float | None
    cpus: int
    """Of all concurrent trials."""
    gpus: int
    max_cost: str | None
    """Price of ``max_hours`` on these; None without a limit or a price."""

    @property
    def num_trials(self) -> int:
        """Trials in all."""
        return self.num_configurations * self.seeds_per_config

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield a label and a text for each line shown to the user."""
        goals = " and ".join(f"{n} ({m})" for n, m in zip(self.metrics, self.modes, strict=True))
        yield "sweep", f"searcher {self.searcher}, scheduler {self.scheduler}, metric {goals}"
        for name, given in self.space.items():
            yield f"  {name}", given
        each = f" of {self.num_configurations} configurations" if self.seeds_per_config > 1 else ""
        stops_early = self.scheduler not in ("fifo", "pbt")
        fewer = ", fewer if some trials stop early" if stops_early else ""
        images = "unknown until fetched" if self.max_images is None else f"{self.max_images:,}"
        yield "trials", f"{self.num_trials}{each}; at most {images} images in all{fewer}"
        here = f"{self.num_concurrent} on this machine" if self.num_concurrent else "none here"
        yield "concurrent trials", f"as many as the cluster has room for: {here}"
        yield "cost", self._format_cost()

    def _format_cost(self) -> str:
        if self.max_hours is None:
            return "no limit in hours; sweep.max_hours sets one"
        kind, number = ("GPU", self.gpus) if self.gpus else ("CPU", self.cpus)
        hours, price = self.max_hours, f", {self.max_cost}" if self.max_cost else ""
        total = f"at most {hours * number:g} {kind}-hours here"
        return f"{total}: {hours:g} h on {number} {kind}s{price}"


def plan_sweep(job: Job, total_images: int | None) -> SweepPlan | None:
    """Plan the job's sweep; None if it has none. A complete trial sees ``total_images``."""
    section, cluster = job.sweep, job.cluster
    if section is None:
        return None
    workers = cluster.max_workers
    room = (os.cpu_count() or 1) // (workers * cluster.cpus_per_worker)
    if cluster.gpus:
        room = min(room, torch.cuda.device_count() // (workers * cluster.gpus))
    num_trials = num_configurations(section) * section.seeds_per_config
    num_concurrent = min(room, num_trials, section.max_concurrent or room)
    num_workers, hours = num_concurrent * workers, section.max_hours
    usage = compute_usage(cluster, num_workers, 3600 * (hours or 0), job.cost)
    return SweepPlan(
        metrics=section.metrics,
        modes=section.modes,
        searcher=section.searcher,
        scheduler=section.scheduler,
        space={name: f"{d.kind} {d.args}" for name, d in section.space.items()},
        num_configurations=num_configurations(section),
        seeds_per_config=section.seeds_per_config,
        num_concurrent=num_concurrent,
        max_images=None if total_images is None else total_images * num_trials,
        max_hours=hours,
        cpus=num_workers * cluster.cpus_per_worker,
        gpus=num_workers * cluster.gpus,
        max_cost=None if hours is None or job.cost is None else usage.format_cost(),
    )
