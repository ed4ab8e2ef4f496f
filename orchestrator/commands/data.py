"""``orchestrator data``: fetch, pack, list and check sets of images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.output import counting, give, suggest, table
from orchestrator.errors import DataError
from orchestrator.progress import say

if TYPE_CHECKING:
    from orchestrator.data.split import PackSummary

app = typer.Typer(no_args_is_help=True, help="Fetch, pack, list and check sets of images.")

Uri = Annotated[str, typer.Argument(help="A packed set: a folder or s3://bucket/prefix.")]
Dest = Annotated[str, typer.Argument(help="A folder or s3://bucket/prefix to write to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the data set: openmoji (line drawings and colour, pairs), "
            "openmoji_groups (colour, with classes and captions), mnist, fashion, digits, "
            "faces (drawn ones, with classes and captions); and from their original files "
            "cifar10, lfw, celeba, facades, maps, cityscapes, night2day, edges2shoes, "
            "edges2handbags."
        ),
    ],
    dest: Dest,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images, in pixels.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="How many to draw, for faces; else 20,000.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Folder, archive or URL of the original files, where needed."),
    ] = None,
) -> None:
    """Fetch a named data set and pack it as DEST/train and DEST/validation."""
    from orchestrator.data import sources

    with counting(f"packing {name}") as progress:
        summary = sources.fetch(
            name, dest, size=size, count=count, source=source, progress=progress
        )
    _packed(summary)


@app.command()
def pack(  # noqa: PLR0913, PLR0917 - one argument for each option
    folder: Annotated[Path, typer.Argument(help="Images, or the folders A and B of pairs.")],
    dest: Dest,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width to pack at, in pixels; else they stay as is."),
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Each file holds a pair: A left, B right.")
    ] = False,
    validation_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the samples kept for validation.")
    ] = 0.1,
    labels: Annotated[
        bool, typer.Option("--labels", help="Images are in a folder for each class: CLASS/x.png.")
    ] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="The caption of x.png is in x.txt beside it.")
    ] = False,
    unpaired: Annotated[
        bool,
        typer.Option(
            "--unpaired",
            help="trainA and trainB (testA, testB), or A and B, do not belong together: their "
            "images are packed as a and b in order, those of the shorter side again and again. "
            "Models that take unpaired images get partners drawn at random whatever the packing.",
        ),
    ] = False,
    grey: Annotated[
        bool, typer.Option("--grey", help="Pack one channel, for jobs with model.channels: 1.")
    ] = False,
) -> None:
    """Pack the images of FOLDER as DEST/train and DEST/validation."""
    from orchestrator.data.packing import pack_folder

    with counting("packing") as progress:
        summary = pack_folder(
            folder,
            dest,
            size=size,
            validation_share=validation_share,
            labels=labels,
            captions=captions,
            unpaired=unpaired,
            side_by_side=side_by_side,
            channels=1 if grey else 3,
            progress=progress,
        )
    _packed(summary)


def _packed(summary: "PackSummary") -> None:
    say(f"{summary.train_uri}: {summary.num_train:,} samples to train on")
    say(f"{summary.validation_uri}: {summary.num_validation:,} held out")
    uri = summary.train_uri
    suggest(f"orchestrator data ls {uri}", f"orchestrator data check {uri}")


@app.command()
def ls(uri: Uri, as_json: AsJson = False) -> None:
    """Show what a packed set holds."""
    from orchestrator.data.shards import open_set

    packed = open_set(uri)
    about = {
        "uri": uri,
        "num_samples": packed.num_samples,
        "fields": list(packed.fields),
        "image_size": packed.image_size,
        "channels": packed.channels,
        "classes": list(packed.index.classes),
        "captions": packed.index.captions,
        "num_shards": len(packed.shard_sizes),
        "num_bytes": packed.num_bytes,
        "digest": packed.digest,
    }
    if as_json:
        give(json.dumps(about, indent=2))
        return
    words = {key: ", ".join(v) if isinstance(v, list) else str(v) for key, v in about.items()}
    give(table([(key.removeprefix("num_"), value) for key, value in words.items()]))
    suggest(f"orchestrator data check {uri}", f"data.train: {uri} in a job file")


@app.command()
def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="Folder for the images.")],
    field: Annotated[
        str, typer.Option(help="Which image of a sample: image, or a or b of a pair.")
    ] = "a",
    limit: Annotated[int | None, typer.Option(min=1, help="Write the first samples only.")] = None,
) -> None:
    """Write the images of a packed set as plain PNG files."""
    from orchestrator.data.export import export_images
    from orchestrator.data.shards import open_set

    count = export_images(open_set(uri), folder, field, limit)
    say(f"{count} images in {folder}")
    suggest(f"orchestrator sample MODEL --input {folder} --output PICTURES")


@app.command()
def check(uri: Uri, as_json: AsJson = False) -> None:
    """Read every byte of a packed set; exit code 4 if anything is damaged."""
    from orchestrator.data.shards import check_set

    with counting("checking") as progress:
        report = check_set(uri, progress)
    if as_json:
        give(json.dumps({**asdict(report), "ok": report.ok}, indent=2))
    else:
        for problem in report.problems:
            give(problem)
    if not report.ok:
        count = len(report.problems)
        raise DataError(f"{uri} is damaged in {count} places; pack or fetch it again")
    say(f"{uri}: {report.num_samples:,} samples in {report.num_shards} shards are whole")
    suggest(f"data.train: {uri} in a job file")
