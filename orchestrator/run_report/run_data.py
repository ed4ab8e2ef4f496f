"""All that a report says of one run: what it has logged, and what its storage tells."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from orchestrator.errors import DataError, EnvironmentProblem
from orchestrator.redaction import mask
from orchestrator.report.pictures import read_picture
from orchestrator.run_report.run_address import RunAddress
from orchestrator.run_report.run_facts import RunFacts, read_facts
from orchestrator.run_report.stored_job import StoredJob
from orchestrator.runs.replay import local_records
from orchestrator.storage.base import NotFound
from orchestrator.temporary_folder import temporary_folder
from orchestrator.tracking.run_history import (
    JOB,
    RunHistory,
    Series,
    fetch_files,
    read_history,
)
from orchestrator.tracking.spool import ImageRecord, MetricsRecord, Record


@dataclass(frozen=True)
class LoggedPicture:
    """Where the bytes of one picture are: MLflow's artifact, a key of the storage, or a file."""

    artifact: str = ""
    key: str = ""
    sha256: str = ""
    """Of what ``key`` has."""
    file: Path | None = None


@dataclass(frozen=True)
class RunData:
    """One run of a report."""

    address: RunAddress
    history: RunHistory | None
    """None if MLflow was never in reach."""
    is_current: bool
    """Whether ``history`` was read now."""
    facts: RunFacts | None
    """None if only MLflow knows the run."""
    job: StoredJob
    metrics: Mapping[str, Series]
    pictures: Mapping[str, Mapping[int, LoggedPicture]]
    """By series and images seen."""
    notes: tuple[str, ...]
    """What the report lacks, a sentence each."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.address.name

    @property
    def images_seen(self) -> int:
        """Images seen at the last point."""
        return max((step for series in self.metrics.values() for step in series), default=0)

    @property
    def status(self) -> str:
        """How the run is, in one word."""
        facts = self.facts
        if self.history is not None and (self.is_current or facts is None):
            return self.history.status.lower()
        if facts is None or facts.is_finished:
            return "finished"
        return facts.drivers[-1] if facts.drivers else "started"


def read_run(
    address: RunAddress,
    *,
    needs_mlflow: bool = True,
    known: RunHistory | None = None,
    mlflow_timeout_s: int = 30,
) -> RunData:
    """Read a run from MLflow, its storage and this machine's unsent records.

    Args:
        address: see ``find_run``.
        needs_mlflow: whether it is an error if MLflow is out of reach.
        known: what MLflow had earlier, in case that it is out of reach.
        mlflow_timeout_s: of each request to an MLflow server.

    Raises:
        EnvironmentProblem: MLflow, if it is needed, or the storage is out of reach.
        DamagedRecord: the run's job is damaged.
    """
    notes: list[str] = []
    facts = None
    if address.storage is None:
        notes.append("The storage of the run is not known here: faults and evaluations are not.")
    else:
        try:
            facts = read_facts(address.storage, address.name)
        except NotFound as error:
            raise DataError(
                f"{mask(str(error))}; restore it from a backup, or give the id of the MLflow run"
            ) from error
        notes += [f"Left out: {line}" for line in facts.damaged]
    history, is_current = known, False
    try:
        history = read_history(address.tracking_uri, address.mlflow_run_id, mlflow_timeout_s)
        is_current = True
    except EnvironmentProblem as error:
        if needs_mlflow:
            raise
        notes.append(f"Without what only MLflow has by now: {mask(str(error))}")
    spooled = local_records(address.name, address.mlflow_run_id)
    records = [*(facts.unsent if facts else ()), *spooled]
    metrics, pictures = _add_records(history, records, facts)
    job = facts.job if facts is not None else _job_in_mlflow(address)
    return RunData(address, history, is_current, facts, job, metrics, pictures, tuple(notes))


def _add_records(
    history: RunHistory | None,
    records: Iterable[Record],
    facts: RunFacts | None,
) -> tuple[dict[str, Series], dict[str, dict[int, LoggedPicture]]]:
    """Add to what MLflow has what it lacks; of a point that both have, MLflow's counts."""
    metrics = {} if history is None else {k: dict(s) for k, s in history.metrics.items()}
    pictures: dict[str, dict[int, LoggedPicture]] = {}
    for key, series in {} if history is None else history.pictures.items():
        pictures[key] = {step: LoggedPicture(artifact=path) for step, path in series.items()}
    kept = {} if facts is None else facts.unsent_pictures
    for record in records:
        if isinstance(record, MetricsRecord):
            for name, value in record.values.items():
                metrics.setdefault(name, {}).setdefault(record.images_seen, float(value))
        elif isinstance(record, ImageRecord):
            found = LoggedPicture(file=record.path)
            if not record.path.exists():
                if (picture := kept.get(record.path.name)) is None:  # sent meanwhile
                    continue
                found = LoggedPicture(key=picture.key, sha256=picture.sha256)
            pictures.setdefault(record.key, {}).setdefault(record.images_seen, found)
    return (
        {name: dict(sorted(series.items())) for name, series in sorted(metrics.items())},
        {key: dict(sorted(series.items())) for key, series in sorted(pictures.items())},
    )


def _job_in_mlflow(address: RunAddress) -> StoredJob:
    """Read the job that MLflow has of a run; one without values if it is none of ours."""
    with temporary_folder("the job of a run") as folder, suppress(EnvironmentProblem):
        files = fetch_files(address.tracking_uri, address.mlflow_run_id, [JOB], folder)
        found = StoredJob(files[JOB].read_text(encoding="utf-8"))
        with suppress(ValueError):
            found.values  # noqa: B018 - parses it
            return found
    return StoredJob("{}")


def load_pictures(
    run: RunData, wanted: Iterable[LoggedPicture]
) -> dict[LoggedPicture, Image.Image]:
    """Read pictures of a run; those that are damaged or gone are left out.

    Raises EnvironmentProblem if MLflow or the storage is out of reach.
    """
    address, pictures = run.address, list(wanted)
    found: dict[LoggedPicture, Image.Image | None] = {}
    with temporary_folder("the pictures of a run") as folder:
        artifacts = [picture.artifact for picture in pictures if picture.artifact]
        fetched = fetch_files(address.tracking_uri, address.mlflow_run_id, artifacts, folder)
        for number, picture in enumerate(pictures):
            path = fetched.get(picture.artifact, picture.file)
            if path is None and address.storage is not None:
                path = folder / f"{number}.png"
                if not _fetch_from_storage(address, picture, path):
                    continue
            found[picture] = None if path is None else read_picture(path)
    return {picture: image for picture, image in found.items() if image is not None}


def _fetch_from_storage(address: RunAddress, picture: LoggedPicture, path: Path) -> bool:
    assert address.storage is not None
    try:
        content = address.storage.get_valid(
            picture.key, lambda data: hashlib.sha256(data).hexdigest() == picture.sha256
        )
    except NotFound:  # sent meanwhile
        return False
    if content is not None:
        path.write_bytes(content)
    return content is not None
