"""Choose the run to resume, and check that its job is still the same."""

from shlex import quote

from orchestrator.config.flatten import flatten
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.runs.lease import find_expired_lease, has_ended
from orchestrator.runs.record import RunRecord, read_job, unfinished_runs
from orchestrator.storage.base import Storage

MAY_DIFFER = (
    "guard",
    "cluster",
    "cost",
    "tracking",
    "storage",
    "s3",
    "register",
    "evaluate",
    "data.train",
    "data.validation",
    "data.source",
    "data.threads",
    "data.prefetch_memory",
    "data.cache",
    "data.retry_timeout_s",
    "data.max_corrupt_fraction",
    "train.microbatch_size",
    "train.compile",
    "train.channels_last",
    "train.log_every",
    "train.checkpoint_every",
    "train.sample_every",
    "train.validate_every",
)
"""Keys that may change when a run is resumed: where and how it runs, not what it computes. The
training set is compared by its digest. The guard acts only on a run that diverges, which may need
other settings when it is resumed."""
KEPT = "register.best."
"""May be removed, but not set or changed: the checkpoints before were not judged by it."""


def find_orphaned_run(
    storage: Storage, job: str, rendered: str, digest: str
) -> tuple[RunRecord, bytes | None] | None:
    """Find the newest orphaned run of this job, with its driver's last heartbeat.

    Skips runs with a living driver and runs that failed or were stopped; the newest one is found
    nevertheless if it is trained, so that only its registration is left. Logs in a line why the
    newest unfinished run is not resumed. ``job`` is its name, ``digest`` that of its training set.
    """
    try:
        for number, record in enumerate(unfinished_runs(storage, job)):
            if not number and _is_unregistered(storage, record, rendered, digest):
                log_info(
                    f"resuming run {record.run}, which is trained and not registered; --no-resume "
                    "starts a new one"
                )
                return record, None
            heartbeat = _orphan_heartbeat(storage, record, rendered, digest, is_newest=not number)
            if heartbeat is not None:
                log_info(
                    f"resuming run {record.run}, whose driver died; --no-resume starts a new one"
                )
                return record, heartbeat
    except UsageError as error:
        log_info(f"starting a new run: {error}")
    return None


def _is_unregistered(storage: Storage, record: RunRecord, rendered: str, digest: str) -> bool:
    """Whether the run of the same job ended, for any reason, between training and registration."""
    if not record.is_trained(storage) or not has_ended(storage, record.run):
        return False
    return not job_changes(storage, record, rendered, digest)


def _orphan_heartbeat(
    storage: Storage, record: RunRecord, rendered: str, digest: str, *, is_newest: bool
) -> bytes | None:
    """Return the last heartbeat if the run is orphaned and the job is the same."""
    run, ended = record.run, has_ended(storage, record.run)
    if ended and not is_newest:
        return None
    changed = job_changes(storage, record, rendered, digest)
    if changed and is_newest:
        log_info(
            f"starting a new run: the job of run {run}, which has not finished, differs "
            f"({'; '.join(changed)}); to start from its newest checkpoint, use --init-from "
            f"{quote(mask(f'{storage.uri}/{run}'))}"
        )
    elif ended:
        log_info(
            f"starting a new run: run {run} failed or was stopped before it finished; to resume "
            "it, use --resume"
        )
    return None if changed or ended else find_expired_lease(storage, run)


def check_same_job(storage: Storage, record: RunRecord, job: str, data_digest: str) -> None:
    """Raise UsageError if the resolved ``job`` differs in what it computes from the run's job."""
    if changed := job_changes(storage, record, job, data_digest):
        raise UsageError(
            f"run {record.run} cannot be resumed: the job differs from the one that it was started "
            "with:\n  "
            + "\n  ".join(changed)
            + "\nundo the changes, or start a new run: from this one's newest checkpoint with "
            f"--init-from {quote(mask(f'{storage.uri}/{record.run}'))}, or from the beginning with "
            "--no-resume"
        )


def job_changes(storage: Storage, record: RunRecord, job: str, data_digest: str) -> list[str]:
    """List what the resolved ``job`` computes differently from the run so far, a line each."""
    changed = compare_jobs(read_job(storage, record.run), job)
    if data_digest != record.data_digest:
        changed.append(f"the training set: digest {record.data_digest[:12]} -> {data_digest[:12]}")
    return changed


def compare_jobs(before: str, after: str) -> list[str]:
    """List the values that differ between two resolved jobs, without MAY_DIFFER, a line each.

    `register.best` may only be removed.
    """
    old, new = flatten(before), flatten(after)
    may_differ = tuple(f"{key}." for key in MAY_DIFFER)
    return [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and (not f"{name}.".startswith(may_differ) or (name.startswith(KEPT) and name in new))
    ]
