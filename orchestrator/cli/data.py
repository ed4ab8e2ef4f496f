"""``orchestrator data``: fetch, pack, index, copy, list and check sets of images."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, progress_counter, table
from orchestrator.console import log_info
from orchestrator.errors import DataError, UsageError

if TYPE_CHECKING:
    from orchestrator.data.prepare.check import CheckReport
    from orchestrator.data.prepare.process_map import ParallelMap
    from orchestrator.data.prepare.split import PackSummary

app = typer.Typer(no_args_is_help=True, help="Fetch, pack, index, copy, list and check sets.")

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
    from orchestrator.data.datasets import sources

    with progress_counter(f"packing {name}") as progress:
        summary = sources.fetch(
            name,
            dest,
            size=size,
            count=count,
            source=source,
            progress=progress,
            parallel_map=_parallel_map(),
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
    jpeg: Annotated[
        int | None,
        typer.Option(min=1, max=95, metavar="QUALITY", help="Pack JPEG and not PNG."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that convert images, by default one for each core; with RAY_ADDRESS "
            "set, CPUs of that cluster, by default all.",
        ),
    ] = None,
    shard_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes of a tar file, such as 64MiB.")
    ] = "64MiB",
) -> None:
    """Pack the images of FOLDER as DEST/train and DEST/validation.

    An interrupted packing goes on where it was when it is started again.
    """
    from orchestrator.data.prepare.pack import pack_folder

    with progress_counter("packing") as progress:
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
            jpeg=jpeg,
            workers=workers,
            parallel_map=_parallel_map(),
            shard_bytes=_num_bytes(shard_bytes),
            progress=progress,
        )
    _packed(summary)


def _parallel_map() -> "ParallelMap":
    """The Ray cluster that RAY_ADDRESS names, or the cores of this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from orchestrator.cluster.ray_map import map_on_ray

        return map_on_ray
    from orchestrator.data.prepare.process_map import map_in_processes

    return map_in_processes


def _num_bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError(
            f"--shard-bytes: {text!r} is no size; write a number with a unit, such as 64MiB"
        ) from None


def _packed(summary: "PackSummary") -> None:
    log_info(f"{summary.train_uri}: {summary.num_train:,} samples to train on")
    log_info(f"{summary.validation_uri}: {summary.num_validation:,} held out")
    uri = summary.train_uri
    print_next_steps(f"orchestrator data ls {uri}", f"orchestrator data check {uri}")


@app.command()
def ls(uri: Uri, as_json: AsJson = False) -> None:
    """Show what a packed set holds."""
    from orchestrator.data.format.shard_index import open_set

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
        print_result(json.dumps(about, indent=2))
        return
    words = {key: ", ".join(v) if isinstance(v, list) else str(v) for key, v in about.items()}
    print_result(table([(key.removeprefix("num_"), value) for key, value in words.items()]))
    print_next_steps(f"orchestrator data check {uri}", f"data.train: {uri} in a job file")


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
    from orchestrator.data.format.shard_index import open_set
    from orchestrator.data.prepare.export import export_images

    count = export_images(open_set(uri), folder, field, limit)
    log_info(f"{count} images in {folder}")
    print_next_steps(f"orchestrator sample MODEL --input {folder} --output PICTURES")


@app.command()
def index(  # noqa: PLR0913, PLR0917 - one argument for each option
    uri: Annotated[str, typer.Argument(help="A folder or s3://bucket/prefix of tar files.")],
    image: Annotated[
        str | None,
        typer.Option(metavar="ENDING", help="Of the image of a sample, such as jpg, if several."),
    ] = None,
    a: Annotated[
        str | None, typer.Option("--a", metavar="ENDING", help="Of the input of a pair.")
    ] = None,
    b: Annotated[
        str | None, typer.Option("--b", metavar="ENDING", help="Of the target of a pair.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Text file with the name of a class in each line; else their numbers."),
    ] = None,
    labels: Annotated[bool, typer.Option(help="Take the classes from .cls.")] = True,
    captions: Annotated[bool, typer.Option(help="Take the captions from .txt.")] = True,
    grey: Annotated[
        bool | None,
        typer.Option("--grey/--colour", help="One channel or three; else as the images are."),
    ] = None,
) -> None:
    """Make a set of tar files in WebDataset's layout, where they are: nothing is copied."""
    from orchestrator.data.prepare.index_tars import FieldSelection, index_set

    channels = {None: None, True: 1, False: 3}
    names = _class_names(classes)
    wanted = FieldSelection(image, a, b, labels, captions, names, channels[grey])  # type: ignore[arg-type]
    with progress_counter("indexing, bytes") as progress:
        summary = index_set(uri, wanted, progress)
    for note in summary.notes:
        log_info(f"note: {note}")
    made = summary.index
    shown = f"{made.image_size}x{made.image_size}, {'grey' if made.channels == 1 else 'colour'}"
    log_info(f"{uri}: {made.num_samples:,} samples in {len(made.shards)} tar files, {shown}")
    print_next_steps(f"orchestrator data ls {uri}", f"orchestrator data check {uri}")


def _class_names(path: Path | None) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines()) if path else ()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes: {path} cannot be read: {error}") from error


@app.command()
def cp(
    source: Annotated[str, typer.Argument(help="A set, or the folder above train, validation.")],
    dest: Dest,
) -> None:
    """Copy packed sets, verified; an interrupted copy goes on when it is started again."""
    from orchestrator.data.prepare.copy import copy_sets

    with progress_counter("copying, bytes") as progress:
        summary = copy_sets(source, dest, progress)
    kept = f", {summary.num_kept} were there" if summary.num_kept else ""
    shards = f"{summary.num_shards} shards{kept}"
    log_info(f"{', '.join(summary.uris)}: {summary.num_samples:,} samples in {shards}")
    print_next_steps(f"data.train: {summary.uris[0]} in a job file")


@app.command()
def check(
    uri: Annotated[str, typer.Argument(help="A set, or the folder above train, validation.")],
    as_json: AsJson = False,
    sheet: Annotated[Path, typer.Option(help="Where to write a picture of some samples.")] = Path(
        "contact-sheet.png"
    ),
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Write no such picture.")] = False,
) -> None:
    """Read every byte of packed sets; exit code 4 if anything is damaged.

    Warns of what looks like a mistake: samples that are there twice or in both sets, pairs of
    two identical images, grey among colour.
    """
    from orchestrator.data.format.shard_index import open_set
    from orchestrator.data.prepare.check import check_sets, find_sets
    from orchestrator.data.prepare.contact_sheet import write_contact_sheet

    uris = find_sets(uri)
    with progress_counter("checking") as progress:
        reports = check_sets(uris, progress)
    if not no_sheet:
        write_contact_sheet([open_set(each) for each in uris], sheet)
        log_info(f"some of the samples: {sheet}")
    if as_json:
        print_result(json.dumps(_as_json(uri, reports), indent=2))
    for report in reports:
        for problem in () if as_json else report.problems:
            print_result(problem if len(reports) == 1 else f"{report.uri}: {problem}")
        for warning in report.warnings:
            log_info(f"warning: {report.uri}: {warning}")
    count = sum(len(report.problems) for report in reports)
    if count:
        raise DataError(f"{uri} is damaged in {count} places; pack or fetch it again")
    for report in reports:
        shards = f"{report.num_shards} shards"
        log_info(f"{report.uri}: {report.num_samples:,} samples in {shards} are whole")
    print_next_steps(f"data.train: {uris[0]} in a job file")


def _as_json(uri: str, reports: "list[CheckReport]") -> dict[str, object]:
    found = [{**asdict(report), "ok": report.ok} for report in reports]
    if [report.uri for report in reports] == [uri]:
        return found[0]
    return {"uri": uri, "ok": all(report.ok for report in reports), "sets": found}
