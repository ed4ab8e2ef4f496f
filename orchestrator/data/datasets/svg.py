"""Render SVGs, in parallel processes."""

import io
import os
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from orchestrator.data.format.images import flatten_on_white
from orchestrator.data.prepare.parallel import Item, Result, map_in_processes


def render_svg(svg: str, size: int) -> Image.Image:
    """Render an SVG on white as RGB, ``size`` x ``size`` pixels."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return flatten_on_white(image)


def draw_all(draw: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield ``draw(item)`` for each item, in order, from processes: the renderer holds the GIL."""
    return map_in_processes(draw, items, min(os.cpu_count() or 1, 8))
