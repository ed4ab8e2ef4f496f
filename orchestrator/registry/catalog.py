"""What models there are, told from their files: paper, size, likelihood, inputs, cost, metrics.

Nothing is kept beside the models: the docstring names the paper, `Config` the options, and the
protocols of models/base.py say what a model can do. Its networks are built without memory.
"""

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator.config.job import Job
from orchestrator.config.load import load_job
from orchestrator.errors import UsageError
from orchestrator.models.base import (
    GenerativeModel,
    HasLikelihood,
    Input,
    ModelConfig,
    Reconstructs,
    Translates,
    model_module,
    model_names,
)
from orchestrator.models.parts.autoregressive import Autoregressive
from orchestrator.registry.bundle import build_on_meta

Likelihood: TypeAlias = Literal["exact", "bound", "none"]

PHASE_METRICS: Mapping[str, str] = {
    "loss": "What the phase minimises, a mean over the images of the batch, in the loss's own "
    "unit. Where networks play against each other, none of their losses has to fall; where "
    "there is one phase, it falls, quickly at first.",
    "gradient_norm": "L2 norm of the gradient of the phase's network, before any clipping. It "
    "should stay within an order of magnitude after the start: peaks ask for "
    "`train.max_grad_norm` or a lower learning rate, and 0 means that nothing is learned.",
}
"""Metrics that the training step logs for each phase, named `<phase>/<metric>`."""

LOOP_METRICS: Mapping[str, str] = {
    "images_per_s": "Images trained on per second, over all workers, since the point before; "
    "without the time for validation, pictures and checkpoints.",
    "data_wait_share": "Share of that time that the worker which waits longest waited for data, 0 "
    "to 1. Near 0 is good; above 0.05 a warning says what to change.",
    "epoch": "Passes over the training set so far, with a fraction.",
    "guard/skipped": "Updates left out so far, because their gradient was not finite. One now and "
    "then does no harm; many ask for a lower learning rate.",
    "guard/rollbacks": "How often the training went back to a checkpoint: `guard` in the job "
    "says how often it may; see docs/reliability.md.",
    "guard/collapse": "1 while there is a sign of collapse, which a warning names; else 0.",
}
"""Metrics of every training."""

SAMPLE_METRICS: Mapping[str, str] = {
    "samples/diversity": "How much the samples of a grid differ, as a share of how much 64 real "
    "images do: the standard deviation over images, a mean over pixels. Near 1 is good, blurred "
    "samples have less; near 0 all are one picture.",
}
"""Metrics of models that sample without an image to translate."""

DATA_METRICS: Mapping[str, str] = {
    "data/rank_0/wait_share": "`data_wait_share` of worker 0, and so on for each worker; of more "
    "than 16 workers `data/mean/...` and `data/max/...` are logged instead, here and below.",
    "data/rank_0/mb_per_s": "Megabytes per second that the worker read from the store.",
    "data/rank_0/retries": "Reads that were tried again, since the worker's start.",
    "data/rank_0/cache_hit_share": "Share of the blocks that `data.cache` had; 0 without a cache.",
    "data/rank_0/corrupt_samples": "Damaged samples that the worker has met and replaced; "
    "`corrupt_samples.txt` among the artifacts names them.",
}
"""Metrics of how the data come, also of every training."""

VALIDATION_METRICS: Mapping[str, str] = {
    "l1": "Mean absolute difference to the held-out image, for images in [-1, 1], so from 0 to 2; "
    "lower is better. For a model that translates, compare `l1_of_input` and `l1_of_white`. It "
    "rewards the mean of all plausible answers, which is blurred.",
    "psnr": "Peak signal-to-noise ratio to the held-out image in dB, the mean over images; higher "
    "is better, and equal images count as 100.",
    "l1_of_input": "`l1` of giving back the input as it is: what a translation has to beat. It is "
    "0 where the input is the image itself, as in inpainting.",
    "l1_of_white": "`l1` of a white image: the other answer that needs no model.",
    "random_kid": "Distance between the outputs and the held-out images as two sets, of the first "
    "1,024 of them: the unbiased estimator of KID (squared MMD with its cubic kernel), but on the "
    "features of a small network with fixed random weights. It is no KID: the features tell "
    "colours, contrast and sharpness apart and not what is shown, and the values compare within "
    "this tool alone, on the same data at the same size. Lower is better, 0 is equal; near 0 it "
    "may come out slightly negative. Unlike `l1` it punishes blur.",
    "nats": "Exact negative log-likelihood of a held-out image in nats, summed over its values; "
    "lower is better. Comparable between models on the same data, size and levels only.",
    "bits_per_dim": "`nats` divided by ln 2 and by the number of values of an image; lower is "
    "better. For 256 levels, 8 is what guessing costs; for binary images, 1.",
    "negative_elbo_nats": "Upper bound on `nats`: the negative of the evidence lower bound, per "
    "image; lower is better, and the true value is at most this.",
    "negative_elbo_bits_per_dim": "The same in bits per value of an image.",
    "importance_weighted_nats": "A tighter bound on `nats` from several codes for each image; it "
    "falls as `model.importance_samples` grows, so compare equal numbers of them.",
    "importance_weighted_bits_per_dim": "The same in bits per value of an image.",
}
"""Means over the whole validation set but for random_kid, named `validation/<metric>`."""

BINARIZED_SUFFIXES: Mapping[str, str] = {
    "_binarized_dynamic": "The images were made black and white with `data.binarize: dynamic`: "
    "training images are drawn anew each time. Compare with figures for dynamic binarization only.",
    "_binarized_fixed": "The images were made black and white with `data.binarize: fixed`: drawn "
    "once for all. Likelihoods come out worse than with dynamic binarization, by overfitting.",
}
"""What a likelihood's name ends in where the images were made binary."""

INPUT_NAMES: Mapping[Input, str] = {
    "pairs": "pairs of images",
    "unpaired": "two sets of images, not paired",
    "labels": "images with classes",
    "captions": "images with captions",
}


@dataclass(frozen=True)
class CatalogEntry:
    """One model, as its file, its docstring and its job say."""

    model: str
    title: str
    """First line of the docstring, without the name in front and the full stop."""
    citation: str
    """The paper as the docstring has it, up to the link."""
    paper: str
    """Link to the paper."""
    job: str | None
    """The job file whose settings these are, or None for the defaults."""
    image_size: int
    channels: int
    parameters: Mapping[str, int]
    """Of each network."""
    phases: tuple[str, ...]
    likelihood: Likelihood
    takes: tuple[Input, ...]
    """What the data set must hold besides the images."""
    classes: int
    translates: bool
    sampling_steps: int
    """Passes through a network for an image; cached ones where there are several."""
    metrics: Mapping[str, str]
    """The model's own, and what they mean."""
    validation: tuple[str, ...]
    """Names of the metrics on the validation set."""
    config: ModelConfig = field(repr=False)
    loaded: Job | None = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Of all networks together."""
        return sum(self.parameters.values())

    @property
    def learns_from(self) -> str:
        """In words: images, and what else."""
        return " and ".join(INPUT_NAMES[kind] for kind in self.takes) or "images"

    @property
    def sampling(self) -> str:
        """Cost of an image in words."""
        if self.likelihood != "exact":
            return "one pass"
        turns = self.sampling_steps // self.image_size**2
        each = f" x {turns}" if turns > 1 else ""
        size = self.image_size
        return f"{size} x {size}{each} = {self.sampling_steps:,} cached steps"

    def json(self) -> dict[str, Any]:
        """For a script."""
        hidden = ("config", "loaded")
        shown = {key: value for key, value in vars(self).items() if key not in hidden}
        return {**shown, "num_parameters": self.num_parameters, "sampling": self.sampling}

    def row(self) -> tuple[str, ...]:
        """For a person; see ``HEADINGS``."""
        count = f"{self.num_parameters:,}"
        if len(self.phases) > 1:
            parts = (f"{name} {number:,}" for name, number in self.parameters.items())
            count += f" ({', '.join(parts)})"
        return (
            self.model,
            self.title,
            count,
            self.likelihood,
            ", ".join(self.takes) or "-",
            self.sampling,
            self.paper,
        )


HEADINGS = ("model", "what it is", "parameters", "likelihood", "takes", "sampling", "paper")


def catalog(jobs: Path, environ: Mapping[str, str] | None = None) -> list[CatalogEntry]:
    """Every model in models/, with the settings of its job in ``jobs`` where there is one.

    Args:
        environ: where the jobs' references look; the process's environment by default.

    Raises:
        UsageError: a model's file or job cannot be used; the message names the file.
    """
    return [_entry(name, jobs, environ) for name in model_names()]


def _entry(name: str, jobs: Path, environ: Mapping[str, str] | None) -> CatalogEntry:
    try:
        module = model_module(name)
        config = module.Config(name=name)
        title, citation, paper = parse_docstring(module.__doc__ or "")
    # The file is somebody's work in progress: anything may be wrong with it.
    except Exception as error:
        raise UsageError(
            f"models/{name}.py cannot be used: {_describe_error(error)}; mend the file (docs/add-a-model.md "
            "says what it must have)"
        ) from error
    job = _job(name, jobs, os.environ if environ is None else environ)
    origin = "its defaults" if job is None else f"{jobs / name}.yaml"
    config = config if job is None else job.model
    try:
        model = build_on_meta(config)
        phases = tuple(_phase_names(model))
    except Exception as error:
        raise UsageError(
            f"models/{name}.py cannot be built with {origin}: {_describe_error(error)}; mend the file or "
            "the settings"
        ) from error
    turns = model.turns if isinstance(model, Autoregressive) else 0
    return CatalogEntry(
        model=name,
        title=title,
        citation=citation,
        paper=paper,
        job=None if job is None else f"{jobs.name}/{name}.yaml",
        image_size=config.image_size,
        channels=config.channels,
        parameters=_parameters(model),
        phases=phases,
        likelihood=_likelihood(model),
        takes=tuple(sorted(config.takes)),
        classes=config.num_classes,
        translates=isinstance(model, Translates),
        sampling_steps=config.image_size**2 * turns if turns else 1,
        metrics=dict(getattr(module, "METRICS", {})),
        validation=validation_metrics(model, None if job is None else job.data.binarize),
        config=config,
        loaded=job,
    )


def parse_docstring(docstring: str) -> tuple[str, str, str]:
    """Title, citation and link of the paper, from the docstring of a model's file.

    Raises:
        ValueError: there is no link.
    """
    first, *rest = inspect.cleandoc(docstring).split("\n\n")
    title = first.partition(": ")[2] or first
    link = re.search(r"https?://[^\s)>]+", docstring)
    if link is None:
        raise ValueError("its docstring links no paper")
    paper = link[0].rstrip(".,;")
    paragraph = next((text for text in rest if paper in text), paper)
    citation = " ".join(paragraph.partition(paper)[0].split()).rstrip(" ,(")
    return " ".join(title.split()).rstrip("."), citation, paper


def validation_metrics(model: GenerativeModel, binarize: str | None) -> tuple[str, ...]:
    """Names, without validation/, of what is measured on held-out images."""
    names: list[str] = []
    if isinstance(model, Translates):
        names += ["l1", "psnr", "l1_of_input", "l1_of_white", "random_kid"]
    elif isinstance(model, Reconstructs):
        names += ["l1", "psnr"]
    how = f"_binarized_{binarize}" if binarize else ""
    kind = _likelihood(model)
    if kind == "exact":
        names += [f"nats{how}", f"bits_per_dim{how}"]
    elif kind == "bound":
        bounds = ("negative_elbo", "importance_weighted")
        names += [f"{bound}_{unit}{how}" for unit in ("nats", "bits_per_dim") for bound in bounds]
    return tuple(names)


def _likelihood(model: GenerativeModel) -> Likelihood:
    if isinstance(model, Autoregressive):
        return "exact"
    return "bound" if isinstance(model, HasLikelihood) else "none"


def _job(name: str, jobs: Path, environ: Mapping[str, str]) -> Job | None:
    """The job named like the model, if it is there and trains it."""
    path = jobs / f"{name}.yaml"
    if not path.is_file():
        return None
    job = load_job(path, environ=environ).job
    return job if job.model.name == name else None


def _phase_names(model: GenerativeModel) -> list[str]:
    return [phase.name for phase in model.phases()]


def _parameters(model: GenerativeModel) -> dict[str, int]:
    """Of each network, and of what belongs to none."""
    counts = {
        name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()
    }
    counts["other"] = sum(p.numel() for p in model.parameters(recurse=False))
    return {name: count for name, count in counts.items() if count}


def _describe_error(error: Exception) -> str:
    """The first line of what went wrong, with its kind."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
