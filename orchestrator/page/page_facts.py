"""What the page must know of a model: what ``/v1/model`` answers, or model.json beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.derived_input_kinds import HOLE_COLOUR
from orchestrator.models.base import GenerativeModel
from orchestrator.models.parts.abilities import FillsHole


@dataclass(frozen=True)
class Backend:
    """What draws for the page, and what it can do besides drawing from seeds and conditions."""

    latent_size: int = 0
    """Numbers of a latent vector; 0: it decodes none."""
    rows: bool = False
    """Whether it draws row by row."""
    likelihood: str = ""
    """Name of the likelihood that it measures, such as nll_nats; empty: it measures none."""
    token_required: bool = False
    """Whether it asks for a token."""


def page_facts(
    model: GenerativeModel,
    name: str,
    version: int | None,
    card: str,
    notes: Mapping[str, Any],
    backend: Backend,
) -> dict[str, Any]:
    """Return what the page shows controls by; the caller adds ``limits``.

    ``notes`` are those of the registration.
    """
    config = model.config
    hole = model.hole if isinstance(model, FillsHole) else None
    return {
        "name": name,
        "version": version,
        "model": config.name,
        "translates": config.translates,
        "image_size": config.image_size,
        "channels": config.channels,
        "classes": config.num_classes,
        "captions": "captions" in config.takes,
        "hole": hole and [hole.start, hole.start, *2 * [hole.stop - hole.start]],
        "hole_colour": HOLE_COLOUR if notes.get("derived_input") == "holes" else "",
        "card": card,
        **asdict(backend),
    }
