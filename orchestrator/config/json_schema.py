"""JSON Schema of job files, with which editors complete, explain and check them."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.config.job import Job
from orchestrator.models.base import model_module, model_names

_REFERENCE: dict[str, Any] = {"type": "string", "pattern": r"\$\{env:"}

_ABOUT = ("description", "default")


def job_schema() -> dict[str, Any]:
    """Return the schema of jobs/*.yaml, with the Config of every file in models/."""
    configs: dict[str, type[BaseModel]] = {
        name: model_module(name).Config for name in model_names()
    }
    inputs = [(model, "validation") for model in (Job, *configs.values())]
    refs, merged = models_json_schema(inputs, by_alias=True)  # type: ignore[arg-type]
    definitions = merged["$defs"]
    job = definitions.pop(_name(refs, Job))
    definitions.pop("ModelConfig", None)
    for name, config in configs.items():
        definitions[name] = definitions.pop(_name(refs, config)) | {"title": name}
        definitions[name]["properties"]["name"] |= {"const": name}
    job["properties"]["model"] = {
        "description": job["properties"]["model"]["description"],
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in configs],
    }
    for section in (job, *definitions.values()):
        section["properties"] = {
            key: _annotate(value, definitions) for key, value in section["properties"].items()
        }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "job file"}
    return {**head, **{k: v for k, v in job.items() if k != "title"}, "$defs": definitions}


def _name(refs: Any, model: type[BaseModel]) -> str:
    return str(refs[(model, "validation")]["$ref"]).removeprefix("#/$defs/")


def _annotate(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Add the description of a section to its field, and allow ``${env:...}`` in other fields."""
    ref = field.get("$ref") or next((f["$ref"] for f in field.get("anyOf", []) if "$ref" in f), "")
    target = definitions.get(ref.removeprefix("#/$defs/"), {})
    about = {key: target[key] for key in ("description",) if key in target}
    described = {key: value for key, value in (about | field).items() if key != "title"}
    if ref or "oneOf" in field or "const" in field:
        return described
    about = {key: value for key, value in described.items() if key in _ABOUT}
    described = {key: value for key, value in described.items() if key not in _ABOUT}
    if described.get("type") == "string" and not described.keys() & {"pattern", "enum"}:
        return {**described, **about}
    return {**about, "anyOf": [*described.pop("anyOf", [described]), _REFERENCE]}
