"""Collect what the samples of tar files hold, and decide whether they make a set."""

import io
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image

from orchestrator.data.format.decoding import FORMATS
from orchestrator.data.format.images import DECODING_ERRORS
from orchestrator.data.format.pixel_values import is_deep, value_extent
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
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ones."""

    def add_problem(self, problem: str) -> None:
        """Count something that a set may not have."""
        self.num_problems += 1
        if len(self.problems) < MAX_LISTED:
            self.problems.append(problem)

    def add_image(self, data: memoryview, where: str) -> None:
        """Count an image by its header, and by its values if they have more than 8 bits."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                size, grey = image.size, image.getbands()[0] in ("1", "L", "I", "F")
                self.extents.add(where, value_extent(image) if is_deep(image) else None)
        except DECODING_ERRORS as error:
            self.add_problem(f"{where} is not a readable image ({error})")
            return
        self.num_colour += not grey
        self.sizes[size] += 1
        examples = self.examples.setdefault(size, [])
        if len(examples) < MAX_LISTED:
            examples.append(f"{where} is {size[0]}x{size[1]}")

    def add_label(self, label: bytes, where: str) -> None:
        """Count the class of a sample."""
        if label.isdigit() and len(label) < 10 and int(label) < MAX_CLASSES:
            self.num_labels += 1
            self.num_classes = max(self.num_classes, int(label) + 1)
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
        self.sizes.update(other.sizes)
        self.extents.merge(other.extents)
        for size, examples in other.examples.items():
            self.examples[size] = (self.examples.get(size, []) + examples)[:MAX_LISTED]
        self.problems = (self.problems + other.problems)[:MAX_LISTED]


def require_one_size(scan: Scan, images_per_sample: int) -> int:
    """Return the height and width of all images.

    Raises DataError if they differ or if there are other problems.
    """
    square = [(count, size[0]) for size, count in scan.sizes.items() if size[0] == size[1]]
    side = max(square)[1] if square else 0
    for size in sorted(scan.sizes):
        if size != (side, side):
            scan.num_problems += scan.sizes[size]
            scan.problems += scan.examples[size]
    if scan.num_problems:
        rest = scan.num_problems - len(scan.problems[:MAX_LISTED])
        lines = [*scan.problems[:MAX_LISTED], *([f"and {rest:,} more"] if rest > 0 else [])]
        expected = f"{side}x{side} like most of them" if side else "square and of one size"
        raise DataError(
            f"{scan.num_problems:,} of {scan.num_samples * images_per_sample:,} images do not fit; "
            f"all must be readable and {expected}. To resize them, unpack them into a folder and "
            "run `orchestrator data pack FOLDER DEST --size N`:\n  " + "\n  ".join(lines)
        )
    return side


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
