"""Find out which folders are the two sides of pairs, and which the parts of the set.

The levels of folders are looked at one by one, from the top. The folders of a level are

    parts     if they are named train, val, test, ..., one of them train
    sides     if they are A and B
    both      if they are trainA, trainB, testA, ...

in any capitals, and the levels in any order. One folder around all of these is a wrapper. All other
levels belong to the names of the images; the first of them is the class.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from orchestrator.data.prepare.findings import FolderFinding, count, printable_all
from orchestrator.data.prepare.split import SPLIT_WORDS

TRAIN_WORDS, VALIDATION_WORDS, TEST_WORDS = (
    tuple(word for word, split in SPLIT_WORDS.items() if split == each)
    for each in ("train", "validation", "test")
)
MAX_DEPTH = 8
"""Levels of folders that are looked at."""

_Kind = Literal["parts", "sides", "both"]


@dataclass(frozen=True, slots=True)
class Role:
    """What the folders say about one image."""

    part: str
    """Name of its part, such as train, in lower case; empty if the folder is not split."""
    side: str
    """a or b; empty if it is not one of a pair."""
    rest: PurePosixPath
    """Its path without these folders."""


@dataclass
class FolderRoles:
    """The images of a folder with their roles."""

    roles: dict[PurePosixPath, Role] = field(default_factory=dict)
    findings: list[FolderFinding] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in lower case."""
        return sorted({role.part for role in self.roles.values()} - {""})

    @property
    def has_sides(self) -> bool:
        """Whether there are two sides."""
        return any(role.side for role in self.roles.values())


@dataclass(frozen=True)
class RoleOptions:
    """What the user has said about the folders."""

    pairs: bool | None = None
    """Whether A and B are two sides; None decides by their neighbours."""
    labels: bool = False
    """Whether folders may be classes."""
    keep_split: bool = True
    """Whether parts are kept apart."""
    held_out_words: tuple[str, ...] = VALIDATION_WORDS + TEST_WORDS
    """Names of held-out parts, in lower case."""


def find_roles(images: list[PurePosixPath], options: RoleOptions) -> FolderRoles:
    """Find the role of each image; those beside parts or sides are left out, with a finding."""
    found = FolderRoles()
    levels: dict[int, _Level] = {}
    for depth in range(MAX_DEPTH):
        level = _Level.at(depth, images, options)
        kind = level.kind({each.chosen for each in levels.values()})
        if kind is None:
            continue
        levels[depth] = level
        level.chosen = kind
        strangers = {path for path in images if not level.role(path)}
        images = [path for path in images if path not in strangers]
        if strangers:
            names = " and ".join(sorted({level.folder(path) for path in images}))
            text = f"{count(len(strangers), 'image')} beside the folders {names}"
            examples = printable_all(sorted(strangers))
            found.findings.append(FolderFinding("left out", text, level.advice(), examples))
        found.findings += level.find_doubles(images)
    wrapper = _wrapper_depth(images, min(levels, default=0))
    for path in images:
        part = side = ""
        for level in levels.values():
            role = level.role(path)
            part, side = part or role.get("part", ""), side or role.get("side", "")
        rest = [p for n, p in enumerate(path.parts) if n >= wrapper and n not in levels]
        found.roles[path] = Role(part, side, PurePosixPath(*rest))
    return found


def _wrapper_depth(images: list[PurePosixPath], depth: int) -> int:
    """Return how many of the first levels are one folder around everything."""
    common = 0
    while common < depth and len({path.parts[common] for path in images}) == 1:
        common += 1
    return common


@dataclass
class _Level:
    """The folders on one level, by the path of the folder above."""

    depth: int
    images: list[PurePosixPath]
    options: RoleOptions
    groups: dict[tuple[str, ...], set[str]]
    has_loose: bool
    """Whether there are images beside the folders."""
    words: "re.Pattern[str]"
    chosen: _Kind | None = None

    @classmethod
    def at(cls, depth: int, images: list[PurePosixPath], options: RoleOptions) -> "_Level":
        groups: dict[tuple[str, ...], set[str]] = defaultdict(set)
        has_loose = False
        for path in images:
            if len(path.parts) - 1 > depth:
                groups[path.parts[:depth]].add(path.parts[depth])
            else:
                has_loose = True
        words = "|".join(map(re.escape, (*TRAIN_WORDS, *options.held_out_words)))
        return cls(depth, images, options, groups, has_loose, re.compile(f"({words})"))

    def kind(self, taken: set[_Kind | None]) -> _Kind | None:
        """Return what the folders of this level are, unless another level is that already."""
        if not taken and self.options.pairs is not False and self._are("both"):
            return "both"
        if not taken & {"parts", "both"} and self._are("parts"):
            return "parts"
        if not taken & {"sides", "both"} and self.options.pairs is not False:
            return "sides" if self._are("sides") else None
        return None

    def _are(self, kind: _Kind) -> bool:
        self.chosen = kind
        named = [[self._parse(name) for name in names] for names in self.groups.values()]
        known = [[role for role in roles if role] for roles in named]
        parts = {role.get("part", "") for roles in known for role in roles}
        sides = [{role.get("side", "") for role in roles} for roles in known]
        is_alone = not self.has_loose and all(map(all, named))
        is_split = bool(parts & set(TRAIN_WORDS))
        has_pair = any({"a", "b"} <= each for each in sides)
        if kind == "parts":
            return is_split and (is_alone or (self.options.keep_split and len(parts) > 1))
        if kind == "both":
            return is_split and has_pair
        if self.options.pairs:
            return has_pair
        if self.options.labels and not all(map(self._has_class, self.images)):
            return False
        return has_pair and (is_alone or self._sides_match())

    def _has_class(self, path: PurePosixPath) -> bool:
        """Whether there is another folder, besides those of sides and parts."""
        folders = [name for name in path.parts[:-1] if not self.words.fullmatch(name.lower())]
        return len(folders) > 1

    def _sides_match(self) -> bool:
        """Whether A and B hold the same names, so that what is beside them hardly matters."""
        names: dict[str, set[tuple[str, ...]]] = {"a": set(), "b": set()}
        for path in self.images:
            if role := self.role(path):
                names[role["side"]].add(path.with_suffix("").parts[self.depth + 1 :])
        return names["a"] == names["b"]

    def role(self, path: PurePosixPath) -> dict[str, str]:
        """Return the part and the side of an image; empty if it is a stranger."""
        return self._parse(path.parts[self.depth]) if len(path.parts) - 1 > self.depth else {}

    def _parse(self, name: str) -> dict[str, str]:
        lower = name.lower()
        if self.chosen == "sides":
            return {"side": lower} if lower in ("a", "b") else {}
        if self.chosen == "parts":
            return {"part": lower} if self.words.fullmatch(lower) else {}
        match = re.fullmatch(f"{self.words.pattern}[ _-]?([ab])", lower)
        return {"part": match[1], "side": match[2]} if match else {}

    def folder(self, path: PurePosixPath) -> str:
        return path.parts[self.depth]

    def advice(self) -> str:
        if self.chosen == "parts":
            return "--no-keep-split takes all of them"
        return "--no-pairs takes all of them"

    def find_doubles(self, images: list[PurePosixPath]) -> Iterator[FolderFinding]:
        """Yield a refusal for folders of one role, such as A and a."""
        by_role: dict[tuple[object, ...], set[PurePosixPath]] = defaultdict(set)
        for path in images:
            role = tuple(sorted(self.role(path).items()))
            by_role[path.parts[: self.depth], role].add(
                PurePosixPath(*path.parts[: self.depth + 1])
            )
        for folders in by_role.values():
            if len(folders) > 1:
                both = " and ".join(printable_all(sorted(folders)))
                yield FolderFinding(
                    "refused", f"{both} are names of one folder", "merge or rename them"
                )
