"""Catalog of the models: paper, size, likelihood, inputs, sampling cost and metrics.

Everything comes from the models' files: the docstring names the paper, `Config` has the options,
and the protocols of models/base.py show what a model can do. Networks are built without memory.
"""

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from orchestrator.config.job import Job
from orchestrator.config.load import load_job
from orchestrator.config.logged_metrics import validation_metrics
from orchestrator.errors import UsageError
from orchestrator.models.base import GenerativeModel, Input, ModelConfig, model_module, model_names
from orchestrator.models.parts.abilities import HasLikelihood, Reconstructs
from orchestrator.models.parts.autoregressive import Autoregressive
from orchestrator.models.parts.meta_device import build_on_meta

Likelihood: TypeAlias = Literal["exact", "bound", "none"]
Family: TypeAlias = Literal[
    "autoencoders", "adversarial", "image to image", "autoregressive", "conditional"
]

INPUT_NAMES: Mapping[Input, str] = {
    "pairs": "pairs of images",
    "unpaired": "two sets of images, not paired",
    "labels": "images with classes",
    "captions": "images with captions",
}


@dataclass(frozen=True)
class CatalogEntry:
    """Facts about one model, from its file and its job."""

    model: str
    name: str
    """Name in the docstring, before the colon."""
    title: str
    """First line of the docstring, without the name and the full stop."""
    citation: str
    """Citation of the paper in the docstring, up to the link."""
    paper: str
    """Link to the paper."""
    family: Family
    job: str | None
    """Job file whose settings these are; None for the defaults."""
    image_size: int
    channels: int
    parameters: Mapping[str, int]
    """Number of parameters of each network."""
    phases: tuple[str, ...]
    likelihood: Likelihood
    takes: tuple[Input, ...]
    """What the data set must hold besides the images."""
    classes: int
    """Number of classes; 0 without classes."""
    translates: bool
    sampling_steps: int
    """Passes through a network per image; cached ones if there are several."""
    metrics: Mapping[str, str]
    """Descriptions of the metrics that only this model logs."""
    validation: tuple[str, ...]
    """Names of the validation metrics."""
    config: ModelConfig = field(repr=False)
    loaded: Job | None = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of all networks."""
        return sum(self.parameters.values())

    @property
    def learns_from(self) -> str:
        """What the data set holds, in words."""
        return " and ".join(INPUT_NAMES[kind] for kind in self.takes) or "images"

    @property
    def sampling(self) -> str:
        """Cost of sampling an image, in words."""
        if self.likelihood != "exact":
            return "one pass"
        size, turns = self.image_size, self.sampling_steps // self.image_size**2
        each = f" x {turns}" if turns > 1 else ""
        return f"{size} x {size}{each} = {self.sampling_steps:,} cached steps"

    def json(self) -> dict[str, Any]:
        """Return the facts for `models catalog --json`."""
        hidden = ("config", "loaded")
        shown = {key: value for key, value in vars(self).items() if key not in hidden}
        return {**shown, "num_parameters": self.num_parameters, "sampling": self.sampling}

    def row(self) -> tuple[str, ...]:
        """Return the cells of a table below ``HEADINGS``."""
        count = f"{self.num_parameters:,}"
        if len(self.phases) > 1:
            parts = (f"{name} {number:,}" for name, number in self.parameters.items())
            count += f" ({', '.join(parts)})"
        takes = ", ".join(self.takes) or "-"
        return self.model, self.title, count, self.likelihood, takes, self.sampling, self.paper


HEADINGS = ("model", "what it is", "parameters", "likelihood", "takes", "sampling", "paper")


def build_catalog(jobs: Path, environ: Mapping[str, str] | None = None) -> list[CatalogEntry]:
    """Collect all models in models/, at the settings of their jobs in ``jobs`` if there are any.

    ``environ`` resolves the jobs' references; by default it is the environment of the process.
    """
    return [_build_entry(name, jobs, environ) for name in model_names()]


def _build_entry(name: str, jobs: Path, environ: Mapping[str, str] | None) -> CatalogEntry:
    try:
        module = model_module(name)
        config = module.Config(name=name)
        docstring = parse_docstring(module.__doc__ or "")
    # Anything may be wrong with a file that is being written.
    except Exception as error:
        raise UsageError(
            f"models/{name}.py cannot be used: {_describe_error(error)}; correct the file "
            "(docs/add-a-model.md lists what it must have)"
        ) from error
    job = _load_job(name, jobs, os.environ if environ is None else environ)
    origin = "its defaults" if job is None else f"{jobs / name}.yaml"
    config = config if job is None else job.model
    try:
        model = build_on_meta(config)
        phases = tuple(phase.name for phase in model.phases())
    except Exception as error:
        raise UsageError(
            f"models/{name}.py cannot be built with {origin}: {_describe_error(error)}; correct "
            "the file or the settings"
        ) from error
    turns = model.turns if isinstance(model, Autoregressive) else 0
    return CatalogEntry(
        model=name,
        **docstring._asdict(),
        family=_family(model),
        job=None if job is None else f"{jobs.name}/{name}.yaml",
        image_size=config.image_size,
        channels=config.channels,
        parameters=_count_parameters(model),
        phases=phases,
        likelihood=_likelihood(model),
        takes=tuple(sorted(config.takes)),
        classes=config.num_classes,
        translates=config.translates,
        sampling_steps=config.image_size**2 * turns if turns else 1,
        metrics=dict(getattr(module, "METRICS", {})),
        validation=validation_metrics(model, None if job is None else job.data.binarize),
        config=config,
        loaded=job,
    )


class ModelDocstring(NamedTuple):
    """Parts of the docstring of a model's file."""

    name: str
    title: str
    citation: str
    paper: str


def parse_docstring(docstring: str) -> ModelDocstring:
    """Parse `Name: title.` and the paragraph with the first link, which is the paper's."""
    first, *rest = inspect.cleandoc(docstring).split("\n\n")
    name, colon, title = " ".join(first.split()).rstrip(".").partition(": ")
    link = re.search(r"https?://[^\s)>]+", docstring)
    if link is None:
        raise ValueError("its docstring has no link to a paper")
    paper = link[0].rstrip(".,;")
    paragraph = next((text for text in rest if paper in text), paper)
    citation = " ".join(paragraph.partition(paper)[0].split()).rstrip(" ,(")
    return ModelDocstring(name, title if colon else name, citation, paper)


def _family(model: GenerativeModel) -> Family:
    if isinstance(model, Autoregressive):
        return "autoregressive"
    if model.config.translates:
        return "image to image"
    if isinstance(model, Reconstructs):
        return "autoencoders"
    return "conditional" if model.config.takes & {"labels", "captions"} else "adversarial"


def _likelihood(model: GenerativeModel) -> Likelihood:
    if isinstance(model, Autoregressive):
        return "exact"
    return "bound" if isinstance(model, HasLikelihood) else "none"


def _load_job(name: str, jobs: Path, environ: Mapping[str, str]) -> Job | None:
    """Load the job that is named after the model, if it exists and trains this model."""
    path = jobs / f"{name}.yaml"
    job = load_job(path, environ=environ).job if path.is_file() else None
    return job if job is not None and job.model.name == name else None


def _count_parameters(model: GenerativeModel) -> dict[str, int]:
    """Count the parameters of each network, and those outside of networks as "other"."""
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}
    counts["other"] = sum(p.numel() for p in model.parameters(recurse=False))
    return {name: count for name, count in counts.items() if count}


def _describe_error(error: Exception) -> str:
    """Return the type of an error and its first line."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
