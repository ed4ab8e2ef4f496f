"""How the input of a pair can be made from its target; data/format/derived_input.py makes it."""

from typing import Literal, get_args

DerivedInput = Literal["grey", "edges", "holes", "lowres"]
DERIVED_INPUTS: tuple[DerivedInput, ...] = get_args(DerivedInput)
HOLE_COLOUR = "#ff00ff"
"""Magenta, which photographs and drawings hardly have."""
