"""Wall of sample grids: a row for each of the best trials, a column for each number of images.

All grids use the same noise, so differences within a column come from the trials' values alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from orchestrator.report.axis_scale import short_names
from orchestrator.report.formats import NONE, format_value_short, shorten
from orchestrator.report.pictures import read_picture, select_evenly
from orchestrator.sweeps.records import Sweep, Trial
from orchestrator.sweeps.report.facts import rank_trials

MAX_ROWS, MAX_COLUMNS = 16, 6
CELL = 160
"""Largest width and height of a cell, in pixels."""
LABEL, HEADER, GAP = 220, 26, 8
"""Pixels: width of row labels, height of column labels, space between cells."""
FONT_SIZE, LINE_HEIGHT = 12, 16
"""Pixels."""
MAX_LINES = 10
"""Lines of a row label."""


@dataclass(frozen=True)
class Row:
    """Row of one trial."""

    trial: Trial
    label: tuple[str, ...]
    """Lines: number, metrics and values of the trial."""
    cells: tuple[Image.Image | None, ...]
    """None where there is no grid."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return max([len(self.label) * LINE_HEIGHT, *(c.height for c in self.cells if c)])

    def placeholder(self, images_seen: int) -> str:
        """Text for a missing grid: the status of a trial that ended earlier, else a dash."""
        ended = self.trial.is_over and images_seen > self.trial.images_seen
        return self.trial.status if ended else NONE


@dataclass(frozen=True)
class Wall:
    """Layout of the wall."""

    images_seen: tuple[int, ...]
    """Of each column."""
    rows: tuple[Row, ...]
    num_omitted: int
    """Further trials with sample grids."""

    def left(self, column: int) -> int:
        """Leftmost pixel of a column."""
        return LABEL + GAP + column * (CELL + GAP)

    def top(self, row: int) -> int:
        """Topmost pixel of a row."""
        return HEADER + GAP + sum(r.height + GAP for r in self.rows[:row])


def build_wall(sweep: Sweep, grids: Mapping[int, Mapping[int, Path]]) -> Wall | None:
    """Lay out the wall of a sweep; None if there are no sample grids."""
    trials = [trial for trial in rank_trials(sweep) if grids.get(trial.number)]
    shown = trials[:MAX_ROWS]
    found = sorted({images for trial in shown for images in grids[trial.number]})
    columns = select_evenly(found, MAX_COLUMNS)
    if not columns:
        return None
    rows = []
    for trial in shown:
        cells = tuple(_load_cell(grids[trial.number].get(images)) for images in columns)
        rows.append(Row(trial, _row_label(sweep, trial), cells))
    return Wall(tuple(columns), tuple(rows), len(trials) - len(shown))


def draw_wall(wall: Wall) -> Image.Image:
    """Draw the wall as one image."""
    size = (wall.left(len(wall.images_seen)), wall.top(len(wall.rows)))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    thin = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), FONT_SIZE)
    bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), FONT_SIZE)
    for column, images in enumerate(wall.images_seen):
        draw.text((wall.left(column), GAP), f"{images:,} images", "black", thin)
    for k, row in enumerate(wall.rows):
        top = wall.top(k)
        for line, words in enumerate(row.label):
            font = bold if line == 0 else thin
            draw.text((GAP, top + line * LINE_HEIGHT), _fit_label(words, font), "black", font)
        for column, cell in enumerate(row.cells):
            place = wall.left(column), top
            if cell:
                picture.paste(cell, place)
            else:
                draw.text(place, row.placeholder(wall.images_seen[column]), "grey", thin)
    return picture


def _row_label(sweep: Sweep, trial: Trial) -> tuple[str, ...]:
    metrics = [
        f"{name.rsplit('/', 1)[-1]} {format_value_short(trial.last_value(k))}"
        for k, name in enumerate(sweep.section.metrics)
    ]
    values = [
        f"{name} {format_value_short(trial.values[path])}"
        for path, name in short_names(sweep.section.space).items()
        if path in trial.values
    ]
    lines = [f"trial {trial.number}", *metrics, *values]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [f"and {len(lines) - MAX_LINES + 1} more values"]
    return tuple(shorten(line, 60) for line in lines)


def _fit_label(words: str, font: ImageFont.FreeTypeFont) -> str:
    """Shorten a line until it fits beside the row."""
    length = len(words)
    while font.getlength(shorten(words, length)) > LABEL - GAP and length > 4:
        length -= 1
    return shorten(words, length)


def _load_cell(path: Path | None) -> Image.Image | None:
    """Load a grid, scaled to a cell's width and cropped to its height; None if not readable."""
    picture = None if path is None else read_picture(path)
    if picture is None:
        return None
    if picture.width > CELL:
        height = max(1, round(picture.height * CELL / picture.width))
        picture = picture.resize((CELL, height), Image.Resampling.LANCZOS)
    return picture.crop((0, 0, picture.width, min(CELL, picture.height)))
