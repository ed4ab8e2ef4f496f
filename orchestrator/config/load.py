"""Load a job file with its overrides: a checked Job, or an error with all its mistakes."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

from orchestrator.config.env_refs import EnvReferences, expand_env_refs, is_secret
from orchestrator.config.job import Job
from orchestrator.config.messages import ErrorMessages
from orchestrator.config.overrides import apply_overrides
from orchestrator.config.prices import fill_in_price
from orchestrator.config.read_file import read_text
from orchestrator.config.rules import check_cross_fields
from orchestrator.config.sweep_rules import check_sweep, probe_overrides
from orchestrator.config.yaml_source import KeyPath, Mistake, YamlSource, join_path, parse_yaml
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
        yaml.representer.add_representer(type(None), _represent_null)
        yaml.dump(self._printable(self.job.model_dump(mode="json", by_alias=True), ()), out)
        return out.getvalue()

    def display(self, *path: str) -> str:
        """Return the value at ``path`` as printable text, without secrets."""
        value: Any = self.job.model_dump(mode="json", by_alias=True)
        for key in path:
            value = value[key]
        return str(self._printable(value, path))

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


def _represent_null(representer: Any, value: None) -> Any:
    """Write `null` in full: a key without a value looks like a mistake."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def load_job(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedJob:
    """Load the job file at ``path``, apply the overrides and expand ``${env:...}``.

    Args:
        overrides: arguments of --set such as `a.b=value`; later ones take precedence.
        environ: the environment of references; that of the process by default.

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
    loaded, source, mistakes = _load(text, path, overrides, environ)
    if loaded is None:
        raise _error(mistakes)
    sweep = loaded.job.sweep
    if sweep is not None:
        for problem in check_sweep(sweep, source.data):
            mistakes.append(Mistake(source.position(problem.path), problem.path, problem.message))
        known = {mistake.path for mistake in mistakes}
        for name, distribution in sweep.space.items():
            at: KeyPath = ("sweep", "space", name)
            if at not in known:
                probes = probe_overrides(name, distribution)
                messages = _check_probes(probes, text, path, overrides, environ)
                mistakes += [Mistake(source.position(at), at, message) for message in messages]
    if mistakes:
        raise _error(mistakes)
    return loaded


def _check_probes(
    probes: Iterable[str],
    text: str,
    path: Path,
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> Iterator[str]:
    """Load the job with each value that a sweep may draw, and yield the mistakes, each once."""
    seen = set[str]()
    for probe in probes:
        _, _, mistakes = _load(text, path, (*overrides, "sweep=null", probe), environ)
        if mistakes and mistakes[0].message not in seen:
            first = mistakes[0]
            yield f"with {probe.partition('=')[2]}, {join_path(first.path)}: {first.message}"
            seen.add(first.message)


def _load(
    text: str, path: Path, overrides: Sequence[str], environ: Mapping[str, str]
) -> tuple[LoadedJob | None, YamlSource, list[Mistake]]:
    """Return the job, or None and its mistakes; raise if nothing else can be checked."""
    source = parse_yaml(text, str(path))
    if not source.readable:
        raise _error(source.mistakes)
    _require_keys(source)
    apply_overrides(overrides, source)
    references = expand_env_refs(source, environ)
    fill_in_price(source, path.parent)
    job, mistakes = _validate(source, references)
    if job is None or mistakes:
        return None, source, mistakes
    unquoted = frozenset(source.unquoted)
    return LoadedJob(job, path, text, tuple(overrides), references, unquoted), source, []


def _error(mistakes: Sequence[Mistake]) -> JobFileError:
    in_order = sorted(mistakes, key=lambda m: (m.position.line == 0, m.position))
    return JobFileError("\n".join(dict.fromkeys(str(mistake) for mistake in in_order)))


def _require_keys(source: YamlSource) -> None:
    if isinstance(source.data, dict):
        return
    found = "the file is empty" if source.data is None else "the file is not a mapping"
    message = f"{found}; a job has the keys name, model, data and train; see `jobs/`"
    raise _error([*source.mistakes, Mistake(source.position(()), (), message)])


def _validate(source: YamlSource, references: EnvReferences) -> tuple[Job | None, list[Mistake]]:
    """Return the job, or None, and all mistakes, without those that follow from another."""
    messages = ErrorMessages(source.data, references, source.unquoted)
    unknown_model = _check_model_name(source, messages)
    mistakes = [*source.mistakes, *unknown_model]
    job = None
    try:
        job = Job.model_validate(source.data, strict=True)
    except ValidationError as error:
        known: set[KeyPath] = {mistake.path for mistake in mistakes if mistake.path}
        known |= {("model",)} if unknown_model else set()
        for details in error.errors(include_url=False):
            path = messages.real_path(details["loc"])
            if not any(path[: len(place)] == place for place in known):
                known.add(path)
                mistakes.append(Mistake(source.position(path), path, messages.describe(details)))
    if job is not None and not mistakes:
        for problem in check_cross_fields(job):
            text = references.redact(problem.message, problem.path)
            mistakes.append(Mistake(source.position(problem.path), problem.path, text))
    return job, mistakes


def _check_model_name(source: YamlSource, messages: ErrorMessages) -> list[Mistake]:
    """Report an unknown model, without which the other keys of `model` cannot be checked."""
    model = source.data.get("model")
    if not isinstance(model, dict) or any(m.path[:1] == ("model",) for m in source.mistakes):
        return []
    path = ("model", "name")
    name, known = model.get("name"), model_names()
    if name in known:
        return []
    if "name" not in model:
        message = f"is missing; add `name: <model>` under `model:`; models/ has: {', '.join(known)}"
    elif not isinstance(name, str):
        message = messages.wrong_type(path, name)
    else:
        message = messages.unknown_model(name, known)
    return [Mistake(source.position(path), path, message)]
