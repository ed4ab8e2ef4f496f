"""Parse YAML 1.2 into plain data, with the line and column of every key.

ruamel.yaml composes the node graph. Values are built here because its loaders do not keep what the
error messages need: both positions of a duplicate key, the positions of merged keys, which scalars
were quoted, and all mistakes at once. Plain scalars follow the YAML 1.2 core schema exactly.
"""

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from orchestrator.config.scalars import BadScalar, plain_scalar
from orchestrator.redaction import mask

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_VALUES = 10_000
"""A job file has dozens of values, but nested aliases can expand to billions."""
MAX_DEPTH = 50

_PREFIX = "tag:yaml.org,2002:"
_KNOWN_TAGS = {"str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge"}


@dataclass(frozen=True, order=True)
class Position:
    """Position in a file, or a whole command line option if ``line`` is 0."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Mistake:
    """One line of a JobFileError: the position, the path and the message."""

    position: Position
    path: KeyPath
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, [str(self.position), join_path(self.path), self.message]))


@dataclass
class YamlSource:
    """The data of a YAML text and the position of each value."""

    data: Any = None
    positions: dict[KeyPath, Position] = field(default_factory=dict)
    """Position of the key of each value, or of the item in a list; () is the whole document."""
    unquoted: set[KeyPath] = field(default_factory=set)
    """Paths of the scalars that were written without quotes."""
    mistakes: list[Mistake] = field(default_factory=list)
    readable: bool = True
    """False after a syntax error; ``data`` is None then."""

    def copy(self) -> "YamlSource":
        """Return a source whose changes do not change this one."""
        data, positions = copy.deepcopy(self.data), dict(self.positions)
        return YamlSource(data, positions, set(self.unquoted), [*self.mistakes], self.readable)

    def position(self, path: KeyPath) -> Position:
        """Return the position of ``path``, or of the innermost section that contains it."""
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions[path]

    def report(self, path: KeyPath, message: str) -> None:
        """Add a mistake, at the position of ``path``."""
        self.mistakes.append(Mistake(self.position(path), path, message))


def join_path(path: KeyPath) -> str:
    """Return ``path`` as written in messages and after --set: ``train.batch_size``."""
    return ".".join(str(part) for part in path)


def parse_yaml(text: str, file: str) -> YamlSource:
    """Parse the single YAML document in ``text``; mistakes are collected, not raised."""
    source = YamlSource(positions={(): Position(file, 1, 1)})
    try:
        with warnings.catch_warnings():
            # The specification allows an anchor to be defined again.
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            node = YAML(typ="rt", pure=True).compose(text)
        if node is not None:
            reader = _NodeReader(file, source)
            source.data = reader.value(node, (), ())
            source.positions[()] = reader.at(node)
        return source
    except ReaderError as error:
        bad, before = error.character, text[: error.position]
        shown = chr(bad) if isinstance(bad, int) else str(bad)
        message = f"character {shown!r} is not allowed in YAML; remove it"
        at = Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        source.mistakes.append(Mistake(at, (), message))
    except YAMLError as error:
        source.mistakes.append(_syntax_mistake(error, text, file))
    except RecursionError:
        source.report((), "values contain themselves or are nested too deeply; write them out")
    except ValueError as error:
        # ruamel converts numbers in escapes and directives without checking them.
        first = str(error).splitlines()[0]
        source.report((), f"cannot be read as YAML ({first}); quote the value")
    source.data, source.readable = None, False
    return source


def _syntax_mistake(error: YAMLError, text: str, file: str) -> Mistake:
    """Return one short line instead of ruamel's several."""
    mark, opened = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    problem = getattr(error, "problem", str(error)) or ""
    at = opened if opened and "stream" in problem else mark
    position = Position(file, at.line + 1, at.column + 1) if at else Position(file, 1, 1)
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    return Mistake(position, (), _syntax_message(problem, line))


_SYNTAX = (
    ("another document", "a second document starts here; a job file has only one; remove `---`"),
    (r"'\\t'", "YAML cannot be indented with tabs; use spaces"),
    ("quoted scalar|unexpected end of stream", "a quote is opened here but never closed; close it"),
    ("<stream end>", "a bracket is opened here but never closed; close it"),
    ("could not find expected ':'", "a line without `: `; write `key: value`"),
    ("block end", "inconsistent indentation in this section; use the same number of spaces"),
)
"""Patterns of ruamel's messages, with the messages that replace them."""


def _syntax_message(problem: str, line: str) -> str:
    if re.search(r"[{\[,].*\$\{env:", line) and "expected" in problem:
        return 'a reference between { } or [ ] needs quotes; write "${env:NAME}"'
    for pattern, message in _SYNTAX:
        if re.search(pattern, problem):
            return message
    if "mapping values are not allowed" in problem:
        if len(re.findall(r":(?=\s|$)", line)) > 1:
            return "a second `: ` in one line; put quotes around the value"
        return "a key is not allowed here; indent it like the keys above, and end each with `: `"
    first = problem.splitlines()[0] if problem else "unreadable"
    if "alias" in first:
        return f"{first}; define it first with & and the same name"
    return f"{first}; quote the value, or correct it"


class _NodeReader:
    """Converts ruamel's nodes to plain data."""

    def __init__(self, file: str, source: YamlSource) -> None:
        self.file, self.source, self.num_values = file, source, 0

    def at(self, node: Node) -> Position:
        return Position(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def mistake(self, node: Node, path: KeyPath, message: str) -> None:
        self.source.mistakes.append(Mistake(self.at(node), path, message))

    def value(self, node: Node, path: KeyPath, around: tuple[int, ...]) -> Any:
        """Return the data of ``node``; ``around`` has the ids of the nodes that contain it."""
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(around) > MAX_DEPTH:
            raise RecursionError
        if id(node) in around:
            self.mistake(node, path, "the alias refers to a section that contains it; write it out")
            return None
        tag = str(node.tag or "")
        if not tag.startswith(_PREFIX) or tag.removeprefix(_PREFIX) not in _KNOWN_TAGS:
            shown = "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag
            self.mistake(node, path, f"tag {shown} is not allowed; write a plain value without it")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path, (*around, id(node)))
        if isinstance(node, SequenceNode):
            return self.items(node, path, (*around, id(node)))
        assert isinstance(node, ScalarNode)
        return self.scalar(node, path, tag.removeprefix(_PREFIX))

    def scalar(self, node: ScalarNode, path: KeyPath, tag: str) -> Any:
        text = str(node.value)
        if node.style is None:
            self.source.unquoted.add(path)
        try:
            return text if tag == "str" else plain_scalar(text)
        except BadScalar as error:
            self.mistake(node, path, str(error))
            return None

    def items(self, node: SequenceNode, path: KeyPath, around: tuple[int, ...]) -> list[Any]:
        for index, item in enumerate(node.value):
            self.source.positions[(*path, index)] = self.at(item)
        return [self.value(item, (*path, i), around) for i, item in enumerate(node.value)]

    def mapping(self, node: MappingNode, path: KeyPath, around: tuple[int, ...]) -> dict[str, Any]:
        """Return the mapping of ``node``: its own keys, then the other keys of merged mappings."""
        entries: dict[str, tuple[Node, Node]] = {}
        merged: list[tuple[Node, Node]] = []
        for key, value in node.value:
            if key.tag == _PREFIX + "merge":
                merged += self.merged(value, path, around)
            elif (name := self.key(key, path)) is None:
                continue
            elif name in entries:
                first = entries[name][0].start_mark.line + 1
                message = f"duplicate key: already defined on line {first}; keep one of the two"
                self.mistake(key, (*path, name), message)
            else:
                entries[name] = (key, value)
        for key, value in merged:
            if (name := self.key(key, path)) is not None:
                entries.setdefault(name, (key, value))
        for name, (key, _) in entries.items():
            self.source.positions[(*path, name)] = self.at(key)
        return {
            name: self.value(node, (*path, name), around) for name, (_, node) in entries.items()
        }

    def key(self, node: Node, path: KeyPath) -> str | None:
        """Return a key, or None after adding a mistake if it is not a string."""
        message = "a key must be a string, not a list or a mapping; write `key: value`"
        if isinstance(node, ScalarNode):
            try:
                value = node.value if node.style else plain_scalar(str(node.value))
            except BadScalar:
                value = None
            if isinstance(value, str):
                return value
            shown = mask(str(node.value))[:40]
            message = f"key {shown!r} is not a string; put quotes around it or correct it"
        self.mistake(node, path, message)
        return None

    def merged(
        self, node: Node, path: KeyPath, around: tuple[int, ...]
    ) -> Iterator[tuple[Node, Node]]:
        """Yield the entries merged by `<<:`, the ones with precedence first."""
        for mapping in node.value if isinstance(node, SequenceNode) else [node]:
            self.num_values += 1
            if self.num_values > MAX_VALUES:
                raise RecursionError
            if not isinstance(mapping, MappingNode) or id(mapping) in around:
                self.mistake(mapping, path, "`<<` can only merge a mapping; write `<<: *name`")
                continue
            own = [pair for pair in mapping.value if pair[0].tag != _PREFIX + "merge"]
            yield from own
            for key, value in mapping.value:
                if key.tag == _PREFIX + "merge":
                    yield from self.merged(value, path, (*around, id(mapping)))
