"""Metrics that an evaluation measures, and the names of their values."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

Metric: TypeAlias = Literal[
    "kid", "frechet", "prdc", "nearest", "diversity", "pairs", "likelihood", "kid_per_class"
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OF_FEATURES: frozenset[Metric] = frozenset({"kid", "frechet", "prdc", "nearest", "kid_per_class"})
"""Metrics that need an extractor."""

_NATS = r"(nll_nats|bits_per_dim|(negative_elbo|importance_weighted)_(nats|bits_per_dim))"
_NAMES: Mapping[Metric, str] = {
    "kid": r"kid\.{extractor}",
    "frechet": r"(frechet|fid)\.{extractor}\.n\d+",
    "prdc": r"(precision|recall|density|coverage)\.{extractor}\.n\d+",
    "nearest": r"nearest\.{extractor}",
    "diversity": r"ms_ssim_pairs\.scales\d",
    "pairs": "l1|psnr|ssim",
    "likelihood": rf"{_NATS}(_binarized)?",
    "kid_per_class": r"kid\.{extractor}\.class_\d+",
}
"""Regular expressions of the names of a metric's values."""


def is_measured(name: str, metrics: Iterable[Metric], extractor: str) -> bool:
    """Whether ``name`` is that of a value of one of ``metrics``.

    ``extractor`` is what a job calls it: lite0, inception:FILE or onnx:SETTINGS.json.
    """
    kind = extractor.partition(":")[0]
    in_name = r"[\w.-]+-[0-9a-f]{8}" if kind == "onnx" else re.escape(kind)
    patterns = (_NAMES[metric].replace("{extractor}", in_name) for metric in metrics)
    return any(re.fullmatch(pattern, name) for pattern in patterns)
