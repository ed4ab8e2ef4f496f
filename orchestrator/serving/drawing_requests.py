"""What clients ask for in JSON, and the inputs that a version draws it from."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.export.exported_sampler import LARGEST_SEED
from orchestrator.models.parts import noise
from orchestrator.models.parts.text import caption_bytes
from orchestrator.serving.refused_request import Refused
from orchestrator.serving.request_batcher import Columns
from orchestrator.serving.served_version import ServedVersion

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""A seed that every client counts exactly."""
MOST_CAPTION_BYTES = 10_000
LARGEST_LATENT = 1e6
R = TypeVar("R", bound=BaseModel)


class AskedConditions(BaseModel):
    """What images show besides their seeds, for models that take classes or a caption."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    class_: int | None = Field(default=None, alias="class", description="Class of all images.")
    classes: list[int] | None = Field(default=None, description="Class of each image.")
    caption: str | None = Field(
        default=None, max_length=MOST_CAPTION_BYTES, description="What all images show."
    )


class DrawRequest(AskedConditions):
    """Images to draw from seeds."""

    seeds: list[Seed] = Field(min_length=1, description="One for each image; the same, the same.")


class RowsRequest(AskedConditions):
    """An image to draw row by row."""

    seed: Seed = 0


class LatentsRequest(BaseModel):
    """Seeds whose latents are asked for."""

    model_config = ConfigDict(extra="forbid")

    seeds: list[Seed] = Field(min_length=1)


class DecodeRequest(AskedConditions):
    """Images to draw from latents."""

    latents: list[list[Annotated[float, Field(ge=-LARGEST_LATENT, le=LARGEST_LATENT)]]] = Field(
        min_length=1, description="A vector for each image, as /v1/latents gives them."
    )


class InterpolateRequest(AskedConditions):
    """Images between seeds: those of the first one, of steps on the way to the next, and so on."""

    seeds: list[Seed] = Field(min_length=2)
    steps: int = Field(default=8, ge=2, le=1000, description="Images from each seed to the next.")


def parse(kind: type[R], body: bytes) -> R:
    """Parse a request's body. Raises Refused with one line."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(422, f"{place}: {first['msg']}" if place else first["msg"]) from error


def seeds_to_draw(request: DrawRequest, most: int) -> Callable[[ServedVersion], Columns]:
    """Return what ``DrawingService.draw`` takes. Raises Refused if there are too many images."""
    _check_count(len(request.seeds), most)
    seeds = np.array(request.seeds, np.int64)
    return lambda served: (seeds, *condition_of(served, request, seeds))


def latents_to_draw(
    request: DecodeRequest | InterpolateRequest, most: int
) -> Callable[[ServedVersion], Columns]:
    """Return what ``DrawingService.draw`` takes with ``decoding``; both raise Refused."""
    if isinstance(request, DecodeRequest):
        count = len(request.latents)
    else:
        count = (len(request.seeds) - 1) * (request.steps - 1) + 1
    _check_count(count, most)

    def prepare(served: ServedVersion) -> Columns:
        size = served.latent_size
        if isinstance(request, DecodeRequest):
            if odd := [len(row) for row in request.latents if len(row) != size]:
                raise Refused(422, f"latents: a vector has {odd[0]} numbers; expected {size}")
            latents = np.array(request.latents, np.float32)
        else:
            latents = _between(served.latents(np.array(request.seeds, np.int64)), request.steps)
        # Classes that are not given are those of seed 0: a walk stays in one class.
        return latents, *condition_of(served, request, np.zeros(count, np.int64))

    return prepare


def condition_of(
    served: ServedVersion, request: AskedConditions, seeds: NDArray[np.int64]
) -> Columns:
    """Return the condition of the images of ``seeds``, if the model takes one.

    Raises Refused if the request has one that it does not take, or lacks one.
    """
    config = served.config
    classes, takes_captions = config.num_classes, "captions" in config.takes
    chosen = _classes(request, len(seeds))
    if chosen is not None and not classes:
        raise Refused(422, f"model {config.name} has no classes; leave class and classes out")
    if request.caption is not None and not takes_captions:
        raise Refused(422, f"model {config.name} takes no caption; leave caption out")
    if takes_captions:
        if request.caption is None:
            raise Refused(422, f"model {config.name} draws from a caption; give caption")
        return (np.repeat(caption_bytes(request.caption).numpy()[None], len(seeds), 0),)
    if not classes:
        return ()
    if chosen is None:  # as GenerativeModel.sample draws them
        return (noise.integers(torch.from_numpy(seeds), "class", classes).numpy(),)
    if odd := [label for label in chosen if not 0 <= label < classes]:
        raise Refused(422, f"class {odd[0]}: model {config.name} has classes 0 to {classes - 1}")
    return (np.array(chosen, np.int64),)


def _classes(request: AskedConditions, count: int) -> Sequence[int] | None:
    if request.classes is None:
        return None if request.class_ is None else [request.class_] * count
    if request.class_ is not None:
        raise Refused(422, "give class or classes, not both")
    if len(request.classes) != count:
        raise Refused(422, f"classes: {len(request.classes)} for {count} images; give one for each")
    return request.classes


def _between(latents: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Return the given latents (B, Z) and those on the great circles between them.

    Latents of high dimensions have nearly one length; on a straight line they would be shorter, and
    the images in the middle unlike those of any seed.
    """
    rows: list[NDArray[Any]] = []
    for first, last in pairwise(latents):
        lengths = np.linalg.norm(first) * np.linalg.norm(last)
        cosine = float(first @ last / lengths) if lengths else 1.0
        angle = float(np.arccos(np.clip(cosine, -1, 1)))
        for step in range(steps - 1):
            share = step / (steps - 1)
            if np.sin(angle) < 1e-3:  # parallel, or opposite: no one circle
                rows.append((1 - share) * first + share * last)
            else:
                weights = np.sin(np.array([1 - share, share]) * angle) / np.sin(angle)
                rows.append(weights[0] * first + weights[1] * last)
    return np.stack([*rows, latents[-1]]).astype(np.float32)


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise Refused(422, f"{count} images are too many for one request; at most {most}")
