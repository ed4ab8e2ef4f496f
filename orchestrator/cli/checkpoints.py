"""``orchestrator checkpoints``: list, verify and show the checkpoints of a run."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    progress_counter,
    quote,
)
from orchestrator.console import log_info
from orchestrator.errors import DataError
from orchestrator.redaction import mask

if TYPE_CHECKING:
    from orchestrator.runs.checkpoints import Checkpoints

app = typer.Typer(no_args_is_help=True, help="List, verify and show the checkpoints of a run.")

Uri = Annotated[str, typer.Argument(help="Folder of a run, STORAGE/RUN, or one checkpoint of it.")]


@app.command()
def ls(uri: Uri, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, oldest first."""
    from orchestrator.runs.checkpoint_address import checkpoints_at

    checkpoints, _ = checkpoints_at(uri)
    rows: list[dict[str, Any]] = []
    for name, files in checkpoints.listed().items():
        state, images, size = _describe(checkpoints, name, files)
        rows.append({"name": name, "images_seen": images, "bytes": size, "state": state})
    if as_json:
        print_json(rows)
        return
    cells = [
        (row["name"], f"{row['images_seen'] or 0:,}", f"{row['bytes']:,}", row["state"])
        for row in rows
    ]
    print_result(format_table([("name", "images", "bytes", "state"), *cells]))
    print_next_steps(f"orchestrator checkpoints verify {quote(uri)}")


def _describe(
    checkpoints: "Checkpoints", name: str, files: set[str]
) -> tuple[str, int | None, int]:
    """Return the state of a checkpoint, its images and bytes, as far as its manifest tells."""
    from orchestrator.runs.checkpoint_manifest import UnsupportedCheckpoint
    from orchestrator.runs.checkpoint_reader import MANIFEST, CorruptCheckpoint
    from orchestrator.runs.checkpoints import QUARANTINED

    if MANIFEST not in files:
        return "unfinished", None, 0
    state = "quarantined" if QUARANTINED in files else "committed"
    try:
        manifest = checkpoints.manifest(name)
    except CorruptCheckpoint:
        return "quarantined" if QUARANTINED in files else "corrupt", None, 0
    except UnsupportedCheckpoint:
        return "of another format", None, 0
    return state, manifest.images_seen, manifest.num_bytes


@app.command()
def verify(uri: Uri, as_json: AsJson = False) -> None:
    """Read every byte of a run's checkpoints, or of one; exit code 4 if one is corrupt."""
    from orchestrator.runs.checkpoint_address import checkpoints_at
    from orchestrator.runs.checkpoint_reader import CorruptCheckpoint

    checkpoints, only = checkpoints_at(uri)
    names = [only] if only else checkpoints.names()
    problems: dict[str, str] = {}
    with progress_counter("verifying") as progress:
        for done, name in enumerate(names, start=1):
            try:
                checkpoints.load(name)
            except CorruptCheckpoint as error:
                problems[name] = str(error)
            progress(done, len(names))
    if as_json:
        print_json({name: problems.get(name) for name in names})
    else:
        for problem in problems.values():
            print_result(problem)
    if problems:
        raise DataError(
            f"{len(problems)} of {len(names)} checkpoints are corrupt; a resumed run skips them "
            "and takes the newest valid one"
        )
    log_info(f"{len(names)} checkpoints are valid")


@app.command()
def show(uri: Uri, as_json: AsJson = False) -> None:
    """Show what a checkpoint holds; by default the newest of the run."""
    from orchestrator.runs.checkpoint_address import checkpoints_at

    checkpoints, only = checkpoints_at(uri)
    names = [only] if only else checkpoints.names()
    if not names:
        raise DataError(f"there is no complete checkpoint at {mask(uri)}")
    name = names[-1]
    state = checkpoints.load(name)
    tensors = {
        kind: {key: list(value.shape) for key, value in getattr(state, kind).items()}
        for kind in ("networks", "optimizers")
    }
    manifest = checkpoints.manifest(name)
    if as_json:
        print_json({"name": name, "manifest": asdict(manifest), **tensors})
        return
    values = {k: v for k, v in vars(manifest).items() if k != "files" and v is not None}
    facts = {"name": name, **{k: str(v) for k, v in values.items()}}
    for kind, shapes in tensors.items():
        facts[kind] = f"{len(shapes)} tensors, {sum(map(math.prod, shapes.values())):,} values"
    print_result(format_table(list(facts.items())))
    print_next_steps(f"orchestrator checkpoints verify {quote(uri)}")
