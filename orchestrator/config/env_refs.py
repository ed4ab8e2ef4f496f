"""``${env:NAME}`` and ``${env:NAME,default}`` in a job file, and keeping what they hold unseen.

Whatever came from the environment may be a secret: messages, plans and stored jobs show the
reference in its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.scalars import BadScalar, plain_scalar
from orchestrator.config.yaml_source import KeyPath, Mistake, Source, dotted
from orchestrator.redaction import mask

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?:,((?:(?!\$\{)[^}])*))?\}")
_SECRET_KEY = re.compile(r"(?i)passw|secret|credential|token$|(api|access|private)_?key")
_SHOWN = 60
_LONG = 6


@dataclass(frozen=True)
class Reference:
    """A scalar that names environment variables."""

    text: str
    """As written in the job file."""
    value: Any
    """What it stands for."""
    secrets: tuple[str, ...]
    """The parts of the value that the environment gave; none where the defaults were used."""


@dataclass
class References:
    """The references of one job, by path, and how to print its values."""

    by_path: dict[KeyPath, Reference] = field(default_factory=dict)

    def variables(self) -> list[str]:
        """The environment variables that are named, each once, by name."""
        texts = [reference.text for reference in self.by_path.values()]
        return sorted({found[1] for text in texts for found in _REFERENCE.finditer(text)})

    def shown(self, path: KeyPath, value: Any) -> str:
        """``value`` as a message may print it: short, and without secrets."""
        reference = self.by_path.get(path)
        if reference is not None and reference.secrets:
            return mask(reference.text)
        if is_secret(path):
            return "***"
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "null"}[value]
        if isinstance(value, str):
            text = mask(value)
            return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
        if isinstance(value, Mapping):
            return "a section"
        return "a list" if isinstance(value, list) else str(value)[:_SHOWN]

    def scrubbed(self, text: str, path: KeyPath) -> str:
        """``text``, written by someone who knows no references, without what they hold.

        Strings are replaced wherever they stand; numbers only where ``text`` is about their
        field, for a 2 is often just a 2.
        """
        for where, reference in sorted(self.by_path.items(), key=lambda item: item[0] != path):
            about = where[: len(path)] == path or dotted(where) in text or str(where[-1]) in text
            if about or isinstance(reference.value, str):
                for secret in {*reference.secrets, *_forms(reference)}:
                    text = _replace_word(text, secret, reference.text)
        return mask(text)


def _forms(reference: Reference) -> set[str]:
    """How the value may look in a message."""
    if not reference.secrets:
        return set()
    return {str(reference.value), repr(reference.value), repr(reference.value).strip("'\"")}


def _replace_word(text: str, word: str, replacement: str) -> str:
    """Replace ``word``; a short one only where it stands alone, for it is part of many others."""
    if not word:
        return text
    alone = ("", "") if len(word) >= _LONG else (r"(?<![\w.])", r"(?!\w|\.\w)")
    return re.sub(alone[0] + re.escape(word) + alone[1], lambda _: replacement, text)


def is_secret(path: KeyPath) -> bool:
    """Whether the last key of ``path`` names something that nobody should see."""
    return bool(path) and _SECRET_KEY.search(str(path[-1])) is not None


def expand(source: Source, environ: Mapping[str, str]) -> References:
    """Replace the references in ``source.data`` by what they stand for, and tell which they were.

    An unquoted scalar that is one reference and nothing else gets the type of its value, like
    any unquoted scalar; every other one stays a string. A variable that is empty counts as not
    set. Mistakes are added to ``source.mistakes``.
    """
    references = References()
    source.data = _expand(source.data, (), source, environ, references)
    return references


def _expand(
    value: Any, path: KeyPath, source: Source, environ: Mapping[str, str], found: References
) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v, (*path, k), source, environ, found) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*path, i), source, environ, found) for i, v in enumerate(value)]
    if not isinstance(value, str) or "${env:" not in value:
        return value
    try:
        reference = _resolve(value, path in source.unquoted, environ)
    except BadScalar as error:
        source.mistakes.append(Mistake(source.position(path), path, str(error)))
        return None
    found.by_path[path] = reference
    return reference.value


def _resolve(text: str, unquoted: bool, environ: Mapping[str, str]) -> Reference:
    secrets = []

    def content(match: re.Match[str]) -> str:
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
            f"{mask(text)!r} holds a reference that is not whole; write ${{env:NAME}} or "
            "${env:NAME,default}"
        )
    value: Any = _REFERENCE.sub(content, text)
    if unquoted and _REFERENCE.fullmatch(text):
        try:
            value = plain_scalar(value)
        except BadScalar as error:
            if not secrets:
                raise
            raise BadScalar(
                f"{text} does not hold a number that YAML can read; set it to a finite number "
                "without leading zeros"
            ) from error
    return Reference(text, value, tuple(secrets))
