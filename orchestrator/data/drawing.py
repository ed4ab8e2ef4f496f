"""SVG to pixels, and many of them in processes side by side."""

import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from PIL import Image

from orchestrator.data.ahead import in_order
from orchestrator.data.images import on_white

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
    processes = min(os.cpu_count() or 1, 8)
    if processes == 1:
        return map(draw, items)
    # Forking would copy the locks of torch's and boto3's threads in whatever state they are.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    return in_order(pool, draw, items, ahead=32 * processes)
