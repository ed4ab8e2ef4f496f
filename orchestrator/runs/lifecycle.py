"""Be the driver of a run: its lease, its record, and its status in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from orchestrator import tracking
from orchestrator.errors import OrchestratorError, Stopped
from orchestrator.runs.lease import DriverLease, hold_lease
from orchestrator.runs.run_context import RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.watchdog import watchdog
from orchestrator.training.state import TrainState


@contextmanager
def run_lifecycle(
    context: RunContext,
    stop: StopRequest,
    last_heartbeat: bytes | None = None,
    *,
    resumed: bool,
    must_be_unfinished: bool = False,
    start: TrainState | None = None,
) -> Iterator[RunContext]:
    """Be the driver of a run within the block, which trains; write its status at the end.

    Yields the context with the fence of this driver. Raises Superseded, whatever the block raises,
    if another driver takes over.

    Args:
        last_heartbeat: of an orphaned run's driver, see ``lease.hold_lease``.
        must_be_unfinished: see there.
        resumed: whether an earlier driver started the run.
        start: state that a new run starts from.
    """
    storage = context.storage()
    with (
        hold_lease(
            storage, context.name, last_heartbeat, must_be_unfinished=must_be_unfinished
        ) as lease,
        watchdog(context.run),
        track_status(context.run, stop, lease, resumed=resumed),
        stop.on_stop(lease.mark_stopping),
    ):
        lease.on_superseded = stop.request
        context = replace(context, fence=lease.fence)
        if start is not None:  # before the record: whoever finds the run needs its first state
            context.checkpoints().save(start)
        context.check_fence()
        context.record.write(storage, context.rendered)
        yield context
        context.wait_out(context.check_fence)
        context.wait_out(lambda: context.record.mark_finished(storage))


@contextmanager
def track_status(
    run: tracking.RunRef, stop: StopRequest, lease: DriverLease, *, resumed: bool
) -> Iterator[None]:
    """Set the MLflow run's status to how the block ends; handle signals within it.

    A driver that was superseded writes nothing: the run has another driver now.
    """

    def finish(status: tracking.Status) -> None:
        if not lease.is_superseded():
            tracking.finish_run(run, status)

    def set_killed() -> None:
        # In a signal handler: the interrupted code may hold the lock of the storage.
        if not lease.superseded:
            tracking.finish_run(run, "KILLED")

    if resumed:
        tracking.reopen_run(run)
    try:
        # `ray job stop` leaves 3 s after its signal: what must not be lost is written first.
        with stop.handle_signals(), stop.on_stop(set_killed):
            yield
    except (KeyboardInterrupt, Stopped):
        finish("KILLED")
        raise
    except BaseException as error:
        # After a transient failure the same command resumes the run.
        is_transient = isinstance(error, OrchestratorError) and error.retry
        finish("KILLED" if is_transient else "FAILED")
        raise
    finish("FINISHED")
