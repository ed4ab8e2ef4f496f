"""Collect what the samples of tar files hold, and decide whether they make a set."""

import io
from collections import Counter
from dataclasses import dataclass, field

from orchestrator.data.format.decoding import FORMATS, MAX_PIXELS
from orchestrator.data.format.image_files import open_image
from orchestrator.data.format.images import DECODING_ERRORS, is_grey
from orchestrator.data.format.pixel_values import is_deep, value_extent
from orchestrator.data.format.sample_texts import class_number
from orchestrator.data.format.shard_index import CAPTION, LABEL
from orchestrator.data.prepare.value_range import ValueExtents
from orchestrator.errors import DataError

MAX_LISTED = 10
"""Problems, and images of each size, that an error lists."""
MAX_CLASSES = 1 << 20


@dataclass
class Scan:
    """Counts of what one tar, or several, hold."""

    num_samples: int = 0
    num_labels: int = 0
    num_captions: int = 0
    num_classes: int = 0
    """Largest class number + 1."""
    num_colour: int = 0
    """Images that are not grey."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    """The first images of each size."""
    extents: ValueExtents = field(default_factory=ValueExtents)
    """Values of the images, of which those of more than 8 bits are read."""
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Images by field and ending."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Members of no sample by kind."""
    passed_over_examples: dict[str, str] = field(default_factory=dict)
    unmarked: list[str] = field(default_factory=list)
    """Tar files without an end-of-archive marker."""
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ones."""

    def add_problem(self, problem: str) -> None:
        """Count something that a set may not have."""
        self.num_problems += 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(problem)

    def add_image(self, data: memoryview, where: str) -> tuple[int, int] | None:
        """Count an image and return its width and height, if it is readable.

        Only its header is read, unless its values have more than 8 bits.
        """
        try:
            with open_image(io.BytesIO(data), FORMATS) as image:
                size, grey = image.size, is_grey(image.mode)
                if size[0] * size[1] <= MAX_PIXELS:
                    self.extents.add(where, value_extent(image) if is_deep(image) else None)
        except DECODING_ERRORS as error:
            self.add_problem(f"{where} is not a readable image ({error})")
            return None
        if size[0] * size[1] > MAX_PIXELS:
            self.add_problem(f"{where} is {size[0]}x{size[1]}: over {MAX_PIXELS:,} pixels")
            return None
        self.num_colour += not grey
        self.sizes[size] += 1
        examples = self.examples.setdefault(size, [])
        if len(examples) < MAX_LISTED:
            examples.append(f"{where} is {size[0]}x{size[1]}")
        return size

    def add_label(self, label: bytes, where: str) -> None:
        """Count the class of a sample."""
        number = class_number(label)
        if number is not None and number < MAX_CLASSES:
            self.num_labels += 1
            self.num_classes = max(self.num_classes, number + 1)
        else:
            self.add_problem(
                f"{where}.{LABEL} is {label[:20]!r}, not a class number (see --no-labels)"
            )

    def add_caption(self, caption: bytes, where: str) -> None:
        """Count the caption of a sample."""
        try:
            caption.decode()
            self.num_captions += 1
        except UnicodeDecodeError:
            self.add_problem(f"{where}.{CAPTION} is not UTF-8 (see --no-captions)")

    def merge(self, other: "Scan") -> None:
        """Add the counts of another tar."""
        for name in ("num_samples", "num_labels", "num_captions", "num_colour", "num_problems"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.num_classes = max(self.num_classes, other.num_classes)
        self.extents.merge(other.extents)
        for counts, more in (
            (self.sizes, other.sizes),
            (self.endings, other.endings),
            (self.passed_over, other.passed_over),
        ):
            counts.update(more)  # type: ignore[arg-type]  # of the same keys
        self.passed_over_examples = other.passed_over_examples | self.passed_over_examples
        self.unmarked += other.unmarked
        for size, examples in other.examples.items():
            self.examples[size] = (self.examples.get(size, []) + examples)[:MAX_LISTED]
        self.problems = (self.problems + other.problems)[:MAX_LISTED]


def resolve_size(scan: Scan, images_per_sample: int, size: int | None) -> int:
    """Return the height and width of all images: by default the one that all have.

    Raises DataError if they differ without ``size``, or if there are other problems.
    """
    square = [(count, shape[0]) for shape, count in scan.sizes.items() if shape[0] == shape[1]]
    side = max(square)[1] if square else 0
    if size is None:
        for shape in sorted(scan.sizes):
            if shape != (side, side):
                scan.num_problems += scan.sizes[shape]
                scan.problems += scan.examples[shape]
    if scan.num_problems:
        rest = scan.num_problems - len(scan.problems[:MAX_LISTED])
        lines = [*scan.problems[:MAX_LISTED], *([f"and {rest:,} more"] if rest > 0 else [])]
        expected = f"{side}x{side} like most of them" if side else "square and of one size"
        advice = f"readable and {expected}. Images of other sizes are resized while they are read "
        advice += f"with --size {side or 'N'} --fit crop (or pad, or stretch)"
        raise DataError(
            f"{scan.num_problems:,} of {scan.num_samples * images_per_sample:,} images do not fit; "
            f"all must be {'readable' if size else advice}:\n  " + "\n  ".join(lines)
        )
    return size or side


def summarize_notes(scan: Scan) -> list[str]:
    """Return remarks for the user: what was passed over or left out, and what is mixed."""
    total, notes = scan.num_samples, []
    for kind, count in scan.passed_over.items():
        example = scan.passed_over_examples[kind]
        notes.append(f"{count:,} {kind} belong to no sample: passed over, such as {example}")
    for name in dict.fromkeys(name for name, _ in scan.endings):
        used = [(n, ending) for (each, ending), n in scan.endings.items() if each == name]
        if len(used) > 1:
            counts = ", ".join(f"{n:,} .{ending}" for n, ending in sorted(used, reverse=True))
            notes.append(f"the images of {name} have several endings: {counts}")
    if scan.unmarked:
        more = f" and {len(scan.unmarked) - 1:,} more" if len(scan.unmarked) > 1 else ""
        notes.append(
            f"{scan.unmarked[0]}{more} have no end-of-archive marker: if they were truncated, "
            "samples are missing at the end"
        )
    return notes + [
        f"only {count:,} of {total:,} samples have {what}: left out"
        for count, what in ((scan.num_labels, "a class"), (scan.num_captions, "a caption"))
        if 0 < count < total
    ]


def resolve_class_names(scan: Scan, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names by number: ``names``, or else the numbers; none without labels.

    Raises DataError if ``names`` is given and does not name every class.
    """
    if scan.num_labels < scan.num_samples:
        if names:
            raise DataError(
                f"--classes: only {scan.num_labels:,} of {scan.num_samples:,} samples "
                f"have a .{LABEL}"
            )
        return ()
    if not names:
        return tuple(map(str, range(scan.num_classes)))
    if len(names) < scan.num_classes:
        raise DataError(
            f"--classes names {len(names)} classes, but there is a class number "
            f"{scan.num_classes - 1}; write a name for each number from 0 on"
        )
    return names
