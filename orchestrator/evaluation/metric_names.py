"""Metrics that an evaluation measures, and the names of their values."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

from orchestrator.evaluation.measure import MOST_NEIGHBOURS
from orchestrator.evaluation.similarity import WINDOW
from orchestrator.models.base import GenerativeModel
from orchestrator.models.parts.abilities import HasLikelihood

Metric: TypeAlias = Literal[
    "kid", "frechet", "prdc", "nearest", "diversity", "pairs", "likelihood", "kid_per_class"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OF_FEATURES: frozenset[Metric] = frozenset({"kid", "frechet", "prdc", "nearest", "kid_per_class"})
"""Metrics that need an extractor."""

_NATS = r"(nll_nats|bits_per_dim|(negative_elbo|importance_weighted)_(nats|bits_per_dim))"
_NAMES: Mapping[Metric, str] = {
    "kid": r"kid\.{extractor}",
    "frechet": r"{frechet}\.{extractor}\.n{n}",
    "prdc": r"(precision|recall|density|coverage)\.{extractor}\.n{n}",
    "nearest": r"nearest\.{extractor}",
    "diversity": r"ms_ssim_pairs\.scales\d",
    "pairs": "l1|psnr|ssim",
    "likelihood": rf"{_NATS}(_binarized)?",
    "kid_per_class": r"kid\.{extractor}\.class_\d+",
}
"""Regular expressions of the names of a metric's values."""


def is_measured(
    name: str, metrics: Iterable[Metric], extractor: str, num_images: int | None
) -> bool:
    """Whether ``name`` is that of a value of one of ``metrics``.

    Args:
        name: such as kid.lite0.
        metrics: what is measured.
        extractor: what a job calls it: lite0, inception:FILE or onnx:SETTINGS.json.
        num_images: how many are generated; None if the set decides.
    """
    kind = extractor.partition(":")[0]
    fields = {
        "{extractor}": r"[\w.-]+-[0-9a-f]{8}" if kind == "onnx" else re.escape(kind),
        "{frechet}": "fid" if kind == "inception" else "frechet",
        "{n}": r"\d+" if num_images is None else str(num_images),
    }
    for metric in metrics:
        pattern = _NAMES[metric]
        for field, value in fields.items():
            pattern = pattern.replace(field, value)
        if re.fullmatch(pattern, name):
            return True
    return False


def explain_misfits(model: GenerativeModel, num_images: int) -> dict[str, str]:
    """Return why metrics do not fit the model, whatever the set; those that fit are left out."""
    config = model.config
    found: dict[str, str] = {}
    if num_images > MOST_NEIGHBOURS:
        found["prdc"] = f"it takes at most {MOST_NEIGHBOURS} images, not {num_images}"
    if config.translates:
        found["diversity"] = "the model translates images; it is for models that draw from noise"
    elif config.image_size < WINDOW:
        found["diversity"] = f"it needs images of {WINDOW} px, the model draws {config.image_size}"
    if not config.translates:
        found["pairs"] = "the model does not translate images, so none has a target"
    if not isinstance(model, HasLikelihood):
        found["likelihood"] = f"model {config.name} has no likelihood"
    if not (config.num_classes or config.translates):
        found["kid_per_class"] = "the model does not draw by class"
    return found
