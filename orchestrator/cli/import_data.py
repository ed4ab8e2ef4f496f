"""``orchestrator data import``: make packed sets of data in other formats."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.pack import (
    DeriveInputOption,
    Dest,
    DryRunOption,
    FitOption,
    GreyOption,
    JpegOption,
    MaxCorruptOption,
    RangeOption,
    ReportOption,
    ShardBytesOption,
    SideBySideOption,
    SizeOption,
    ValidationShareOption,
    WorkersOption,
    parse_bytes,
)
from orchestrator.cli.scan_output import scan_and_pack

_Source = Annotated[
    str,
    typer.Argument(
        help="Parquet files (a folder, a file or a bucket's prefix), LMDB databases, a folder "
        "with metadata.csv, metadata.jsonl or class folders, or hf://datasets/ORG/NAME@REVISION."
    ),
]
_Image = Annotated[
    str | None,
    typer.Option("--image", metavar="COLUMN", help="Column of the image, if there are several."),
]
_A = Annotated[
    str | None,
    typer.Option("--a", metavar="COLUMN", help="Column, or LMDB, of the input of a pair."),
]
_B = Annotated[
    str | None,
    typer.Option("--b", metavar="COLUMN", help="Column, or LMDB, of the target of a pair."),
]
_Label = Annotated[
    str | None,
    typer.Option(
        "--label", metavar="COLUMN", help="Column of the class; by default label and the like."
    ),
]
_Caption = Annotated[
    str | None,
    typer.Option(
        "--caption",
        metavar="COLUMN",
        help="Column of the caption or a list of captions; by default text, caption and the like.",
    ),
]
_KeepSplit = Annotated[
    bool,
    typer.Option(
        "--keep-split/--no-keep-split",
        help="Keep the split of files or folders named train, validation (val, dev, eval, ...) and "
        "test.",
    ),
]
_ValidationSplit = Annotated[
    Literal["validation", "test"] | None,
    typer.Option(help="Split to hold out, by default validation, or else test."),
]
_Labels = Annotated[bool, typer.Option("--labels/--no-labels", help="Take the classes.")]
_Captions = Annotated[bool, typer.Option("--captions/--no-captions", help="Take the captions.")]


def import_data(  # noqa: PLR0913, PLR0917 - one argument for each option
    source: _Source,
    dest: Dest,
    image: _Image = None,
    a: _A = None,
    b: _B = None,
    label: _Label = None,
    caption: _Caption = None,
    labels: _Labels = True,
    captions: _Captions = True,
    size: SizeOption = None,
    side_by_side: SideBySideOption = None,
    keep_split: _KeepSplit = True,
    validation_split: _ValidationSplit = None,
    validation_share: ValidationShareOption = 0.1,
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
    """Pack the rows of SOURCE, data in another format, as DEST/train and DEST/validation.

    Every row is read first; which columns are taken, and what is changed or left out is printed.
    Run the command again to resume an interrupted packing.
    """
    from orchestrator.data.prepare.columns import ColumnChoice
    from orchestrator.data.prepare.find_source import find_source
    from orchestrator.data.prepare.import_scan import scan_rows
    from orchestrator.data.prepare.row_source import SplitChoice
    from orchestrator.data.prepare.value_range import parse_range

    choice = ColumnChoice(image, a, b, label, caption, labels, captions)
    scan = partial(
        scan_rows,
        find_source(source, choice, SplitChoice(keep_split, validation_split)),
        choice,
        size=size,
        channels=1 if grey else 3,
        fit=fit,
        value_range=parse_range(value_range),
        side_by_side=side_by_side,
        validation_share=validation_share,
        derived_input=derive_input,
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
