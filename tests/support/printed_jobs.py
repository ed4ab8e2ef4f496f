"""A job as `orchestrator manifest` prints it, for the tests of manifests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.config.dump import dump_yaml
from orchestrator.config.load import LoadedJob, load_text
from orchestrator.kubernetes.options import ManifestOptions
from orchestrator.kubernetes.ray_job import build_manifests
from support.manifests import read_documents

JOB = """\
#!/usr/bin/env -S orchestrator run
# Digits:  "quoted", 'too', $HOME and `date`
name: Digits_v1.2
model: {name: vae, hidden: [32], latent: 4}
data: {train: s3://data/digits/train, validation: "${env:DATA,s3://data}/digits/validation"}
train: {batch_size: 8, epochs: 3}
tracking: {uri: "${env:TRACKING}"}
storage: s3://runs
"""
SEARCH = """\
sweep:
  metric: validation/negative_elbo_nats
  mode: min
  trials: 9
  space: {model.latent: {choice: [2, 4]}}
"""
ENVIRON = {"TRACKING": "http://me:hunter22@mlflow:5000"}
OPTIONS = ManifestOptions(image="orchestrator:0.2.0")


def load(*overrides: str, text: str = JOB) -> LoadedJob:
    return load_text(text, Path("jobs/digits.yaml"), overrides, ENVIRON)


def printed(*overrides: str, text: str = JOB, **options: Any) -> list[dict[str, Any]]:
    """Return the documents that kubectl would read from the command's output."""
    return read_documents(
        dump_yaml(build_manifests(load(*overrides, text=text), replace(OPTIONS, **options)))
    )


def job_of(documents: list[dict[str, Any]]) -> Any:
    return documents[-1]["spec"]


def workers(documents: list[dict[str, Any]]) -> Any:
    (group,) = job_of(documents)["rayClusterSpec"]["workerGroupSpecs"]
    return group
