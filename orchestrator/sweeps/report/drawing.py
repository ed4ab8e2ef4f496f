"""How all figures look."""

import io
import warnings
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from orchestrator.sweeps.report.scales import Scale

GREY, DARK = "#9aa0a6", "#333333"
BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
"""Of the colours by Okabe and Ito, which colour-blind people can tell apart."""
SMALL, NORMAL = 8, 9
"""Sizes of letters, in points."""
DOTS_PER_INCH = 140
WIDTH = 9.6
"""Inches of a figure that fills the page."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; pyplot does not know of it."""
    figure = Figure((width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, *position: int, x: str = "", y: str = "") -> Axes:
    """Axes with names; ``position`` is rows, columns and number."""
    axes: Axes = figure.add_subplot(*(position or (1, 1, 1)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, color=GREY)
    axes.grid(True, color="#e8eaed", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(plain(x), fontsize=NORMAL)
    axes.set_ylabel(plain(y), fontsize=NORMAL)
    return axes


def plain(text: str) -> str:
    """Text that is drawn as it is: a pair of $ would be taken for a formula."""
    return text.replace("$", r"\$")


def thousands(axes: Axes) -> None:
    """Write the numbers of images on the lower axis in full."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def shades(mode: str) -> Colormap:
    """Colours of a metric, the good ones dark; the lightest are left out, for the paper is white.

    Who sees no colours still sees dark and light.
    """
    share = np.linspace(0.0, 0.92, 256)
    return ListedColormap(colormaps["viridis"](share if mode == "min" else share[::-1]))


def norm(scale: Scale) -> Normalize:
    """How numbers become colours."""
    low, high = scale.low, scale.high
    if low == high:
        low, high = low - 0.5, high + 0.5
        return Normalize(low, high)
    return LogNorm(low, high) if scale.log else Normalize(low, high)


def set_axis(axes: Axes, which: Literal["x", "y"], scale: Scale) -> None:
    """Make one axis that of a parameter or metric."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(plain(scale.label), fontsize=NORMAL)
    if scale.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(*zip(*((place, plain(name)) for place, name in scale.ticks()), strict=True))
    axis.set_minor_formatter(NullFormatter())


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same for the same figure."""
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
        with Image.open(file) as picture:
            return packed(picture.convert("RGB"))


def packed(picture: Image.Image) -> bytes:
    """A PNG with a palette, a third as large as one without: a page holds a hundred of them."""
    with io.BytesIO() as file:
        picture.quantize(256).save(file, format="PNG", optimize=True)
        return file.getvalue()
