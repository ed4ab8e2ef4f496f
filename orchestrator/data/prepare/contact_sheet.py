"""One picture of some samples of a set, spread over it, with their classes and captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from orchestrator.data.format.shard_index import CAPTION, LABEL, ShardSet
from orchestrator.errors import DataError, UsageError

TILE = 112
"""Height and width of an image on the sheet, about: small ones are enlarged by whole numbers."""
WIDTH, HEIGHT = 8, 8
"""Images in a row, and rows of all sets together."""
GAP, PAIR_GAP, MARGIN = 14, 2, 20
LINE = 14
CAPTION_LINES = 4
PAPER, INK, FAINT, FRAME, BAD = "#f4f4f2", "#222222", "#666666", "#d0d0cc", "#e8d8d8"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_contact_sheet(sets: Sequence[ShardSet], path: Path) -> None:
    """Write to ``path`` a PNG of some 64 images of ``sets``, most of them of the first.

    A sample that is damaged is an empty tile. Raises UsageError if ``path`` cannot be written.
    """
    rest = HEIGHT // 4
    rows = [HEIGHT - rest * (len(sets) - 1), *[rest] * (len(sets) - 1)]
    parts = [_Section(packed, count).drawn() for packed, count in zip(sets, rows, strict=True)]
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
            f"--sheet: {path} cannot be written: {error.strerror or error}; name another place, "
            "or give --no-sheet"
        ) from error


class _Section:
    """The tiles of one set under a title."""

    def __init__(self, packed: ShardSet, rows: int) -> None:
        self.packed = packed
        self.title_font, self.font = (ImageFont.load_default(size) for size in (17, 11))
        self.tile = packed.image_size * max(1, TILE // packed.image_size)
        if packed.image_size > TILE:
            self.tile = TILE
        fields = len(packed.fields)
        self.columns = WIDTH if fields == 1 else WIDTH * 3 // (2 * fields)
        self.width = fields * self.tile + (fields - 1) * PAIR_GAP
        self.lines = bool(packed.index.classes) + CAPTION_LINES * packed.index.captions
        self.places = _spread(packed, self.columns * rows)

    def drawn(self) -> Image.Image:
        """The picture of the section."""
        rows = -(-len(self.places) // self.columns)
        height = self.tile + GAP + (self.lines * LINE + 4 if self.lines else 0)
        page = Image.new(
            "RGB",
            (2 * MARGIN + self.columns * (self.width + GAP) - GAP, 2 * MARGIN + 20 + rows * height),
            PAPER,
        )
        draw = ImageDraw.Draw(page)
        title = _fitted(self._title(), self.title_font, page.width - 2 * MARGIN)
        draw.text((MARGIN, MARGIN - 8), title, INK, self.title_font)
        for n, place in enumerate(self.places):
            row, column = divmod(n, self.columns)
            left = MARGIN + column * (self.width + GAP)
            top = MARGIN + 24 + row * height
            self._draw_sample(page, draw, (left, top), place)
        return page

    def _title(self) -> str:
        packed = self.packed
        size, colour = packed.image_size, "colour" if packed.channels == 3 else "grey"
        what = "samples" if len(packed.fields) == 1 else f"samples of {' | '.join(packed.fields)}"
        return f"{packed.uri}:  {packed.num_samples:,} {what},  {size} x {size} px,  {colour}"

    def _draw_sample(
        self, page: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], place: "_Place"
    ) -> None:
        left, top = at
        where = f"shard {place[0]}, sample {place[1]}"
        try:
            members = self.packed.read(*place)
            images = [self.packed.decode(members[name], where) for name in self.packed.fields]
            texts = self._texts(members, where)
        except DataError:
            draw.rectangle((left, top, left + self.width - 1, top + self.tile - 1), BAD, FRAME)
            draw.text((left + 6, top + 6), "damaged", INK, self.font)
            return
        for n, pixels in enumerate(images):
            x = left + n * (self.tile + PAIR_GAP)
            draw.rectangle((x - 1, top - 1, x + self.tile, top + self.tile), outline=FRAME)
            page.paste(self._tile(pixels), (x, top))
        for n, (text, colour) in enumerate(texts):
            y = top + self.tile + 4 + n * LINE
            draw.text((left, y), text, colour, self.font)

    def _tile(self, pixels: NDArray[numpy.uint8]) -> Image.Image:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        smaller = self.tile < image.width
        how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
        return image.resize((self.tile, self.tile), how)

    def _texts(self, members: dict[str, memoryview], where: str) -> list[tuple[str, str]]:
        """The lines under a sample, each with its colour."""
        texts = []
        if LABEL in members:
            name = self.packed.index.classes[self.packed.label(members[LABEL], where)]
            texts.append((_fitted(name, self.font, self.width), INK))
        if CAPTION in members:
            caption = self.packed.caption(members[CAPTION], where)
            lines = _wrapped(caption, self.font, self.width, CAPTION_LINES)
            texts += [(line, FAINT) for line in lines]
        return texts


_Place = tuple[int, int]


def _spread(packed: ShardSet, count: int) -> list[_Place]:
    """Shard and index of up to ``count`` samples, evenly spread over the set."""
    starts = numpy.cumsum((0, *packed.shard_sizes))
    count = min(count, packed.num_samples)
    numbers = numpy.arange(count) * packed.num_samples // max(1, count)
    shards = numpy.searchsorted(starts, numbers, side="right") - 1
    return list(zip(shards.tolist(), (numbers - starts[shards]).tolist(), strict=True))


def _wrapped(text: str, font: _Font, width: int, most: int) -> list[str]:
    """``text`` in up to ``most`` lines, of which the last is cut where it must."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < most - 1:
        count = len(rest)
        while count and font.getlength(rest[:count]) > width:
            count = rest.rfind(" ", 0, count)
        if count <= 0:
            break
        lines.append(rest[:count])
        rest = rest[count:].strip()
    return [*lines, _fitted(rest, font, width)] if rest else lines


def _fitted(text: str, font: _Font, width: int) -> str:
    """``text``, cut so that it is no wider than ``width``."""
    text = " ".join(text.split())[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
