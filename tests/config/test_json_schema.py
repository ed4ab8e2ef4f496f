"""The JSON Schema of job files, and the job files in jobs/."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestrator.config.json_schema import job_schema
from orchestrator.config.load import load_job
from orchestrator.config.yaml_source import parse_yaml
from orchestrator.models.base import model_names

JOBS = Path(__file__).parents[2] / "jobs"

MINIMAL = {
    "name": "a",
    "model": {"name": "pix2pix"},
    "data": {"train": "x"},
    "train": {"batch_size": 1, "epochs": 1},
}


def mistakes(job: dict[str, Any]) -> list[str]:
    return [error.json_path for error in Draft202012Validator(job_schema()).iter_errors(job)]


def test_the_schema_is_valid() -> None:
    Draft202012Validator.check_schema(job_schema())


def test_the_committed_schema_is_current() -> None:
    committed = json.loads((JOBS / "schema.json").read_text())
    assert committed == job_schema(), "run `make generate`"


def job_files() -> list[Path]:
    return sorted(JOBS.rglob("*.yaml"))


@pytest.mark.parametrize("path", job_files(), ids=lambda path: path.name)
def test_a_job_in_jobs_matches_the_schema_and_loads(path: Path) -> None:
    assert mistakes(parse_yaml(path.read_text(), path.name).data) == []
    assert load_job(path, environ={}).job.name


def sections(part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "job", part
    yield from part["$defs"].items()


def test_every_field_has_a_description() -> None:
    bare = [
        f"{name}.{key}"
        for name, section in sections(job_schema())
        for key, field in section["properties"].items()
        if len(field.get("description", "")) < 10
    ]
    assert bare == []


def test_the_schema_has_the_config_of_every_model() -> None:
    made = job_schema()
    refs = [one["$ref"] for one in made["properties"]["model"]["oneOf"]]
    assert refs == [f"#/$defs/{name}" for name in model_names()]
    assert made["$defs"]["pix2pix"]["properties"]["name"]["const"] == "pix2pix"


def test_a_minimal_job_and_references_in_numbers_match() -> None:
    assert mistakes(MINIMAL) == []
    assert mistakes({**MINIMAL, "train": {"batch_size": "${env:BS}", "epochs": 1}}) == []
    assert mistakes({**MINIMAL, "register": {"name": "a"}}) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"model": {"name": "pix3pix"}}, "$.model"),
        ({"train": {"batch_size": "3", "epochs": 1}}, "$.train.batch_size"),
        ({"train": {"batch_size": 3, "epoch": 1}}, "$.train"),
        ({"register_as": {"name": "a"}}, "$"),
    ],
)
def test_an_invalid_job_does_not_match(change: dict[str, Any], place: str) -> None:
    assert mistakes({**MINIMAL, **change}) == [place]
