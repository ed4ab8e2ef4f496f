"""``orchestrator models`` and ``orchestrator sample``: list, pull and sample trained models."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.temporary_folder import temporary_folder

app = typer.Typer(no_args_is_help=True, help="List models, and pull registered ones.")

TrackingUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server or sqlite:/// database."
    ),
]
DEFAULT_URI = "sqlite:///mlflow.db"
LARGEST_SEED = 2**53 - 1_000_000
"""With the seeds of all samples after it, below what JavaScript can count to."""
_FitInput = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        "--fit", help="How input images that are not square become so; by default as in training."
    ),
]
_RangeOfInput = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW,HIGH",
        help="Values of black and white of input images such as floats; by default as in training.",
    ),
]


@app.command()
def ls(tracking_uri: TrackingUri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """List the registered models."""
    from orchestrator.registry.registry import list_models

    versions = list_models(tracking_uri)
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    rows = [("model", "version", "aliases", "registered", "run")]
    rows += [
        (v.name, str(v.version), ", ".join(v.aliases), f"{v.created:%Y-%m-%d %H:%M}", v.run_id)
        for v in versions
    ]
    print_result(format_table(rows))
    if versions:
        print_next_steps(f"orchestrator models pull {quote(versions[0].name)} DEST")


@app.command()
def catalog(as_json: AsJson = False) -> None:
    """List the models that can be trained, with the settings of their jobs in jobs/."""
    from orchestrator.registry.catalog import HEADINGS, build_catalog

    entries = build_catalog(Path("jobs"))
    if as_json:
        print_json([entry.json() for entry in entries])
        return
    print_result(format_table([HEADINGS, *(entry.row() for entry in entries)]))
    jobs = [entry.job for entry in entries if entry.job]
    if jobs:
        print_next_steps(f"orchestrator plan {quote(jobs[0])}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION.")],
    dest: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write weights, config and README of a registered model to a folder."""
    from orchestrator.registry import registry

    registry.pull(model, dest, tracking_uri)
    log_info(f"{model}: weights, config and a README that shows how to load them are in {dest}")
    print_next_steps(f"orchestrator sample {quote(dest)} --input FOLDER --output FOLDER")


@app.command()
def upgrade(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Register the weights of an older version anew: each seed then gives one image."""
    from orchestrator.registry.upgrade import upgrade

    made = upgrade(model, tracking_uri)
    log_info(f"registered {made.name} version {made.version}, with the weights of {model}")
    print_next_steps(f"orchestrator models pull {quote(f'{made.name}/{made.version}')} DEST")


def sample(  # noqa: PLR0913, PLR0917 - the options of one command
    model: Annotated[
        str, typer.Argument(help="NAME, NAME@ALIAS, NAME/VERSION, or a pulled folder.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the images.")],
    input_dir: Annotated[
        Path | None, typer.Option("--input", help="Images to translate, for models that translate.")
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, help="Number of images to sample, for models that sample."
        ),
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Class number; by default one row of the grid per class.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="Caption, for models that follow a text.")
    ] = None,
    fit: _FitInput = None,
    value_range: _RangeOfInput = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST_SEED,
            help="Seed of every translation, or of the first sample; the next have SEED + 1, ...",
        ),
    ] = 0,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Sample images from a trained model, or translate a folder of images."""
    if (input_dir is None) == (num_images is None):
        raise UsageError("give either --input FOLDER to translate or --num-images N to sample")
    if input_dir is not None and (label is not None or caption is not None):
        raise UsageError("--label and --caption go with --num-images, not with --input")
    if num_images is not None and (fit or value_range):
        raise UsageError("--fit and --range go with --input, not with --num-images")
    from orchestrator.data.format.preparation import preparation_of
    from orchestrator.data.prepare.value_range import parse_range

    asked = parse_range(value_range)
    if asked == "auto":
        raise UsageError("--range: give LOW,HIGH; the range depends on the training set")
    from orchestrator.registry import sampling
    from orchestrator.registry.bundle import load_bundle, read_config, read_notes

    with temporary_folder(f"the files of {model}") as temporary:
        folder = Path(model)
        if not folder.is_dir():
            from orchestrator.registry import registry  # a pulled folder needs no MLflow

            folder = registry.pull(model, temporary / "model", tracking_uri)
        loaded = load_bundle(folder)
        if input_dir is not None:
            written = sampling.sample_folder(
                loaded,
                read_config(folder),
                input_dir,
                output,
                seed=seed,
                preparation=preparation_of(read_notes(folder)).changed(fit, asked),
            )
        else:
            written = sampling.sample_images(
                loaded, num_images or 0, output, seed=seed, label=label, caption=caption
            )
    log_info(f"{len(written)} images in {output}; the first of them: {output / 'grid.png'}")
