"""``orchestrator data fetch``, ``pack`` and ``index``: make packed sets."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import print_next_steps, progress_counter, quote
from orchestrator.console import log_info
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.data.prepare.parallel import ParallelMap
    from orchestrator.data.prepare.split import PackSummary

Dest = Annotated[str, typer.Argument(help="Destination: a folder or s3://bucket/prefix.")]

_Folder = Annotated[Path, typer.Argument(help="Images, or the folders A and B of pairs.")]
_Size = Annotated[
    int | None,
    typer.Option(min=1, help="Pad and resize to this height and width; by default keep them."),
]
_SideBySide = Annotated[
    bool, typer.Option("--side-by-side", help="Each file holds a pair: A left, B right.")
]
_ValidationShare = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of the samples to hold out for validation.")
]
_Labels = Annotated[
    bool, typer.Option("--labels", help="Each class has a folder of images: CLASS/x.png.")
]
_Captions = Annotated[
    bool, typer.Option("--captions", help="The caption of x.png is in x.txt beside it.")
]
_Unpaired = Annotated[
    bool,
    typer.Option(
        "--unpaired",
        help="trainA and trainB (and testA, testB), or A and B, do not belong together. They are "
        "packed as a and b in order, repeating the shorter side; models that take unpaired images "
        "draw random partners anyway.",
    ),
]
_Grey = Annotated[
    bool, typer.Option("--grey", help="Pack one channel, for jobs with model.channels: 1.")
]
_Jpeg = Annotated[
    int | None, typer.Option(min=1, max=95, metavar="QUALITY", help="Pack JPEG instead of PNG.")
]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that convert images, by default one per core; with RAY_ADDRESS set, CPUs "
        "of that cluster, by default all.",
    ),
]
_ShardBytes = Annotated[
    str, typer.Option(metavar="SIZE", help="Maximum size of a shard, such as 64MiB.")
]


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the data set: openmoji (pairs of line drawing and colour), "
            "openmoji_groups (colour, with classes and captions), mnist, fashion, digits, faces "
            "(drawings, with classes and captions); or, from their original files, cifar10, lfw, "
            "celeba, facades, maps, cityscapes, night2day, edges2shoes, edges2handbags."
        ),
    ],
    dest: Dest,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images in pixels.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of faces to draw; by default 20,000.")
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
    _print_summary(summary)


def pack(  # noqa: PLR0913, PLR0917 - one argument for each option
    folder: _Folder,
    dest: Dest,
    size: _Size = None,
    side_by_side: _SideBySide = False,
    validation_share: _ValidationShare = 0.1,
    labels: _Labels = False,
    captions: _Captions = False,
    unpaired: _Unpaired = False,
    grey: _Grey = False,
    jpeg: _Jpeg = None,
    workers: _Workers = None,
    shard_bytes: _ShardBytes = "64MiB",
) -> None:
    """Pack the images of FOLDER as DEST/train and DEST/validation.

    Run the command again to resume an interrupted packing.
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
            shard_bytes=_parse_bytes(shard_bytes),
            progress=progress,
        )
    _print_summary(summary)


def index(  # noqa: PLR0913, PLR0917 - one argument for each option
    uri: Annotated[str, typer.Argument(help="A folder or s3://bucket/prefix of tar files.")],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="ENDING", help="Ending of the image, such as jpg, if there are several."
        ),
    ] = None,
    a: Annotated[
        str | None, typer.Option("--a", metavar="ENDING", help="Ending of the input of a pair.")
    ] = None,
    b: Annotated[
        str | None, typer.Option("--b", metavar="ENDING", help="Ending of the target of a pair.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Text file with one class name per line; by default their numbers."),
    ] = None,
    labels: Annotated[bool, typer.Option(help="Use the classes in .cls.")] = True,
    captions: Annotated[bool, typer.Option(help="Use the captions in .txt.")] = True,
    grey: Annotated[
        bool | None,
        typer.Option("--grey/--colour", help="One channel or three; by default as the images are."),
    ] = None,
) -> None:
    """Index tar files in WebDataset's layout in place, without copying them."""
    from orchestrator.data.prepare.index_tars import FieldSelection, index_set

    channels = {None: None, True: 1, False: 3}[grey]
    names = _read_class_names(classes)
    selection = FieldSelection(image, a, b, labels, captions, names, channels)  # type: ignore[arg-type]
    with progress_counter("indexing, bytes") as progress:
        summary = index_set(uri, selection, progress)
    for note in summary.notes:
        log_info(f"note: {note}")
    made = summary.index
    shape = f"{made.image_size}x{made.image_size}, {'grey' if made.channels == 1 else 'colour'}"
    log_info(f"{uri}: {made.num_samples:,} samples in {len(made.shards)} tar files, {shape}")
    print_next_steps(f"orchestrator data ls {quote(uri)}", f"orchestrator data check {quote(uri)}")


def _parallel_map() -> "ParallelMap":
    """Return the map over the Ray cluster of RAY_ADDRESS, or over the cores of this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from orchestrator.cluster.ray_map import map_on_ray

        return map_on_ray
    from orchestrator.data.prepare.parallel import map_in_processes

    return map_in_processes


def _parse_bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError(
            f"--shard-bytes: {text!r} is not a valid size; use a number with a unit, such as 64MiB"
        ) from None


def _read_class_names(path: Path | None) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines()) if path else ()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes: {path} cannot be read: {error}") from error


def _print_summary(summary: "PackSummary") -> None:
    log_info(f"{summary.train_uri}: {summary.num_train:,} training samples")
    log_info(f"{summary.validation_uri}: {summary.num_validation:,} validation samples")
    uri = summary.train_uri
    print_next_steps(f"orchestrator data ls {quote(uri)}", f"orchestrator data check {quote(uri)}")
