"""Error messages for job files: pydantic's errors in a user's words, one line each.

A message has the value (never one from the environment), what was expected, and what to do.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.config.env_refs import EnvReferences
from orchestrator.config.fields import (
    describe_bounds,
    describe_type,
    find_field,
    find_section,
    get_choices,
    get_fields,
    is_section,
    iter_sections,
    join_choices,
)
from orchestrator.config.scalars import BadScalar, plain_scalar
from orchestrator.config.yaml_source import KeyPath, join_path

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

_TYPE_NAMES = {bool: "a boolean", int: "an integer", float: "a float"}
_TYPE_NAMES |= {str: "a string", dict: "a mapping", list: "a list", type(None): "empty"}
_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_BOOLEANS |= {"true": "true", "false": "false"}
_EXAMPLES = {
    "an integer": "one, such as 16",
    "a number": "one, such as 0.5",
    "a size": "one, such as 512MiB",
    "a list of integers": "one, such as [400, 200]",
}


class ErrorMessages:
    """Writes the messages for the mistakes in one job's ``data``."""

    def __init__(self, data: Any, references: EnvReferences, unquoted: set[KeyPath]) -> None:
        self.data, self.references, self.unquoted = data, references, unquoted

    def real_path(self, error: ErrorDetails) -> KeyPath:
        """Return the ``loc`` of an error without the names of union members that it contains."""
        path: KeyPath = ()
        value, loc = self.data, error["loc"]
        for index, part in enumerate(loc):
            inside = isinstance(value, dict) and part in value
            inside = inside or (isinstance(value, list) and isinstance(part, int))
            is_missing_key = error["type"] == "missing" and index == len(loc) - 1
            if inside or is_missing_key:
                path = (*path, part)
                value = value[part] if inside else None
        return path

    def by_path(self, errors: Sequence[ErrorDetails]) -> dict[KeyPath, ErrorDetails]:
        """Return the first error of each path.

        A union has one for each of its types: the first that is not about the type says more.
        """
        first: dict[KeyPath, ErrorDetails] = {}
        for error in errors:
            path = self.real_path(error)
            if path not in first or (_is_about_type(first[path]) and not _is_about_type(error)):
                first[path] = error
        return first

    def describe(self, error: ErrorDetails) -> str:
        """Return the message for one of pydantic's errors."""
        path, value, name = self.real_path(error), error["input"], error["type"]
        match name:
            case "missing":
                message = self.missing_key(path)
            case "extra_forbidden":
                message = self.unknown_key(path)
            case "literal_error":
                message = self.invalid_choice(path, value)
            case "model_type" | "dict_type" | "model_attributes_type":
                message = self.not_a_mapping(path, value)
            case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
                message = self.out_of_range(path, value)
            case "string_too_long":
                message = self.too_long(path, value, error.get("ctx", {}))
            case "too_long" | "too_short":
                message = self.wrong_length(error.get("ctx", {}))
            case "string_too_short" | "string_pattern_mismatch":
                message = self.invalid_text(path, value, error.get("ctx", {}))
            case "byte_size" | "byte_size_unit":
                use = "use a number with a unit, such as 512MiB or 2GiB"
                message = f"{self.references.display(path, value)} is not a valid size; {use}"
            case _ if _is_about_type(error):
                message = self.wrong_type(path, value)
            case _:
                message = self.failed_check(path, error)
        return message

    def failed_check(self, path: KeyPath, error: ErrorDetails) -> str:
        """Return the message of a model's own check, which continues the value."""
        own = error.get("ctx", {}).get("error")
        text = str(own) if own else "is not valid: " + error["msg"][:1].lower() + error["msg"][1:]
        text = self.references.redact(text, path)
        value, last = error["input"], error["loc"][-1] if error["loc"] else ""
        section = find_section(path, self.data)
        if section is not None and last not in path[-1:] and last in get_fields(section):
            return f"{last} is {value} by default, which {text}"
        return text if isinstance(value, dict) else f"{self.references.display(path, value)} {text}"

    def unknown_model(self, name: str, known: list[str]) -> str:
        """Name the models that exist, and the closest one."""
        shown = self.references.display(("model", "name"), name)
        close = _closest(name, known)
        hint = f"did you mean {close}? " if close else ""
        return f"there is no model {shown}; {hint}models/ has: {', '.join(known)}"

    def missing_key(self, path: KeyPath) -> str:
        """Show how to add a required key; the mistake's position is that of the section."""
        info = find_field(path, self.data)
        where = f"under `{join_path(path[:-1])}:`" if path[:-1] else "to the file"
        if info is None or is_section(info.annotation):
            section = find_section(path, self.data)
            keys = get_fields(section) if section else {}
            needed = ", ".join(key for key, field in keys.items() if field.is_required())
            required = f" (required keys: {needed})" if needed else ""
            return f"is missing; add a section `{path[-1]}:` {where}{required}"
        example = "<" + re.sub("^an? ", "", describe_type(info.annotation)) + ">"
        return f"is missing; add `{path[-1]}: {example}` {where} ({_summary(info)})"

    def unknown_key(self, path: KeyPath) -> str:
        """Suggest a similar key, the section that has the key, or name the keys that exist."""
        if (new := RENAMED_KEYS.get(join_path(path))) is not None:
            return f"unknown key; it is now {new}"
        section = find_section(path[:-1], self.data)
        known = list(get_fields(section)) if section else []
        key = str(path[-1])
        close = _closest(key, known)
        if close:
            return f"unknown key; did you mean {close}?"
        elsewhere = [
            join_path((*at, key)) for at, s in iter_sections(self.data) if key in get_fields(s)
        ]
        if elsewhere:
            return f"unknown key here; did you mean {join_choices(elsewhere)}?"
        return f"unknown key; {join_path(path[:-1]) or 'a job'} has: {', '.join(known)}"

    def invalid_choice(self, path: KeyPath, value: Any) -> str:
        """Name the choices of a field, and the closest one."""
        info = find_field(path, self.data)
        choices = get_choices(info.annotation) if info else []
        close = _closest(value, choices)
        use = f"use {close}" if close is not None else "use one of these"
        if isinstance(value, str) and close is not None and not isinstance(close, str):
            use += " without quotes"
        shown = self.references.display(path, value)
        return f"{shown} is not a valid choice; expected {join_choices(choices)}; {use}"

    def not_a_mapping(self, path: KeyPath, value: Any) -> str:
        """Name the first keys of a section that was given a scalar or a list."""
        section = find_section(path, self.data)
        keys = f": {', '.join(list(get_fields(section))[:4])} ..." if section else ""
        return f"{self._is(path, value)}; expected a mapping; indent its keys under it{keys}"

    def wrong_type(self, path: KeyPath, value: Any) -> str:
        """Name the type of the value, the expected type, and the fix."""
        expected = self._expected(path)
        return f"{self._is(path, value)}; expected {expected}; {self._fix(path, value, expected)}"

    def out_of_range(self, path: KeyPath, value: Any) -> str:
        """Name both bounds of a number."""
        info = find_field(path, self.data)
        expected = describe_type(info.annotation) if info else "a number"
        expected = expected if expected in _EXAMPLES else "a number"
        shown = self.references.display(path, value)
        return f"{shown} is out of range; use {expected} {describe_bounds(info) if info else ''}"

    def invalid_text(self, path: KeyPath, value: str, ctx: Mapping[str, Any]) -> str:
        """Propose a string that matches the field's pattern."""
        info = find_field(path, self.data)
        about = f" ({_summary(info)})" if info else ""
        proposal = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")
        fits = proposal and re.fullmatch(ctx.get("pattern", ".+"), proposal)
        shown = self.references.display(path, value)
        hidden = shown != repr(value)
        use = proposal if fits and not hidden else "another value"
        return f"{shown} is not allowed here{about}; use {use}"

    def too_long(self, path: KeyPath, value: str, ctx: Mapping[str, Any]) -> str:
        """Name the length of a text and the longest that is allowed."""
        shown, longest = self.references.display(path, value), ctx["max_length"]
        return f"{shown} has {len(value):,} characters; use at most {longest:,}"

    def wrong_length(self, ctx: Mapping[str, Any]) -> str:
        """Name the number of items of a list, and the bound that it breaks."""
        if "max_length" in ctx:
            return f"has {_count(ctx)}; give at most {ctx['max_length']:,}"
        return f"has {_count(ctx)}; give at least {ctx['min_length']:,}"

    def _is(self, path: KeyPath, value: Any) -> str:
        shown = self.references.display(path, value)
        name = _TYPE_NAMES.get(type(value), "of an unknown type")
        if isinstance(value, dict | list) or shown == "null":
            return f"is {name}"
        if isinstance(value, bool) and shown in ("true", "false"):
            is_numeric = self._expected(path) in ("an integer", "a number")
            return f"{shown} is not a {'number' if is_numeric else 'string'}"
        return f"{shown} is {name}"

    def _expected(self, path: KeyPath) -> str:
        info = find_field(path, self.data)
        return describe_type(info.annotation) if info else "another type"

    def _fix(self, path: KeyPath, value: Any, expected: str) -> str:
        reference = self.references.by_path.get(path)
        quoted = reference is not None and path not in self.unquoted
        if expected.startswith("a string") and not isinstance(value, dict | list | None):
            return "put quotes around it"
        if reference is not None and reference.secrets:
            return "remove the quotes" if quoted else f"set the variable to {expected}"
        if value is None:
            return "give a value or remove the key"
        if isinstance(value, str):
            return _fix_string(value, expected)
        if isinstance(value, float) and expected == "an integer" and abs(value) < 1e15:
            whole = int(value)
            return f"write {whole}" if whole == value else f"use {whole} or {whole + 1}"
        return f"write {_EXAMPLES.get(expected, expected)}"


def _is_about_type(error: ErrorDetails) -> bool:
    return error["type"].endswith(("_type", "_parsing", "_from_float", "_required"))


def _fix_string(value: str, expected: str) -> str:
    if expected == "true or false" and value.lower() in _BOOLEANS:
        return f"write {_BOOLEANS[value.lower()]}"
    if expected in ("an integer", "a number"):
        types = int if expected == "an integer" else int | float
        try:
            number = plain_scalar(value.strip())
            digits = plain_scalar(re.sub(r"(?<=\d)[_,' ](?=\d)", "", value.strip()))
        except BadScalar:
            number = digits = None
        if isinstance(number, types) and not isinstance(number, bool):
            return "remove the quotes"
        if isinstance(digits, types) and not isinstance(digits, bool):
            return f"write {digits}"
    return f"write {_EXAMPLES.get(expected, expected)}"


def _summary(info: FieldInfo) -> str:
    """Return the first clause of a field's description."""
    return re.split(r"[;.](?:\s|$)", info.description or "see the schema")[0].replace("\n", " ")


def _count(ctx: Mapping[str, Any]) -> str:
    number = ctx.get("actual_length") or 0
    return f"{number:,} value" if number == 1 else f"{number:,} values"


def _closest(value: Any, choices: Sequence[Any]) -> Any:
    """Return the most similar one of ``choices``, or None."""
    numbers = [choice for choice in choices if isinstance(choice, int)]
    if isinstance(value, int | float) and numbers:
        return min(numbers, key=lambda choice: abs(choice - value))
    by_text = {str(choice).lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), by_text, n=1)
    return by_text[close[0]] if close else None
