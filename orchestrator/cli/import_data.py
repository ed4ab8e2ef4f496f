"""``orchestrator data import``: make packed sets of data in other formats."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import progress_counter
from orchestrator.cli.pack import (
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
    parallel_map_here,
    parse_bytes,
    print_summary,
)
from orchestrator.cli.scan_output import print_dry_run, print_scan
from orchestrator.console import log_info

_Source = Annotated[
    str,
    typer.Argument(
        help="Parquet files (a folder, a file or s3://bucket/prefix), LMDB databases, a folder "
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
    validation_share: ValidationShareOption = 0.1,
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
    from orchestrator.data.prepare.pack import pack_scanned
    from orchestrator.data.prepare.value_range import parse_range

    choice = ColumnChoice(image, a, b, label, caption, labels, captions)
    num_bytes, parallel_map = parse_bytes(shard_bytes), parallel_map_here()
    asked = parse_range(value_range)
    with progress_counter("reading") as progress:
        scan = scan_rows(
            find_source(source, choice),
            choice,
            size=size,
            fit=fit,
            channels=1 if grey else 3,
            value_range=asked,
            side_by_side=side_by_side,
            validation_share=validation_share,
            max_corrupt_fraction=max_corrupt_fraction,
            workers=workers,
            parallel_map=parallel_map,
            progress=progress,
        )
    if dry_run:
        print_dry_run(scan, dest, report)
        return
    print_scan(scan, report)
    with progress_counter("packing") as progress:
        summary = pack_scanned(
            scan,
            dest,
            jpeg=jpeg,
            workers=workers,
            parallel_map=parallel_map,
            shard_bytes=num_bytes,
            progress=progress,
        )
    log_info(f"what became of every row: {dest.rstrip('/')}/pack-report.json")
    print_summary(summary)
