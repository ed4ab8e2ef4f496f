"""Draw a contact sheet: samples from all over a set, with their classes and captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from orchestrator.data.format.shard_index import DecodedSample, ShardSet
from orchestrator.errors import DataError, UsageError

TILE = 112
"""Approximate height and width of a tile in pixels: small images are enlarged by integers."""
COLUMNS, ROWS = 8, 8
"""Tiles per row for single images, and rows of all sets together."""
GAP, PAIR_GAP, MARGIN = 14, 2, 20
LINE = 14
CAPTION_LINES = 4
PAPER, INK, FAINT, FRAME, CORRUPT = "#f4f4f2", "#222222", "#666666", "#d0d0cc", "#e8d8d8"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_contact_sheet(sets: Sequence[ShardSet], path: Path) -> None:
    """Write a PNG of about 64 images of ``sets`` to ``path``, most of them from the first set.

    Corrupt samples are drawn as empty tiles. Raises UsageError if ``path`` cannot be written.
    """
    num_rows = ROWS // 4
    rows = [ROWS - num_rows * (len(sets) - 1), *[num_rows] * (len(sets) - 1)]
    parts = [_Section(packed, count).draw() for packed, count in zip(sets, rows, strict=True)]
    size = max(part.width for part in parts), sum(part.height for part in parts)
    sheet = Image.new("RGB", size, PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise UsageError(
            f"--sheet: {path} cannot be written: {error.strerror or error}; choose another path, "
            "or give --no-sheet"
        ) from error


class _Section:
    """Tiles of one set below a title."""

    def __init__(self, packed: ShardSet, rows: int) -> None:
        self.packed = packed
        self.title_font, self.font = (ImageFont.load_default(size) for size in (17, 11))
        self.tile = packed.image_size * (TILE // packed.image_size) or TILE
        fields = len(packed.fields)
        self.columns = COLUMNS if fields == 1 else COLUMNS * 3 // (2 * fields)
        self.width = fields * self.tile + (fields - 1) * PAIR_GAP
        self.lines = bool(packed.index.classes) + CAPTION_LINES * packed.index.captions
        self.locations = _spread(packed, self.columns * rows)

    def draw(self) -> Image.Image:
        rows = -(-len(self.locations) // self.columns)
        height = self.tile + GAP + (self.lines * LINE + 4 if self.lines else 0)
        page = Image.new(
            "RGB",
            (2 * MARGIN + self.columns * (self.width + GAP) - GAP, 2 * MARGIN + 20 + rows * height),
            PAPER,
        )
        title = _truncate(self._title(), self.title_font, page.width - 2 * MARGIN)
        ImageDraw.Draw(page).text((MARGIN, MARGIN - 8), title, INK, self.title_font)
        for n, location in enumerate(self.locations):
            row, column = divmod(n, self.columns)
            left = MARGIN + column * (self.width + GAP)
            top = MARGIN + 24 + row * height
            self._draw_sample(page, left, top, location)
        return page

    def _title(self) -> str:
        packed = self.packed
        size, colour = packed.image_size, "colour" if packed.channels == 3 else "grey"
        what = "samples" if len(packed.fields) == 1 else f"samples of {' | '.join(packed.fields)}"
        return f"{packed.uri}:  {packed.num_samples:,} {what},  {size} x {size} px,  {colour}"

    def _draw_sample(
        self, page: Image.Image, left: int, top: int, location: tuple[int, int]
    ) -> None:
        draw = ImageDraw.Draw(page)
        where = f"shard {location[0]}, sample {location[1]}"
        try:
            sample = self.packed.decode(self.packed.read(*location), where)
        except DataError:
            box = (left, top, left + self.width - 1, top + self.tile - 1)
            draw.rectangle(box, CORRUPT, FRAME)
            draw.text((left + 6, top + 6), "corrupt", INK, self.font)
            return
        for n, pixels in enumerate(sample.images.values()):
            x = left + n * (self.tile + PAIR_GAP)
            draw.rectangle((x - 1, top - 1, x + self.tile, top + self.tile), outline=FRAME)
            page.paste(self._to_tile(pixels), (x, top))
        for n, (text, colour) in enumerate(self._text_lines(sample)):
            y = top + self.tile + 4 + n * LINE
            draw.text((left, y), text, colour, self.font)

    def _to_tile(self, pixels: NDArray[numpy.uint8]) -> Image.Image:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        shrinks = self.tile < image.width
        filter_ = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
        return image.resize((self.tile, self.tile), filter_)

    def _text_lines(self, sample: DecodedSample) -> list[tuple[str, str]]:
        """Return the lines below a sample, each with its colour."""
        lines = []
        if sample.label is not None:
            name = self.packed.index.classes[sample.label]
            lines.append((_truncate(name, self.font, self.width), INK))
        if sample.caption is not None:
            wrapped = _wrap(sample.caption, self.font, self.width, CAPTION_LINES)
            lines += [(line, FAINT) for line in wrapped]
        return lines


def _spread(packed: ShardSet, count: int) -> list[tuple[int, int]]:
    """Return shard and index of up to ``count`` samples, evenly spread over the set."""
    count = min(count, packed.num_samples)
    shards, indices = packed.locate(numpy.arange(count) * packed.num_samples // max(1, count))
    return list(zip(shards.tolist(), indices.tolist(), strict=True))


def _wrap(text: str, font: _Font, width: int, max_lines: int) -> list[str]:
    """Break ``text`` into up to ``max_lines`` lines; the last one is truncated if it must be."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < max_lines - 1:
        count = len(rest)
        while count and font.getlength(rest[:count]) > width:
            count = rest.rfind(" ", 0, count)
        if count <= 0:
            break
        lines.append(rest[:count])
        rest = rest[count:].strip()
    return [*lines, _truncate(rest, font, width)] if rest else lines


def _truncate(text: str, font: _Font, width: int) -> str:
    """Cut ``text`` to ``width`` pixels, with an ellipsis where something is missing."""
    text = " ".join(text.split())[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
