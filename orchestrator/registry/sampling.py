"""Pictures from a trained model: translations of a folder of images, or new images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from orchestrator.data.format.images import SUFFIXES, load_image, squared
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import UsageError
from orchestrator.image_grid import tile, to_pixels, write_png
from orchestrator.models.base import GenerativeModel, ModelConfig, Translates
from orchestrator.models.parts.text import caption_bytes
from orchestrator.seeding import seed_of

GRID = "grid"
"""Stem of the overview that is written beside the images."""
COLUMNS = 8
ROWS_OF_GRID = 16
"""Most rows of the overview: enough to judge by, and it stays a picture one can open."""


def sample_folder(
    model: GenerativeModel,
    config: ModelConfig,
    input_dir: Path,
    output_dir: Path,
    *,
    seed: int,
    batch_size: int,
) -> list[Path]:
    """Translate every image of ``input_dir``; gives the files written, in order of their names.

    Each becomes a PNG of the same stem in ``output_dir``, and grid.png shows inputs and outputs
    of the first ones. Images are padded to a square with white and resized to
    ``config.image_size``. The last batch is filled up by repeating earlier images, because a
    model that normalises by batch gives another result in a smaller one.

    Args:
        batch_size: images translated together; for pix2pix with ``norm: batch``, the images that
            one worker had in a training batch.

    Raises:
        UsageError: the model does not translate, or there is no folder, or no image in it.
        DataError: a file is not an image that can be read.
    """
    if not isinstance(model, Translates):
        raise UsageError(
            f"{config.name} makes images from noise, it does not translate any: "
            "give a number of images instead of an input folder"
        )
    files = _image_files(input_dir, output_dir)
    model.to("cpu")
    written: list[Path] = []
    overview: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(files), batch_size):
        names = files[start : start + batch_size]
        filled = [*names, *(files[i % len(files)] for i in range(batch_size - len(names)))]
        inputs = torch.stack([read_image(path, config) for path in filled])
        generator = Generator().manual_seed(seed_of("sample", seed, start))
        with torch.no_grad():
            outputs = model.translate(inputs, generator)
        for name, drawing, output in zip(names, inputs, outputs, strict=False):
            written.append(output_dir / f"{name.stem}.png")
            write_png(written[-1], to_pixels(output))
            if len(overview) < ROWS_OF_GRID:
                overview.append((drawing, output))
    write_png(output_dir / f"{GRID}.png", tile(overview))
    return written


def sample_images(
    model: GenerativeModel,
    num_images: int,
    output_dir: Path,
    *,
    seed: int,
    label: int | None = None,
    caption: str | None = None,
    batch_size: int = 64,
) -> list[Path]:
    """Write ``num_images`` new images as 0000.png and so on, and grid.png with the first ones.

    Args:
        label: for models with classes, the number of the one to make; by default each row of
            the overview is a class.
        caption: for models with captions, what to make.

    Raises:
        UsageError: the model translates, so it needs images to start from; or the label or
            caption is missing, impossible, or not of use to this model.
    """
    if isinstance(model, Translates):
        raise UsageError("this model translates images: give a folder of images as input")
    condition = _condition(model.config, num_images, label, caption)
    model.to("cpu")
    images: list[Tensor] = []
    for start in range(0, num_images, batch_size):
        generator = Generator().manual_seed(seed_of("sample", seed, start))
        count = min(batch_size, num_images - start)
        given = None if condition is None else condition[start : start + count]
        with torch.no_grad():
            images += model.sample(count, generator, given)
    written = [output_dir / f"{i:04d}.png" for i in range(num_images)]
    for path, image in zip(written, images, strict=True):
        write_png(path, to_pixels(image))
    write_png(output_dir / f"{GRID}.png", tile(list(_rows(images, COLUMNS))[:ROWS_OF_GRID]))
    return written


def _condition(
    config: ModelConfig, num_images: int, label: int | None, caption: str | None
) -> Tensor | None:
    """What ``GenerativeModel.sample`` takes: classes, captions or nothing."""
    classes, described = config.num_classes, "captions" in config.takes
    if caption is not None and not described:
        raise UsageError(f"model {config.name} takes no caption; leave --caption out")
    if label is not None and not 0 <= label < classes:
        known = f"has classes 0 to {classes - 1}" if classes else "has no classes: leave it out"
        raise UsageError(f"--label {label}: model {config.name} {known}")
    if described:
        if caption is None:
            raise UsageError(f"model {config.name} makes what a text says; give --caption TEXT")
        return caption_bytes(caption).repeat(num_images, 1)
    if not classes:
        return None
    if label is not None:
        return torch.full((num_images,), label)
    return torch.arange(num_images) // COLUMNS % classes


def read_image(path: Path, config: ModelConfig) -> Tensor:
    """The image as the model takes it: float32 (C, H, W) in [-1, 1], square, on white.

    Raises:
        DataError: the file cannot be read as an image.
    """
    picture = squared(load_image(path, 1 if config.channels == 1 else 3), config.image_size)
    pixels = np.array(picture).reshape(config.image_size, config.image_size, -1)
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1))


def _image_files(input_dir: Path, output_dir: Path) -> list[Path]:
    """The image files of ``input_dir`` by name; their results must not meet in one file."""
    if not input_dir.is_dir():
        raise UsageError(f"{input_dir} is not a folder: --input wants a folder of images")
    if output_dir.resolve() == input_dir.resolve():
        raise UsageError(f"{output_dir} is the input folder too: results would replace the images")
    files = sorted(p for p in input_dir.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UsageError(f"{input_dir} holds no image; images end in {', '.join(SUFFIXES)}")
    taken: dict[str, str] = {GRID: "the overview"}
    for path in files:
        if path.stem in taken:
            raise UsageError(
                f"{input_dir}: {path.name} and {taken[path.stem]} would both become "
                f"{path.stem}.png; rename one"
            )
        taken[path.stem] = path.name
    return files


def _rows(images: Sequence[Tensor], columns: int) -> Iterator[list[Tensor]]:
    """``images`` in rows of ``columns``; the last row is filled up with white."""
    columns = min(columns, len(images))
    for start in range(0, len(images), columns):
        row = list(images[start : start + columns])
        yield row + [torch.ones_like(row[0])] * (columns - len(row))
