"""``orchestrator data fetch`` and ``pack``: make packed sets."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.bounds import MAX_IMAGE_SIZE
from orchestrator.cli.output import progress_counter
from orchestrator.cli.scan_output import parallel_map_here, print_summary, scan_and_pack
from orchestrator.derived_input_kinds import DERIVED_INPUTS, DerivedInput
from orchestrator.errors import UsageError

Dest = Annotated[
    str, typer.Argument(help="Destination: a folder, or s3://, gs:// or az://bucket/prefix.")
]

DeriveInputOption = Annotated[
    DerivedInput | None,
    typer.Option(
        "--derive-input",
        help="Make pairs of single images, to learn the way back; the input is made from each: "
        + ", ".join(f"{kind} ({what})" for kind, what in DERIVED_INPUTS.items())
        + ".",
    ),
]
_Folder = Annotated[Path, typer.Argument(help="Images, or the folders A and B of pairs.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_IMAGE_SIZE,
        help="Resize to this height and width, see --fit; by default keep them.",
    ),
]
FitOption = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        "--fit",
        help="How images that are not square become so: crop keeps the middle (the default with "
        "--size), pad adds white, stretch changes the proportions.",
    ),
]
RangeOption = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW,HIGH",
        help="Values of black and white, for images that do not say, such as floats, or that use "
        "little of their range, such as 12 bits in files of 16; auto: the set's lowest and "
        "highest value.",
    ),
]
SideBySideOption = Annotated[
    bool | None,
    typer.Option(
        "--side-by-side/--no-side-by-side",
        help="Each file holds a pair: A left, B right. By default only if the folder is split into "
        "train, val, ... and every file is twice as wide as high.",
    ),
]
_Pairs = Annotated[
    bool | None,
    typer.Option(
        "--pairs/--no-pairs",
        help="Folders A and B (trainA, trainB, ...) hold the two sides of pairs; by default if "
        "they are there.",
    ),
]
_KeepSplit = Annotated[
    bool,
    typer.Option(
        "--keep-split/--no-keep-split",
        help="Keep the split of a folder with train and val, valid, validation, dev, eval or test.",
    ),
]
_ValidationFolder = Annotated[
    list[str] | None,
    typer.Option(
        "--validation-folder",
        metavar="NAME",
        help="Folder beside train that is the validation set, by default val (valid, ...) or else "
        "test; give it again for several.",
    ),
]
_CaptionPerLine = Annotated[
    bool,
    typer.Option(
        "--caption-per-line/--no-caption-per-line",
        help="Each line of a caption file is a caption; training draws one per visit.",
    ),
]
MaxCorruptOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Pack without broken images, if they are at most this fraction."
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Read every file and print what would become of it; exit code 4 if packing would "
        "refuse.",
    ),
]
ReportOption = Annotated[
    Path,
    typer.Option(
        help="File for the whole report, of a dry run or if packing is refused; else it is "
        "DEST/pack-report.json."
    ),
]
ValidationShareOption = Annotated[
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
GreyOption = Annotated[
    bool, typer.Option("--grey", help="Pack one channel, for jobs with model.channels: 1.")
]
JpegOption = Annotated[
    int | None, typer.Option(min=1, max=95, metavar="QUALITY", help="Pack JPEG instead of PNG.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that convert images, by default one per core; with RAY_ADDRESS set, CPUs "
        "of that cluster, by default all.",
    ),
]
ShardBytesOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Maximum size of a shard, such as 64MiB.")
]


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of the data set: openmoji (pairs of line drawing and colour), "
            "openmoji_groups (colour, with classes and captions), mnist, fashion, digits, faces "
            "(drawings, with classes and captions), drawn_facades, drawn_maps, drawn_nights, "
            "drawn_seasons, drawn_depths, drawn_views, drawn_attention (drawn pairs); or, from "
            "their original files, cifar10, lfw, celeba, facades, maps, cityscapes, night2day, "
            "edges2shoes, edges2handbags."
        ),
    ],
    dest: Dest,
    size: Annotated[
        int,
        typer.Option(min=1, max=MAX_IMAGE_SIZE, help="Height and width of the images in pixels."),
    ],
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Number of samples of a drawn set; by default 20,000 faces or 2,000 pairs.",
        ),
    ] = None,
    derive_input: DeriveInputOption = None,
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
            derive_input=derive_input,
            source=source,
            progress=progress,
            parallel_map=parallel_map_here(),
        )
    print_summary(summary)


def pack(  # noqa: PLR0913, PLR0917 - one argument for each option
    folder: _Folder,
    dest: Dest,
    size: SizeOption = None,
    side_by_side: SideBySideOption = None,
    pairs: _Pairs = None,
    keep_split: _KeepSplit = True,
    validation_folder: _ValidationFolder = None,
    validation_share: ValidationShareOption = 0.1,
    labels: _Labels = False,
    captions: _Captions = False,
    caption_per_line: _CaptionPerLine = True,
    unpaired: _Unpaired = False,
    derive_input: DeriveInputOption = None,
    grey: GreyOption = False,
    jpeg: JpegOption = None,
    fit: FitOption = None,
    value_range: RangeOption = None,
    max_corrupt_fraction: MaxCorruptOption = 0.0,
    workers: WorkersOption = None,
    shard_bytes: ShardBytesOption = "64MiB",
    dry_run: DryRunOption = False,
    report: ReportOption = Path("pack-report.json"),
) -> None:
    """Pack the images of FOLDER as DEST/train and DEST/validation.

    Every file is read first; what is guessed, changed or left out is printed.
    Run the command again to resume an interrupted packing.
    """
    from orchestrator.data.prepare.folder_scan import scan_folder
    from orchestrator.data.prepare.folders import FolderLayout
    from orchestrator.data.prepare.value_range import parse_range

    parts = tuple(validation_folder or ())
    layout = FolderLayout(
        side_by_side, labels, captions, unpaired, validation_share, pairs, keep_split, parts,
        caption_per_line, derive_input,
    )  # fmt: skip
    scan = partial(
        scan_folder,
        folder,
        layout,
        size=size,
        channels=1 if grey else 3,
        fit=fit,
        value_range=parse_range(value_range),
        max_corrupt_fraction=max_corrupt_fraction,
    )
    scan_and_pack(
        scan,
        dest,
        jpeg=jpeg,
        shard_bytes=parse_bytes(shard_bytes),
        workers=workers,
        dry_run=dry_run,
        report=report,
    )


def require_size(size: int | None, fit: str | None) -> None:
    """Raise UsageError if there is --fit without --size."""
    if fit is not None and size is None:
        raise UsageError("--fit says how to resize images, but there is no --size")


def parse_bytes(text: str) -> int:
    """Parse --shard-bytes. Raises UsageError."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise UsageError(
            f"--shard-bytes: {text!r} is not a valid size; use a number with a unit, such as 64MiB"
        ) from None
