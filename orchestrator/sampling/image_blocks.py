"""Draw images in blocks, in this process or in others: the same bytes in any.

Rounding differs with the shape of a batch and with the number of threads. So image i is always in
the same block, which is drawn at once in one thread.
"""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from orchestrator.data.format.images import Channels, to_png, undo_fit
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.errors import DataError
from orchestrator.image_grid import to_pixels
from orchestrator.models.base import GenerativeModel, ModelConfig
from orchestrator.models.parts.text import caption_bytes
from orchestrator.registry.bundle import load_bundle
from orchestrator.sampling.image_inputs import ImageInputs, InputImage, to_square

CPU_BLOCK = 16
MOST_ON_GPU, PIXELS_ON_GPU = 512, 1 << 22
"""Limits on the images of a block, and on their pixels."""
WORTH_STARTING_S = 10.0
"""Remaining seconds of drawing from which on other processes are started, which takes seconds."""


def block_size(device: str, image_size: int) -> int:
    """Number of images that are drawn at once.

    >>> block_size("cpu", 64), block_size("cuda", 28), block_size("cuda", 256)
    (16, 512, 64)
    """
    if device == "cpu":
        return CPU_BLOCK
    return max(CPU_BLOCK, min(MOST_ON_GPU, PIXELS_ON_GPU // image_size**2))


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images that are drawn at once."""

    numbers: range
    classes: tuple[int, ...] | None = None
    """Class of each image, to sample from."""

    def after(self, number: int) -> range:
        """Return the numbers of the images from ``number`` on."""
        return self.numbers[max(0, number - self.numbers.start) :]


@dataclass(frozen=True)
class DrawnImage:
    """One image that was drawn."""

    png: bytes
    label: int | None
    caption: str | None
    is_oblong: bool
    """Whether the image that was translated is not square."""


@dataclass(frozen=True)
class Drawer:
    """Draws blocks of images. Picklable for other processes."""

    model: GenerativeModel | Path
    """Or the folder of its bundle, which each process reads once."""
    config: ModelConfig
    seed: int
    """Of every translation, or of sample 0; sample i has ``seed`` + i."""
    device: str = "cpu"
    caption: str | None = None
    """What all samples are drawn from, for a model with captions."""
    inputs: ImageInputs | None = None
    """Images to translate; None to sample."""
    for_set: bool = False
    """Whether to make images of the model's channels and square, instead of RGB files."""

    def __call__(self, block: ImageBlock) -> list[DrawnImage]:
        """Draw a block. Raises DataError if an input is corrupt, or a value not finite."""
        with _one_thread():
            if self.inputs is None:
                return self._sample(block)
            return self._translate(block, self.inputs)

    def loaded(self) -> "Drawer":
        """Return a copy with the model itself, for processes that cannot open its folder."""
        return replace(self, model=self._load())

    def _sample(self, block: ImageBlock) -> list[DrawnImage]:
        seeds = self.seed + torch.arange(block.numbers.start, block.numbers.stop)
        condition = None
        if self.caption is not None:
            condition = caption_bytes(self.caption).repeat(len(seeds), 1)
        elif block.classes is not None:
            condition = torch.tensor(block.classes)
        classes = block.classes or [None] * len(seeds)
        return [
            DrawnImage(to_png(self._to_image(image)), label, self.caption, is_oblong=False)
            for image, label in zip(self._draw(seeds, condition), classes, strict=True)
        ]

    def _translate(self, block: ImageBlock, inputs: ImageInputs) -> list[DrawnImage]:
        channels: Channels = 1 if self.config.channels == 1 else 3
        given = [inputs.load(number, channels) for number in block.numbers]
        squares = [to_square(each.image, self.config.image_size, inputs.fit) for each in given]
        outputs = self._draw(torch.full((len(given),), self.seed), torch.stack(squares))
        return [self._finish(*pair, inputs) for pair in zip(given, outputs, strict=True)]

    def _finish(self, given: InputImage, output: Tensor, inputs: ImageInputs) -> DrawnImage:
        image, size = self._to_image(output), given.image.size
        if not self.for_set:
            image = undo_fit(image, size, inputs.fit)
        return DrawnImage(to_png(image), given.label, given.caption, size[0] != size[1])

    def _draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        given = None if condition is None else condition.to(self.device)
        images = self._load().sample(seeds.to(self.device), given).cpu()
        if not torch.isfinite(images).all():
            raise DataError(
                f"model {self.config.name} draws values that are not finite; sample from an "
                "earlier version or checkpoint, or train it again"
            )
        return images

    def _to_image(self, image: Tensor) -> Image.Image:
        picture = Image.fromarray(to_pixels(image))
        return picture.convert("L") if self.for_set and self.config.channels == 1 else picture

    def _load(self) -> GenerativeModel:
        if isinstance(self.model, GenerativeModel):
            return self.model.to(self.device)
        return _load(self.model, self.device)


@lru_cache(1)
def _load(folder: Path, device: str) -> GenerativeModel:
    torch.backends.cudnn.deterministic = True
    return load_bundle(folder).to(device)


def to_blocks(count: int, size: int, classes: tuple[int, ...] | None = None) -> list[ImageBlock]:
    """Split ``count`` images into blocks of ``size``; the last may be smaller."""
    starts = range(0, count, size)
    blocks = (range(start, min(start + size, count)) for start in starts)
    return [
        ImageBlock(r, None if classes is None else tuple(classes[r.start : r.stop])) for r in blocks
    ]


def draw_blocks(
    drawer: Drawer,
    blocks: Sequence[ImageBlock],
    workers: int | None,
    parallel_map: ParallelMap = map_in_processes,
) -> Generator[list[DrawnImage], None, None]:
    """Draw ``blocks`` in order: a first one here, the others in ``workers`` if it is worth it.

    Args:
        workers: see ``ParallelMap``; None uses all cores, or one process on a GPU.
    """
    if not blocks:
        return
    with_model = drawer.loaded()  # before the clock starts
    started = time.monotonic()
    first, rest = drawer(blocks[0]), blocks[1:]
    takes_s = (time.monotonic() - started) * len(rest)
    yield first
    if parallel_map is not map_in_processes:
        inputs = drawer.inputs
        is_local = inputs is not None and "://" not in inputs.uri
        needs = Path(inputs.uri, inputs.first_key) if inputs and is_local else None
        yield from parallel_map(with_model, rest, workers, needs=needs)
        return
    cores = len(os.sched_getaffinity(0)) if drawer.device == "cpu" else 1
    processes = min(workers or cores, len(rest))
    if processes <= 1 or takes_s < WORTH_STARTING_S:
        yield from map(drawer, rest)
        return
    del with_model
    _load.cache_clear()  # this process draws no more
    yield from parallel_map(drawer, rest, processes, needs=None)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
