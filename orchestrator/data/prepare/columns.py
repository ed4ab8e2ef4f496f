"""Choose the columns of a table that become the images, the class and the caption of a sample."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.errors import DataError, UsageError

ColumnKind = Literal["image", "text", "integer", "other"]

LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "cls")
CAPTION_NAMES = ("text", "texts", "caption", "captions", "prompt", "sentences")
"""Names of columns that are taken unless others are chosen; case does not matter."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: ColumnKind
    """Encoded images; texts, also lists of them; whole numbers; or anything else."""
    description: str
    """Its type as the format calls it, for messages."""
    classes: tuple[str, ...] = ()
    """Class names by number, if the table states them."""


@dataclass(frozen=True)
class ColumnChoice:
    """Columns that the user names, and whether to take a class and a caption at all."""

    image: str | None = None
    a: str | None = None
    b: str | None = None
    label: str | None = None
    caption: str | None = None
    labels: bool = True
    captions: bool = True

    def __post_init__(self) -> None:
        if (self.a is None) != (self.b is None) or (self.image and self.a):
            raise UsageError("give one column with --image COLUMN, or two with --a and --b")
        for chosen, wanted, name in (
            (self.label, self.labels, "label"),
            (self.caption, self.captions, "caption"),
        ):
            if chosen and not wanted:
                raise UsageError(f"--{name} and --no-{name}s exclude each other; give one of them")


@dataclass(frozen=True)
class ChosenColumns:
    """Columns that become a sample."""

    images: tuple[Column, ...]
    """One, or those of ``a`` and ``b``."""
    label: Column | None
    caption: Column | None

    @property
    def all(self) -> tuple[Column, ...]:
        """All of them, each once."""
        found = (*self.images, self.label, self.caption)
        return tuple(dict.fromkeys(column for column in found if column is not None))

    def describe(self, columns: Sequence[Column]) -> str:
        """Say which of ``columns`` are taken and which are left out."""
        fields = ("image",) if len(self.images) == 1 else ("a", "b")
        taken = [f"{c.name} as {field}" for c, field in zip(self.images, fields, strict=True)]
        taken += [f"{self.label.name} as the class"] if self.label else []
        taken += [f"{self.caption.name} as the caption"] if self.caption else []
        rest = [column.name for column in columns if column not in self.all]
        return f"columns: {', '.join(taken)}; left out: {', '.join(rest) or 'none'}"


def choose_columns(choice: ColumnChoice, columns: Sequence[Column], where: str) -> ChosenColumns:
    """Return the columns that ``choice`` names, and by default those that their types suggest.

    Raises UsageError, naming the columns of ``where``, if one is missing or the choice is open.
    """
    return ChosenColumns(
        _choose_images(choice, columns, where),
        _choose_label(choice, columns, where) if choice.labels else None,
        _choose_caption(choice, columns, where) if choice.captions else None,
    )


def _choose_images(
    choice: ColumnChoice, columns: Sequence[Column], where: str
) -> tuple[Column, ...]:
    named = [
        (option, name)
        for option, name in (("--image", choice.image), ("--a", choice.a), ("--b", choice.b))
        if name is not None
    ]
    if named:
        return tuple(_find(option, name, columns, ("image",), where) for option, name in named)
    found = [column for column in columns if column.kind == "image"]
    if len(found) == 1:
        return tuple(found)
    if [column.name for column in found] == ["a", "b"]:
        return tuple(found)
    if not found:
        raise UsageError(
            f"{where} has no column with images; it has {_list(columns)}. Images are stored as "
            "bytes, or as a struct with bytes; URLs and paths are not followed"
        )
    raise UsageError(
        f"{where} has {len(found)} columns with images, {', '.join(c.name for c in found)}: choose "
        "one with --image COLUMN, or a pair with --a COLUMN --b COLUMN"
    )


def _choose_label(choice: ColumnChoice, columns: Sequence[Column], where: str) -> Column | None:
    if choice.label is not None:
        return _find("--label", choice.label, columns, ("integer", "text"), where)
    found = [column for column in columns if column.classes] or [
        column
        for column in columns
        if column.kind in ("integer", "text") and column.name.lower() in LABEL_NAMES
    ]
    return _only(found, "classes", "label", where)


def _choose_caption(choice: ColumnChoice, columns: Sequence[Column], where: str) -> Column | None:
    if choice.caption is not None:
        return _find("--caption", choice.caption, columns, ("text",), where)
    texts = (column for column in columns if column.kind == "text")
    found = [column for column in texts if column.name.lower() in CAPTION_NAMES]
    return _only(found, "captions", "caption", where)


def _only(found: Sequence[Column], what: str, option: str, where: str) -> Column | None:
    if len(found) > 1:
        raise UsageError(
            f"{where} has {len(found)} columns with {what}, {', '.join(c.name for c in found)}: "
            f"choose one with --{option} COLUMN, or give --no-{option}s"
        )
    return found[0] if found else None


def _find(
    option: str, name: str, columns: Sequence[Column], kinds: tuple[ColumnKind, ...], where: str
) -> Column:
    for column in columns:
        if column.name != name:
            continue
        if column.kind not in kinds:
            wanted = {"image": "encoded images", "text": "text"}.get(kinds[0], "classes")
            raise UsageError(
                f"{option} {name}: this column of {where} holds {column.description}, not {wanted}"
            )
        return column
    raise UsageError(f"{option} {name}: {where} has no such column; it has {_list(columns)}")


def _list(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} ({column.description})" for column in columns) or "none"


@dataclass(frozen=True)
class ClassTable:
    """Class numbers of the values in a column."""

    names: tuple[str, ...]
    numbers: dict[str, int]
    """Class number by the value's text, which is its name, or its number if the table names it."""

    def number_of(self, value: object) -> int | None:
        """Return the class number of a value, or None if it is not a class."""
        return self.numbers.get(_class_text(value) or "")


def number_classes(column: Column, values: Iterable[object]) -> ClassTable:
    """Number the classes of ``column``: as it states them, or its ``values`` in order.

    Numbers are ordered as numbers, texts as texts.
    """
    if column.classes:
        if len(set(column.classes)) < len(column.classes):
            twice = next(name for name in column.classes if column.classes.count(name) > 1)
            raise DataError(
                f"the column {column.name} has two classes called {twice!r}; rename one of them"
            )
        numbers = {str(number): number for number in range(len(column.classes))}
        return ClassTable(column.classes, numbers)
    texts = {text for value in values if (text := _class_text(value))}
    try:
        names = sorted(texts, key=lambda text: (int(text), text))
    except ValueError:
        names = sorted(texts)
    return ClassTable(tuple(names), {name: number for number, name in enumerate(names)})


def _class_text(value: object) -> str | None:
    return str(value).strip() if isinstance(value, str | int) else None
