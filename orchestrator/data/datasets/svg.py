"""SVG to pixels, and many of them in processes side by side."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from PIL import Image

from orchestrator.data.format.images import on_white
from orchestrator.data.prepare.process_map import in_processes

Item = TypeVar("Item")
Result = TypeVar("Result")


def rendered(svg: str, size: int) -> Image.Image:
    """The drawing on white: RGB, ``size`` x ``size`` pixels."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return on_white(image)


def drawn(draw: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What ``draw`` gives for each item, in order. The renderer holds the GIL: processes."""
    return in_processes(draw, items, min(os.cpu_count() or 1, 8), ahead=32)
