"""Sample images from a trained model, or translate a folder of images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.console import log_info
from orchestrator.data.format.image_files import FILE_ENDINGS, SHORT_ENDINGS
from orchestrator.data.format.images import Fit, fit_image, load_image, undo_fit
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import UsageError
from orchestrator.image_grid import tile, to_pixels, write_png
from orchestrator.models.base import GenerativeModel, ModelConfig
from orchestrator.models.parts.text import caption_bytes

GRID = "grid"
"""Stem of the file with the grid of samples, beside the images."""
DEFAULT_FIT: Fit = "pad"
"""For models whose training set does not tell; it loses nothing."""
_FIT_NOTES = {
    "crop": "only their middle is translated, as in training; --fit pad keeps all of them",
    "pad": "they are padded with white, which is cut off the outputs; see --fit",
    "stretch": "they are stretched, and the outputs shrunk to their proportions; see --fit",
}
COLUMNS, MAX_ROWS = 8, 16
"""Limits the size of the grid."""


def sample_folder(
    model: GenerativeModel,
    config: ModelConfig,
    input_dir: Path,
    output_dir: Path,
    *,
    seed: int,
    batch_size: int = 16,
    preparation: Preparation | None = None,
) -> list[Path]:
    """Translate every image of ``input_dir``; return the written files in order of their names.

    Each image becomes a PNG of the same stem in ``output_dir``; grid.png shows the first inputs
    and outputs. Images become square as those of the training set did by ``preparation``, by
    default with white on both sides, and are resized to ``config.image_size``. The output gets the
    input's proportions again: without the padding, its longer side is ``config.image_size``; of
    cropped images it is the square that was translated. Every image has the seed ``seed``, so that
    its translation does not depend on the other images of the folder.

    Raises:
        UsageError: the model does not translate, or the folder does not exist or has no images.
    """
    if not config.translates:
        raise UsageError(
            f"{config.name} makes images from noise and does not translate: "
            "give a number of images instead of an input folder"
        )
    files = _image_files(input_dir, output_dir)
    preparation = preparation or Preparation()
    fit, num_oblong = preparation.fit or DEFAULT_FIT, 0
    model.to("cpu")
    written: list[Path] = []
    rows: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(files), batch_size):
        names = files[start : start + batch_size]
        loaded = [_load(path, config, preparation.value_range) for path in names]
        inputs = torch.stack([_to_tensor(image, config, fit) for image in loaded])
        outputs = model.sample(torch.full((len(names),), seed), inputs)
        for name, image, drawing, output in zip(names, loaded, inputs, outputs, strict=True):
            written.append(output_dir / f"{name.stem}.png")
            num_oblong += image.width != image.height
            square = Image.fromarray(to_pixels(output))
            write_png(written[-1], np.asarray(undo_fit(square, image.size, fit)))
            if len(rows) < MAX_ROWS:
                rows.append((drawing, output))
    write_png(output_dir / f"{GRID}.png", tile(rows))
    if num_oblong:
        log_info(f"{num_oblong} of {len(files)} images are not square: {_FIT_NOTES[fit]}")
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
    """Sample ``num_images`` images to 0000.png and so on, and the first of them to grid.png.

    Image i has the seed ``seed`` + i. ``label`` is the class number of all images; by default each
    row of the grid is a class.

    Raises:
        UsageError: the model translates, or does not take this label or caption.
    """
    if model.config.translates:
        raise UsageError("this model translates images: give a folder of images as input")
    condition = _condition(model.config, num_images, label, caption)
    model.to("cpu")
    images: list[Tensor] = []
    for start in range(0, num_images, batch_size):
        seeds = seed + torch.arange(start, min(start + batch_size, num_images))
        given = None if condition is None else condition[start : start + batch_size]
        images += model.sample(seeds, given)
    written = [output_dir / f"{i:04d}.png" for i in range(num_images)]
    for path, image in zip(written, images, strict=True):
        write_png(path, to_pixels(image))
    write_png(output_dir / f"{GRID}.png", tile(list(_to_rows(images, COLUMNS))[:MAX_ROWS]))
    return written


def _condition(
    config: ModelConfig, num_images: int, label: int | None, caption: str | None
) -> Tensor | None:
    """Return the condition for ``GenerativeModel.sample``: classes, captions or None."""
    classes, takes_captions = config.num_classes, "captions" in config.takes
    if caption is not None and not takes_captions:
        raise UsageError(f"model {config.name} takes no caption; leave --caption out")
    if label is not None and not 0 <= label < classes:
        known = f"has classes 0 to {classes - 1}" if classes else "has no classes: leave it out"
        raise UsageError(f"--label {label}: model {config.name} {known}")
    if takes_captions:
        if caption is None:
            raise UsageError(f"model {config.name} samples from a caption; give --caption TEXT")
        return caption_bytes(caption).repeat(num_images, 1)
    if not classes:
        return None
    if label is not None:
        return torch.full((num_images,), label)
    return torch.arange(num_images) // COLUMNS % classes


def read_image(path: Path, config: ModelConfig, preparation: Preparation | None = None) -> Tensor:
    """Read an image as the model takes it: float32 (C, H, W) in [-1, 1], square, on white."""
    preparation = preparation or Preparation()
    image = _load(path, config, preparation.value_range)
    return _to_tensor(image, config, preparation.fit or DEFAULT_FIT)


def _load(path: Path, config: ModelConfig, value_range: ValueRange | None) -> Image.Image:
    return load_image(path, 1 if config.channels == 1 else 3, value_range)


def _to_tensor(image: Image.Image, config: ModelConfig, fit: Fit) -> Tensor:
    picture = fit_image(image, config.image_size, fit)
    pixels = np.array(picture).reshape(config.image_size, config.image_size, -1)
    return to_float(torch.from_numpy(pixels).permute(2, 0, 1))


def _image_files(input_dir: Path, output_dir: Path) -> list[Path]:
    """List the image files of ``input_dir`` by name; no two may have the same output file."""
    if not input_dir.is_dir():
        raise UsageError(f"{input_dir} is not a folder: give a folder of images with --input")
    if output_dir.resolve() == input_dir.resolve():
        raise UsageError(
            f"{output_dir} is also the input folder, whose images would be overwritten; give "
            "another --output"
        )
    files = sorted(
        p for p in input_dir.iterdir() if p.suffix.lower() in FILE_ENDINGS and p.is_file()
    )
    if not files:
        raise UsageError(f"{input_dir} holds no image; images end in {SHORT_ENDINGS}")
    taken: dict[str, str] = {GRID: "the grid"}
    for path in files:
        if (other := taken.setdefault(path.stem, path.name)) != path.name:
            both = f"{path.name} and {other} would both become {path.stem}.png"
            raise UsageError(f"{input_dir}: {both}; rename one")
    return files


def _to_rows(images: Sequence[Tensor], columns: int) -> Iterator[list[Tensor]]:
    """Split ``images`` into rows of ``columns``; fill the last row with white."""
    columns = min(columns, len(images))
    for start in range(0, len(images), columns):
        row = list(images[start : start + columns])
        yield row + [torch.ones_like(row[0])] * (columns - len(row))
