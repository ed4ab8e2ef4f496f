"""Expand ``${env:NAME}`` and ``${env:NAME,default}`` in a job file, and keep their values hidden.

Any value from the environment may be a secret: messages, plans and stored jobs show the reference
instead.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.scalars import BadScalar, plain_scalar
from orchestrator.config.yaml_source import KeyPath, YamlSource, join_path
from orchestrator.redaction import mask

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?:,((?:(?!\$\{)[^}])*))?\}")
_SECRET_KEY = re.compile(r"(?i)passw|secret|credential|token$|(api|access|private)_?key")
_MAX_SHOWN = 60
"""Characters of a value that a message shows."""
_MIN_UNIQUE = 6
"""Length from which a secret is replaced inside other words too."""


@dataclass(frozen=True)
class EnvReference:
    """A scalar that refers to environment variables."""

    text: str
    """The scalar as written in the job file."""
    value: Any
    """The expanded value."""
    secrets: tuple[str, ...]
    """The parts of the value that came from the environment; empty if only defaults were used."""


@dataclass
class EnvReferences:
    """The references of one job by path, and the printable form of its values."""

    by_path: dict[KeyPath, EnvReference] = field(default_factory=dict)

    def variables(self) -> list[str]:
        """Return the names of the environment variables, sorted."""
        texts = [reference.text for reference in self.by_path.values()]
        return sorted({found[1] for text in texts for found in _REFERENCE.finditer(text)})

    def has_secret(self, path: KeyPath) -> bool:
        """Whether the value at ``path`` comes from a variable whose name is that of a secret."""
        reference = self.by_path.get(path)
        if reference is None or not reference.secrets:
            return False
        return any(_SECRET_KEY.search(found[1]) for found in _REFERENCE.finditer(reference.text))

    def display(self, path: KeyPath, value: Any) -> str:
        """Return ``value`` in a form that can be printed: short, without secrets."""
        reference = self.by_path.get(path)
        if reference is not None and reference.secrets:
            return mask(reference.text)
        if is_secret(path):
            return "***"
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "null"}[value]
        if isinstance(value, str):
            text = mask(value)
            return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
        if isinstance(value, Mapping):
            return "a mapping"
        return "a list" if isinstance(value, list) else str(value)[:_MAX_SHOWN]

    def redact(self, text: str, path: KeyPath) -> str:
        """Replace the values of references in ``text`` by the references.

        Strings are replaced everywhere; numbers only if ``text`` is about their field, because
        another 2 may be just a 2.
        """
        for where, reference in sorted(self.by_path.items(), key=lambda item: item[0] != path):
            about = where[: len(path)] == path or join_path(where) in text or str(where[-1]) in text
            if reference.secrets and (about or isinstance(reference.value, str)):
                quoted = repr(reference.value)
                forms = {str(reference.value), quoted, quoted.strip("'\"")}
                for secret in {*reference.secrets, *forms}:
                    text = _replace_word(text, secret, reference.text)
        return mask(text)


def _replace_word(text: str, word: str, replacement: str) -> str:
    """Replace ``word``; if it is short, only as a whole word, as it may be part of others."""
    if not word:
        return text
    alone = ("", "") if len(word) >= _MIN_UNIQUE else (r"(?<![\w.])", r"(?!\w|\.\w)")
    return re.sub(alone[0] + re.escape(word) + alone[1], lambda _: replacement, text)


def is_secret(path: KeyPath) -> bool:
    """Whether the last key of ``path`` is the name of a secret."""
    return bool(path) and _SECRET_KEY.search(str(path[-1])) is not None


def expand_env_refs(source: YamlSource, environ: Mapping[str, str]) -> EnvReferences:
    """Replace the references in ``source.data`` by their values, and return them.

    An unquoted scalar that consists of a single reference gets the type of its value, like any
    unquoted scalar; all others stay strings. An empty variable counts as not set. Mistakes are
    added to ``source.mistakes``.
    """
    references = EnvReferences()

    def expand(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: expand(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [expand(inner, (*path, i)) for i, inner in enumerate(value)]
        if not isinstance(value, str) or "${env:" not in value:
            return value
        try:
            reference = _resolve(value, path in source.unquoted, environ)
        except BadScalar as error:
            source.report(path, str(error))
            return None
        references.by_path[path] = reference
        return reference.value

    source.data = expand(source.data, ())
    return references


def _resolve(text: str, unquoted: bool, environ: Mapping[str, str]) -> EnvReference:
    secrets = []

    def substitute(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if environ.get(name):
            secrets.append(environ[name])
            return environ[name]
        if default is None:
            raise BadScalar(
                f"{match[0]} needs the environment variable {name}, which is not set; run "
                f"`export {name}=...` first, or give a default: ${{env:{name},default}}"
            )
        return default

    if "${env:" in _REFERENCE.sub("", text):
        raise BadScalar(
            f"{mask(text)!r} contains an incomplete reference; write ${{env:NAME}} or "
            "${env:NAME,default}"
        )
    value: Any = _REFERENCE.sub(substitute, text)
    if unquoted and _REFERENCE.fullmatch(text):
        try:
            value = plain_scalar(value)
        except BadScalar as error:
            if not secrets:
                raise
            raise BadScalar(
                f"the value of {text} is not a number that YAML can read; set it to a finite "
                "number without leading zeros"
            ) from error
    return EnvReference(text, value, tuple(secrets))
