"""Draw images from seeds, one for each, whatever is drawn beside it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator.models.parts import noise


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in evaluation mode without gradients; restore the modes afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


class Sampler(nn.Module):
    """seeds_B int64, condition=None -> images_BCHW float32 in [-1, 1].

    Image i is a function of seed i and condition i alone; see ``GenerativeModel.sampler``.
    """

    def __init__(
        self,
        networks: nn.Module,
        draw: Callable[[Tensor, Tensor | None], Tensor],
        num_classes: int = 0,
    ) -> None:
        """``draw`` uses the weights of ``networks``; see ``GenerativeModel.draw``."""
        super().__init__()
        self.networks, self.draw, self.num_classes = networks, draw, num_classes

    def forward(self, seeds: Tensor, condition: Tensor | None = None) -> Tensor:
        """Draw the images; with classes and no condition, the classes too."""
        if condition is None and self.num_classes:
            condition = noise.integers(seeds, "class", self.num_classes)
        with evaluating(self.networks):
            return self.draw(seeds, condition).float()


def check_condition(
    seeds: Tensor,
    condition: Tensor | None,
    images: tuple[int, int, int] | None,
    classes: int,
    *,
    captions: bool,
) -> None:
    """Check what ``GenerativeModel.sample`` is given.

    Args:
        seeds: must be int64 (B,).
        condition: must be one of the following, or None if there is none.
        images: shape (C, H, W) of the images that a model translates.
        classes: number of classes, int64 (B,), of a class-conditional model; None draws them.
        captions: whether the model takes captions, uint8 (B, T).

    Raises:
        ValueError: it is something else; the message says what is needed.
    """
    count, given = len(seeds), "none"
    if condition is not None:
        given = f"{condition.dtype} {tuple(condition.shape)}"
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise ValueError(f"seeds are int64 (B,), not {seeds.dtype} {tuple(seeds.shape)}")
    if images is not None:
        needed, fits = f"images to translate, {(count, *images)}", _is(condition, count, *images)
    elif captions:
        needed, fits = f"captions, uint8 ({count}, T)", _is(condition, count, None)
    elif classes:
        needed = f"classes from 0 to {classes - 1}, int64 ({count},)"
        fits = condition is None or (_is(condition, count) and condition.dtype == torch.int64)
        if fits and condition is not None and not ((condition >= 0) & (condition < classes)).all():
            fits, given = False, str(condition.tolist())
    else:
        needed, fits = "no condition", condition is None
    if not fits:
        raise ValueError(f"{count} images need {needed}; got {given}")


def _is(condition: Tensor | None, *shape: int | None) -> bool:
    """Whether the condition has this shape; None stands for any size."""
    return (
        condition is not None
        and condition.dim() == len(shape)
        and all(a in (None, b) for a, b in zip(shape, condition.shape, strict=True))
    )
