"""The fields of a job by their path: which keys a section has, and what each may hold."""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from orchestrator.config.job import Job
from orchestrator.config.yaml_source import KeyPath
from orchestrator.models.base import ModelConfig, model_module, model_names


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that ``section`` has in a job file."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def section_at(path: KeyPath, data: Any) -> type[BaseModel] | None:
    """The section at ``path`` of the job ``data``; for ``model`` the named model's Config."""
    section: type[BaseModel] | None = Job
    named: type[BaseModel] | None = None
    """What stands behind every key of a mapping, such as sweep.space."""
    for part in path:
        if section is None:
            section, named = named, None
            continue
        info = fields_of(section).get(str(part))
        inner = None if info is None else _section_of(info.annotation)
        if inner is None and info is not None and get_origin(info.annotation) is dict:
            section, named = None, _section_of(get_args(info.annotation)[1])
            continue
        if inner is None:
            return None
        section = inner
        if section is ModelConfig:
            named = data["model"].get("name") if isinstance(data.get("model"), dict) else None
            if named in model_names():
                section = model_module(named).Config
    return section


def field_at(path: KeyPath, data: Any) -> FieldInfo | None:
    """The field at ``path`` of the job ``data``, if there is such a field.

    For a number within a list, one that holds what the list's field has items of.
    """
    if path and isinstance(path[-1], int):
        whole = field_at(path[:-1], data)
        item = None if whole is None else _item_of(whole.annotation)
        return None if item is None else FieldInfo.from_annotation(item)
    section = section_at(path[:-1], data) if path else None
    return None if section is None else fields_of(section).get(str(path[-1]))


def all_sections(data: Any) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every section of a job, with its path."""
    waiting: list[KeyPath] = [()]
    while waiting:
        path = waiting.pop(0)
        section = section_at(path, data)
        if section is not None:
            yield path, section
            waiting += [(*path, key) for key in fields_of(section)]


def choices(annotation: Any) -> list[Any]:
    """The values that a Literal allows; empty for other types."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in _parts(annotation) for choice in choices(part)]


def kind(annotation: Any) -> str:
    """What a field holds, in words."""
    allowed = choices(annotation)
    if allowed:
        return one_of(allowed)
    is_section = _section_of(annotation) is not None and int not in _leaves(annotation)
    if is_section or get_origin(annotation) is dict:
        return "a section"
    if (item := _item_of(annotation)) is not None:
        return f"a list of {kind(item).removeprefix('a ')}s"
    if any(part is ByteSize for part in _leaves(annotation)):
        return "a size"
    for base, words in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if any(part is base for part in _leaves(annotation)):
            return words
    return "text"


def one_of(allowed: list[Any]) -> str:
    """``allowed`` as a list in words."""
    texts = [str(choice) for choice in allowed]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for part in _leaves(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _item_of(annotation: Any) -> Any:
    """What a list holds; None for what is no list."""
    if get_origin(annotation) in (tuple, list):
        return get_args(annotation)[0]
    items = (_item_of(part) for part in _parts(annotation))
    return next((item for item in items if item is not None), None)


def _leaves(annotation: Any) -> list[Any]:
    parts = _parts(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _parts(annotation: Any) -> list[Any]:
    """What a union or an Annotated is made of."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return list(get_args(annotation))
    if origin is typing.Annotated:
        return [get_args(annotation)[0]]
    return []
