"""``orchestrator models`` and ``orchestrator sample``: use what was trained."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.output import give, suggest, table
from orchestrator.errors import UsageError
from orchestrator.progress import say

app = typer.Typer(no_args_is_help=True, help="List and fetch registered models.")

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
    from orchestrator.registry import list_models

    versions = list_models(tracking_uri)
    if as_json:
        give(json.dumps([asdict(version) for version in versions], indent=2, default=str))
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
    give(table(rows))
    if versions:
        suggest(f"orchestrator models pull {versions[0].name} DEST")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION.")],
    dest: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write a registered model's weights, config and README into a folder."""
    from orchestrator import registry

    registry.pull(model, dest, tracking_uri)
    say(f"{model}: weights, config and how to load them are in {dest}")
    suggest(f"orchestrator sample {dest} --input FOLDER --output FOLDER")


def sample(
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
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Make pictures with a trained model: translations of a folder's images, or new ones."""
    if (input_dir is None) == (num_images is None):
        raise UsageError("give either --input FOLDER to translate or --num-images N to make")
    folder = Path(model)
    if folder.is_dir():
        _sample(folder, output, input_dir, num_images, seed)
        return
    from orchestrator import registry

    with tempfile.TemporaryDirectory() as temporary:
        pulled = registry.pull(model, Path(temporary, "model"), tracking_uri)
        _sample(pulled, output, input_dir, num_images, seed)


def _sample(
    folder: Path, output: Path, input_dir: Path | None, num_images: int | None, seed: int
) -> None:
    from orchestrator import sampling
    from orchestrator.model_folder import load_pulled, pulled_config, pulled_notes

    model = load_pulled(folder)
    if input_dir is not None:
        written = sampling.sample_folder(
            model,
            pulled_config(folder),
            input_dir,
            output,
            seed=seed,
            batch_size=pulled_notes(folder).get("images_per_worker", 1),
        )
    else:
        written = sampling.sample_images(model, num_images or 0, output, seed=seed)
    say(f"{len(written)} pictures in {output}; an overview: {output / (sampling.GRID + '.png')}")
