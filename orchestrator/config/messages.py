"""What is wrong with a job, in one line per mistake: pydantic's findings in a user's words.

Each line has the value (never one from the environment), what was expected, and what to do.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.config.env_refs import References
from orchestrator.config.fields import (
    all_sections,
    choices,
    field_at,
    fields_of,
    kind,
    one_of,
    section_at,
)
from orchestrator.config.scalars import BadScalar, plain_scalar
from orchestrator.config.yaml_source import KeyPath, dotted

_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number with decimals"}
_TYPE_NAMES |= {str: "a string", dict: "a section", list: "a list", type(None): "empty"}
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_EXAMPLES = {
    "a whole number": "one, such as 16",
    "a number": "one, such as 0.5",
    "a size": "one, such as 512MiB",
    "a list of whole numbers": "one, such as [400, 200]",
}
_YES_NO |= {"true": "true", "false": "false"}

RENAMED_KEYS = {
    "cluster.hang_s": "cluster.hang_timeout_s",
    "data.binarise": "data.binarize",
    "data.lanes": "data.shuffle_streams",
    "data.max_bad_fraction": "data.max_corrupt_fraction",
    "data.memory": "data.prefetch_memory",
    "data.patience_s": "data.retry_timeout_s",
    "data.window": "data.read_size",
    "guard.collapse_after": "guard.collapse_patience",
    "guard.rollbacks": "guard.max_rollbacks",
    "guard.skips": "guard.max_consecutive_skips",
    "guard.spike": "guard.max_grad_norm_ratio",
    "sweep.repeats": "sweep.seeds_per_config",
    "tracking.patience_s": "tracking.retry_timeout_s",
}
"""Keys that were renamed, with their new names; the old ones are refused."""


class Wording:
    """Words for the mistakes in one job's ``data``."""

    def __init__(self, data: Any, references: References, unquoted: set[KeyPath]) -> None:
        self.data, self.references, self.unquoted = data, references, unquoted

    def real_path(self, loc: Sequence[str | int]) -> KeyPath:
        """pydantic's ``loc`` without the names of union members that it puts in between."""
        path: KeyPath = ()
        value = self.data
        for index, part in enumerate(loc):
            inside = isinstance(value, dict) and part in value
            inside = inside or (isinstance(value, list) and isinstance(part, int))
            last = index == len(loc) - 1 and isinstance(value, dict)
            if inside or last:
                path = (*path, part)
                value = value[part] if inside else None
        return path

    def message(self, error: ErrorDetails) -> str:
        """The words for one of pydantic's errors."""
        path, value, name = self.real_path(error["loc"]), error["input"], error["type"]
        match name:
            case "missing":
                words = self.missing(path)
            case "extra_forbidden":
                words = self.unknown_key(path)
            case "literal_error":
                words = self.not_a_choice(path, value)
            case "model_type" | "dict_type" | "model_attributes_type":
                words = self.not_a_section(path, value)
            case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
                words = self.out_of_range(path, value)
            case "string_too_short" | "string_pattern_mismatch":
                words = self.bad_text(path, value, error.get("ctx", {}))
            case "byte_size" | "byte_size_unit":
                shown = self.references.shown(path, value)
                words = (
                    f"{shown} is not a valid size; use a number with a unit, such as 512MiB or 2GiB"
                )
            case _ if name.endswith(("_type", "_parsing", "_from_float")):
                words = self.wrong_type(path, value)
            case _:
                words = self.refused(path, error)
        return words

    def refused(self, path: KeyPath, error: ErrorDetails) -> str:
        """What a model's own check says; its text goes on from the value."""
        own = error.get("ctx", {}).get("error")
        text = str(own) if own else "is wrong: " + error["msg"][:1].lower() + error["msg"][1:]
        text = self.references.scrubbed(text, path)
        value = error["input"]
        return text if isinstance(value, dict) else f"{self.references.shown(path, value)} {text}"

    def unknown_model(self, name: str, known: list[str]) -> str:
        """``name`` is no file in models/."""
        shown = self.references.shown(("model", "name"), name)
        hint = f"did you mean {_closest(name, known)}? " if _closest(name, known) else ""
        return f"no model is called {shown}; {hint}models/ has: {', '.join(known)}"

    def missing(self, path: KeyPath) -> str:
        """A required key is not there; the position is that of its section."""
        info = field_at(path, self.data)
        where = f"under `{dotted(path[:-1])}:`" if path[:-1] else "to the file"
        if info is None or kind(info.annotation) == "a section":
            section = section_at(path, self.data)
            keys = fields_of(section) if section else {}
            needed = ", ".join(key for key, field in keys.items() if field.is_required())
            return f"is missing; add a section `{path[-1]}:` {where} with {needed or 'its keys'}"
        example = "`" + f"{path[-1]}: <{kind(info.annotation)}>" + "`"
        return f"is missing; add {example} {where} ({_described(info)})"

    def unknown_key(self, path: KeyPath) -> str:
        """A key that its section does not have: a near one, its true home, or all there are."""
        section = section_at(path[:-1], self.data)
        allowed = list(fields_of(section)) if section else []
        key = str(path[-1])
        if dotted(path) in RENAMED_KEYS:
            return f"unknown key; it is now {RENAMED_KEYS[dotted(path)]}"
        close = _closest(key, allowed)
        if close:
            return f"unknown key; did you mean {close}?"
        homes = [
            dotted((*at, key)) for at, other in all_sections(self.data) if key in fields_of(other)
        ]
        if homes:
            return f"unknown key here; did you mean {one_of(homes)}?"
        name = dotted(path[:-1]) or "a job"
        return f"unknown key; {name} has: {', '.join(allowed)}"

    def not_a_choice(self, path: KeyPath, value: Any) -> str:
        """A Literal that allows other values."""
        info = field_at(path, self.data)
        allowed = choices(info.annotation) if info else []
        close = _closest(value, allowed)
        use = f"; use {close}" if close is not None else ""
        if isinstance(value, str) and close is not None and not isinstance(close, str):
            use += " without quotes"
        shown = self.references.shown(path, value)
        return f"{shown} is not a choice; expected {one_of(allowed)}{use or '; use one of these'}"

    def not_a_section(self, path: KeyPath, value: Any) -> str:
        """A scalar or a list where keys belong."""
        section = section_at(path, self.data)
        keys = f": {', '.join(list(fields_of(section))[:4])} ..." if section else ""
        what = "is empty" if value is None else f"{self._is(path, value)}"
        return f"{what}; expected a section; indent its keys below it{keys}"

    def wrong_type(self, path: KeyPath, value: Any) -> str:
        """A value of another type than the field's."""
        info = field_at(path, self.data)
        expected = kind(info.annotation) if info else "another type"
        return (
            f"{self._is(path, value)}; expected {expected}; {self._remedy(path, value, expected)}"
        )

    def out_of_range(self, path: KeyPath, value: Any) -> str:
        """A number that is too small or too large; both bounds are named."""
        info = field_at(path, self.data)
        bounds = _bounds(info) if info else []
        shown = self.references.shown(path, value)
        return f"{shown} is out of range; use {kind(info.annotation) if info else 'a number'} " + (
            " and ".join(bounds)
        )

    def bad_text(self, path: KeyPath, value: str, ctx: Mapping[str, Any]) -> str:
        """Text that does not have the field's form."""
        info = field_at(path, self.data)
        described = f" here ({_described(info)})" if info else ""
        proposal = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")
        fits = proposal and re.fullmatch(ctx.get("pattern", ".+"), proposal)
        hidden = self.references.shown(path, value) != repr(value)
        use = f"; use {proposal}" if fits and not hidden else "; write something else"
        return f"{self.references.shown(path, value)} is not allowed{described}{use}"

    def _is(self, path: KeyPath, value: Any) -> str:
        shown, name = (
            self.references.shown(path, value),
            _TYPE_NAMES.get(type(value), "of no known type"),
        )
        if isinstance(value, dict | list):
            return f"is {name}"
        if isinstance(value, bool) and shown in ("true", "false"):
            return f"{shown} is not a {'number' if self._numeric(path) else 'text'}"
        return "null is empty" if shown == "null" else f"{shown} is {name}"

    def _numeric(self, path: KeyPath) -> bool:
        info = field_at(path, self.data)
        return info is not None and "number" in kind(info.annotation)

    def _remedy(self, path: KeyPath, value: Any, expected: str) -> str:
        reference = self.references.by_path.get(path)
        quoted = reference is not None and path not in self.unquoted
        if expected == "text" and not isinstance(value, dict | list | None):
            return "put quotes around it"
        if reference is not None and reference.secrets:
            return "remove the quotes" if quoted else f"set the variable to {expected}"
        if value is None:
            return "give a value or remove the key"
        if isinstance(value, str):
            return _remedy_for_text(value, expected)
        if isinstance(value, float) and expected == "a whole number" and abs(value) < 1e15:
            whole = int(value)
            return f"write {whole}" if whole == value else f"use {whole} or {whole + 1}"
        return f"write {_EXAMPLES.get(expected, expected)}"


def _remedy_for_text(value: str, expected: str) -> str:
    if expected == "true or false" and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    try:
        number = plain_scalar(value.strip())
        digits = plain_scalar(re.sub(r"(?<=\d)[_,' ](?=\d)", "", value.strip()))
    except BadScalar:
        number = digits = None
    fitting = int if expected == "a whole number" else int | float
    if "number" in expected and isinstance(number, fitting) and not isinstance(number, bool):
        return "remove the quotes"
    if "number" in expected and isinstance(digits, fitting) and not isinstance(digits, bool):
        return f"write {digits}"
    return f"write {_EXAMPLES.get(expected, expected)}"


def _described(info: FieldInfo) -> str:
    return (info.description or "see the schema").split(";")[0].rstrip(".").replace("\n", " ")


def _bounds(info: FieldInfo) -> list[str]:
    """The limits of a number, in words, the lower one first."""
    found = list(info.metadata)
    waiting = [info.annotation]
    while waiting:
        annotation = waiting.pop()
        found += getattr(annotation, "__metadata__", ())
        waiting += getattr(annotation, "__args__", ())
    words = []
    for limit in found:
        match limit:
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Ge(ge=bound):
                words.append(f"of at least {bound}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
            case Le(le=bound):
                words.append(f"of at most {bound}")
    return words


def _closest(value: Any, allowed: Sequence[Any]) -> Any:
    """The one of ``allowed`` that was probably meant, or None."""
    numbers = [choice for choice in allowed if isinstance(choice, int)]
    if isinstance(value, int | float) and numbers:
        return min(numbers, key=lambda choice: abs(choice - value))
    by_text = {str(choice).lower(): choice for choice in allowed}
    close = difflib.get_close_matches(str(value).lower(), by_text, n=1)
    return by_text[close[0]] if close else None
