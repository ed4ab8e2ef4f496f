"""Load a job file with its overrides: a checked Job, or an error with all its mistakes."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

from orchestrator.config.env_refs import EnvReferences, expand_env_refs, is_secret
from orchestrator.config.evaluate_rules import check_evaluation
from orchestrator.config.job import Job
from orchestrator.config.logged_metrics import explain_unlogged
from orchestrator.config.messages import ErrorMessages
from orchestrator.config.overrides import apply_overrides
from orchestrator.config.prices import fill_in_price
from orchestrator.config.read_file import read_text
from orchestrator.config.register_rules import check_registration
from orchestrator.config.rules import check_cross_fields
from orchestrator.config.sweep import SweepSection
from orchestrator.config.sweep_rules import check_sweep, probe_overrides
from orchestrator.config.yaml_source import KeyPath, YamlSource, join_path, parse_yaml
from orchestrator.errors import JobFileError
from orchestrator.models.base import model_names
from orchestrator.redaction import mask


@dataclass(frozen=True)
class LoadedJob:
    """A job that passed all checks, and its sources."""

    job: Job = field(repr=False)
    """The job with all values, including those of the environment: print `render()` instead."""
    path: Path
    text: str = field(repr=False)
    """Contents of the file."""
    overrides: tuple[str, ...]
    """The arguments of --set, in order."""
    references: EnvReferences = field(repr=False)
    unquoted: frozenset[KeyPath] = field(repr=False)

    def render(self) -> str:
        """Return the job as YAML with all defaults and without secrets.

        Values from the environment are rendered as the references in the file. So loading this
        text in the same environment gives the same job, unless it has a password in plain text.
        """
        out = io.StringIO()
        yaml = YAML(typ="rt", pure=True)
        yaml.width = 4096
        # `null` in full: a key without a value looks like a mistake
        yaml.representer.add_representer(
            type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
        )
        yaml.dump(self._printable(self.job.model_dump(mode="json", by_alias=True), ()), out)
        return out.getvalue()

    def display(self, *path: str | int) -> str:
        """Return the value at ``path`` as printable text, without secrets."""
        value: Any = self.job.model_dump(mode="json", by_alias=True)
        for key in path:
            value = value[key]
        return str(self._printable(value, path))

    def display_place(self, place: str, *path: str | int) -> str:
        """Return ``place``, the resolved value at ``path``, as printable text for commands.

        A place from the environment is shown as it is, without a password, unless the name of its
        variable is that of a secret.
        """
        if self.references.has_secret(path):
            return mask(self.references.by_path[path].text)
        return mask(place)

    def _printable(self, value: Any, path: KeyPath) -> Any:
        reference = self.references.by_path.get(path)
        if reference is not None and reference.secrets:
            plain = path in self.unquoted
            return (PlainScalarString if plain else DoubleQuotedScalarString)(mask(reference.text))
        if isinstance(value, dict):
            return {key: self._printable(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._printable(inner, (*path, i)) for i, inner in enumerate(value)]
        if is_secret(path) and value is not None:
            return "***"
        return mask(value) if isinstance(value, str) else value


def load_job(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedJob:
    """Load the job file at ``path``, apply the overrides and expand ``${env:...}``.

    Later overrides take precedence; ``environ`` is by default that of the process.

    Raises:
        UsageError: an override has no key or no `=`.
        JobFileError: the file cannot be read or has mistakes; the message has a line for each
            mistake, in the order of the file.
    """
    path = Path(path)
    return load_text(read_text(path), path, overrides, environ)


def load_text(
    text: str, path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedJob:
    """Load a job as ``load_job`` does, from ``text`` that was read from ``path``."""
    environ = os.environ if environ is None else environ
    loaded, source = _load(text, path, overrides, environ)
    if loaded is not None:
        for problem in (*check_registration(loaded.job), *check_evaluation(loaded.job)):
            source.report(problem.path, problem.message)
    if loaded is not None and loaded.job.sweep is not None:
        sweep, space = loaded.job.sweep, loaded.job.sweep.space
        for problem in check_sweep(sweep, source.data):
            source.report(problem.path, problem.message)
        unlogged = list(explain_unlogged(sweep.metrics, loaded.job))
        for message in unlogged:
            source.report(("sweep", "metric"), message)
        known = {mistake.path for mistake in source.mistakes}
        for name in space:
            at: KeyPath = ("sweep", "space", name)
            if at not in known:
                probes = probe_overrides(name, space[name])
                judged = None if unlogged or not _may_change_metrics(name) else sweep
                for message in _check_probes(probes, text, path, overrides, environ, judged):
                    source.report(at, message)
    if loaded is None or source.mistakes:
        raise _error(source)
    return loaded


def _may_change_metrics(name: str) -> bool:
    """Whether the field ``name`` may decide which metrics a job logs."""
    return name.startswith(("model.", "guard.")) or name in ("data.binarize", "data.validation")


def _check_probes(
    probes: Iterable[str],
    text: str,
    path: Path,
    overrides: Sequence[str],
    env: Mapping[str, str],
    sweep: SweepSection | None,
) -> Iterable[str]:
    """Load the job with each value that a sweep may draw; return the mistakes, each once.

    With ``sweep``, a job that does not log its metrics is a mistake too.
    """
    found: dict[str, str] = {}
    for probe in probes:
        loaded, source = _load(text, path, (*overrides, "sweep=null", probe), env)
        value = probe.partition("=")[2]
        for first in source.mistakes[:1]:
            message = f"with {value}, {join_path(first.path)}: {first.message}"
            found.setdefault(first.message, message)
        if sweep is not None and loaded is not None:
            for message in explain_unlogged(sweep.metrics, loaded.job):
                found.setdefault(message, f"with {value}, sweep.metric: {message}")
    return found.values()


@lru_cache(maxsize=4)
def _parse(text: str, file: str) -> YamlSource:
    """Parse ``text`` once for all values that a sweep may draw."""
    return parse_yaml(text, file)


def _load(
    text: str, path: Path, overrides: Sequence[str], environ: Mapping[str, str]
) -> tuple[LoadedJob | None, YamlSource]:
    """Return the job, or None, and its source with all mistakes; raise without a mapping."""
    source = _parse(text, str(path)).copy()
    if source.readable and not isinstance(source.data, dict):
        found = "the file is empty" if source.data is None else "the file is not a mapping"
        keys = "a job has the keys name, model, data and train"
        source.report((), f"{found}; {keys}; see `jobs/`")
    if not isinstance(source.data, dict):
        raise _error(source)
    apply_overrides(overrides, source)
    references = expand_env_refs(source, environ)
    fill_in_price(source, path.parent)
    job = _validate(source, references)
    if job is None or source.mistakes:
        return None, source
    unquoted = frozenset(source.unquoted)
    return LoadedJob(job, path, text, tuple(overrides), references, unquoted), source


def _error(source: YamlSource) -> JobFileError:
    in_order = sorted(source.mistakes, key=lambda m: (m.position.line == 0, m.position))
    return JobFileError("\n".join(dict.fromkeys(map(str, in_order))))


def _validate(source: YamlSource, references: EnvReferences) -> Job | None:
    """Return the job, or None; add its mistakes, without those that follow from another."""
    messages = ErrorMessages(source.data, references, source.unquoted)
    known = {mistake.path for mistake in source.mistakes if mistake.path}
    if (unknown_model := _check_model_name(source, messages)) is not None:
        source.report(("model", "name"), unknown_model)
        known.add(("model",))
    try:
        job = Job.model_validate(source.data, strict=True)
    except ValidationError as error:
        for path, details in messages.by_path(error.errors(include_url=False)).items():
            if not any(path[: len(place)] == place for place in known):
                known.add(path)
                source.report(path, messages.describe(details))
        return None
    for problem in check_cross_fields(job) if not source.mistakes else ():
        source.report(problem.path, references.redact(problem.message, problem.path))
    return job


def _check_model_name(source: YamlSource, messages: ErrorMessages) -> str | None:
    """Report an unknown model, without which the other keys of `model` cannot be checked."""
    model = source.data.get("model")
    if not isinstance(model, dict) or any(m.path[:1] == ("model",) for m in source.mistakes):
        return None
    name, known = model.get("name"), model_names()
    if name in known:
        return None
    if "name" not in model:
        return f"is missing; add `name: <model>` under `model:`; models/ has: {', '.join(known)}"
    if not isinstance(name, str):
        return messages.wrong_type(("model", "name"), name)
    return messages.unknown_model(name, known)
