"""Where a job's relative places are: one folder for the driver and for every worker."""

from pathlib import Path

from orchestrator.job import Job

RAY_UPLOADS = "working_dir_files"
"""Folder in which Ray unpacks an uploaded working directory; it is deleted after the job."""


def base_folder() -> Path:
    """The folder that relative places start from.

    That is the current one, but in an uploaded working directory, which Ray deletes after the job
    with everything in it: there it is ~/orchestrator of the machine that runs the driver.
    """
    here = Path.cwd()
    return Path.home() / "orchestrator" if RAY_UPLOADS in here.parts else here


def absolute(place: str, base: Path) -> str:
    """``place`` as an absolute folder, sqlite:/// or file:// URI; other URIs are left alone."""
    database = place.removeprefix("sqlite:///")
    if database != place:
        return f"sqlite:///{base / database}"
    return place if "://" in place else str(base / Path(place).expanduser())


def resolve_places(job: Job) -> Job:
    """The job with absolute places for its data, its storage and its tracking."""
    base = base_folder()
    validation = job.data.validation
    data = job.data.model_copy(
        update={
            "train": absolute(job.data.train, base),
            "validation": validation and absolute(validation, base),
        }
    )
    tracking = job.tracking.model_copy(update={"uri": absolute(job.tracking.uri, base)})
    storage = absolute(job.storage, base)
    return job.model_copy(update={"data": data, "tracking": tracking, "storage": storage})
