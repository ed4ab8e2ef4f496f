"""Typed access to the layers of a network."""

from typing import TypeVar

from torch import nn

L = TypeVar("L", bound=nn.Module)


def layer_at(network: nn.Module, path: str, kind: type[L]) -> L:
    """Return the layer at ``path``, e.g. ``"image.0"``, which must be a ``kind``."""
    found = network.get_submodule(path)
    assert isinstance(found, kind), f"{path} is a {type(found).__name__}"
    return found
