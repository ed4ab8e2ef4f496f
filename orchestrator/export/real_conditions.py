"""Read what an exported model is tried on besides random inputs: images of a packed set."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import DataError, UsageError
from orchestrator.export.parity import MOST
from orchestrator.model_evaluation.draw_images import condition_of
from orchestrator.model_evaluation.metric_choice import check_set
from orchestrator.model_evaluation.reference_set import ImageReading, ReferenceSet
from orchestrator.models.base import GenerativeModel


def read_conditions(model: GenerativeModel, uri: str, notes: Mapping[str, Any]) -> Tensor:
    """Return up to ``MOST`` conditions for ``GenerativeModel.sample`` from the packed set at uri.

    ``notes`` are those of the registered model, which say which image of a pair is the input.

    Raises:
        UsageError: the model draws from noise alone.
        DataError: the set does not fit the model, is empty or damaged.
    """
    config = model.config
    takes_captions = "captions" in config.takes
    if not (config.translates or takes_captions or config.num_classes):
        raise UsageError(
            f"--data: model {config.name} draws from noise alone, so a set has no inputs for it; "
            "leave --data out"
        )
    packed = open_set(uri)
    check_set(model, packed)
    if not packed.num_samples:
        raise DataError(f"{uri} has no samples; give another set with --data")
    reference = ReferenceSet(
        packed, min(MOST, packed.num_samples), ImageReading.of_notes(dict(notes))
    )
    batch = next(reference.batches(MOST))
    found = condition_of(model, batch)
    assert found is not None, "check_set has asked for it"
    return found
