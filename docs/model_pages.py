"""Render the page of a model, from its file, its job, and what people wrote about its results."""

import inspect
import re
from pathlib import Path

from markdown_text import code, escape, format_value, table, to_sentence

from orchestrator.config.metric_descriptions import LOOP_METRICS, PHASE_METRICS, SAMPLE_METRICS
from orchestrator.models.base import model_module
from orchestrator.registry.catalog import CatalogEntry

GENERATED = "<!-- Written by `make generate` from the models and their jobs. Do not edit. -->"


def render_page(entry: CatalogEntry, root: Path) -> str:
    """Render docs/models/<model>.md; ``root`` is the repository."""
    models = root / "docs/models"
    parts = [
        f"# {entry.model}",
        GENERATED,
        f"{to_sentence(entry.title)} *{escape(entry.citation)}*, <{entry.paper}>."
        f" Source: [models/{entry.model}.py](../../models/{entry.model}.py).",
        _at_a_glance(entry),
        _picture(entry.model, models),
        _results(entry.model, models),
        _run(entry),
        *_description(entry),
        _settings(entry),
        _metrics(entry),
        _job(entry, root),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _at_a_glance(entry: CatalogEntry) -> str:
    settings = f"[{entry.job}](../../{entry.job})" if entry.job else "the defaults"
    colours = {1: "grey", 3: "colour"}.get(entry.channels, f"{entry.channels} channels")
    networks = ", ".join(f"{name} {count:,}" for name, count in entry.parameters.items())
    networks = f" ({networks})" if len(entry.parameters) > 1 else ""
    likelihood = {
        "exact": "exact: nats and bits per dimension of every held-out image",
        "bound": "a bound, in nats and bits per dimension",
        "none": "none",
    }[entry.likelihood]
    rows = [
        ("settings", f"{settings}: {entry.image_size} x {entry.image_size} px, {colours}"),
        ("parameters", f"{entry.num_parameters:,}{networks}"),
        ("training step", ", then ".join(code(name) for name in entry.phases)),
        ("learns from", entry.learns_from),
        ("generates", _output(entry)),
        ("cost of an image", entry.sampling),
        ("likelihood", likelihood),
    ]
    return table(("", ""), rows)


def _output(entry: CatalogEntry) -> str:
    if entry.translates:
        return "an image from an image"
    if "captions" in entry.takes:
        return "new images, from noise and a text"
    if entry.classes:
        return f"new images, from noise and one of {entry.classes} classes"
    return "new images, from noise"


def _picture(name: str, models: Path) -> str:
    if not (models / f"pictures/{name}.png").is_file():
        return ""
    return f"![images from a trained {name}](pictures/{name}.png)"


def _results(name: str, models: Path) -> str:
    path = models / f"results/{name}.md"
    return f"## Results\n\n{path.read_text().strip()}" if path.is_file() else ""


def _run(entry: CatalogEntry) -> str:
    if entry.job is None or entry.loaded is None:
        return (
            "## Run it\n\nThis model has no job yet. Copy one from [jobs/](../../jobs), set "
            f"`model.name: {entry.model}`, and choose data that the model learns from."
        )
    commands = [
        (f"orchestrator plan {entry.job}", "sizes, steps and data; starts nothing"),
        (f"orchestrator run {entry.job}", "on this machine, or on RAY_ADDRESS"),
        (f"orchestrator submit {entry.job}", "on a running cluster, and follow the log"),
        (f"orchestrator run --local {entry.job} --set train.epochs=0.1", "a short trial"),
    ]
    if entry.loaded.register_as:
        name, options = entry.loaded.register_as.name, _sample_options(entry)
        commands.append((f"orchestrator sample {name}@candidate {options} --output samples", ""))
    width = max(len(command) for command, comment in commands if comment)
    lines = [f"$ {c:<{width}}  # {comment}" if comment else f"$ {c}" for c, comment in commands]
    return (
        "## Run it\n\n```console\n" + "\n".join(lines) + "\n```\n\n"
        "The header of [the job](#the-job) says what to expect and how to shorten the run."
    )


def _sample_options(entry: CatalogEntry) -> str:
    if entry.translates:
        return "--input FOLDER"
    if "captions" in entry.takes:
        return '--num-images 16 --caption "TEXT"'
    return f"--num-images {8 * entry.classes or 64}"


def _description(entry: CatalogEntry) -> list[str]:
    """Return the sections on the model and on its departures from the paper."""
    docstring = inspect.cleandoc(model_module(entry.model).__doc__ or "")
    texts: list[str] = []
    departures = ""
    for paragraph in docstring.split("\n\n")[1:]:
        first, _, rest = paragraph.partition("\n")
        if first.startswith("Dimensions:"):
            continue
        if re.search(r"departures.*:$", first, re.IGNORECASE):
            departures = f"## {first.rstrip(':')}\n\n{escape(rest)}"
        elif entry.paper in paragraph:
            followed = paragraph.partition(entry.paper)[2].lstrip(".,) \n")
            texts += [escape(followed)] if followed else []
        else:
            texts.append(paragraph if paragraph.startswith("    ") else escape(paragraph))
    return ["## The model", *texts, departures]


def _settings(entry: CatalogEntry) -> str:
    given = entry.config.model_fields_set if entry.job else set()
    rows = []
    for key, field in type(entry.config).model_fields.items():
        if key == "name":
            continue
        default = "required" if field.is_required() else code(format_value(field.default))
        in_job = code(format_value(getattr(entry.config, key))) if key in given else ""
        rows.append((code(key), default, in_job, escape(field.description or "")))
    return (
        "## Settings\n\nUnder `model:` in a job file, or `--set model.OPTION=VALUE`.\n\n"
        + table(("option", "default", "in the job", "description"), rows)
    )


def _metrics(entry: CatalogEntry) -> str:
    own = [(code(name), escape(text)) for name, text in entry.metrics.items()]
    explained = table(("metric", "description"), own) if own else "None that only it logs."
    shared = [f"{phase}/{name}" for phase in entry.phases for name in PHASE_METRICS]
    shared += [*LOOP_METRICS, *(() if entry.translates else SAMPLE_METRICS)]
    shared += [f"validation/{name}" for name in entry.validation]
    listed = ", ".join(code(name) for name in shared)
    return (
        f"## Metrics\n\n{explained}\n\nAnd those that several models share, explained in "
        f"[the overview](README.md#shared-metrics): {listed}."
    )


def _job(entry: CatalogEntry, root: Path) -> str:
    if entry.job is None:
        return ""
    lines = (root / entry.job).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    comments = [line.removeprefix("#").removeprefix(" ") for line in lines[2:start]]
    header, job = "\n".join(comments).strip("\n"), "\n".join(lines[start:])
    return (
        f"## The job\n\n[{entry.job}](../../{entry.job}) with its header:\n\n"
        f"```text\n{header}\n```\n\n```yaml\n{job}\n```"
    )
