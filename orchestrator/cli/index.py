"""``orchestrator data index``: use tar files of other tools in place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bounds import MAX_IMAGE_SIZE
from orchestrator.cli.output import print_next_steps, progress_counter, quote
from orchestrator.cli.pack import FitOption, RangeOption, require_size
from orchestrator.console import log_info
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.data.prepare.index_tars import IndexSummary


def index(  # noqa: PLR0913, PLR0917 - one argument for each option
    uri: Annotated[
        str, typer.Argument(help="Tar files in a folder, or in s3://, gs:// or az://bucket/prefix.")
    ],
    image: Annotated[
        str | None,
        typer.Option(
            metavar="ENDING",
            help="Ending of the image if there are several, or endings, such as jpg,png: the "
            "first that a sample has.",
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
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_IMAGE_SIZE,
            help="Height and width to resize images to whenever they are read, if they differ.",
        ),
    ] = None,
    fit: FitOption = None,
    validation_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of the samples to hold out: makes the sets URI/train and URI/validation "
            "of the same tar files.",
        ),
    ] = 0,
    value_range: RangeOption = None,
) -> None:
    """Index tar files in WebDataset's layout in place, without copying them."""
    from orchestrator.data.prepare.field_selection import FieldSelection
    from orchestrator.data.prepare.image_findings import DEFAULT_FIT
    from orchestrator.data.prepare.index_tars import IndexOptions, index_set
    from orchestrator.data.prepare.value_range import parse_range

    asked = parse_range(value_range)
    channels = {None: None, True: 1, False: 3}[grey]
    names = _read_class_names(classes)
    selection = FieldSelection(image, a, b, labels, captions, names, channels, asked)  # type: ignore[arg-type]
    require_size(size, fit)
    options = IndexOptions(selection, size, fit or DEFAULT_FIT, validation_share)
    with progress_counter("indexing, bytes") as progress:
        summary = index_set(uri, options, progress)
    _print_summary(uri, summary)


def _read_class_names(path: Path | None) -> tuple[str, ...]:
    from orchestrator.data.prepare.text_files import read_lines

    if path is None:
        return ()
    try:
        return read_lines(path)
    except OSError as error:
        raise UsageError(f"--classes: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--classes: {path} {error}") from error


def _print_summary(uri: str, summary: "IndexSummary") -> None:
    for note in summary.notes:
        log_info(f"note: {note}")
    made, held_out = summary.index, summary.validation
    shape = f"{made.image_size}x{made.image_size}, {'grey' if made.channels == 1 else 'colour'}"
    if made.fit:
        shape += f", other sizes by {made.fit}"
    sets = {"": made} if made.subset is None else {"/train": made, "/validation": held_out}
    for part, each in sets.items():
        if each is not None:
            tars = f"{len(each.shards)} tar files"
            log_info(f"{uri.rstrip('/')}{part}: {each.num_samples:,} samples in {tars}, {shape}")
    first = uri if made.subset is None else f"{uri.rstrip('/')}/train"
    print_next_steps(
        f"orchestrator data ls {quote(first)}", f"orchestrator data check {quote(uri)}"
    )
