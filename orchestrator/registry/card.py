"""The model card of a version: its README and its description in MLflow, a page at most."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.derived_input_kinds import DERIVED_INPUTS
from orchestrator.evaluation.metric_names import EVALUATION
from orchestrator.models.base import ModelConfig, model_module
from orchestrator.registry.catalog import ModelDocstring, parse_docstring
from orchestrator.registry.gate import Measured

LONGEST_DESCRIPTION = 5_000
"""Characters that MLflow's database has room for; the card in the version is whole."""
NOT_RECORDED = "not recorded"
_EVALUATION = "\n## Evaluation\n"

_CARD = """\
# {title}

{about}

| | |
|---|---|
{facts}

## Metrics

{metrics}

## Use

```console
$ orchestrator models pull {title}/VERSION model
$ orchestrator sample model {options} --output images
```

In Python, in the pulled folder:

```python
{code}
```

`images` is float32 (B, C, H, W) in [-1, 1] with C = {channels} and H = W = {size}.{input_rule}
Each image belongs to its seed{and_input}, whatever is drawn beside it.

## Limits

{limits}
"""
_LOAD = """\
from pathlib import Path
import torch
from orchestrator.registry.bundle import load_bundle
model = load_bundle(Path("."))  # refuses damaged files
"""
_CAPTION_IMPORT = "from orchestrator.models.parts.text import caption_bytes\n"
_TRANSLATE = """\
drawings = torch.ones(4, {channels}, {size}, {size})  # your images
images = model.sample(torch.zeros(4, dtype=torch.int64), drawings)"""
_SAMPLE = "images = model.sample(torch.arange(4){condition})"


def render_card(title: str, config: ModelConfig, notes: Mapping[str, Any]) -> str:
    """Write the card of the registered model called ``title``.

    Args:
        title: its name in the registry.
        config: of the model.
        notes: of the registration; what they lack is "not recorded".
    """
    fields = {"channels": config.channels, "size": config.image_size}
    code, condition = _LOAD + (_TRANSLATE if config.translates else _SAMPLE), ""
    if "captions" in config.takes:
        code = code.replace("import torch\n", "import torch\n" + _CAPTION_IMPORT)
        condition = ', caption_bytes("your text").repeat(4, 1)'
    elif config.num_classes:
        condition = ", torch.zeros(4, dtype=torch.int64)"
    caption = ' --caption "your text"' if "captions" in config.takes else ""
    return _CARD.format(
        title=title,
        about=_about(config),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(config, notes)),
        metrics=_metrics(notes),
        options="--input drawings" if config.translates else "--num-images 64" + caption,
        code=code.format(condition=condition, **fields),
        input_rule=" The input has the same format." if config.translates else "",
        and_input=" and its input" if config.translates else "",
        limits="\n".join(f"- {limit}" for limit in _limits(config)),
        **fields,
    )


def add_evaluation(card: str, measured: Sequence[Measured], about: Mapping[str, Any]) -> str:
    """Add what an evaluation measured to the card in MLflow; it replaces an earlier one."""
    rows = ["| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    for each in measured:
        interval = "" if each.low is None else f"{each.low:.3g} to {each.high:.3g}"
        rows.append(f"| {each.metric} | {each.value:.3g} | {interval} | {each.n:,} |")
    table, data = "\n".join(rows), about.get("data_digest", NOT_RECORDED)
    before = card.partition(_EVALUATION)[0].rstrip()
    where = f" Latency: one image alone on {about['machine']}." if "machine" in about else ""
    text = f"{before}\n{_EVALUATION}\nOn the set with the digest `{data}`.{where}\n\n{table}\n"
    return text if len(text) <= LONGEST_DESCRIPTION else card


def _about(config: ModelConfig) -> str:
    """Say what the model is and what it draws."""
    try:
        paper = parse_docstring(model_module(config.name).__doc__ or "")
    except ValueError:  # a model of the user's without a paper
        paper = ModelDocstring(config.name, "", "", "")
    name = f"[{paper.name}]({paper.paper})" if paper.paper else paper.name
    what = f"{name}: {paper.title}." if paper.title else f"{name}."
    colour = "grey" if config.channels == 1 else "colour"
    draws = f"{colour} images of {config.image_size} x {config.image_size} pixels"
    if config.translates:
        return f"{what} It translates images into {draws}."
    kinds = {"captions": " for a caption", "labels": f" of {config.num_classes} classes"}
    condition = next((text for kind, text in kinds.items() if kind in config.takes), "")
    return f"{what} It draws {draws}{condition}."


def _facts(config: ModelConfig, notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    def note(*parts: tuple[str, str]) -> str:
        """Join the notes that there are, each in its format."""
        known = [text.format(notes[key]) for key, text in parts if notes.get(key)]
        return ", ".join(known) or NOT_RECORDED

    facts = [
        ("model", f"`{config.name}`; all settings are in `config.json`"),
        ("job", note(("job", "`{}`"), ("job_digest", "sha256 `{}`"))),
        (
            "checkpoint",
            note(("checkpoint", "`{}`"), ("images_seen", "after {:,} images"), ("chosen", "{}")),
        ),
        (
            "training data",
            note(("data", "{}"), ("data_images", "{:,} images"), ("data_digest", "digest `{}`")),
        ),
        ("licence of the data", note(("data_licence", "{}"))),
        ("samples", note(("mlflow_run", "the pictures `samples` of the MLflow run `{}`"))),
    ]
    if kind := notes.get("derived_input"):
        made = DERIVED_INPUTS.get(kind, kind)  # a later version may know more kinds
        facts.append(("input", f"in training made from each target: {made}"))
    return facts


def _metrics(notes: Mapping[str, Any]) -> str:
    """Return a table of the validation, with the intervals of means over images."""
    values = {
        name: value
        for name, value in notes.items()
        if "/" in name
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and not name.startswith(EVALUATION)  # these have a table of their own
    }
    if not values:
        return "None was measured."
    n, intervals = notes.get("validation_images"), notes.get("intervals", {})
    rows = ["| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, value in values.items():
        number = f"{n:,}" if n and name.startswith("validation/") else ""
        low, high = intervals.get(name, (None, None))
        interval = "" if low is None else f"{low:.4g} to {high:.4g}"
        rows.append(f"| {name} | {value:.4g} | {interval} | {number} |")
    return "\n".join(rows)


def _limits(config: ModelConfig) -> list[str]:
    limits = [
        f"It draws {config.image_size} x {config.image_size} pixels and nothing that its training "
        "data did not show; people, brands or bias in these come back in its images.",
        "Metrics of the validation are on the data of this job alone; an interval says where they "
        "would lie for other images of the same source, not for another training.",
        "When it was registered, nobody had measured whether it copies training images.",
    ]
    if config.translates:
        limits.append("Inputs that look unlike the training inputs give arbitrary images.")
    return limits
