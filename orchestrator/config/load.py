"""A job file and its overrides to a Job, or to every mistake in them at once."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, PlainScalarString

from orchestrator.config import overrides as set_options
from orchestrator.config.env_refs import References, expand, is_secret
from orchestrator.config.job import Job
from orchestrator.config.messages import Wording
from orchestrator.config.prices import fill_in_price
from orchestrator.config.read_file import read_text
from orchestrator.config.rules import cross_field_problems
from orchestrator.config.sweep_rules import probes, sweep_problems
from orchestrator.config.yaml_source import KeyPath, Mistake, Source, dotted, parse
from orchestrator.errors import JobFileError
from orchestrator.models.base import model_names
from orchestrator.redaction import mask


@dataclass(frozen=True)
class LoadedJob:
    """A job that passed every check, with what it was made from."""

    job: Job = field(repr=False)
    """All values filled in, those of the environment too: do not print it, print `render()`."""
    path: Path
    text: str = field(repr=False)
    """The file as given."""
    overrides: tuple[str, ...]
    """As given with --set, in order."""
    references: References = field(repr=False)
    unquoted: frozenset[KeyPath] = field(repr=False)

    def render(self) -> str:
        """The job as YAML with all defaults, without secrets.

        A value of which the environment gave a part is shown as written, so that loading this
        text in the same environment gives the same job, unless it held a password in plain text.
        """
        out = io.StringIO()
        yaml = YAML(typ="rt", pure=True)
        yaml.width = 4096
        yaml.representer.add_representer(type(None), _represent_null)
        yaml.dump(self._printable(self.job.model_dump(mode="json", by_alias=True), ()), out)
        return out.getvalue()

    def shown(self, *path: str) -> str:
        """The value at ``path`` as text to print, such as ``shown("tracking", "uri")``."""
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
    """`null` in full: a key with nothing behind it looks like a mistake."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def load_job(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedJob:
    """The job that the file at ``path`` describes, after ``--set`` and ``${env:...}``.

    Args:
        overrides: `a.b=value` each, as given with --set; later ones win.
        environ: where references look; the process's environment by default.

    Raises:
        UsageError: an override cannot be read.
        JobFileError: the file cannot be read, or something in it is wrong; the message has a line
            for each mistake, in the order of the file.
    """
    path = Path(path)
    return load_text(read_text(path), path, overrides, environ)


def load_text(
    text: str, path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedJob:
    """As ``load_job``, where ``text`` was read from ``path`` before."""
    environ = os.environ if environ is None else environ
    loaded, source, mistakes = _load(text, path, overrides, environ)
    if loaded is None:
        raise _error(mistakes)
    if loaded.job.sweep is not None:
        for problem in sweep_problems(loaded.job.sweep, source.data):
            mistakes.append(Mistake(source.position(problem.path), problem.path, problem.message))
        wrong = {mistake.path for mistake in mistakes}
        for name, given in loaded.job.sweep.space.items():
            at, said = ("sweep", "space", name), set[str]()
            for setting in probes(name, given) if at not in wrong else ():
                _, _, found = _load(text, path, (*overrides, "sweep=null", setting), environ)
                value = setting.partition("=")[2]
                for m in found[:1]:
                    if m.message not in said:  # a field that is not there, for one
                        words = f"with {value}, {dotted(m.path)}: {m.message}"
                        mistakes.append(Mistake(source.position(at), at, words))
                    said.add(m.message)
    if mistakes:
        raise _error(mistakes)
    return loaded


def _load(
    text: str, path: Path, overrides: Sequence[str], environ: Mapping[str, str]
) -> tuple[LoadedJob | None, Source, list[Mistake]]:
    """The job, or its mistakes. Raises for what leaves nothing to judge."""
    source = parse(text, str(path))
    if not source.readable:
        raise _error(source.mistakes)
    _require_keys(source)
    set_options.apply(overrides, source)
    references = expand(source, environ)
    fill_in_price(source, path.parent)
    job, mistakes = _validate(source, references)
    if job is None or mistakes:
        return None, source, mistakes
    unquoted = frozenset(source.unquoted)
    return LoadedJob(job, path, text, tuple(overrides), references, unquoted), source, []


def _error(mistakes: Sequence[Mistake]) -> JobFileError:
    in_order = sorted(mistakes, key=lambda m: (m.position.line == 0, m.position))
    return JobFileError("\n".join(dict.fromkeys(str(mistake) for mistake in in_order)))


def _require_keys(source: Source) -> None:
    if isinstance(source.data, dict):
        return
    found = "the file is empty" if source.data is None else "the file is not a list of keys"
    message = f"{found}; a job has the sections name, model, data and train: see `jobs/`"
    raise _error([*source.mistakes, Mistake(source.position(()), (), message)])


def _validate(source: Source, references: References) -> tuple[Job | None, list[Mistake]]:
    """The job, or None, and all mistakes; one mistake does not bring others with it."""
    wording = Wording(source.data, references, source.unquoted)
    unknown_model = _model_mistakes(source, wording)
    mistakes = [*source.mistakes, *unknown_model]
    job = None
    try:
        job = Job.model_validate(source.data, strict=True)
    except ValidationError as error:
        known: set[KeyPath] = {mistake.path for mistake in mistakes if mistake.path}
        known |= {("model",)} if unknown_model else set()
        for details in error.errors(include_url=False):
            path = wording.real_path(details["loc"])
            if not any(path[: len(place)] == place for place in known):
                known.add(path)
                position = source.position(path)
                mistakes.append(Mistake(position, path, wording.message(details)))
    if job is not None and not mistakes:
        for problem in cross_field_problems(job):
            text = references.scrubbed(problem.message, problem.path)
            mistakes.append(Mistake(source.position(problem.path), problem.path, text))
    return job, mistakes


def _model_mistakes(source: Source, wording: Wording) -> list[Mistake]:
    """Without a known model its other keys cannot be judged: nothing but its name is reported."""
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
        message = wording.wrong_type(path, name)
    else:
        message = wording.unknown_model(name, known)
    return [Mistake(source.position(path), path, message)]
