"""What indexing finds in the samples of tar files, and whether it makes a set."""

import io
from collections import Counter
from dataclasses import dataclass, field

from PIL import Image

from orchestrator.data.format.decoding import FORMATS
from orchestrator.data.format.images import DECODING_ERRORS
from orchestrator.data.format.shard_index import CAPTION, LABEL
from orchestrator.errors import DataError

MOST_TOLD = 10
MOST_CLASSES = 1 << 20


@dataclass
class Scan:
    """What is in one tar, or in several."""

    samples: int = 0
    labels: int = 0
    captions: int = 0
    classes: int = 0
    colour: int = 0
    """Images that are not grey."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    examples: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    """Of each size, the first images."""
    bad: int = 0
    told: list[str] = field(default_factory=list)
    """Of ``bad``, the first."""

    def blame(self, problem: str) -> None:
        """Count what makes it no set."""
        self.bad += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(problem)

    def see(self, data: memoryview, where: str) -> None:
        """Look at the header of an image."""
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                size, grey = image.size, image.getbands()[0] in ("1", "L", "I")
        except DECODING_ERRORS:
            self.blame(f"{where} is no image that can be read")
            return
        self.colour += not grey
        self.sizes[size] += 1
        examples = self.examples.setdefault(size, [])
        if len(examples) < MOST_TOLD:
            examples.append(f"{where} is {size[0]}x{size[1]}")

    def see_label(self, label: bytes, where: str) -> None:
        """Look at the class of a sample."""
        if label.isdigit() and len(label) < 10 and int(label) < MOST_CLASSES:
            self.labels += 1
            self.classes = max(self.classes, int(label) + 1)
        else:
            self.blame(f"{where}.{LABEL} is {label[:20]!r}, no number of a class (see --no-labels)")

    def see_caption(self, caption: bytes, where: str) -> None:
        """Look at the caption of a sample."""
        try:
            caption.decode()
            self.captions += 1
        except UnicodeDecodeError:
            self.blame(f"{where}.{CAPTION} is no UTF-8 (see --no-captions)")

    def add(self, other: "Scan") -> None:
        """Count also what is in another tar."""
        for name in ("samples", "labels", "captions", "colour", "bad"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.classes = max(self.classes, other.classes)
        self.sizes.update(other.sizes)
        for size, examples in other.examples.items():
            self.examples[size] = (self.examples.get(size, []) + examples)[:MOST_TOLD]
        self.told = (self.told + other.told)[:MOST_TOLD]


def one_size(scan: Scan, per_sample: int) -> int:
    """Height and width of all images. Raises DataError if they differ, or anything is bad."""
    square = [(count, size[0]) for size, count in scan.sizes.items() if size[0] == size[1]]
    side = max(square)[1] if square else 0
    for size in sorted(scan.sizes):
        if size != (side, side):
            scan.bad += scan.sizes[size]
            scan.told += scan.examples[size]
    if scan.bad:
        rest = scan.bad - len(scan.told[:MOST_TOLD])
        lines = [*scan.told[:MOST_TOLD], *([f"and {rest:,} more"] if rest > 0 else [])]
        should = f"{side}x{side} as most are" if side else "square and of one size"
        raise DataError(
            f"{scan.bad:,} of {scan.samples * per_sample:,} images do not fit; all must be "
            f"readable and {should}. `orchestrator data pack FOLDER DEST --size N` makes images "
            "fit that are unpacked into a folder:\n  " + "\n  ".join(lines)
        )
    return side


def class_names(scan: Scan, given: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes by number, if all samples have one.

    Raises DataError unless ``given`` has a name for each, or none at all.
    """
    if scan.labels < scan.samples:
        if given:
            raise DataError(
                f"--classes: only {scan.labels:,} of {scan.samples:,} samples have a .{LABEL}"
            )
        return ()
    if not given:
        return tuple(map(str, range(scan.classes)))
    if len(given) < scan.classes:
        raise DataError(
            f"--classes names {len(given)} classes, but there is a class number "
            f"{scan.classes - 1}; write a name for each number from 0 on"
        )
    return given
