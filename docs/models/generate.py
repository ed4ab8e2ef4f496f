"""Write docs/models/: a page for each model and a README with the table of all.

    python docs/models/generate.py [FOLDER]

The pages come from the models' files and from jobs/. What was measured in a real run is written by
hand: docs/models/results/<model>.md (figures, command, machine, commit; links in full) and
docs/models/pictures/<model>.png are put into the model's page where they are there.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# The project need not be installed.
from orchestrator.models.base import model_module  # noqa: E402
from orchestrator.registry.catalog import (  # noqa: E402
    OF_BINARY_IMAGES,
    OF_EVERY_PHASE,
    OF_SAMPLES,
    OF_THE_DATA,
    OF_THE_LOOP,
    OF_VALIDATION,
    Entry,
    catalog,
)

HERE = ROOT / "docs/models"
GENERATED = (
    "<!-- Written by docs/models/generate.py: change the model's file or job, then run it. -->"
)


def main() -> None:
    """Write all pages to the folder on the command line, or to docs/models."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


def pages() -> dict[str, str]:
    """All pages by file name, the same in every environment."""
    entries = catalog(ROOT / "jobs", environ={})
    return {"README.md": overview(entries)} | {f"{e.model}.md": page(e) for e in entries}


def overview(entries: list[Entry]) -> str:
    """The README: the table of models, and the metrics that all share."""
    rows = [
        (
            f"[{e.model}]({e.model}.md)",
            escaped(e.title),
            f"[paper]({e.paper})",
            f"{e.num_parameters:,}",
            e.likelihood,
            e.learns_from,
            e.sampling,
        )
        for e in entries
    ]
    head = (
        "model",
        "what it is",
        "paper",
        "parameters",
        "likelihood",
        "learns from",
        "an image costs",
    )
    phase = [(code(f"<phase>/{name}"), escaped(text)) for name, text in OF_EVERY_PHASE.items()]
    loop = [
        (code(name), escaped(text))
        for name, text in (OF_THE_LOOP | OF_SAMPLES | OF_THE_DATA).items()
    ]
    held_out = [(code(f"validation/{n}"), escaped(text)) for n, text in OF_VALIDATION.items()]
    ends = [(code(f"...{name}"), escaped(text)) for name, text in OF_BINARY_IMAGES.items()]
    return f"""\
# Models

{GENERATED}

One file, one paper each. Sizes and costs are those of the model's job in [jobs/](../../jobs), or of
the defaults where it has none. `orchestrator models catalog` prints this table; with `--json` it is
for a script. How to add one: [add-a-model.md](../add-a-model.md).

{table(head, rows)}

- **likelihood**: *exact*, the model gives the probability of an image; *bound*, a bound on it;
  *none*, it draws images without one, and pictures and distances are all there is to judge by.
- **an image costs**: *one pass* through the network that draws it, or one step for each pixel in
  turn (and for each of its colours, where these depend on each other through the network), which
  computes only what is new in it.

## Metrics of every model

A model's page explains what that model logs by itself. The rest is the same everywhere. Points are
means over all workers for the batch at hand, so they jitter; validation is a mean over the whole
held-out set, but for `validation/random_kid`, which compares two sets.

{table(("metric", "what it says"), [*phase, *loop])}

On the held-out images, as far as a model translates, reconstructs or has a likelihood:

{table(("metric", "what it says"), held_out)}

On images that the job makes black and white, a likelihood's name says so:

{table(("name", "what it says"), ends)}
"""


def page(entry: Entry) -> str:
    """The page of one model."""
    parts = [
        f"# {entry.model}",
        GENERATED,
        f"{sentence(entry.title)} *{escaped(entry.citation)}*, <{entry.paper}>."
        f" Source: [models/{entry.model}.py](../../models/{entry.model}.py).",
        _at_a_glance(entry),
        _picture(entry.model),
        _results(entry.model),
        _run(entry),
        *_description(entry),
        _settings(entry),
        _metrics(entry),
        _job(entry),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _at_a_glance(entry: Entry) -> str:
    settings = f"[{entry.job}](../../{entry.job})" if entry.job else "the defaults"
    size = f"{entry.image_size} x {entry.image_size} px, {_colours(entry.channels)}"
    networks = ", ".join(f"{name} {count:,}" for name, count in entry.parameters.items())
    networks = f" ({networks})" if len(entry.parameters) > 1 else ""
    likelihood = {
        "exact": "exact: nats and bits per dimension of every held-out image",
        "bound": "a bound on it, in nats and bits per dimension",
        "none": "none",
    }[entry.likelihood]
    rows = [
        ("settings", f"those of {settings}: {size}"),
        ("parameters", f"{entry.num_parameters:,}{networks}"),
        ("a training step", ", then ".join(code(name) for name in entry.phases)),
        ("learns from", entry.learns_from),
        ("makes", _makes(entry)),
        ("an image costs", entry.sampling),
        ("likelihood", likelihood),
    ]
    return table(("", ""), rows)


def _makes(entry: Entry) -> str:
    if entry.translates:
        return "of a given image another one"
    if "captions" in entry.takes:
        return "new images, from noise and a text"
    if entry.classes:
        return f"new images, from noise and one of {entry.classes} classes"
    return "new images, from noise"


def _colours(channels: int) -> str:
    return {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")


def _picture(name: str) -> str:
    if not (HERE / f"pictures/{name}.png").is_file():
        return ""
    return f"![what a trained {name} draws](pictures/{name}.png)"


def _results(name: str) -> str:
    path = HERE / f"results/{name}.md"
    return f"## Results\n\n{path.read_text().strip()}" if path.is_file() else ""


def _run(entry: Entry) -> str:
    if entry.job is None or entry.loaded is None:
        return (
            "## Run it\n\nIt has no job of its own yet: copy one from [jobs/](../../jobs), set "
            f"`model.name: {entry.model}` and data that it learns from."
        )
    name = entry.loaded.register_as.name if entry.loaded.register_as else None
    commands = [
        (f"orchestrator plan {entry.job}", "sizes, steps, data: starts nothing"),
        (f"orchestrator run {entry.job}", "this machine, or RAY_ADDRESS"),
        (f"orchestrator submit {entry.job}", "a running cluster, and follow it"),
        (f"orchestrator run --local {entry.job} --set train.epochs=0.1", "a first look"),
    ]
    if name:
        given = _sample_options(entry)
        commands.append((f"orchestrator sample {name}@candidate {given} --output drawn", ""))
    width = max(len(command) for command, what in commands if what)
    lines = [f"$ {c:<{width}}  # {what}" if what else f"$ {c}" for c, what in commands]
    shorter = (
        "How to make it smaller or shorter, and what to expect, is said at the top of the job: see "
        "[the job](#the-job)."
    )
    return "## Run it\n\n```console\n" + "\n".join(lines) + f"\n```\n\n{shorter}"


def _sample_options(entry: Entry) -> str:
    if entry.translates:
        return "--input FOLDER"
    if "captions" in entry.takes:
        return '--num-images 16 --caption "TEXT"'
    if entry.classes:
        return f"--num-images {8 * entry.classes}"
    return "--num-images 64"


def _description(entry: Entry) -> list[str]:
    """What the docstring says of the model, and its departures from the paper."""
    docstring = inspect.cleandoc(model_module(entry.model).__doc__ or "")
    texts: list[str] = []
    departures = ""
    for paragraph in docstring.split("\n\n")[1:]:
        first, _, rest = paragraph.partition("\n")
        if first.startswith("Dimensions:"):
            continue
        if re.search(r"departures.*:$", first, re.IGNORECASE):
            departures = f"## {first.rstrip(':')}\n\n{escaped(rest)}"
        elif entry.paper in paragraph:
            _, _, followed = paragraph.partition(entry.paper)
            followed = followed.lstrip(".,) \n")
            texts += [escaped(followed)] if followed else []
        else:
            texts.append(paragraph if paragraph.startswith("    ") else escaped(paragraph))
    return ["## The model", *texts, departures]


def _settings(entry: Entry) -> str:
    given = entry.config.model_fields_set if entry.job else set()
    rows = []
    for key, field in type(entry.config).model_fields.items():
        if key == "name":
            continue
        default = "required" if field.is_required() else code(yaml_value(field.default))
        now = code(yaml_value(getattr(entry.config, key))) if key in given else ""
        rows.append((code(key), default, now, escaped(field.description or "")))
    head = ("option", "default", "in the job", "what it is")
    return (
        "## Settings\n\nUnder `model:` in a job file, or `--set model.OPTION=VALUE`.\n\n"
        + table(head, rows)
    )


def _metrics(entry: Entry) -> str:
    own = [(code(name), escaped(text)) for name, text in entry.metrics.items()]
    explained = table(("metric", "what it says"), own) if own else "None of its own."
    shared = [f"{phase}/{name}" for phase in entry.phases for name in OF_EVERY_PHASE]
    shared += [*OF_THE_LOOP, *(() if entry.translates else OF_SAMPLES)]
    shared += [f"validation/{name}" for name in entry.validation]
    listed = ", ".join(code(name) for name in shared)
    return (
        f"## Metrics\n\n{explained}\n\nAnd those of every model, which "
        f"[the overview](README.md#metrics-of-every-model) explains: {listed}."
    )


def _job(entry: Entry) -> str:
    if entry.job is None:
        return ""
    lines = (ROOT / entry.job).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    header = [line.removeprefix("#").removeprefix(" ") for line in lines[2:start]]
    said, job = "\n".join(header).strip("\n"), "\n".join(lines[start:])
    return (
        f"## The job\n\n[{entry.job}](../../{entry.job}) says of itself:\n\n"
        f"```text\n{said}\n```\n\n```yaml\n{job}\n```"
    )


def yaml_value(value: Any) -> str:
    """A setting as a job file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(yaml_value(inner) for inner in value)}]"
    return str(value).removesuffix(".0")


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def code(text: str) -> str:
    """``text`` in Markdown's code font."""
    return f"`{text}`"


def escaped(text: str) -> str:
    """A docstring's text as Markdown: ``code`` as `code`, and nothing that renders by chance."""
    parts = re.split(r"(``?[^`]+``?)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = code(part.strip("`"))
        else:
            parts[i] = re.sub(r"([<*])", r"\\\1", part)
    return "".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; each cell becomes one line."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in row)} |" for row in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
