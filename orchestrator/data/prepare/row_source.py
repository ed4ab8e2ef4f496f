"""Rows of other data formats, each with the encoded images, the class and the caption of a sample.

The formats are in parquet_source.py, lmdb_source.py and image_folder.py.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.data.prepare.columns import ChosenColumns, Column
from orchestrator.data.prepare.findings import FolderFinding, count
from orchestrator.data.prepare.split import SPLIT_WORDS
from orchestrator.errors import DataError

LFS_POINTER = b"version https://git-lfs"
"""Start of the text file that git leaves in place of a large file that was not fetched."""
LFS_ADVICE = "is a git-LFS pointer, not the data; get the data with `git lfs pull`"


@dataclass(frozen=True)
class SplitChoice:
    """What the user says about a source that is split into train, validation and test."""

    keep: bool = True
    """Whether the split is kept; otherwise all parts are one set."""
    held_out: str | None = None
    """The split to hold out, validation or test; by default validation, or else test."""


@dataclass(frozen=True)
class SourceRow:
    """One row, before its images are decoded."""

    number: int
    """Position among all rows of the source, which names the sample."""
    name: str
    place: str
    """Where it is in the source, for messages: the file and the row in it."""
    images: tuple[bytes, ...] = ()
    """Encoded images; empty if there is a problem."""
    problem: str | None = None
    """Why it cannot be packed."""
    label: object = None
    """Value of the column with the class, None if there is none."""
    caption: object = None
    """Value of the column with the caption."""
    for_validation: bool | None = None
    """None if the source is not split already."""

    @property
    def key(self) -> str:
        """Name of the sample: its number, which makes it unique, and the readable part."""
        return f"{self.number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', self.name)[-60:]}"


IsDone = Callable[[int], bool]
"""Whether the row with this number is packed already and need not be read."""


class RowSource(ABC):
    """A table of images in some format."""

    where: str
    """Its place, for messages."""
    columns: Sequence[Column]
    num_rows: int
    findings: Sequence[FolderFinding] = ()
    """What the user should know, such as files that are left out."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash that changes with the content, without reading all of it."""

    @abstractmethod
    def rows(self, chosen: ChosenColumns, is_done: IsDone) -> Iterator[SourceRow]:
        """Read the rows that are not done, in order, in bounded memory."""


def split_in_name(path: str) -> str | None:
    """Return the split in a file's path, such as train-00000-of-00002.parquet or val/0.parquet.

    The file's name counts more than its folders, and these more the nearer they are.
    """
    for part in reversed(path.split("/")):
        for word in re.split(r"[-._ 0-9]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def require_one_set(keys: Sequence[str], where: str) -> None:
    """Raise DataError if ``keys`` are in folders of several sets, such as en/ and fr/.

    Folders that are named as a split or by a number are parts of one set.
    """
    sets = set()
    for key in keys:
        folders = key.split("/")[:-1]
        sets.add("/".join(f for f in folders if f.lower() not in SPLIT_WORDS and not f.isdigit()))
    if len(sets) > 1:
        listed = ", ".join(f"{where.rstrip('/')}/{name}".rstrip("/") for name in sorted(sets)[:5])
        raise DataError(
            f"{where} holds {len(sets)} sets in folders of their own; give one of them: {listed}"
        )


def held_out_parts(
    splits: Sequence[str | None], names: Sequence[str], what: str, choice: SplitChoice
) -> tuple[dict[str, bool | None], list[FolderFinding]]:
    """Return the ``names`` to pack, each with whether it is held out, and what to tell the user.

    If the split is not kept, there is no training part, or nothing to hold out, the value is None
    and samples are held out by their content. ``what`` names one part: "file".

    Raises DataError if the split that the user chose is not there.
    """
    by_split: dict[str | None, list[str]] = {}
    for split, name in zip(splits, names, strict=True):
        by_split.setdefault(split, []).append(name)
    found = [split for split in ("validation", "test") if split in by_split]
    if choice.held_out is not None and (choice.held_out not in found or "train" not in by_split):
        missing = choice.held_out if choice.held_out not in found else "train"
        raise DataError(f"--validation-split {choice.held_out}: no {what} is named {missing}")
    if not choice.keep or "train" not in by_split:
        text = f"no {what} is named train: {' and '.join(found)} are packed with the rest"
        told = choice.keep and bool(found)
        return dict.fromkeys(names), [FolderFinding("guessed", text)] if told else []
    held_out = choice.held_out or next(iter(found), None)
    kept: dict[str, bool | None] = {
        name: (split == held_out) if held_out else None
        for split, name in zip(splits, names, strict=True)
        if split in ("train", held_out) and split is not None
    }
    findings = []
    if held_out:
        text = f"{held_out} is held out for validation"
        findings.append(FolderFinding("guessed", text, "--validation-split, --no-keep-split"))
    if left_out := tuple(name for name in names if name not in kept):
        text = f"{count(len(left_out), what)} beside the training set"
        shown = tuple(name or f"all outside of {what}s of a split" for name in left_out)
        advice = "--validation-split, --no-keep-split"
        findings.append(FolderFinding("left out", text, advice, shown))
    return kept, findings
