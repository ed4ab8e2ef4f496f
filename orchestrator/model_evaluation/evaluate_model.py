"""Evaluate one model on one packed set: all metrics that fit, with the features they are from."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from orchestrator.data.format.shard_index import ShardSet
from orchestrator.evaluation.extractors.extractor import Extractor, extract
from orchestrator.evaluation.feature_set import FeatureSet, to_pixels_batch
from orchestrator.evaluation.measure import (
    FEWEST,
    measure_classes,
    measure_diversity,
    measure_frechet,
    measure_kid,
    measure_means,
    measure_nearest,
    measure_neighbourhoods,
)
from orchestrator.evaluation.metric_names import OF_FEATURES, Metric
from orchestrator.evaluation.report import EvaluationReport, Measurement
from orchestrator.model_evaluation.draw_images import (
    Drawn,
    device_of,
    draw_images,
    likelihoods,
    num_drawn,
)
from orchestrator.model_evaluation.extraction import Features, ImageCounter, ProgressCallback
from orchestrator.model_evaluation.feature_cache import FeatureCache
from orchestrator.model_evaluation.metric_choice import choose_metrics
from orchestrator.model_evaluation.reference_set import ImageReading, ReferenceSet
from orchestrator.models.base import GenerativeModel
from orchestrator.models.parts.abilities import HasLikelihood

MOST_COMPARED = 1000
"""Images of each kind whose pairs give the diversity, and that are held in memory for it."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and on how many images."""

    num_images: int
    """Generated images, and images of the reference; a smaller reference is used whole."""
    metrics: tuple[str, ...] | None = None
    """Of METRICS; None for all that fit the model and the sets."""
    seed: int = 0
    """Of the first generated image, and of the intervals."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the features that it was measured from."""

    report: EvaluationReport
    generated: FeatureSet | None
    """None if no metric needs features. Image i of two models has the same seed and condition."""
    reference: FeatureSet | None
    about: Mapping[str, str | int | float] = field(default_factory=dict)
    """The data, the settings and the time that it took."""

    def to_json(self) -> str:
        """Return the report with what it is about as JSON."""
        measured = [asdict(each) for each in self.report.measurements]
        content = {"about": dict(self.about), "measurements": measured}
        return json.dumps(content, indent=2, allow_nan=False)


@dataclass(frozen=True)
class Sets:
    """The sets that a model is evaluated on."""

    data: ShardSet
    """The reference, which the training never saw: the validation set."""
    training: ShardSet | None = None
    """The training set, for `nearest`."""
    reading: ImageReading = field(default_factory=ImageReading)
    """How the model's job reads them."""


def evaluate_model(
    model: GenerativeModel,
    sets: Sets,
    settings: EvaluationSettings,
    extractor: Extractor | None,
    *,
    cache: FeatureCache | None = None,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Evaluation:
    """Evaluate ``model``, on the device of its weights.

    Args:
        model: with the weights to sample from.
        sets: the sets.
        settings: what to measure.
        extractor: may be None if no metric needs features.
        cache: where features of the sets are kept; without one they are extracted each time.
        progress: called after each batch of images.

    Raises:
        UsageError: a metric does not fit the model.
        DataError: the sets do not fit the model, are too small, or a sample is corrupt.
    """
    begun = time.monotonic()
    metrics = choose_metrics(
        model, sets.data, settings.num_images, training=sets.training, asked=settings.metrics
    )
    count = min(settings.num_images, sets.data.num_samples)
    reference = ReferenceSet(sets.data, count, sets.reading)
    needs_features = bool(OF_FEATURES & set(metrics))
    assert extractor is not None or not needs_features, "the caller has made one"
    used = extractor if needs_features else None
    features = Features(used, cache, progress)
    real = features.of_set(reference, "images of the reference")
    drawn = _draw(model, reference, settings, features, metrics)
    found: list[Measurement] = []
    if real is not None and drawn.features is not None:
        found += _measure_features(metrics, real, drawn.features, settings)
        if "nearest" in metrics and sets.training is not None:
            whole = ReferenceSet(sets.training, sets.training.num_samples, sets.reading)
            known = features.of_set(whole, "training images")
            assert known is not None
            found += measure_nearest(known, real, drawn.features, seed=settings.seed)
    if "diversity" in metrics:
        compared = _first_images(reference, MOST_COMPARED)
        found += measure_diversity(drawn.images, compared, seed=settings.seed)
    if "pairs" in metrics:
        found += measure_means(drawn.pairs)
    if "likelihood" in metrics:
        assert isinstance(model, HasLikelihood), "choose_metrics has asked"
        done = ImageCounter("likelihood", reference.count, progress)
        values = likelihoods(
            model, reference, device_of(model), seed=settings.seed, on_images=done.add
        )
        found += measure_means(values)
    about = _about(sets, settings, used, metrics, time.monotonic() - begun)
    return Evaluation(EvaluationReport(tuple(found)), drawn.features, real, about)


def _about(
    sets: Sets,
    settings: EvaluationSettings,
    extractor: Extractor | None,
    metrics: Sequence[Metric],
    seconds: float,
) -> dict[str, str | int | float]:
    about: dict[str, str | int | float] = {"data": sets.data.uri, "data_digest": sets.data.digest}
    if sets.training is not None:
        about |= {"training_data": sets.training.uri, "training_digest": sets.training.digest}
    if extractor is not None:
        about["extractor"] = extractor.name
    return {
        **about,
        **sets.reading.note(),
        "num_images": settings.num_images,
        "metrics": ",".join(metrics),
        "seed": settings.seed,
        "seconds": round(seconds, 1),
    }


def _measure_features(
    metrics: Sequence[Metric],
    real: FeatureSet,
    generated: FeatureSet,
    settings: EvaluationSettings,
) -> list[Measurement]:
    """Measure what is computed from both sets of features."""
    found: list[Measurement] = []
    seed = settings.seed
    if "kid" in metrics:
        found += measure_kid(real, generated, seed=seed)
    if "frechet" in metrics:
        found += measure_frechet(real, generated, seed=seed)
    if "prdc" in metrics:
        found += measure_neighbourhoods(real, generated, seed=seed)
    if "kid_per_class" in metrics and (settings.metrics or _has_large_classes(real, generated)):
        found += measure_classes(lambda x, y: measure_kid(x, y, seed=seed), real, generated)
    return found


def _has_large_classes(*sets: FeatureSet) -> bool:
    """Whether each class of each set has enough images, and all sets have the same classes."""
    found = []
    for each in sets:
        assert each.labels is not None
        labels, counts = each.labels.unique(return_counts=True)
        if int(counts.min()) < FEWEST:
            return False
        found.append(labels.tolist())
    return all(labels == found[0] for labels in found)


@dataclass(frozen=True)
class _AllDrawn:
    features: FeatureSet | None
    images: Tensor
    """The first MOST_COMPARED, float32 (N, C, H, W) in [-1, 1] on the CPU."""
    pairs: Mapping[str, Tensor]


def _draw(
    model: GenerativeModel,
    reference: ReferenceSet,
    settings: EvaluationSettings,
    features: Features,
    metrics: Sequence[Metric],
) -> _AllDrawn:
    """Draw the images, and keep of them what the metrics need."""
    total = num_drawn(model, reference, settings.num_images)
    labels: list[Tensor] = []
    kept: list[Tensor] = []
    pairs: dict[str, list[Tensor]] = {}
    counter = ImageCounter("generated images", total, features.progress)

    def images() -> Iterator[Tensor]:
        for drawn in draw_images(model, reference, settings.num_images, seed=settings.seed):
            _keep(drawn, labels, kept, pairs)
            yield to_pixels_batch(drawn.images)
            counter.add(len(drawn.images))

    if set(metrics) <= {"likelihood"}:
        return _AllDrawn(None, torch.empty(0), {})
    found = None
    if features.extractor is None:
        for _ in images():
            pass
    else:
        found = extract(features.extractor, images(), "generated images")
    if found is not None and labels:
        found = replace(found, labels=torch.cat(labels))
    return _AllDrawn(
        found, torch.cat(kept)[:MOST_COMPARED], {name: torch.cat(v) for name, v in pairs.items()}
    )


def _keep(
    drawn: Drawn, labels: list[Tensor], kept: list[Tensor], pairs: dict[str, list[Tensor]]
) -> None:
    if drawn.labels is not None:
        labels.append(drawn.labels)
    if sum(map(len, kept)) < MOST_COMPARED:
        kept.append(drawn.images)
    for name, values in drawn.pairs.items():
        pairs.setdefault(name, []).append(values)


def _first_images(reference: ReferenceSet, count: int) -> Tensor:
    """Return images of the reference, float32 (N, C, H, W) in [-1, 1]."""
    some = ReferenceSet(reference.packed, min(count, reference.count), reference.reading)
    return torch.cat([batch.images for batch in some.batches()])
