"""The job of a run, as its storage or MLflow keeps it: for people, and without its variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from orchestrator.config.env_refs import expand_env_refs
from orchestrator.config.flatten import flatten
from orchestrator.config.job import Price
from orchestrator.config.yaml_source import parse_yaml
from orchestrator.models.base import model_module
from orchestrator.redaction import mask_secrets


@dataclass(frozen=True)
class StoredJob:
    """A resolved job, which need not be valid any more."""

    text: str = field(repr=False)
    """As YAML; references such as ${env:NAME} are not expanded."""

    @property
    def masked(self) -> str:
        """The text without secrets."""
        return mask_secrets(self.text, os.environ)

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """Each value by its dotted name, as the text has it."""
        return flatten(self.text)

    def place(self, name: str) -> str | None:
        """Return the value of a key that names a place, expanded; None if this is not possible."""
        value = self.values.get(name)
        if not isinstance(value, str):
            return None
        return expand(value)

    @cached_property
    def price(self) -> Price | None:
        """What an hour costs; None without a price."""
        known = {key: self.values.get(f"cost.{key}") for key in Price.model_fields}
        try:
            price = Price.model_validate({k: v for k, v in known.items() if v is not None})
        except ValidationError:
            return None
        return None if price.gpu_hour is None and price.cpu_hour is None else price

    @cached_property
    def model_metrics(self) -> Mapping[str, str]:
        """What the model says of its own metrics; empty if there is no such model any more."""
        try:
            return dict(getattr(model_module(str(self.values.get("model.name"))), "METRICS", {}))
        except (ValueError, ImportError):
            return {}

    @property
    def training_sets(self) -> list[str]:
        """Address of each training set, with its weight if there are several."""
        given = self.values.get("data.train")
        sets = given if isinstance(given, list) else [given]
        return [
            f"{each.get('path')} (weight {each.get('weight')})"
            if isinstance(each, dict)
            else str(each)
            for each in sets
            if each is not None
        ]


def expand(value: str) -> str | None:
    """Expand ${env:NAME} in a value; None if a variable is not set."""
    source = parse_yaml("{}", "job.yaml")
    source.data = {"value": value}
    expand_env_refs(source, os.environ)
    found = source.data["value"]
    return None if found is None else str(found)
