"""``orchestrator data``: fetch, pack, index, copy, list, check and export packed sets."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bounds import MAX_IMAGE_SIZE
from orchestrator.cli.import_data import import_data
from orchestrator.cli.index import index
from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    progress_counter,
    quote,
)
from orchestrator.cli.pack import Dest, FitOption, JpegOption, fetch, pack, require_size
from orchestrator.console import log_info
from orchestrator.errors import DataError, UsageError

if TYPE_CHECKING:
    from orchestrator.data.prepare.check import CheckReport

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch, pack, import, index, copy, list, check and export packed sets.",
)

Uri = Annotated[
    str, typer.Argument(help="A packed set: a folder, or s3://, gs:// or az://bucket/prefix.")
]
UriOrParent = Annotated[
    str, typer.Argument(help="A packed set, or the parent of train and validation.")
]

app.command()(fetch)
app.command()(pack)
app.command("import")(import_data)


@app.command()
def ls(uri: Uri, as_json: AsJson = False) -> None:
    """Show what a packed set holds."""
    from orchestrator.data.format.shard_index import open_set

    packed = open_set(uri)
    facts = {
        "uri": uri,
        "num_samples": packed.num_samples,
        "fields": list(packed.fields),
        "image_size": packed.image_size,
        "channels": packed.channels,
        "classes": list(packed.index.classes),
        "captions": packed.index.captions,
        "multiple_captions": packed.index.multiple_captions,
        "num_shards": len(packed.shard_sizes),
        "num_bytes": packed.num_bytes,
        "digest": packed.digest,
    }
    if packed.index.derived_input is not None:
        facts["derived_input"] = packed.index.derived_input
    if packed.index.origin is not None:
        facts |= {f"origin_{key}": value for key, value in packed.index.origin}
    if as_json:
        print_json(facts)
        return
    rows = [
        (key.removeprefix("num_"), ", ".join(value) if isinstance(value, list) else str(value))
        for key, value in facts.items()
    ]
    print_result(format_table(rows))
    print_next_steps(f"orchestrator data check {quote(uri)}", f"data.train: {uri} in a job file")


@app.command()
def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="Folder for the images.")],
    field: Annotated[
        str, typer.Option(help="Image of a sample: image, or a or b of a pair.")
    ] = "a",
    limit: Annotated[int | None, typer.Option(min=1, help="Export the first samples only.")] = None,
) -> None:
    """Write the images of a packed set as plain files."""
    from orchestrator.data.format.shard_index import open_set
    from orchestrator.data.prepare.export import export_images

    count = export_images(open_set(uri), folder, field, limit)
    log_info(f"{count} images in {folder}")
    print_next_steps(f"orchestrator sample MODEL --input {quote(folder)} --output OUTPUT")


app.command()(index)


@app.command()
def cp(
    source: UriOrParent,
    dest: Dest,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_IMAGE_SIZE, help="Write new shards with images of this height and width."
        ),
    ] = None,
    fit: FitOption = None,
    jpeg: JpegOption = None,
) -> None:
    """Copy packed sets and verify them; with --size, resize all images.

    Run the command again to resume an interrupted copy.
    """
    from orchestrator.data.prepare.copy import copy_sets
    from orchestrator.data.prepare.copy_resized import Resizing, copy_resized

    require_size(size, fit)
    if size is None and jpeg is not None:
        raise UsageError("--jpeg says how to encode resized images, but there is no --size")
    with progress_counter("copying, samples" if size else "copying, bytes") as progress:
        if size is None:
            summary = copy_sets(source, dest, progress)
        else:
            resizing = Resizing(size, fit, jpeg)
            summary = copy_resized(source, dest, resizing, progress)
    kept = f", {summary.num_kept} of them existed" if summary.num_kept else ""
    shards = f"{summary.num_shards} shards{kept}"
    log_info(f"{', '.join(summary.uris)}: {summary.num_samples:,} samples in {shards}")
    print_next_steps(f"data.train: {summary.uris[0]} in a job file")


@app.command()
def check(
    uri: UriOrParent,
    as_json: AsJson = False,
    sheet: Annotated[Path, typer.Option(help="Path of the contact sheet of samples.")] = Path(
        "contact-sheet.png"
    ),
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Write no contact sheet.")] = False,
) -> None:
    """Read every byte of packed sets; exit code 4 if anything is corrupt.

    Warns of likely mistakes: duplicate samples, samples in both sets, pairs of
    identical images, grey images in a colour set.
    """
    from orchestrator.data.format.shard_index import open_set
    from orchestrator.data.prepare.check import check_sets, find_sets
    from orchestrator.data.prepare.contact_sheet import write_contact_sheet

    uris = find_sets(uri)
    with progress_counter("checking") as progress:
        reports = check_sets(uris, progress)
    if not no_sheet:
        write_contact_sheet([open_set(each) for each in uris], sheet)
        log_info(f"contact sheet: {sheet}")
    if as_json:
        print_json(_to_json(uri, reports))
    for report in reports:
        for problem in () if as_json else report.problems:
            print_result(problem if len(reports) == 1 else f"{report.uri}: {problem}")
        for warning in report.warnings:
            log_info(f"warning: {report.uri}: {warning}")
    count = sum(len(report.problems) for report in reports)
    if count:
        raise DataError(f"{uri} has {count} problems; pack or fetch it again")
    for report in reports:
        shards = f"{report.num_shards} shards"
        log_info(f"{report.uri}: {report.num_samples:,} samples in {shards} are valid")
    print_next_steps(f"data.train: {uris[0]} in a job file")


def _to_json(uri: str, reports: "list[CheckReport]") -> dict[str, object]:
    found = [{**asdict(report), "ok": report.ok} for report in reports]
    if [report.uri for report in reports] == [uri]:
        return found[0]
    return {"uri": uri, "ok": all(report.ok for report in reports), "sets": found}
