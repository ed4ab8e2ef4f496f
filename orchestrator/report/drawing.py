"""Style of all figures of matplotlib."""

import io
import warnings
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from orchestrator.report.axis_scale import Scale
from orchestrator.report.pictures import to_palette_png

GREY, DARK = "#9aa0a6", "#333333"
BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
"""From the palette of Okabe and Ito, which colour-blind readers can tell apart."""
SMALL, NORMAL = 8, 9
"""Font sizes in points."""
DPI = 140
WIDTH = 9.6
"""Width of the page in inches."""


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, without pyplot's global state."""
    figure = Figure((width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, *position: int, x: str = "", y: str = "") -> Axes:
    """Add axes with labels; ``position`` is rows, columns and index."""
    axes: Axes = figure.add_subplot(*(position or (1, 1, 1)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, color=GREY)
    axes.grid(True, color="#e8eaed", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(escape(x), fontsize=NORMAL)
    axes.set_ylabel(escape(y), fontsize=NORMAL)
    return axes


def escape(text: str) -> str:
    """Escape text for matplotlib, which takes a pair of $ for a formula."""
    return text.replace("$", r"\$")


def format_images(axes: Axes) -> None:
    """Format the image counts on the x axis in full."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def metric_colormap(mode: str) -> Colormap:
    """Make the colour map of a metric: good is dark, also in greyscale.

    The lightest shades are left out: they are hard to see on white.
    """
    share = np.linspace(0.0, 0.92, 256)
    return ListedColormap(colormaps["viridis"](share if mode == "min" else share[::-1]))


def normalize(scale: Scale) -> Normalize:
    """Map the numbers of a scale to colours."""
    if scale.low == scale.high:
        return Normalize(scale.low - 0.5, scale.high + 0.5)
    return (LogNorm if scale.log else Normalize)(scale.low, scale.high)


def set_axis(axes: Axes, which: Literal["x", "y"], scale: Scale) -> None:
    """Set label, scale and ticks of one axis."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(escape(scale.label), fontsize=NORMAL)
    if scale.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(*zip(*((place, escape(name)) for place, name in scale.ticks()), strict=True))
    axis.set_minor_formatter(NullFormatter())


def add_colorbar(
    axes: Axes, scale: Scale, share: Normalize, colours: Colormap, **place: Any
) -> None:
    """Add a colour bar beside the axes."""
    bar = axes.figure.colorbar(ScalarMappable(share, colours), ax=axes, **place)
    set_axis(bar.ax, "y", scale)
    bar.ax.tick_params(labelsize=SMALL)


def to_png(figure: Figure) -> bytes:
    """Render the figure as PNG; equal figures give equal bytes."""
    with io.BytesIO() as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in other scripts
        figure.savefig(file, format="png", dpi=DPI)
        with Image.open(file, formats=("PNG",)) as picture:
            return to_palette_png(picture.convert("RGB"))
