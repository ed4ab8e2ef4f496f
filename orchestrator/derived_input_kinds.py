"""How the input of a pair can be made from its target; data/format/derived_input.py makes it."""

from collections.abc import Mapping
from typing import Literal

DerivedInput = Literal["grey", "edges", "holes", "lowres"]
HOLE_COLOUR = "#ff00ff"
"""Magenta, which photographs and drawings hardly have."""
DERIVED_INPUTS: Mapping[DerivedInput, str] = {
    "grey": "its grey values",
    "edges": "its edges, black on white",
    "holes": f"the image with holes painted in {HOLE_COLOUR}",
    "lowres": "the image at a quarter of its size, enlarged",
}
"""What is made of an image."""
