"""Make the input of a pair from its target: a model learns to turn one back into the other.

grey    the grey image, to learn colourisation
edges   thin black edges on white, to learn to draw from them
holes   the image with one to three parts painted over in one colour, to learn to fill these in
lowres  the image at a quarter of its width and height, enlarged again, to learn to add detail
"""

import hashlib
import math
import random

import cv2
import numpy
from PIL import Image, ImageDraw

from orchestrator.derived_input_kinds import HOLE_COLOUR, DerivedInput
from orchestrator.errors import UsageError

REDUCTION = 4
"""Of the width and the height, for lowres."""
EDGE_THRESHOLDS = (60, 140)
"""Of Canny's method, on 8-bit grey values: weak and strong edges."""


def derive_input(image: Image.Image, kind: DerivedInput) -> Image.Image:
    """Return the input for a target, of the same size and mode; a pure function of its pixels."""
    if kind == "grey":
        return image.convert("L").convert(image.mode)
    if kind == "edges":
        return _edges(image)
    if kind == "lowres":
        return _low_resolution(image)
    return _with_holes(image)


def require_channels(kind: DerivedInput | None, channels: int) -> None:
    """Raise UsageError if inputs of this kind cannot be made of images with so many channels."""
    if channels == 1 and kind in ("grey", "holes"):
        raise UsageError(
            f"--derive-input {kind} makes inputs from colour images, and --grey packs grey ones; "
            "leave one of them out"
        )


def _edges(image: Image.Image) -> Image.Image:
    grey = numpy.asarray(image.convert("L"))
    # Blurred first, so that noise and the blocks of JPEG give no edges.
    smooth = cv2.GaussianBlur(grey, (0, 0), max(0.6, image.width / 256))
    found = cv2.Canny(smooth, *EDGE_THRESHOLDS, L2gradient=True)
    return Image.fromarray(255 - found).convert(image.mode)


def _low_resolution(image: Image.Image) -> Image.Image:
    side = max(1, image.width // REDUCTION)
    small = image.resize((side, side), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _with_holes(image: Image.Image) -> Image.Image:
    draw = random.Random(hashlib.sha256(image.tobytes()).digest())
    painted = image.copy()
    brush = ImageDraw.Draw(painted)
    side = image.width
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            _paint_box(brush, draw, side)
        else:
            _paint_stroke(brush, draw, side)
    return painted


def _paint_box(brush: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    width, height = (round(draw.uniform(0.15, 0.4) * side) for _ in range(2))
    left, top = draw.randint(0, side - width), draw.randint(0, side - height)
    brush.rectangle((left, top, left + width - 1, top + height - 1), fill=HOLE_COLOUR)


def _paint_stroke(brush: ImageDraw.ImageDraw, draw: random.Random, side: int) -> None:
    """Paint as with a thick pen that wanders."""
    radius = draw.uniform(0.04, 0.08) * side
    x, y = draw.uniform(0, side), draw.uniform(0, side)
    angle = draw.uniform(0, 2 * math.pi)
    for _ in range(draw.randint(8, 24)):
        angle += draw.uniform(-0.6, 0.6)
        x = min(max(x + radius * math.cos(angle), 0.0), float(side))
        y = min(max(y + radius * math.sin(angle), 0.0), float(side))
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=HOLE_COLOUR)
