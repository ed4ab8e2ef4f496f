"""A training of some steps that are timed, and of which nothing is kept."""

from dataclasses import replace

from orchestrator.config.job import Job
from orchestrator.training.interfaces import Stream, Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.profiler import Stopwatch, of_all_ranks
from orchestrator.training.state import TrainState


class Nowhere:
    """A checkpoint store that keeps nothing."""

    def save(self, state: TrainState) -> None:
        """Forget it."""

    def flush(self) -> None:
        """There is nothing to wait for."""

    def latest(self) -> TrainState | None:
        """None."""
        return None


def time_steps(job: Job, stream: Stream, worker: Worker, num_steps: int) -> Outcome:
    """Train for at least ``num_steps`` steps as ``train`` does, and time them; every rank calls it.

    The job must be longer than that, and nothing must be due in it before.
    """
    watch = Stopwatch(worker.device)

    def doing(what: str) -> None:
        worker.doing(what)
        watch.doing(what)

    timed = replace(
        worker,
        should_stop=lambda: worker.should_stop() or len(watch.steps) >= num_steps,
        doing=doing,
        averages=watch.averages,
    )
    outcome = train(job, stream, timed)
    return replace(outcome, times=of_all_ranks(watch.steps, worker.world_size))
