"""OpenMoji as single colour pictures, with the group as the class and the name as the caption.

Groups and names come from the table in the npm package openmoji. Skin-tone variants, flags and
components, which are parts of other emoji, are left out.
"""

import csv
import io
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from orchestrator.data.datasets.openmoji import (
    DECIDING_SIZE,
    find_drawings,
    is_used,
    licence_files,
    pad_to_square,
)
from orchestrator.data.datasets.request import FetchRequest, pack_samples, read_member
from orchestrator.data.datasets.svg import draw_all, render_svg
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out
from orchestrator.package_download import Download

GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
    "extras-openmoji",
    "extras-unicode",
)
"""The classes, in the order of the table."""
TABLE = Download(
    "openmoji-17.0.0.tgz",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    ("npm", "pack", "--ignore-scripts", "--silent", "openmoji@17.0.0"),
    advice="npm (of Node.js) and a network are needed once",
)


@dataclass(frozen=True)
class Emoji:
    """One row of the table."""

    hexcode: str
    group: str
    annotation: str


def pack(request: FetchRequest) -> PackSummary:
    """Pack the colour pictures, a tenth of them held out by a hash of the picture.

    Raises EnvironmentProblem if npm or the packages of the ``data`` extra are not installed.
    """
    folder = find_drawings()
    emojis = [each for each in read_table() if each.group in GROUPS and is_used(each.hexcode)]
    draw = partial(draw_emoji, folder=folder, size=request.size)
    files = licence_files(
        request,
        folder,
        "in colour",
        "The pictures are rendered from OpenMoji's SVG on white. The classes are its groups:\n"
        f"{', '.join(GROUPS)}.\nThe captions are its annotations. Skin-tone variants, flags and "
        "components are left out.\nA tenth is held out for validation, by a hash of the picture.",
    )
    samples = draw_all(draw, emojis)
    return pack_samples(request, samples, len(emojis), classes=GROUPS, files=files)


def read_table() -> list[Emoji]:
    """Read all emoji of the table, ordered by hexcode."""
    with tarfile.open(TABLE.get()) as tar:
        table = read_member(tar, "package/data/openmoji.csv").decode()
    rows = csv.DictReader(io.StringIO(table))
    emojis = [Emoji(row["hexcode"], row["group"], row["annotation"]) for row in rows]
    return sorted(emojis, key=lambda emoji: emoji.hexcode)


def draw_emoji(emoji: Emoji, folder: Path, size: int) -> PackedSample:
    """Render the SVG of ``emoji`` in ``folder`` at ``size`` px."""
    text = (folder / f"{emoji.hexcode}.svg").read_text(encoding="utf-8")
    svg = pad_to_square(ElementTree.fromstring(text))
    return PackedSample(
        key=emoji.hexcode,
        images={"image": to_png(render_svg(svg, size))},
        for_validation=is_held_out(render_svg(svg, DECIDING_SIZE).tobytes(), VALIDATION_SHARE),
        image_size=size,
        label=GROUPS.index(emoji.group),
        caption=emoji.annotation,
    )
