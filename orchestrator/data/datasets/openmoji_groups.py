"""OpenMoji as single colour pictures, each with its group as class and its name as caption.

Groups and names are those of the table in the npm package openmoji. Left out are skin-tone
variants and the groups of flags and of components, which are parts of other emoji.
"""

import csv
import io
import tarfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from orchestrator.data.datasets.download import Download
from orchestrator.data.datasets.openmoji import (
    DECIDING_SIZE,
    drawings_folder,
    is_used,
    square,
    write_licence,
)
from orchestrator.data.datasets.svg import drawn, rendered
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import (
    VALIDATION_SHARE,
    FetchRequest,
    PackSummary,
    Sample,
    SplitWriter,
    falls_to_validation,
)

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
"""The classes, in the table's order."""
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

    Raises EnvironmentProblem if npm or the packages of the ``data`` extra are not there.
    """
    folder = drawings_folder()
    emojis = [each for each in table() if each.group in GROUPS and is_used(each.hexcode)]
    writer = SplitWriter(request.dest_uri, classes=GROUPS)
    draw = partial(draw_emoji, folder=folder, size=request.size)
    writer.add_all(drawn(draw, emojis), len(emojis), request.progress)
    write_licence(
        request,
        folder,
        "in colour",
        "The pictures are rendered from OpenMoji's SVG on white. The classes are its groups:\n"
        f"{', '.join(GROUPS)}.\nThe captions are its annotations. Skin-tone variants, flags and "
        "components are left out.\nA tenth is held out for validation, by a hash of the picture.",
    )
    return writer.finish()


def table() -> list[Emoji]:
    """All emoji of the table, in the order of their hexcodes."""
    with tarfile.open(TABLE.get()) as tar:
        file = tar.extractfile("package/data/openmoji.csv")
        assert file is not None, "the file's sha256 was right"
        rows = csv.DictReader(io.StringIO(file.read().decode()))
        emojis = [Emoji(row["hexcode"], row["group"], row["annotation"]) for row in rows]
    return sorted(emojis, key=lambda emoji: emoji.hexcode)


def draw_emoji(emoji: Emoji, folder: Path, size: int) -> Sample:
    """The picture of ``emoji``, whose SVG is in ``folder``, at ``size`` px."""
    text = (folder / f"{emoji.hexcode}.svg").read_text(encoding="utf-8")
    svg = square(ElementTree.fromstring(text))
    return Sample(
        key=emoji.hexcode,
        images={"image": to_png(rendered(svg, size))},
        for_validation=falls_to_validation(
            rendered(svg, DECIDING_SIZE).tobytes(), VALIDATION_SHARE
        ),
        image_size=size,
        label=GROUPS.index(emoji.group),
        caption=emoji.annotation,
    )
