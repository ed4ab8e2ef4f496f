"""Packs a folder of images into sets of shards, DEST/train and DEST/validation.

What a folder can hold:
    A/x.png, B/x.png        pairs: equal names, fields ``a`` and ``b``
    x.png                   with side_by_side, pairs in one file: left half ``a``, right half ``b``
    x.png                   otherwise single images, field ``image``
    train/..., val/...      any of these, already split (or test/, validation/); as in the
                            pix2pix archives, files twice as wide as high are pairs side by side
"""

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from orchestrator.data.ahead import in_order
from orchestrator.data.images import SUFFIXES, Channels, load_image, squared, to_png
from orchestrator.data.shards import Index, Progress
from orchestrator.data.writer import SHARD_BYTES, ShardWriter, refuse_existing
from orchestrator.errors import DataError

HELD_OUT_FOLDERS = ("validation", "val", "test")
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class PackSummary:
    """What was packed, and where."""

    train_uri: str
    validation_uri: str
    train: Index
    validation: Index | None
    """None if no sample fell to it: there is no such set then."""

    @property
    def num_train(self) -> int:
        """Samples to train on."""
        return self.train.num_samples

    @property
    def num_validation(self) -> int:
        """Samples to validate on."""
        return self.validation.num_samples if self.validation else 0


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be written."""

    key: str
    """Names the sample within its set: no dots or slashes."""
    images: dict[str, bytes]
    """PNG by field."""
    for_validation: bool
    image_size: int
    channels: Channels = 3
    label: int | None = None
    """Number of its class, in a set with classes."""
    caption: str | None = None


@dataclass
class SplitWriter:
    """Writes samples to DEST/train or DEST/validation."""

    dest_uri: str
    shard_bytes: int = SHARD_BYTES
    classes: tuple[str, ...] = ()
    """Names of the classes by number, if the samples have labels."""
    _writers: dict[str, ShardWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dest_uri = self.dest_uri.rstrip("/")
        for part in ("train", "validation"):
            refuse_existing(
                f"{self.dest_uri}/{part}",
                remove=f"{self.dest_uri}/train and {self.dest_uri}/validation",
            )

    def add(self, sample: Sample) -> None:
        """Append ``sample`` to its set."""
        part = "validation" if sample.for_validation else "train"
        if part not in self._writers:
            self._writers[part] = ShardWriter(
                f"{self.dest_uri}/{part}",
                tuple(sample.images),
                image_size=sample.image_size,
                channels=sample.channels,
                classes=self.classes,
                captions=sample.caption is not None,
                shard_bytes=self.shard_bytes,
            )
        self._writers[part].add(sample.key, sample.images, sample.label, sample.caption)

    def finish(self) -> PackSummary:
        """Write the indexes, that of the training set last: where it is, all is there."""
        if "train" not in self._writers:
            raise DataError(
                f"all images fell to the validation set, none to {self.dest_uri}/train; "
                "give more images or a smaller validation share"
            )
        held_out = self._writers.get("validation")
        return PackSummary(
            train_uri=f"{self.dest_uri}/train",
            validation_uri=f"{self.dest_uri}/validation",
            validation=held_out.finish() if held_out else None,
            train=self._writers["train"].finish(),
        )


def falls_to_validation(content: bytes, share: float) -> bool:
    """Whether a sample is held out: decided by its content, so that duplicates stay together."""
    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return number < share * 2**64


@dataclass(frozen=True)
class _Source:
    """Where the images of one sample are."""

    key: str
    paths: tuple[Path, ...]
    """One file, or those of ``a`` and ``b``."""
    halves: bool
    """Whether the one file holds ``a`` and ``b`` side by side."""
    for_validation: bool | None
    """None where the folder does not say."""


def pack_folder(  # noqa: PLR0913 - the options of one command
    source: str | Path,
    dest_uri: str,
    *,
    size: int | None = None,
    validation_share: float = VALIDATION_SHARE,
    side_by_side: bool = False,
    channels: Channels = 3,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> PackSummary:
    """Pack the images under ``source`` (see above) into sets under ``dest_uri``.

    Args:
        size: height and width to give every image; by default they must all have one already.
        validation_share: what to hold out, in [0, 1), if the folder is not split itself.
        side_by_side: each file holds a pair, left half A and right half B.
        channels: 3 packs colour, 1 grey.

    Raises:
        DataError: there are no images, one does not decode or fit, or a set is there already.
    """
    writer = SplitWriter(dest_uri, shard_bytes)
    sources = _sources(Path(source), side_by_side)
    convert = partial(_converted, size=size, channels=channels, share=validation_share)
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    first: Sample | None = None
    for number, sample in enumerate(in_order(pool, convert, sources, ahead=4 * threads)):
        first = first or sample
        if sample.image_size != first.image_size:
            raise DataError(
                f"{sources[number].paths[0]} is {sample.image_size} px and "
                f"{sources[0].paths[0]} is {first.image_size} px; give --size to make all one size"
            )
        writer.add(sample)
        if progress is not None:
            progress(number + 1, len(sources))
    return writer.finish()


def _converted(source: _Source, *, size: int | None, channels: Channels, share: float) -> Sample:
    images = [load_image(path, channels) for path in source.paths]
    if source.halves:
        images = _halves(images[0], source.paths[0])
    if len({image.size for image in images}) > 1:
        raise DataError(f"{source.paths[0]} and {source.paths[1]} differ in size; a pair may not")
    key_image = images[0]
    held_out = source.for_validation
    if held_out is None:
        shape = f"{key_image.width}x{key_image.height} ".encode()
        held_out = falls_to_validation(shape + key_image.tobytes(), share)
    fields = ("image",) if len(images) == 1 else ("a", "b")
    packed = [squared(image, size) for image in images]
    width, height = packed[0].size
    if width != height:
        raise DataError(
            f"{source.paths[0]} is {width}x{height}, not square; give --size to pad and resize, "
            "or --side-by-side if it holds a pair"
        )
    encoded = dict(zip(fields, map(to_png, packed), strict=True))
    return Sample(source.key, encoded, held_out, width, channels)


def _halves(image: Image.Image, path: Path) -> list[Image.Image]:
    if image.width % 2:
        raise DataError(f"{path} is {image.width} px wide, which makes no two halves side by side")
    middle = image.width // 2
    return [
        image.crop((0, 0, middle, image.height)),
        image.crop((middle, 0, image.width, image.height)),
    ]


def _sources(folder: Path, side_by_side: bool) -> list[_Source]:
    """All samples of ``folder``, in an order that its names decide."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the folder that holds the images")
    held_out = [folder / name for name in HELD_OUT_FOLDERS if (folder / name).is_dir()]
    if not (folder / "train").is_dir():
        return _samples_in(folder, None, side_by_side)
    if not held_out:
        return _samples_in(folder / "train", None, side_by_side or _looks_paired(folder / "train"))
    return [
        sample
        for part, for_validation in ((folder / "train", False), (held_out[0], True))
        for sample in _samples_in(part, for_validation, side_by_side or _looks_paired(part))
    ]


def _looks_paired(folder: Path) -> bool:
    """Whether the first file in ``folder`` is twice as wide as high, as in pix2pix archives."""
    if (folder / "A").is_dir():
        return False
    width, height = load_image(next(iter(_images(folder).values()))).size
    return width == 2 * height


def _samples_in(folder: Path, for_validation: bool | None, halves: bool) -> list[_Source]:
    if (folder / "A").is_dir() and (folder / "B").is_dir():
        groups = _pairs(_images(folder / "A"), _images(folder / "B"), folder)
        halves = False
    else:
        groups = {name: (path,) for name, path in _images(folder).items()}
    return [
        _Source(key, groups[name], halves, for_validation)
        for name, key in zip(groups, _keys(groups), strict=True)
    ]


def _pairs(a: dict[str, Path], b: dict[str, Path], folder: Path) -> dict[str, tuple[Path, ...]]:
    alone = sorted(set(a) ^ set(b))
    if alone:
        raise DataError(
            f"{folder}: {alone[0]} is in only one of A and B ({len(alone)} such names); "
            "every image needs its partner of the same name"
        )
    return {name: (a[name], b[name]) for name in a}


def _images(folder: Path) -> dict[str, Path]:
    """The image files below ``folder`` by their path without suffix, sorted; not hidden ones."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if name in found:
            raise DataError(f"{found[name]} and {path} have one name; rename one of them")
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
    return found


def _keys(names: Iterable[str]) -> list[str]:
    """A sample key for each name: its number, so that none are equal, and what can be read."""
    return [
        f"{number:07d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:]}"
        for number, name in enumerate(names)
    ]
