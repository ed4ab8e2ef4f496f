"""Assembles data, checkpoints and tracker around the training loop, on each worker of a run."""

import os
from contextlib import closing, suppress
from dataclasses import replace

import torch

from orchestrator.config.job import Job
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import OrchestratorError
from orchestrator.garbage import collect_as_usual
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.best_evaluation import BestEvaluation
from orchestrator.runs.evaluation_process import EvaluationLauncher, EvaluationProcess
from orchestrator.runs.evaluations import Evaluations
from orchestrator.runs.recording import RunRecorder, recording
from orchestrator.runs.run_context import RunContext, WorkerCallbacks
from orchestrator.training.interfaces import NullRecorder, Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.profile_run import NullCheckpointStore, time_steps


def train_worker(
    context: RunContext,
    callbacks: WorkerCallbacks,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    launch_evaluation: EvaluationLauncher = EvaluationProcess,
) -> Outcome:
    """Train as one worker of a run; rank 0 also logs to the tracker.

    Every rank calls it; with several the process group must exist. If the job has an evaluation,
    rank 0 returns only after that of the last checkpoint.
    """
    job = context.job
    os.environ.update(job.variables())
    stream = ShardStream(job, rank, world_size, pin_memory=device.type == "cuda")
    worker = Worker(
        NullRecorder(),
        NullCheckpointStore(),
        device,
        rank,
        world_size,
        callbacks.should_stop,
        callbacks.on_activity,
    )
    if context.timed_steps:
        return time_steps(job, stream, worker, context.timed_steps)
    context.check_storage()
    store, best = context.checkpoints(), job.register_as.best if job.register_as else None
    if best is not None and best.is_evaluated:
        store.also_kept = BestEvaluation(context.storage(), context.name, best).keep
    checkpoints = AsyncCheckpointStore(
        store,
        job.data.retry_timeout_s,
        callbacks.on_saved,
        keep_every=best is not None and not best.is_evaluated,
    )
    worker = replace(worker, checkpoints=checkpoints)
    with recording(context, worker, checkpoints, stream.num_samples, callbacks) as worker:
        if rank > 0 or job.evaluate is None:
            return _train(job, stream, worker, checkpoints)
        recorder = worker.recorder
        assert isinstance(recorder, RunRecorder)
        evaluations = Evaluations(
            context, store, recorder.total_images, launch_evaluation, recorder.log_evaluation
        )
        with closing(evaluations):
            checkpoints.after_commit = evaluations.checkpoint_saved
            outcome = _train(job, stream, worker, checkpoints)
            if outcome.finished:
                callbacks.on_activity("evaluating")
                outcome = evaluations.finish(outcome, callbacks.should_stop)
        if outcome.finished:
            recorder.report_last_evaluation(outcome.metrics, outcome.images_seen)
        return outcome


def _train(
    job: Job, stream: ShardStream, worker: Worker, checkpoints: AsyncCheckpointStore
) -> Outcome:
    collect_as_usual()
    try:
        return train(job, stream, worker)
    finally:
        # Either `train` has raised its error already, or the present error matters more.
        with suppress(OrchestratorError):
            checkpoints.flush()
