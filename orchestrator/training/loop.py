"""The training loop: restore, step, log, validate, sample, save, stop."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from orchestrator.config.job import Job
from orchestrator.training.best_checkpoint import ScoredCheckpoint
from orchestrator.training.divergence import RollbackRequired
from orchestrator.training.interfaces import Stream, Worker
from orchestrator.training.preflight import run_preflight
from orchestrator.training.profiler import StepTimes
from orchestrator.training.stop_consensus import StopConsensus
from orchestrator.training.trainer import Trainer

POINTS_PER_EPOCH = 100


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    images_seen: int
    finished: bool
    """False if the worker was asked to stop before the end."""
    metrics: Mapping[str, float]
    """Of the last validation."""
    best: ScoredCheckpoint | None = None
    """Where the best checkpoint is to be registered; None if none has a finite metric."""
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    """Of those metrics of the last validation that are means over images."""
    times: tuple[tuple[StepTimes, ...], ...] = ()
    """Steps of each rank, where they were timed."""


def train(job: Job, stream: Stream, worker: Worker) -> Outcome:
    """Train until the job's images are seen or a worker is asked to stop; every rank calls it.

    Saved checkpoints are committed when this returns.

    All randomness of a step is a function of the seed, the step and the rank, and the order of
    the images is a function of the seed alone. So a run that resumes from a checkpoint takes the
    same steps as an uninterrupted one.

    Raises:
        Diverged: gradients are not finite, and skipped updates and rollbacks did not help.
        Collapsed: there is a sign of collapse, and guard.collapse is stop.
        UsageError: the model cannot be trained like this; see preflight.py.
        DataError: the data set is corrupt.
    """
    trainer = Trainer(job, stream, worker)
    trainer.restore()
    run_preflight(trainer.model, trainer.phases, trainer.examples, job.images_per_pass, worker)
    with StopConsensus(worker) as stop:
        while True:
            try:
                _train_until_stopped(trainer, stop)
                break
            except RollbackRequired as error:
                trainer.roll_back(error.decision)
    trainer.flush()
    if trainer.is_finished and not trainer.validation.means:  # it was restored after the last step
        trainer.validate()
    last, seen = trainer.validation, trainer.images_seen
    return Outcome(seen, trainer.is_finished, last.means, trainer.best.best, last.standard_errors)


def _train_until_stopped(trainer: Trainer, stop: StopConsensus) -> None:
    """Train from the present state to the end, or until a worker is asked to stop."""
    settings, epoch = trainer.job.train, trainer.stream.num_samples
    log_every = settings.log_every or max(1, epoch // POINTS_PER_EPOCH)
    checkpoint_pending = False

    def is_due(every: int | None) -> bool:
        every, now = every or epoch, trainer.images_seen
        return trainer.is_finished or (now - settings.batch_size) // every != now // every

    def evaluate_if_due() -> None:
        if is_due(settings.validate_every):
            trainer.validate()
        if is_due(settings.sample_every):
            trainer.draw_samples()

    def save_if_due() -> None:
        nonlocal checkpoint_pending
        checkpoint_pending = checkpoint_pending or is_due(settings.checkpoint_every)
        if checkpoint_pending and (trainer.is_finished or not trainer.guard.last_update_skipped):
            trainer.save()
            checkpoint_pending = False

    if trainer.eval_pending:
        evaluate_if_due()
        if trainer.best.is_wanted:  # it was saved before it could be judged
            save_if_due()
    with closing(trainer.stream.training(trainer.images_seen)) as batches:
        while not trainer.is_finished:
            stop.ask()
            metrics = trainer.step(batches)
            if is_due(log_every):
                trainer.log_step(metrics)
            if stop.answer():  # whoever stops this run may not wait for an evaluation
                trainer.save(eval_pending=True)
                if trainer.is_finished:
                    evaluate_if_due()  # nothing will resume from this checkpoint
                    if trainer.best.is_wanted:
                        trainer.save()
                return
            evaluate_if_due()
            save_if_due()
