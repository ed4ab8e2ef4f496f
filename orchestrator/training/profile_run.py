"""Times some steps of a run; nothing of it is saved."""

from dataclasses import replace

from orchestrator.config.job import Job
from orchestrator.training.interfaces import Stream, Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.profiler import StepProfiler, gather_steps
from orchestrator.training.state import TrainState


class NullCheckpointStore:
    """A checkpoint store that saves nothing."""

    def save(self, state: TrainState) -> None:
        """Drop the state."""

    def flush(self) -> None:
        """Return at once."""

    def latest(self) -> TrainState | None:
        """Return None."""
        return None


def time_steps(job: Job, stream: Stream, worker: Worker, num_steps: int) -> Outcome:
    """Train for at least ``num_steps`` steps as ``train`` does, and time them; every rank calls it.

    The job must have more steps than that, and no log, evaluation or checkpoint before.
    """
    profiler = StepProfiler(worker.device)

    def on_activity(activity: str) -> None:
        worker.on_activity(activity)
        profiler.on_activity(activity)

    timed = replace(
        worker,
        should_stop=lambda: worker.should_stop() or len(profiler.steps) >= num_steps,
        on_activity=on_activity,
        on_ddp=profiler.on_ddp,
    )
    outcome = train(job, stream, timed)
    return replace(outcome, times=gather_steps(profiler.steps, worker.world_size))
