"""Render the tables of all models: docs/models/README.md and the one in README.md."""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from markdown_text import code, escape, table
from model_pages import GENERATED

from orchestrator.config.metric_descriptions import (
    BINARIZED_SUFFIXES,
    DATA_METRICS,
    LOOP_METRICS,
    PHASE_METRICS,
    SAMPLE_METRICS,
    VALIDATION_METRICS,
)
from orchestrator.registry.catalog import CatalogEntry, Family

BEGIN, END = "<!-- models: written by `make generate` -->", "<!-- end of models -->"


def insert_families(readme: str, entries: Sequence[CatalogEntry]) -> str:
    """Replace the table of models in README.md, which is between two comments.

    Raises ValueError if they are missing.
    """
    families: dict[str, list[str]] = {family: [] for family in get_args(Family)}
    for entry in sorted(entries, key=lambda each: each.name.lower()):
        families[entry.family].append(f"[{entry.name}](docs/models/{entry.model}.md)")
    rows = [(family, ", ".join(links)) for family, links in families.items() if links]
    section = f"{BEGIN}\n\n{table(('family', 'models'), rows)}\n\n{END}"
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    if re.search(pattern, readme, re.DOTALL) is None:
        raise ValueError(f"README.md has no table of models between {BEGIN} and {END}")
    return re.sub(pattern, lambda _: section, readme, flags=re.DOTALL)


def render_overview(entries: Sequence[CatalogEntry]) -> str:
    """Render docs/models/README.md: the table of models, and the metrics that they share."""
    rows = [
        (
            f"[{e.model}]({e.model}.md)",
            escape(e.title),
            f"[paper]({e.paper})",
            f"{e.num_parameters:,}",
            e.likelihood,
            e.learns_from,
            e.sampling,
        )
        for e in entries
    ]
    header = (
        "model",
        "description",
        "paper",
        "parameters",
        "likelihood",
        "learns from",
        "cost of an image",
    )
    training = LOOP_METRICS | SAMPLE_METRICS | DATA_METRICS
    return f"""\
# Models

{GENERATED}

Each model is one file and follows one paper. Sizes and costs are those at the settings of the
model's job in [jobs/](../../jobs), or at the defaults if it has none. `orchestrator models catalog`
prints this table, `--json` makes it JSON. To add a model, see [add-a-model.md](../add-a-model.md).

{table(header, rows)}

- **likelihood**: *exact*, the model gives the probability of an image; *bound*, a bound on it;
  *none*, the model only samples, and is judged by its images and by distances between sets.
- **cost of an image**: *one pass* through the generating network; or one step per pixel (per
  colour channel, if the network models them in turn), each of which computes only what is new.

## Shared metrics

The page of a model explains the metrics that only this model logs. The others are the same for all
models. Training metrics are means over all workers for the current batch, so they are noisy.
Validation metrics are means over the validation set, except `validation/random_feature_mmd`, which
compares two sets.

{_describe(PHASE_METRICS, "<phase>/{}")}
{_describe(training, "{}", header=False)}

On the validation set, if the model translates, reconstructs or has a likelihood:

{_describe(VALIDATION_METRICS, "validation/{}")}

On binarized images, the names of likelihood metrics have a suffix:

{_describe(BINARIZED_SUFFIXES, "...{}", first="suffix")}
"""


def _describe(
    metrics: Mapping[str, str], pattern: str, *, first: str = "metric", header: bool = True
) -> str:
    rows = [(code(pattern.format(name)), escape(text)) for name, text in metrics.items()]
    rendered = table((first, "description"), rows)
    return rendered if header else "\n".join(rendered.splitlines()[2:])
