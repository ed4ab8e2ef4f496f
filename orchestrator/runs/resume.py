"""Which run a driver takes up by itself: one of the same job whose own driver was lost."""

from orchestrator.console import say
from orchestrator.redaction import mask
from orchestrator.runs.record import RunRecord, changes, ended_by_itself, lost, unfinished
from orchestrator.storage.base import Storage


def lost_run(
    storage: Storage, job: str, rendered: str, digest: str
) -> tuple[RunRecord, bytes] | None:
    """The newest run of this job that was lost, and its driver's last words; None if there is none.

    A run that someone drives is left alone, and so is one that failed or was stopped. Says in a
    line why the newest run that did not finish is not gone on with.

    Args:
        job: its name.
        rendered: the job, resolved.
        digest: of its training set.
    """
    for number, record in enumerate(unfinished(storage, job)):
        run, ended = record.run, ended_by_itself(storage, record.run)
        if ended and number:
            continue
        changed = changes(storage, record, rendered, digest)
        if changed and not number:
            say(
                f"starting a new run, for run {run}, which has not finished, is of another job "
                f"({'; '.join(changed)}); --init-from {mask(storage.uri)}/{run} would start from "
                "its newest checkpoint"
            )
        elif ended:
            say(
                f"starting a new run, for run {run} did not finish but failed or was stopped; "
                "--resume would go on with it"
            )
        elif not changed and (words := lost(storage, run)) is not None:
            say(f"going on with run {run}, whose driver was lost; --no-resume starts a new one")
            return record, words
    return None
