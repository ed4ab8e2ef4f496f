"""Job file with a sweep, and the records that a driver makes from it."""

from typing import Any

from orchestrator.config.load import LoadedJob
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage
from orchestrator.sweeps.records import Sweep, Trial, TrialSegment
from orchestrator.sweeps.searchers import suggest_values
from orchestrator.sweeps.store import SweepRecord, SweepStore
from orchestrator.sweeps.trial_job import resolve_report_every

VALID = """\
#!/usr/bin/env -S orchestrator run
# A sweep over BEGAN's balance.
name: balance
model:
  name: began
  image_size: 32
  filters: 8
  latent: 16          # small
  gamma: 0.5          # the paper's
data:
  train: faces/train
  validation: faces/validation
train:
  images: 8000
  batch_size: 16
sweep:
  metric: began/m_global    # the paper's measure
  trials: 6
  space:
    model.gamma: {uniform: [0.3, 0.9]}
    model.learning_rate: {loguniform: [2.0e-5, 1.0e-3]}
"""
SPACE = "    model.gamma: {uniform: [0.3, 0.9]}\n"
VALIDATING = (
    VALID.replace("name: began", "name: autoencoder")
    .replace("  gamma: 0.5          # the paper's\n", "  hidden: [8]\n")
    .replace("model.gamma: {uniform: [0.3, 0.9]}", "model.latent: {randint: [4, 8]}")
    .replace("began/m_global ", "validation/l1 ")
)
"""The same with a model that has metrics of the validation, line by line."""


def edited(old: str, new: str, text: str = VALID) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def make_record(loaded: LoadedJob, *, name: str = "balance-1", total: int = 8000) -> SweepRecord:
    """Make the record of a sweep, as a driver does."""
    section = loaded.job.sweep
    assert section is not None
    return SweepRecord(
        name=name,
        job=loaded.job.name,
        file_name=str(loaded.path),
        text=mask(loaded.text),
        overrides=tuple(mask(text) for text in loaded.overrides),
        rendered=loaded.render(),
        section=section.model_dump(mode="json", exclude_none=True),
        data_digest="d1",
        total_images=total,
        report_every=resolve_report_every(loaded.job, total),
        tracking_uri=mask(loaded.job.tracking.uri),
        experiment_id="1",
        mlflow_run_id="parent",
    )


def suggest_trial(loaded: LoadedJob, number: int) -> Trial:
    section = loaded.job.sweep
    assert section is not None
    configuration, seed_index = divmod(number, section.seeds_per_config)
    values = suggest_values(Sweep("s", "j", section, 1, ()), configuration)
    return Trial(
        number, configuration, seed_index, [TrialSegment(f"sweeps/s/t{number:03d}", values)]
    )


def at(job: Any, path: str) -> Any:
    value: Any = job.model_dump(mode="json", by_alias=True)
    for key in path.split("."):
        value = value[key]
    return value


def store_sweep(storage: Storage, loaded: LoadedJob, **given: Any) -> SweepStore:
    record = make_record(loaded, **given)
    store = SweepStore(storage, record.name)
    store.create(record)
    return store
