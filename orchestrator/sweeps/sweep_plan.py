"""What a sweep would do, told before it does it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from orchestrator.config.job import Job
from orchestrator.runs.usage import usage_of
from orchestrator.sweeps.searchers import num_configurations


@dataclass(frozen=True)
class SweepPlan:
    """How many trainings a sweep has, how many run at a time, and what they may cost."""

    metrics: tuple[str, ...]
    modes: tuple[str, ...]
    searcher: str
    scheduler: str
    space: dict[str, str]
    configurations: int
    seeds_per_config: int
    at_once: int
    """Trainings at a time on a cluster of this machine alone."""
    most_images: int | None
    """Of all trainings, if none is ended early; None if the training set is not there yet."""
    max_hours: float | None
    cpus: int
    """Of all trainings at a time."""
    gpus: int
    most_cost: str | None
    """Price of ``max_hours`` on these; None without a bound or a price."""

    @property
    def trainings(self) -> int:
        """In all."""
        return self.configurations * self.seeds_per_config

    def rows(self) -> Iterator[tuple[str, str]]:
        """For a person: a line for each thing."""
        judged = " and ".join(f"{n} ({m})" for n, m in zip(self.metrics, self.modes, strict=True))
        yield "sweep", f"{self.searcher} search for {judged}, scheduler {self.scheduler}"
        for name, given in self.space.items():
            yield f"  {name}", given
        each = f" of {self.configurations} configurations" if self.seeds_per_config > 1 else ""
        early = "" if self.scheduler in ("fifo", "pbt") else ", fewer where some are ended early"
        most = "unknown until fetched" if self.most_images is None else f"{self.most_images:,}"
        yield "trainings", f"{self.trainings}{each}; at most {most} images in all{early}"
        room = f"{self.at_once} on this machine" if self.at_once else "none on this machine"
        yield "at a time", f"as many as the cluster has room for: {room}"
        yield "cost", self._cost()

    def _cost(self) -> str:
        if self.max_hours is None:
            return "no bound in hours; sweep.max_hours sets one"
        kind, number = ("GPU", self.gpus) if self.gpus else ("CPU", self.cpus)
        hours = self.max_hours * number
        return f"at most {hours:g} {kind}-hours here: {self.max_hours:g} h on {number} {kind}s" + (
            f", {self.most_cost}" if self.most_cost else ""
        )


def plan_of(job: Job, total_images: int | None) -> SweepPlan | None:
    """The plan of the job's sweep, if it has one; ``total_images`` are those of a training."""
    section, cluster = job.sweep, job.cluster
    if section is None:
        return None
    workers = cluster.max_workers
    room = (os.cpu_count() or 1) // (workers * cluster.cpus_per_worker)
    if cluster.gpus_per_worker:
        room = min(room, torch.cuda.device_count() // (workers * cluster.gpus_per_worker))
    trainings = num_configurations(section) * section.seeds_per_config
    at_once = min(room, trainings, section.max_concurrent or room)
    hours = section.max_hours
    bounded = hours is not None and job.cost is not None
    most = usage_of(cluster, at_once * workers, 3600 * (hours or 0), job.cost)
    return SweepPlan(
        metrics=section.metrics,
        modes=section.modes,
        searcher=section.searcher,
        scheduler=section.scheduler,
        space={name: f"{d.kind} {d.given}" for name, d in section.space.items()},
        configurations=num_configurations(section),
        seeds_per_config=section.seeds_per_config,
        at_once=at_once,
        most_images=None if total_images is None else total_images * trainings,
        max_hours=section.max_hours,
        cpus=at_once * workers * cluster.cpus_per_worker,
        gpus=at_once * workers * cluster.gpus_per_worker,
        most_cost=most.money() if bounded else None,
    )
