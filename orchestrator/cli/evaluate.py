"""``orchestrator evaluate``: measure a trained model on a packed set."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.output import AsJson, print_result, progress_counter
from orchestrator.cli.sample import LARGEST_SEED
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.temporary_folder import temporary_folder

_Model = Annotated[
    str,
    typer.Argument(
        help="NAME (its newest version), NAME@ALIAS, NAME/VERSION, a pulled folder, STORAGE/RUN "
        "for the newest checkpoint of a run, or STORAGE/RUN/checkpoints/CHECKPOINT."
    ),
]
_Data = Annotated[
    str,
    typer.Option(
        help="Packed set that the training never saw, to compare with, such as the validation set."
    ),
]
_TrainingData = Annotated[
    str | None,
    typer.Option(help="Packed set of the training: also look for copies of its images (nearest)."),
]
_NumImages = Annotated[
    int,
    typer.Option(
        min=1,
        max=1_000_000,
        help="Number of generated images, and at most as many of the set.",
    ),
]
_ExtractorName = Annotated[
    str,
    typer.Option(
        help="Network whose features are compared: lite0, inception:FILE or onnx:SETTINGS.json. It "
        "is part of the metrics' names."
    ),
]
_MetricNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="kid, frechet, prdc, nearest, diversity, pairs, likelihood, kid_per_class; by "
        "default all that fit.",
    ),
]
_Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the first image.")]
_CacheAddress = Annotated[
    str | None,
    typer.Option(
        help="Folder or storage for the features of the sets; by default a folder in ~/.cache."
    ),
]
_Output = Annotated[Path | None, typer.Option(help="Write the report to this file, as JSON.")]


def evaluate(  # noqa: PLR0913, PLR0917 - the options of one command
    model: _Model,
    data: _Data,
    training_data: _TrainingData = None,
    num_images: _NumImages = 1000,
    extractor: _ExtractorName = "lite0",
    metrics: _MetricNames = None,
    seed: _Seed = 0,
    feature_cache: _CacheAddress = None,
    output: _Output = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model: distances to real images, copies, diversity, likelihood.

    Prints each value with its 95 % interval, its number of images and what real images score, its
    floor. docs/evaluation.md says what each metric sees and does not see.
    """
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UsageError(f"--output {output}: give a file in an existing folder")
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    import torch

    from orchestrator.data.format.shard_index import open_set
    from orchestrator.model_evaluation.evaluate_model import (
        EvaluationSettings,
        Sets,
        evaluate_model,
    )
    from orchestrator.model_evaluation.extractor_choice import make_extractor
    from orchestrator.model_evaluation.feature_cache import FeatureCache
    from orchestrator.model_evaluation.metric_choice import check_names, need_features
    from orchestrator.package_download import cache_folder
    from orchestrator.runs.opened_model import check_training_set, open_model
    from orchestrator.storage.open import open_storage

    check_names(names or ())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    used = make_extractor(extractor, device) if need_features(names) else None
    training = None if training_data is None else open_set(training_data)
    cache = FeatureCache(open_storage(feature_cache or str(cache_folder() / "features")))
    with temporary_folder(f"the files of {model}") as temporary:
        opened = open_model(model, tracking_uri, temporary)
        sets = Sets(open_set(data), training, opened.reading)
        check_training_set(opened, sets)
        opened.model.to(device)
        with ExitStack() as open_counters:
            found = evaluate_model(
                opened.model,
                sets,
                EvaluationSettings(num_images, names, seed),
                used,
                cache=cache,
                progress=Counters(open_counters).show,
            )
    found = replace(found, about={"model": opened.title, **found.about})
    if output is not None:
        _write(output, found.to_json())
    print_result(found.to_json() if as_json else found.report.table())
    log_info(f"evaluated {opened.title} in {found.about['seconds']} s")


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text + "\n")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot write it: {error.strerror}") from error


class Counters:
    """Shows a counter for each kind of images in turn."""

    def __init__(self, open_counters: ExitStack) -> None:
        self._open, self._what = open_counters, ""

    def show(self, what: str, done: int, total: int) -> None:
        """Show how many images of a kind are done."""
        if what != self._what:
            self._open.close()
            self._what, self._line = what, self._open.enter_context(progress_counter(what))
        self._line(done, total)
