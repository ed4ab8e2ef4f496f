"""Look up the fields of a job by their path: the keys of a section and the type of each value."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from orchestrator.config.job import Job
from orchestrator.config.yaml_source import KeyPath
from orchestrator.models.base import ModelConfig, model_module, model_names


def get_fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of ``section`` by their keys in a job file."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def find_section(path: KeyPath, data: Any) -> type[BaseModel] | None:
    """Return the section at ``path`` of the job ``data``; for ``model`` the Config it names."""
    section: type[BaseModel] | None = Job
    value_type: type[BaseModel] | None = None
    """The section under every key of a mapping, such as sweep.space, or every item of a list."""
    for part in path:
        if section is None:
            section, value_type = value_type, None
            continue
        info = get_fields(section).get(str(part))
        inner = None if info is None else _section_of(info.annotation)
        if inner is None and info is not None:
            section, value_type = None, _section_of(_value_type(info.annotation))
            if value_type is None:
                return None
            continue
        if inner is None:
            return None
        section = inner
        if section is ModelConfig:
            name = data["model"].get("name") if isinstance(data.get("model"), dict) else None
            if name in model_names():
                section = model_module(name).Config
    return section


def find_field(path: KeyPath, data: Any) -> FieldInfo | None:
    """Return the field at ``path`` of the job ``data``, or None if there is none.

    For an item of a list, the returned field has the type of the list's items.
    """
    if path and isinstance(path[-1], int):
        whole = find_field(path[:-1], data)
        item = None if whole is None else _item_type(whole.annotation)
        return None if item is None else FieldInfo.from_annotation(item)
    section = find_section(path[:-1], data) if path else None
    return None if section is None else get_fields(section).get(str(path[-1]))


def iter_sections(data: Any) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Yield every section of the job ``data`` with its path."""
    waiting: list[KeyPath] = [()]
    while waiting:
        path = waiting.pop(0)
        section = find_section(path, data)
        if section is not None:
            yield path, section
            waiting += [(*path, key) for key in get_fields(section)]


def get_choices(annotation: Any) -> list[Any]:
    """Return the values that a Literal allows; empty for other types."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in _parts(annotation) for choice in get_choices(part)]


def describe_type(annotation: Any) -> str:
    """Return the type of a field in words, such as "an integer" or "fp32 or bf16"."""
    choices = get_choices(annotation)
    if choices:
        return join_choices(choices)
    if is_section(annotation):
        return "a mapping"
    if (item := _item_type(annotation)) is not None:
        return _describe_list(annotation, describe_type(item))
    leaves = _leaves(annotation)
    if {bool, str} <= {*leaves}:
        return "a number, a string, true or false"
    names = {ByteSize: "a size", bool: "true or false", int: "an integer", float: "a number"}
    return next((name for base, name in names.items() if base in leaves), "a string")


def describe_bounds(info: FieldInfo) -> str:
    """Return the limits of a number in words, the lower one first; of a union's first number."""
    found = list(info.metadata)
    waiting = [info.annotation]
    while waiting:
        annotation = waiting.pop()
        found += getattr(annotation, "__metadata__", ())
        waiting += getattr(annotation, "__args__", ())
    lower = upper = ""
    for limit in found:
        match limit:
            case Gt(gt=bound):
                lower = lower or f"above {_number(bound)}"
            case Ge(ge=bound):
                lower = lower or f"of at least {_number(bound)}"
            case Lt(lt=bound):
                upper = upper or f"below {_number(bound)}"
            case Le(le=bound):
                upper = upper or f"at most {_number(bound)}"
    if not lower and upper.startswith("at most"):
        return f"of {upper}"
    return " and ".join(filter(None, (lower, upper)))


def _number(bound: Any) -> str:
    """Return a bound as it is read best: 1,000,000 or 0.5 or 1e+12."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _describe_list(annotation: Any, item_type: str) -> str:
    name = item_type.removeprefix("an ").removeprefix("a ")
    described = "a list" if name == item_type else f"a list of {name}s"
    others = [p for p in _parts(annotation) if p is not type(None) and _item_type(p) is None]
    return f"{describe_type(others[0])} or {described}" if others else described


def is_section(annotation: Any) -> bool:
    """Whether a field takes a mapping and nothing else."""
    section = _section_of(annotation) is not None and int not in _leaves(annotation)
    return section or get_origin(annotation) is dict


def join_choices(choices: list[Any]) -> str:
    """Return ``choices`` as a list in words: "a, b or c"."""
    texts = [str(choice) for choice in choices]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    types = (leaf for leaf in _leaves(annotation) if isinstance(leaf, type))
    return next((leaf for leaf in types if issubclass(leaf, BaseModel)), None)


def _value_type(annotation: Any) -> Any:
    """Return the type under every key of a mapping, or of every item of a list; else None."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return _item_type(annotation)


def _item_type(annotation: Any) -> Any:
    """Return the type of a list's items; None if the annotation is not a list."""
    if get_origin(annotation) in (tuple, list):
        return get_args(annotation)[0]
    items = (_item_type(part) for part in _parts(annotation))
    return next((item for item in items if item is not None), None)


def _leaves(annotation: Any) -> list[Any]:
    parts = _parts(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _parts(annotation: Any) -> list[Any]:
    """Return the members of a union or the type inside an Annotated."""
    origin, args = get_origin(annotation), list(get_args(annotation))
    if origin is Annotated:
        return args[:1]
    return args if origin in (Union, UnionType) else []
