"""Register trained models in MLflow, list them and pull them.

A registered model consists of the weights that sampling needs in safetensors, the model's config
as JSON, notes on its origin, and the code to load it. Nothing is pickled.
"""

import difflib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from orchestrator.config.paths import base_folder, sqlite_path, to_absolute_tracking_uri
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.evaluation.report import Measurement
from orchestrator.models.base import ModelConfig
from orchestrator.registry.bundle import (
    CARD,
    FILES,
    Source,
    check_bundle,
    format_note,
    read_config,
    read_notes,
    write_bundle,
    write_source,
)
from orchestrator.registry.bundle_manifest import MANIFEST
from orchestrator.registry.card import LONGEST_DESCRIPTION, add_evaluation, render_card
from orchestrator.registry.gate import to_measured
from orchestrator.registry.pyfunc import save_pyfunc
from orchestrator.temporary_folder import temporary_folder
from orchestrator.tracking.client import (
    RunRef,
    artifact_errors,
    connect,
    retry_mlflow,
    uri_option,
)
from orchestrator.tracking.places import local_path, moved, old_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CANDIDATE = "candidate"
_SPEC = re.compile(r"(?P<name>[^/:@]+)(@(?P<alias>[^/:@]+)|/(?P<version>[0-9]+))?")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int


@dataclass(frozen=True)
class ModelVersionInfo:
    """One version of a registered model, with what `orchestrator models ls` shows."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    created: datetime
    description: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.name}, version {self.version}"


class MeasuredVersion(Protocol):
    """What an evaluation measured of the weights of a version."""

    @property
    def measurements(self) -> Sequence[Measurement]:
        """The values, with their intervals."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What they were measured on, such as ``data_digest``."""


def register(
    run: RunRef,
    name: str,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    example: Tensor | None,
    notes: Mapping[str, Any],
    evaluation: MeasuredVersion | None = None,
) -> RegisteredVersion:
    """Register a new version of the model ``name``, made by ``run``, as the alias `candidate`.

    Retries while MLflow is unreachable: the run is finished and must not fail because of it. The
    run's timeout limits the retries, before the upload and again during it.

    Args:
        weights: state dict of the model's ``inference_module()``.
        example: for models that translate, images (B, C, H, W) in [-1, 1] as an example input.
        notes: what users of the model need to know: metrics, data digest, job.
        evaluation: of these weights, for the card.
    """

    def log() -> "LoggedModel":
        with connect(run.tracking_uri) as client:
            return client.create_logged_model(run.experiment_id, name, source_run_id=run.run_id)

    def publish() -> RegisteredVersion:
        with connect(run.tracking_uri, retries=3, timeout_s=120) as client:
            with artifact_errors(logged.artifact_location):
                client.log_model_artifacts(logged.model_id, str(folder))
            client.finalize_logged_model(logged.model_id, "READY")
            _log_output(client, run, logged)
            return _create_version(client, name, logged, config, notes, card)

    notes = {**notes, "mlflow_run": run.run_id}
    card = render_card(name, config, notes)
    if evaluation is not None:
        measured = list(map(to_measured, evaluation.measurements))
        card = add_evaluation(card, measured, evaluation.about)
    with temporary_folder(f"the files of {name} to register") as temporary:
        files, folder = temporary / "files", temporary / "model"
        write_bundle(files, config, weights, notes, card)
        logged = retry_mlflow(log, f"registering {name}", run.retry_timeout_s)
        save_pyfunc(folder, logged, config, files, example)
        return retry_mlflow(publish, f"registering {name}", run.retry_timeout_s)


def list_models(uri: str) -> list[ModelVersionInfo]:
    """List all versions of all registered models by name, the newest version first."""
    with connect(require_database(uri)) as client:
        return _list_versions(client)


def is_registered_spec(text: str) -> bool:
    """Whether ``text`` has the form of NAME, NAME@alias or NAME/version."""
    return _SPEC.fullmatch(text) is not None


def resolve(spec: str, uri: str) -> ModelVersionInfo:
    """Return the version that ``spec`` stands for now; see ``pull``."""
    with connect(require_database(uri), timeout_s=30) as client:
        return find_version(client, spec)


def pull(spec: str, dest: Path, uri: str) -> Path:
    """Write the files of a registered model and its card to ``dest``; return ``dest``.

    ``spec`` is NAME for the newest version, NAME@alias or NAME/version.

    Raises:
        UsageError: there is no such model, alias or version, another tool registered it, or
            ``dest`` is not empty.
        EnvironmentProblem: another version of the orchestrator registered it, and drew otherwise.
        DataError: a file is not what was registered.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UsageError(f"{dest} is not empty: give a new or an empty folder")
    uri = require_database(uri)
    with temporary_folder(f"the files of {spec}") as temporary:
        with connect(uri, timeout_s=30) as client:
            found = find_version(client, spec)
            stored = download_files(client, found, temporary, uri)
        upgrade = f"orchestrator models upgrade {found.name}/{found.version}{uri_option(uri)}"
        check_bundle(
            stored,
            found.title,
            if_damaged="bring its files back from a backup, or register the run's model again",
            if_older=f"register its weights anew with `{upgrade}`",
        )
        dest.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, CARD, MANIFEST):
            if (stored / name).is_file():
                shutil.move(stored / name, dest / name)
    if not (dest / CARD).is_file():  # registered before versions had one
        card = render_card(found.name, read_config(dest), read_notes(dest))
        (dest / CARD).write_text(card)
    write_source(dest, Source(found.name, found.version))
    return dest


def download_files(client: "MlflowClient", found: ModelVersionInfo, folder: Path, uri: str) -> Path:
    """Download a version's files into ``folder``; return the folder that has ``FILES``.

    Raises UsageError if another tool registered it.
    """
    from mlflow.artifacts import download_artifacts

    location = client.get_model_version_download_uri(found.name, str(found.version))
    _check_files(uri, location, found.title)
    with artifact_errors(location):
        files = f"{location.rstrip('/')}/artifacts"
        stored = Path(download_artifacts(files, dst_path=str(folder), tracking_uri=uri))
    if missing := [name for name in FILES if not (stored / name).is_file()]:
        raise _foreign(found.title, missing[0])
    return stored


def _check_files(uri: str, location: str, name: str) -> None:
    """Check files that are on this machine.

    Raises EnvironmentProblem if they are not where MLflow's SQLite file has them, and UsageError if
    they are those of another tool.
    """
    database, place = sqlite_path(uri), local_path(location)
    if database is None or place is None:
        return
    if (old := old_folder(database.parent, place)) is not None:
        raise moved(database, old)
    if not place.exists():
        raise EnvironmentProblem(
            f"the files of {name} are not there: {place}; bring them back, or if their folder was "
            f"moved, run `orchestrator relocate {shlex.quote(str(database.parent))} --from "
            "OLD_FOLDER`"
        )
    if not (place / "artifacts").is_dir():
        raise _foreign(name, "artifacts")


def _foreign(name: str, missing: str) -> UsageError:
    """Return the error for a registered model of another tool."""
    return UsageError(
        f"{name} was not registered by orchestrator: it has no {missing}; give a model that a job "
        "with `register:` made, see `orchestrator models ls`"
    )


def _log_output(client: "MlflowClient", run: RunRef, logged: "LoggedModel") -> None:
    """Log the model as an output of ``run`` unless it is one: MLflow refuses to do it twice."""
    from mlflow.entities import LoggedModelOutput

    known = client.get_run(run.run_id).outputs
    if known is None or logged.model_id not in [o.model_id for o in known.model_outputs]:
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _create_version(
    client: "MlflowClient", name: str, logged: "LoggedModel", config: ModelConfig,
    notes: Mapping[str, Any], card: str,
) -> RegisteredVersion:  # fmt: skip
    """Create the version of the logged model, unless an earlier attempt created it."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {f"note.{key}": format_note(value) for key, value in notes.items()}
    earlier = client.search_model_versions(f"run_id = '{logged.source_run_id}'")
    wanted = (name, logged.artifact_location)
    created = next((v for v in earlier if (v.name, v.source) == wanted), None)
    if created is None:
        created = client.create_model_version(
            name,
            # Not models:/<id>, which MLflow would look up at the process's default tracking URI.
            source=logged.artifact_location,
            run_id=logged.source_run_id,
            tags={**tags, "config": config.model_dump_json()},
            description=card[:LONGEST_DESCRIPTION],
            model_id=logged.model_id,
        )
    client.set_registered_model_alias(name, CANDIDATE, created.version)
    return RegisteredVersion(name, int(created.version))


def _list_versions(client: "MlflowClient") -> list[ModelVersionInfo]:
    models = _search_all(client.search_registered_models)
    aliases = {model.name: sorted(model.aliases.items()) for model in models}
    listed = [
        ModelVersionInfo(
            name=found.name,
            version=(number := int(found.version)),
            aliases=tuple(a for a, v in aliases.get(found.name, ()) if int(v) == number),
            run_id=found.run_id or "",
            created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
            description=found.description or "",
        )
        for found in _search_all(client.search_model_versions)
    ]
    return sorted(listed, key=lambda version: (version.name, -version.version))


def _search_all(search: Any) -> list[Any]:
    """Collect all pages of one of the client's searches."""
    found = list(page := search())
    while page.token:
        found += (page := search(page_token=page.token))
    return found


def find_version(client: "MlflowClient", spec: str) -> ModelVersionInfo:
    """Return the version that ``spec`` names; see ``pull``."""
    listed = _list_versions(client)
    if not (match := _SPEC.fullmatch(spec)):
        raise UsageError(f"{spec!r} is not a valid model; use NAME, NAME@alias or NAME/version")
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


def require_database(uri: str) -> str:
    """Return ``uri`` as absolute; a database file must exist, since MLflow would create it."""
    uri = to_absolute_tracking_uri(uri, base_folder())
    if (path := sqlite_path(uri)) is not None and not path.exists():
        raise UsageError(
            f"there is no MLflow database at {path}: train a job first, run this in its folder, "
            "or give the tracking URI of the job with --tracking-uri"
        )
    return uri
