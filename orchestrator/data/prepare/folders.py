"""Find the samples in a folder of images.

Layouts:
    A/x.png, B/x.png        pairs: equal names, fields ``a`` and ``b``
    x.png                   with side_by_side, pairs in one file: left half ``a``, right half ``b``
    trainA/, trainB/, ...   pairs that are already split; with unpaired, two sets of images that do
                            not belong together, as in the CycleGAN archives; also A/ and B/
    x.png                   otherwise single images, field ``image``
    cats/x.png              with labels, one folder per class
    x.png, x.txt            with captions, a text file beside each image (beside ``a`` of a pair)
    train/..., val/...      any of these, already split; also A/train/, cats/train/, ...

folder_roles.py has the names and the order of the folders.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path, PurePosixPath

from orchestrator.data.prepare.findings import FolderFinding, count, printable, printable_all
from orchestrator.data.prepare.folder_roles import (
    TEST_WORDS,
    VALIDATION_WORDS,
    FolderRoles,
    Role,
    RoleOptions,
)
from orchestrator.data.prepare.split import VALIDATION_SHARE
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError, UsageError


@dataclass(frozen=True)
class FolderLayout:
    """How to read a folder; see above. The field names are part of the plan of a packing."""

    side_by_side: bool | None = None
    """None takes a split folder of files that are all twice as wide as high for such pairs."""
    labels: bool = False
    captions: bool = False
    unpaired: bool = False
    validation_share: float = VALIDATION_SHARE
    """Fraction to hold out, in [0, 1), unless the folder is split already."""
    pairs: bool | None = None
    """Whether the folders A and B are pairs; None if nothing speaks against it."""
    keep_split: bool = True
    """Whether to keep a folder's own split."""
    validation_folders: tuple[str, ...] = ()
    """Names of the parts that are the validation set, in any capitals; by default one of them."""
    caption_per_line: bool = True
    """Whether each line of a caption file is a caption."""
    derived_input: DerivedInput | None = None
    """How the input of a pair is made from an image."""

    def __post_init__(self) -> None:
        others = self.side_by_side or self.labels or self.captions or self.pairs is False
        if self.unpaired and others:
            raise UsageError(
                "--unpaired does not go with --side-by-side, --labels, --captions or --no-pairs; "
                "give --unpaired alone"
            )
        if self.derived_input and (self.unpaired or self.pairs or self.side_by_side):
            raise UsageError(
                "--derive-input makes pairs of single images: it does not go with --pairs, "
                "--side-by-side or --unpaired"
            )
        if self.pairs and self.side_by_side:
            raise UsageError("--pairs does not go with --side-by-side; give one of them")
        if self.validation_folders and not self.keep_split:
            raise UsageError("--validation-folder does not go with --no-keep-split; give one")

    def role_options(self) -> RoleOptions:
        """Return what it says about the names of folders."""
        named = tuple(name.lower() for name in self.validation_folders)
        words = tuple(dict.fromkeys((*named, *VALIDATION_WORDS, *TEST_WORDS)))
        pairs = True if self.unpaired else self.pairs
        return RoleOptions(pairs, self.labels, self.keep_split, words)


@dataclass(frozen=True)
class ImageSource:
    """Files of one sample. The field names are part of the plan of a packing."""

    key: str
    paths: tuple[Path, ...]
    """One file, or those of ``a`` and ``b``."""
    halves: bool = False
    """Whether the one file holds ``a`` and ``b`` side by side."""
    for_validation: bool | None = None
    """None if the folder is not split already."""
    label: str | None = None
    """Class name."""
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sample, or with unpaired one image, before the files are read."""

    name: str
    """Path without the folders of its role and without its ending."""
    paths: tuple[PurePosixPath, ...]
    """Relative to the folder."""
    for_validation: bool | None
    side: str = ""
    """a or b of an unpaired image."""
    label: str | None = None


@dataclass
class Candidates:
    """The samples of a folder before its files are read."""

    samples: list[Candidate] = field(default_factory=list)
    findings: list[FolderFinding] = field(default_factory=list)


def find_candidates(found: FolderRoles, layout: FolderLayout) -> Candidates:
    """Group the images into samples: training set first, each ordered by name.

    Raises DataError if ``layout`` asks for folders that are not there.
    """
    result = Candidates(findings=list(found.findings))
    if (layout.unpaired or layout.pairs) and not found.has_sides:
        raise DataError(
            "the folder does not hold the folders of "
            f"{'unpaired images' if layout.unpaired else 'pairs'}: trainA and trainB (and testA "
            "and testB), or A and B"
        )
    if found.has_sides and layout.pairs is None and not layout.unpaired:
        text = "folders A and B are taken for the two sides of pairs"
        result.findings.append(FolderFinding("guessed", text, "--no-pairs, --unpaired"))
    for for_validation, roles in _choose_parts(found, layout, result.findings):
        result.samples += _group(roles, for_validation, layout, result.findings)
    if layout.labels:
        result.findings += _check_classes(result.samples)
    else:
        result.findings += _notice_classes(result.samples)
    return result


_Roles = list[tuple[PurePosixPath, Role]]


def _choose_parts(
    found: FolderRoles, layout: FolderLayout, findings: list[FolderFinding]
) -> Iterator[tuple[bool | None, _Roles]]:
    """Yield the training and the validation images; the other parts are left out."""
    by_part: dict[str, _Roles] = defaultdict(list)
    for path, role in found.roles.items():
        by_part[role.part if layout.keep_split else ""].append((path, role))
    for roles in by_part.values():
        roles.sort(key=lambda item: (item[1].rest, item[0]))
    train = [part for part in by_part if part == "" or part.startswith("train")]
    held_out = _choose_held_out(sorted(set(by_part) - set(train)), layout)
    for_validation = False if held_out else None
    yield for_validation, [item for part in sorted(train) for item in by_part[part]]
    if held_out:
        yield True, [item for part in held_out for item in by_part[part]]
    if found.parts and layout.keep_split:
        what = f"the validation set is {' and '.join(held_out)}" if held_out else ""
        text = f"the folder is split already: the training set is {' and '.join(sorted(train))}"
        advice = "--no-keep-split, --validation-folder"
        text = f"{text}, {what}" if what else f"{text}, without a validation set"
        findings.append(
            FolderFinding("guessed", text, advice if what else advice.partition(",")[0])
        )
    for part in sorted(set(by_part) - set(train) - set(held_out)):
        text = f"{count(len(by_part[part]), 'image')} of the part {part}"
        advice = f"--validation-folder {part} takes it"
        examples = printable_all(path for path, _ in by_part[part])
        findings.append(FolderFinding("left out", text, advice, examples))


def _choose_held_out(parts: list[str], layout: FolderLayout) -> list[str]:
    if layout.validation_folders:
        named = list(dict.fromkeys(name.lower() for name in layout.validation_folders))
        if missing := [name for name in named if name not in parts]:
            raise DataError(
                f"--validation-folder {missing[0]}: the folder has no such part beside train; it "
                f"has {', '.join(parts) or 'none'}"
            )
        return named
    return [word for word in (*VALIDATION_WORDS, *TEST_WORDS) if word in parts][:1]


def _group(
    roles: _Roles, for_validation: bool | None, layout: FolderLayout, findings: list[FolderFinding]
) -> Iterator[Candidate]:
    sides: dict[str, dict[tuple[str, str], PurePosixPath]] = {"": {}, "a": {}, "b": {}}
    doubles = []
    for path, role in roles:
        part_and_name = (role.part, role.rest.with_suffix("").as_posix())
        other = sides[role.side].setdefault(part_and_name, path)
        if other != path:
            doubles.append(f"{printable(other)} and {printable(path)} differ in suffix only")
    if doubles:
        text = count(len(doubles), "image has", "images have") + " the name of another one"
        findings.append(FolderFinding("refused", text, "rename one of them", tuple(doubles)))
    if layout.unpaired:
        for side in "ab":
            for (_, name), path in sides[side].items():
                yield Candidate(name, (path,), for_validation, side)
        return
    if sides["a"] or sides["b"]:
        groups = _match_names(sides["a"], sides["b"], findings)
    else:
        groups = {name: (path,) for name, path in sides[""].items()}
    for (part, name), paths in groups.items():
        label = name.partition("/")[0] if layout.labels and "/" in name else None
        whole = name if layout.keep_split or not part else f"{part}/{name}"
        yield Candidate(whole, paths, for_validation, label=label)


def _match_names(
    a: dict[tuple[str, str], PurePosixPath],
    b: dict[tuple[str, str], PurePosixPath],
    findings: list[FolderFinding],
) -> dict[tuple[str, str], tuple[PurePosixPath, ...]]:
    unmatched = sorted(a.keys() ^ b.keys())
    if unmatched:
        only = [f"{printable(name)} is in only one of A and B" for _, name in unmatched]
        advice = "every image needs its partner of the same name, or give --unpaired"
        if len({name.lower() for _, name in unmatched}) < len(unmatched):
            advice = f"some names differ in capitals only; {advice}"
        text = count(len(only), "image has", "images have") + " no partner"
        findings.append(FolderFinding("refused", text, advice, tuple(only)))
    return {name: (a[name], b[name]) for name in a if name in b}


def _check_classes(samples: list[Candidate]) -> Iterator[FolderFinding]:
    outside = [s.paths[0] for s in samples if s.label is None]
    if outside:
        examples = [f"{printable(path)} is not in a class folder" for path in outside]
        advice = "sort all images into such folders, or leave --labels out"
        if any(len(s.paths) > 1 for s in samples):
            advice += "; if A and B are classes, give --no-pairs"
        text = count(len(outside), "image is", "images are") + " not in a class folder"
        yield FolderFinding("refused", text, advice, tuple(examples))
    names = sorted({s.label for s in samples if s.label is not None})
    if invalid := [name for name in names if printable(name) != name]:
        examples = [f"{printable(name)} is not a valid class name" for name in invalid]
        yield FolderFinding(
            "refused", "some class names are not UTF-8", "rename them", tuple(examples)
        )
    by_lower: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_lower[name.lower()].append(name)
    alike = [" and ".join(each) for each in by_lower.values() if len(each) > 1]
    if alike:
        text = "class folders that differ in capitals only are different classes"
        yield FolderFinding("guessed", text, "merge them if they are not", printable_all(alike))
    if len(names) == 1 and not outside:
        text = f"all images are of one class, {printable(names[0])}"
        yield FolderFinding("noted", text, "pack the folder with the class folders in it")


def _notice_classes(samples: list[Candidate]) -> Iterator[FolderFinding]:
    names = {s.name.partition("/")[0] for s in samples if "/" in s.name}
    if len(names) > 1 and all("/" in s.name for s in samples) and not any(s.side for s in samples):
        text = f"{len(names):,} folders are not taken for classes"
        yield FolderFinding("guessed", text, "--labels", printable_all(sorted(names)))


def combine_sides(sides: tuple[list[Path], ...], for_validation: bool) -> list[ImageSource]:
    """Combine the unpaired images of A and B; those of the shorter side are repeated in order."""
    if not all(sides):
        return []
    length = max(map(len, sides))
    couples = list(zip(*(islice(cycle(side), length) for side in sides), strict=True))
    keys = make_keys(f"{a.stem}-{b.stem}" for a, b in couples)
    return [
        ImageSource(key, couple, for_validation=for_validation)
        for key, couple in zip(keys, couples, strict=True)
    ]


def make_keys(names: Iterable[str]) -> list[str]:
    """Return a sample key per name: its number, which makes it unique, and the readable part."""
    return [
        f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:]}"
        for number, name in enumerate(names)
    ]
