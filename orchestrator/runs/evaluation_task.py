"""Evaluate one checkpoint of a run, as its job says.

The result is <storage>/<run>/evaluations/<checkpoint>.json. It is a function of the checkpoint and
the job alone, so whoever repeats an evaluation that was killed writes the same numbers.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from orchestrator.config.evaluate_section import EvaluateSection
from orchestrator.config.job import Job
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import UsageError
from orchestrator.evaluation.metric_names import EVALUATION, is_measured
from orchestrator.evaluation.report import EvaluationReport, Measurement
from orchestrator.model_evaluation.evaluate_model import (
    EvaluationSettings,
    Sets,
    evaluate_model,
)
from orchestrator.model_evaluation.extractor_choice import check_extractor, make_extractor
from orchestrator.model_evaluation.feature_cache import FeatureCache
from orchestrator.model_evaluation.metric_choice import choose_metrics, need_features
from orchestrator.models.parts.meta_device import build_on_meta
from orchestrator.record_reader import DamagedRecord, parse_format, parse_record
from orchestrator.runs.checkpoints import images_of
from orchestrator.runs.opened_model import open_checkpoint, reading_of
from orchestrator.runs.record import place
from orchestrator.runs.run_context import RunContext
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

FORMAT = 1
REMEDY = "delete it; it is made again if its checkpoint is the newest one"


@dataclass(frozen=True)
class EvaluationRecord:
    """What was measured of one checkpoint, as the storage keeps it."""

    checkpoint: str
    images_seen: int
    about: Mapping[str, str | int | float]
    """The data, the settings and the time that it took."""
    measurements: tuple[Measurement, ...]

    def points(self) -> dict[str, float]:
        """Return the values by the names that MLflow and a sweep know them by."""
        values = EvaluationReport(self.measurements).values()
        return {f"{EVALUATION}{metric}": value for metric, value in values.items()}

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)


def record_key(run: str, checkpoint: str) -> str:
    """Return the key in the storage of the evaluation of a checkpoint."""
    return f"{records_folder(run)}{checkpoint}.json"


def records_folder(run: str) -> str:
    """Return the beginning of the keys of all evaluations of a run."""
    return f"{run}/evaluations/"


def read_record(storage: Storage, key: str) -> EvaluationRecord:
    """Read the evaluation at ``key``.

    Raises:
        NotFound: there is none.
        DamagedRecord: it is something else, or of another version of the orchestrator.
    """
    content, where = storage.get_record(key), place(storage, key)
    if (found := parse_format(content, where, REMEDY)) != FORMAT:
        raise DamagedRecord(where, f"format: it is {found}, expected {FORMAT}", REMEDY)
    return parse_record(EvaluationRecord, content, where, REMEDY)


def check_evaluation_sets(job: Job) -> None:
    """Check that the sets and the extractor of the job's evaluation fit its model.

    ``job`` has absolute paths and an evaluate section.

    Raises:
        UsageError: a metric does not fit the model, there is no such extractor, or the job names a
            value that is not measured.
        DataError: the sets do not fit the model, or are too small.
    """
    section = job.evaluate
    assert section is not None
    sets = _open_sets(job, section)
    metrics = choose_metrics(
        build_on_meta(job.model),
        sets.data,
        section.num_images,
        training=sets.training,
        asked=section.measured,
        keys=("evaluate.metrics", "evaluate.num_images"),
    )
    extractor = section.extractor
    if need_features(metrics):
        extractor = check_extractor(extractor, "evaluate.extractor").name
    count = section.num_images
    if job.model.translates:
        count = min(count, sets.data.num_samples)
    for key, value in _aims(job):
        if not is_measured(value.removeprefix(EVALUATION), metrics, extractor, count):
            raise UsageError(
                f"{key}: there will be no value {value}: evaluate measures {', '.join(metrics)} "
                f"with {count:,} images by {extractor}; docs/evaluation.md has the names"
            )


def _aims(job: Job) -> list[tuple[str, str]]:
    """List the values of the evaluation that decide something, with the key that names each."""
    named = [("sweep.metric", each) for each in (job.sweep.metrics if job.sweep else ())]
    if job.register_as is not None and job.register_as.best is not None:
        named.append(("register.best.metric", job.register_as.best.metric))
    return [(key, value) for key, value in named if value.startswith(EVALUATION)]


def evaluate_checkpoint(context: RunContext, checkpoint: str) -> None:
    """Evaluate ``checkpoint`` of a run and write the result to its storage.

    Raises:
        OrchestratorError: it cannot be evaluated, see ``open_checkpoint`` and ``evaluate_model``.
    """
    job, section = context.job, context.job.evaluate
    assert section is not None
    os.environ.update(job.variables())
    torch.set_num_threads(section.cpus)
    device = "cuda" if section.gpus else "cpu"
    opened = open_checkpoint(context.checkpoints(), checkpoint)
    metrics = section.measured
    evaluation = evaluate_model(
        opened.model.to(device),
        _open_sets(job, section),
        EvaluationSettings(section.num_images, metrics),
        make_extractor(section.extractor, device) if need_features(metrics) else None,
        cache=FeatureCache(open_storage(f"{job.storage.rstrip('/')}/features")),
    )
    record = EvaluationRecord(
        checkpoint,
        images_of(checkpoint),
        evaluation.about,
        evaluation.report.measurements,
    )
    context.storage().put(record_key(context.name, checkpoint), record.to_json().encode())


def _open_sets(job: Job, section: EvaluateSection) -> Sets:
    """Open the validation set, and for `nearest` that of the training."""
    assert job.data.validation is not None, "config.evaluate_rules checks this"
    training = None
    if section.metrics is not None and "nearest" in section.metrics:
        assert isinstance(job.data.train, str), "config.evaluate_rules checks this"
        training = open_set(job.data.train)
    return Sets(open_set(job.data.validation), training, reading_of(job.data))
