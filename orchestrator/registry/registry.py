"""Registered models: written by a training, listed, and pulled to be used elsewhere.

A registered model is the weights that sampling needs in safetensors, the model's config as JSON,
notes on where it came from, and the code to load it. Nothing is pickled.
"""

import difflib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from orchestrator.config.paths import absolute_tracking_uri, base_folder, sqlite_path
from orchestrator.errors import UsageError
from orchestrator.models.base import ModelConfig
from orchestrator.registry.bundle import (
    CONFIG,
    NOTES,
    WEIGHTS,
    format_note,
    load_bundle,
    read_config,
    read_notes,
    write_bundle,
    write_readme,
)
from orchestrator.registry.pyfunc import save_pyfunc
from orchestrator.tracking.client import RunRef, artifacts, connect, keep_trying

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

__all__ = [
    "CANDIDATE",
    "ModelVersionInfo",
    "RegisteredVersion",
    "list_models",
    "load_bundle",
    "pull",
    "read_config",
    "read_notes",
    "register",
]

CANDIDATE = "candidate"

_SPEC = re.compile(r"(?P<name>[^/:@]+)(@(?P<alias>[^/:@]+)|/(?P<version>[0-9]+))?")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int


@dataclass(frozen=True)
class ModelVersionInfo:
    """One version of a registered model, as a list shows it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    created: datetime
    description: str


def register(
    run: RunRef,
    name: str,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    example: Tensor | None,
    notes: Mapping[str, Any],
    retry_timeout_s: float = 300,
) -> RegisteredVersion:
    """A new version of the model ``name``, made by ``run``; it gets the alias `candidate`.

    An MLflow out of reach is waited for: the training is done and must not fail because of it.

    Args:
        weights: the state dict of the model's ``inference_module()``.
        example: for models that translate, images (B, C, H, W) in [-1, 1] to show as input.
        notes: what someone who uses the model wants to know: metrics, digest of the data, job,
            and `images_per_worker`, the batch that a model with ``norm: batch`` was trained with.
        retry_timeout_s: how long to wait for MLflow, before the upload and again during it.

    Raises:
        EnvironmentProblem: MLflow cannot be reached, or takes no files.
    """

    def log() -> "LoggedModel":
        with connect(run.tracking_uri) as client:
            return client.create_logged_model(run.experiment_id, name, source_run_id=run.run_id)

    def publish() -> RegisteredVersion:
        with connect(run.tracking_uri, retries=3, timeout_s=120) as client:
            with artifacts(logged.artifact_location):
                client.log_model_artifacts(logged.model_id, str(folder))
            client.finalize_logged_model(logged.model_id, "READY")
            _log_output(client, run, logged)
            return _create_version(client, name, logged, config, notes)

    with tempfile.TemporaryDirectory() as temporary:
        files, folder = Path(temporary, "files"), Path(temporary, "model")
        write_bundle(files, config, weights, notes)
        logged = keep_trying(log, f"registering {name}", retry_timeout_s)
        save_pyfunc(folder, logged, config, files, example)
        return keep_trying(publish, f"registering {name}", retry_timeout_s)


def list_models(uri: str) -> list[ModelVersionInfo]:
    """All versions of all registered models, by name and the newest version first.

    Raises:
        EnvironmentProblem: MLflow cannot be reached.
        UsageError: ``uri`` is no MLflow, or a database file that is not there.
    """
    with connect(_existing(uri)) as client:
        return _listed(client)


def pull(spec: str, dest: Path, uri: str) -> Path:
    """Write a registered model's weights, config, notes and README into ``dest``, and give that.

    Args:
        spec: NAME for the newest version, NAME@alias or NAME/version.
        dest: a folder that is empty or not there yet.

    Raises:
        EnvironmentProblem: MLflow cannot be reached.
        UsageError: there is no such model, alias or version, or ``dest`` is not empty.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty: name a new folder, or an empty one, to write to")
    uri = _existing(uri)
    with tempfile.TemporaryDirectory() as temporary:
        with connect(uri, timeout_s=30) as client:
            from mlflow.artifacts import download_artifacts

            found = _find(spec, _listed(client))
            place = client.get_model_version_download_uri(found.name, str(found.version))
            with artifacts(place):
                files = f"{place.rstrip('/')}/artifacts"
                stored = download_artifacts(files, dst_path=temporary, tracking_uri=uri)
        dest.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CONFIG, NOTES):
            shutil.move(Path(stored, name), dest / name)
    title = f"{found.name}, version {found.version}"
    write_readme(dest, title, f"Registered {found.created:%Y-%m-%d} by MLflow run {found.run_id}")
    return dest


def _log_output(client: "MlflowClient", run: RunRef, logged: "LoggedModel") -> None:
    """Write that ``run`` made the model, once: MLflow does not take it a second time."""
    from mlflow.entities import LoggedModelOutput

    known = client.get_run(run.run_id).outputs
    if known is None or logged.model_id not in [o.model_id for o in known.model_outputs]:
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _create_version(
    client: "MlflowClient",
    name: str,
    logged: "LoggedModel",
    config: ModelConfig,
    notes: Mapping[str, Any],
) -> RegisteredVersion:
    """The version of the logged model: the one of an earlier attempt, if that made it."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {f"note.{key}": format_note(value) for key, value in notes.items()}
    listed = "\n".join(f"- {key}: {format_note(value)}" for key, value in notes.items())
    earlier = client.search_model_versions(f"run_id = '{logged.source_run_id}'")
    own = (name, logged.artifact_location)
    created = next((v for v in earlier if (v.name, v.source) == own), None)
    if created is None:
        created = client.create_model_version(
            name,
            # Not models:/<id>: MLflow would look that up at the process's default tracking URI.
            source=logged.artifact_location,
            run_id=logged.source_run_id,
            tags={**tags, "config": config.model_dump_json()},
            description=f"{config.name}, {config.image_size} px\n\n{listed}".rstrip(),
            model_id=logged.model_id,
        )
    client.set_registered_model_alias(name, CANDIDATE, created.version)
    return RegisteredVersion(name, int(created.version))


def _listed(client: "MlflowClient") -> list[ModelVersionInfo]:
    aliases: dict[tuple[str, int], list[str]] = {}
    for model in _pages(client.search_registered_models):
        for alias, version in model.aliases.items():
            aliases.setdefault((model.name, int(version)), []).append(alias)
    listed = [
        ModelVersionInfo(
            name=found.name,
            version=int(found.version),
            aliases=tuple(sorted(aliases.get((found.name, int(found.version)), []))),
            run_id=found.run_id or "",
            created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            description=found.description or "",
        )
        for found in _pages(client.search_model_versions)
    ]
    return sorted(listed, key=lambda version: (version.name, -version.version))


def _pages(search: Any) -> list[Any]:
    """Everything that one of the client's paged searches finds."""
    page = search()
    found = list(page)
    while page.token:
        page = search(page_token=page.token)
        found += page
    return found


def _find(spec: str, listed: list[ModelVersionInfo]) -> ModelVersionInfo:
    """The version that ``spec`` names among ``listed``, of which the newest come first."""
    if not (match := _SPEC.fullmatch(spec)):
        raise UsageError(f"{spec!r} names no model: give NAME, NAME@alias or NAME/version")
    name, alias, number = match["name"], match["alias"], match["version"]
    versions = [version for version in listed if version.name == name]
    if not versions:
        names = sorted({version.name for version in listed})
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = f"There are {', '.join(names)}" if names else "None is registered yet"
        raise UsageError(f"no registered model is called {name!r}; {hint}{known}")
    for version in versions:
        if alias in version.aliases or (number and int(number) == version.version):
            return version
    if alias:
        known = ", ".join(a for version in versions for a in version.aliases) or "none"
        raise UsageError(f"{name} has no alias {alias!r}; its aliases: {known}")
    if number:
        known = ", ".join(str(version.version) for version in versions)
        raise UsageError(f"{name} has no version {number}; its versions: {known}")
    return versions[0]


def _existing(uri: str) -> str:
    """The absolute ``uri``; a database must be there, for MLflow would make an empty one."""
    uri = absolute_tracking_uri(uri, base_folder())
    if (path := sqlite_path(uri)) is not None and not path.exists():
        raise UsageError(
            f"there is no MLflow database at {path}: train a job first, run this in its folder, "
            "or give the tracking URI of the job"
        )
    return uri
