"""Images to translate: files in a folder or under a prefix, or the samples of a packed set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.data.format.image_files import FILE_ENDINGS, SHORT_ENDINGS
from orchestrator.data.format.images import Channels, Fit, fit_image, load_encoded
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import (
    CAPTION,
    INDEX,
    LABEL,
    ShardSet,
    canonical_json,
    open_set,
)
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import UsageError
from orchestrator.file_sums import sum_bytes
from orchestrator.home_folder import expand_home
from orchestrator.models.base import ModelConfig
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

GRID = "grid"
"""Stem of the file with the grid of samples, beside the images."""
DEFAULT_FIT: Fit = "pad"
"""For models whose training set does not tell; it loses nothing."""


class InputImage(NamedTuple):
    """One image to translate, with what its translation keeps."""

    image: Image.Image
    label: int | None = None
    caption: str | None = None


class ImageInputs(Protocol):
    """Images to translate, by number. Picklable for other processes."""

    @property
    def uri(self) -> str:
        """Where they are."""

    @property
    def preparation(self) -> Preparation:
        """How they are made square and 8-bit, or were."""

    @property
    def fit(self) -> Fit:
        """How they are made square and resized."""

    @property
    def stems(self) -> Sequence[str]:
        """Names of the translations, without an ending."""

    @property
    def first_key(self) -> str:
        """Key of a file that must be readable wherever they are drawn."""

    def digest(self) -> str:
        """Sha256 that tells whether the images are still the same."""

    def load(self, number: int, channels: Channels) -> InputImage:
        """Load an image. Raises DataError if it cannot be decoded."""


@dataclass(frozen=True)
class FileInputs:
    """Image files in a folder or under a prefix, by name."""

    storage: Storage
    names: tuple[str, ...]
    preparation: Preparation
    """With a fit."""

    @property
    def uri(self) -> str:
        """Of the folder or prefix."""
        return self.storage.uri

    @property
    def fit(self) -> Fit:
        """As in training, by default with white on both sides."""
        return self.preparation.fit or DEFAULT_FIT

    @property
    def stems(self) -> Sequence[str]:
        """Those of the files."""
        return [PurePosixPath(name).stem for name in self.names]

    @property
    def first_key(self) -> str:
        """The first file."""
        return self.names[0]

    def digest(self) -> str:
        """Sha256 of the names and contents of the files, each of which is read once more."""
        sums = [[name, sum_bytes(self.storage.get(name)).sha256] for name in self.names]
        return hashlib.sha256(canonical_json(sums)).hexdigest()

    def load(self, number: int, channels: Channels) -> InputImage:
        """Load a file, with its values converted as in training."""
        name = self.names[number]
        where = f"{self.storage.uri}/{name}"
        data = self.storage.get(name)
        return InputImage(load_encoded(data, where, channels, self.preparation.value_range))


@dataclass(frozen=True)
class SetInputs:
    """One image of each sample of a packed set; translations keep its class and caption."""

    packed: ShardSet
    field: str
    fit: Fit = "stretch"
    """The images of a set are square."""

    @property
    def uri(self) -> str:
        """Of the set."""
        return open_storage(self.packed.uri).uri

    @property
    def preparation(self) -> Preparation:
        """That of the set."""
        return self.packed.index.preparation

    @property
    def stems(self) -> Sequence[str]:
        """As `data export` names them."""
        return [f"{number:06d}" for number in range(self.packed.num_samples)]

    @property
    def first_key(self) -> str:
        """The index."""
        return INDEX

    def digest(self) -> str:
        """That of the set, with the name of the image."""
        return f"{self.packed.digest} {self.field}"

    def load(self, number: int, channels: Channels) -> InputImage:
        """Read and decode a sample. Raises CorruptSample."""
        shards, indices = self.packed.locate(np.array([number]))
        shard, index = int(shards[0]), int(indices[0])
        where = self.packed.describe(shard, index)
        members = self.packed.read(shard, index)
        pixels = self.packed.decode_image(members[self.field], f"{where}, {self.field}")
        image = Image.fromarray(pixels[:, :, 0] if self.packed.channels == 1 else pixels)
        return InputImage(
            image.convert("L" if channels == 1 else "RGB"),
            self.packed.parse_label(members[LABEL], where) if LABEL in members else None,
            self.packed.parse_caption(members[CAPTION], where) if CAPTION in members else None,
        )


def open_inputs(
    uri: str,
    config: ModelConfig,
    preparation: Preparation | None = None,
    field: str | None = None,
    pair_input: str = "a",
) -> ImageInputs:
    """Open the images at ``uri``: a folder, a prefix, or a packed set.

    Args:
        preparation: how images of a folder are made square and 8-bit.
        field: image of a sample of a packed set; by default the only one, or ``pair_input``.
        pair_input: which image of a pair the model was trained to translate.

    Raises:
        UsageError: the model does not translate, or there are no images.
    """
    if not config.translates:
        raise UsageError(
            f"{config.name} makes images from noise and does not translate: "
            "give a number of images instead of an input folder"
        )
    is_folder = "://" not in uri
    if is_folder and not expand_home(Path(uri)).is_dir():
        raise UsageError(f"{uri} is not a folder: give a folder of images with --input")
    storage = open_storage(uri)
    if storage.exists(INDEX):
        return _open_set(uri, field, pair_input)
    if field is not None:
        raise UsageError(f"--field {field}: {uri} is no packed set, whose images have names")
    if is_folder:
        found = [path.name for path in expand_home(Path(uri)).iterdir() if path.is_file()]
    else:
        found = [key for key in storage.list() if "/" not in key]
    names = sorted(n for n in found if PurePosixPath(n).suffix.lower() in FILE_ENDINGS)
    if not names:
        raise UsageError(f"{uri} holds no image; images end in {SHORT_ENDINGS}")
    if odd := [name for name in names if "\\" in name]:
        raise UsageError(f"{uri}: {odd[0]!r} has a backslash in its name; rename it")
    taken: dict[str, str] = {GRID: "the grid"}
    for name in names:
        if (other := taken.setdefault(stem := PurePosixPath(name).stem, name)) != name:
            both = f"{name} and {other} would both become {stem}.png"
            raise UsageError(f"{uri}: {both}; rename one")
    preparation = preparation or Preparation()
    fit = preparation.fit or DEFAULT_FIT
    return FileInputs(storage, tuple(names), preparation.changed(fit, None))


def _open_set(uri: str, field: str | None, pair_input: str) -> SetInputs:
    packed = open_set(uri)
    defaults = [name for name in ("image", pair_input) if name in packed.fields]
    chosen = field or (defaults or packed.fields)[0]
    if chosen not in packed.fields:
        raise UsageError(
            f"{uri} has no field {chosen!r}; its samples have: {', '.join(packed.fields)}"
        )
    return SetInputs(packed, chosen)


def to_square(image: Image.Image, size: int, fit: Fit) -> Tensor:
    """Make an image square as the model takes it: float32 (C, H, W) in [-1, 1]."""
    pixels = np.array(fit_image(image, size, fit)).reshape(size, size, -1)
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1))
