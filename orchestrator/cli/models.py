"""``orchestrator models`` and ``orchestrator sample``: use what was trained."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, table
from orchestrator.console import log_info
from orchestrator.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="List models; fetch registered ones.")

TrackingUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server or sqlite:/// database."
    ),
]
DEFAULT_URI = "sqlite:///mlflow.db"


@app.command()
def ls(
    tracking_uri: TrackingUri = DEFAULT_URI,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """List the registered models."""
    from orchestrator.registry.registry import list_models

    versions = list_models(tracking_uri)
    if as_json:
        print_result(json.dumps([asdict(version) for version in versions], indent=2, default=str))
        return
    rows = [("model", "version", "aliases", "registered", "run")]
    rows += [
        (
            version.name,
            str(version.version),
            ", ".join(version.aliases),
            f"{version.created:%Y-%m-%d %H:%M}",
            version.run_id,
        )
        for version in versions
    ]
    print_result(table(rows))
    if versions:
        print_next_steps(f"orchestrator models pull {versions[0].name} DEST")


@app.command()
def catalog(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """List the models that can be trained, at the settings of their jobs in jobs/."""
    from orchestrator.registry.catalog import HEADINGS
    from orchestrator.registry.catalog import catalog as entries_of

    entries = entries_of(Path("jobs"))
    if as_json:
        print_result(json.dumps([entry.json() for entry in entries], indent=2))
        return
    print_result(table([HEADINGS, *(entry.row() for entry in entries)]))
    jobs = [entry.job for entry in entries if entry.job]
    if jobs:
        print_next_steps(f"orchestrator plan {jobs[0]}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION.")],
    dest: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write a registered model's weights, config and README into a folder."""
    from orchestrator.registry import registry

    registry.pull(model, dest, tracking_uri)
    log_info(f"{model}: weights, config and how to load them are in {dest}")
    print_next_steps(f"orchestrator sample {dest} --input FOLDER --output FOLDER")


def sample(  # noqa: PLR0913, PLR0917 - the options of one command
    model: Annotated[
        str, typer.Argument(help="NAME, NAME@ALIAS, NAME/VERSION, or a folder that was pulled.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    input_dir: Annotated[
        Path | None, typer.Option("--input", help="Images to translate, for models that do.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="How many images to make, for models that do.")
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Number of the class to make; else a row for each class.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="What to make, for models that follow a text.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Make pictures with a trained model: translations of a folder's images, or new ones."""
    if (input_dir is None) == (num_images is None):
        raise UsageError("give either --input FOLDER to translate or --num-images N to make")
    if input_dir is not None and (label is not None or caption is not None):
        raise UsageError("--label and --caption go with --num-images, not with --input")

    def draw(folder: Path) -> None:
        from orchestrator.registry import sampling
        from orchestrator.registry.bundle import load_bundle, read_config, read_notes

        loaded = load_bundle(folder)
        if input_dir is not None:
            share = read_notes(folder).get("images_per_worker", 1)
            config = read_config(folder)
            written = sampling.sample_folder(
                loaded, config, input_dir, output, seed=seed, batch_size=share
            )
        else:
            written = sampling.sample_images(
                loaded, num_images or 0, output, seed=seed, label=label, caption=caption
            )
        log_info(f"{len(written)} pictures in {output}; an overview: {output / 'grid.png'}")

    if Path(model).is_dir():
        draw(Path(model))
        return
    from orchestrator.registry import registry

    with tempfile.TemporaryDirectory() as temporary:
        draw(registry.pull(model, Path(temporary, "model"), tracking_uri))
