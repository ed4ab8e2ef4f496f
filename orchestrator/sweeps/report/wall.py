"""The wall: sample grids of the best trials beside each other, a row for each, a column per time.

All were drawn from the same noise, so what differs within a column comes of the values alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.report.facts import NONE, compact, cut, ranked
from orchestrator.sweeps.report.scales import short_names

ROWS, COLUMNS = 16, 6
"""Most of them."""
CELL = 160
"""Most pixels of a cell, each way."""
LABEL, HEADER, GAP = 220, 26, 8
"""Pixels: width of the words beside a row, height of those above a column, between cells."""
LETTER, LINE = 12, 16
"""Pixels: of the letters, and from line to line."""
LINES = 10
"""Most lines beside a row."""


@dataclass(frozen=True)
class Row:
    """One trial."""

    trial: Trial
    words: tuple[str, ...]
    """Its number, metrics and values, a line each."""
    cells: tuple[Image.Image | None, ...]
    """None where there is no picture."""

    @property
    def height(self) -> int:
        """Pixels that its cells and words need."""
        return max([len(self.words) * LINE, *(c.height for c in self.cells if c)])

    def missing(self, images_seen: int) -> str:
        """What stands where there is no picture: why the trial never got there, if it is so."""
        ended = self.trial.is_over and images_seen > self.trial.images_seen
        return self.trial.status if ended else NONE


@dataclass(frozen=True)
class Wall:
    """What is shown, and where."""

    images_seen: tuple[int, ...]
    """Of each column."""
    rows: tuple[Row, ...]
    left_out: int
    """Trials with pictures that are not shown."""

    def left(self, column: int) -> int:
        """The first pixel of a column."""
        return LABEL + GAP + column * (CELL + GAP)

    def top(self, row: int) -> int:
        """The first pixel of a row."""
        return HEADER + GAP + sum(r.height + GAP for r in self.rows[:row])


def hang(sweep: Sweep, grids: Mapping[int, Mapping[int, Path]]) -> Wall | None:
    """The wall of a sweep; None if there are no pictures."""
    trials = [trial for trial in ranked(sweep) if grids.get(trial.number)]
    shown = trials[:ROWS]
    times = evenly(sorted({images for t in shown for images in grids[t.number]}), COLUMNS)
    if not times:
        return None
    rows = tuple(
        Row(
            trial,
            _words(sweep, trial),
            tuple(_cell(grids[trial.number].get(images)) for images in times),
        )
        for trial in shown
    )
    return Wall(tuple(times), rows, len(trials) - len(shown))


def paint(wall: Wall) -> Image.Image:
    """The wall as one picture."""
    size = (wall.left(len(wall.images_seen)), wall.top(len(wall.rows)))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    thin, bold = (
        ImageFont.truetype(str(fonts / name), LETTER)
        for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")
    )
    for column, images in enumerate(wall.images_seen):
        draw.text((wall.left(column), GAP), f"{images:,} images", "black", thin)
    for k, row in enumerate(wall.rows):
        top = wall.top(k)
        for line, words in enumerate(row.words):
            font = bold if line == 0 else thin
            draw.text((GAP, top + line * LINE), _fitting(words, font), "black", font)
        for column, cell in enumerate(row.cells):
            if cell:
                picture.paste(cell, (wall.left(column), top))
            else:
                missing = row.missing(wall.images_seen[column])
                draw.text((wall.left(column), top), missing, "grey", thin)
    return picture


def evenly(times: Sequence[int], most: int) -> list[int]:
    """At most so many of ``times``, the last one and evenly chosen ones before it."""
    count = min(most, len(times))
    if count < 2:
        return list(times[-1:])
    return [times[round(k * (len(times) - 1) / (count - 1))] for k in range(count)]


def _words(sweep: Sweep, trial: Trial) -> tuple[str, ...]:
    metrics = [
        f"{name.rsplit('/', 1)[-1]} {compact(trial.last(k))}"
        for k, name in enumerate(sweep.section.metrics)
    ]
    names = short_names(sweep.section.space)
    values = [
        f"{names[path]} {compact(trial.values.get(path))}"
        for path in sweep.section.space
        if path in trial.values
    ]
    lines = [f"trial {trial.number}", *metrics, *values]
    if len(lines) > LINES:
        lines[LINES - 1 :] = [f"and {len(lines) - LINES + 1} more values"]
    return tuple(cut(line, 60) for line in lines)


def _fitting(words: str, font: ImageFont.FreeTypeFont) -> str:
    """The words, cut until they fit beside the row."""
    length = len(words)
    while font.getlength(cut(words, length)) > LABEL - GAP and length > 4:
        length -= 1
    return cut(words, length)


def _cell(path: Path | None) -> Image.Image | None:
    """The picture, scaled to the width of a cell; of a high one the top. None if it is none."""
    if path is None:
        return None
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # Pillow raises all of these for broken files
        return None
    if picture.width > CELL:
        height = max(1, round(picture.height * CELL / picture.width))
        picture = picture.resize((CELL, height), Image.Resampling.LANCZOS)
    return picture.crop((0, 0, picture.width, min(CELL, picture.height)))
