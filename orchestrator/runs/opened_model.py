"""Open a trained model by the address that a user gives: registered, pulled, or a checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.data_section import DataSection
from orchestrator.config.env_refs import expand_env_refs
from orchestrator.config.yaml_source import parse_yaml
from orchestrator.console import log_info
from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.model_evaluation.evaluate_model import Sets
from orchestrator.model_evaluation.reference_set import ImageReading
from orchestrator.models.base import GenerativeModel, ModelConfig, build_model
from orchestrator.record_reader import DamagedRecord
from orchestrator.redaction import mask
from orchestrator.registry.bundle import CONFIG, load_bundle, read_notes
from orchestrator.registry.registry import is_registered_spec, pull
from orchestrator.runs.checkpoint_address import checkpoints_at
from orchestrator.runs.checkpoint_manifest import REMEDY
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.record import RunRecord


@dataclass(frozen=True)
class OpenedModel:
    """A model with its weights, on the CPU, and what is known of its training."""

    model: GenerativeModel
    title: str
    """Where it is from, for people, without credentials."""
    reading: ImageReading
    """How its job read the sets."""
    training_digest: str | None
    """Digest of the set that it was trained on, where it is known."""


def open_model(address: str, tracking_uri: str, temporary: Path) -> OpenedModel:
    """Open the model at ``address``.

    Args:
        address: NAME, NAME@ALIAS or NAME/VERSION of a registered model; a folder that
            `orchestrator models pull` wrote; STORAGE/RUN for the newest checkpoint of a run, or
            STORAGE/RUN/checkpoints/NAME for one.
        tracking_uri: of the MLflow that registered models are in.
        temporary: an existing folder, for the files of a registered model.

    Raises:
        UsageError: there is no such model, run or checkpoint.
        DataError: its files are damaged.
        EnvironmentProblem: MLflow or the storage cannot be reached, or another version of the
            orchestrator wrote it.
    """
    if (Path(address) / CONFIG).is_file():
        return _from_folder(Path(address), address)
    if is_registered_spec(address):
        return _from_folder(pull(address, temporary / "model", tracking_uri), address)
    checkpoints, name = checkpoints_at(address)
    return open_checkpoint(checkpoints, name)


def open_checkpoint(checkpoints: Checkpoints, name: str | None) -> OpenedModel:
    """Open the checkpoint called ``name``; without a name, the newest. Raises as ``open_model``."""
    names = checkpoints.names()
    where = mask(f"{checkpoints.storage.uri.rstrip('/')}/{checkpoints.prefix}")
    if name is None:
        if not names:
            raise DataError(f"there is no complete checkpoint in {where}")
        name = names[-1]
    where = f"{where}/{name}"
    content = checkpoints.job_of(name)
    config, reading = _read_job(content, f"{where}/job.yaml")
    model = build_model(config)
    weights = checkpoints.snapshot(name)
    try:
        model.inference_module().load_state_dict(weights)
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"the weights in {where} do not fit its job.yaml: {problem}") from error
    return OpenedModel(model, where, reading, _training_digest(checkpoints))


def check_training_set(opened: OpenedModel, sets: Sets) -> None:
    """Check the sets against the one that the model was trained on, where that is known.

    Raises DataError if another set is given as that of the training; logs a note if the reference
    is that of the training.
    """
    trained = opened.training_digest
    if trained is None:
        return
    if sets.training is not None and sets.training.digest != trained:
        raise DataError(
            f"{mask(sets.training.uri)} is not the set that {opened.title} was trained on: its "
            f"digest is {sets.training.digest[:12]}, expected {trained[:12]}; give that set with "
            "--training-data"
        )
    if sets.data.digest == trained:
        log_info(
            f"note: {opened.title} was trained on {mask(sets.data.uri)}; values on images that the "
            "training never saw say more"
        )


def reading_of(data: DataSection) -> ImageReading:
    """Return how a job reads its sets."""
    return ImageReading(data.direction, data.binarize is not None)


def _from_folder(folder: Path, title: str) -> OpenedModel:
    model, notes = load_bundle(folder), read_notes(folder)
    digest = notes.get("data_digest")
    known = digest if isinstance(digest, str) else None
    return OpenedModel(model, mask(title), ImageReading.of_notes(notes), known)


def _read_job(content: bytes, where: str) -> tuple[ModelConfig, ImageReading]:
    """Read the model's section of a stored job, and how it reads its sets.

    Other sections may refer to variables that this process does not have.
    """
    try:
        source = parse_yaml(content.decode(), where)
        expand_env_refs(source, os.environ)
        job: Any = source.data
        if not isinstance(job, dict) or not isinstance(job.get("data"), dict):
            raise DamagedRecord(where, "it is not a job", REMEDY)
        for mistake in source.mistakes:
            if mistake.path[:1] == ("model",):
                raise UsageError(str(mistake))
        config = ModelConfig.model_validate(job.get("model"))
        notes = {
            "direction": job["data"].get("direction"),
            "binarize": job["data"].get("binarize") is not None,
        }
    except (UnicodeDecodeError, ValidationError, ValueError) as error:
        raise DamagedRecord(where, str(error), REMEDY) from error
    return config, ImageReading.of_notes(notes)


def _training_digest(checkpoints: Checkpoints) -> str | None:
    """Return the digest of the run's training set; None if its record cannot be read."""
    run = checkpoints.prefix.removesuffix("/checkpoints")
    try:
        content = checkpoints.storage.get_record(f"{run}/run.json")
        return RunRecord.parse(checkpoints.storage, run, content).data_digest
    except OrchestratorError:
        return None
