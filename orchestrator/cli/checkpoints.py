"""``orchestrator checkpoints``: what a run has saved, and whether it is whole."""

import json
import math
from typing import Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, progress_counter, table
from orchestrator.console import log_info
from orchestrator.errors import DataError

app = typer.Typer(no_args_is_help=True, help="List, verify and show the checkpoints of a run.")

Uri = Annotated[str, typer.Argument(help="A run's folder, STORAGE/RUN, or one of its checkpoints.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command()
def ls(uri: Uri, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, oldest first."""
    from orchestrator.runs.checkpoints import MANIFEST, QUARANTINED, checkpoints_at

    checkpoints, _ = checkpoints_at(uri)
    rows = []
    for name, files in checkpoints.listed().items():
        state = "committed" if MANIFEST in files else "unfinished"
        about = checkpoints.manifest(name) if MANIFEST in files else {}
        size = sum(entry["bytes"] for entry in about.get("files", {}).values())
        state = "quarantined" if QUARANTINED in files else state
        rows.append(
            {"name": name, "images_seen": about.get("images_seen"), "bytes": size, "state": state}
        )
    if as_json:
        print_result(json.dumps(rows, indent=2))
        return
    print_result(
        table(
            [
                ("name", "images", "bytes", "state"),
                *(
                    (
                        str(row["name"]),
                        f"{row['images_seen'] or 0:,}",
                        f"{row['bytes']:,}",
                        str(row["state"]),
                    )
                    for row in rows
                ),
            ]
        )
    )
    print_next_steps(f"orchestrator checkpoints verify {uri}")


@app.command()
def verify(uri: Uri, as_json: AsJson = False) -> None:
    """Read every byte of a run's checkpoints, or of one; exit code 4 if anything is damaged."""
    from orchestrator.runs.checkpoints import CorruptCheckpoint, checkpoints_at

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
        print_result(json.dumps({name: problems.get(name) for name in names}, indent=2))
    else:
        for problem in problems.values():
            print_result(problem)
    if problems:
        raise DataError(
            f"{len(problems)} of {len(names)} checkpoints are damaged; a run that goes on passes "
            "them over and takes the newest whole one"
        )
    log_info(f"{len(names)} checkpoints are whole")


@app.command()
def show(uri: Uri, as_json: AsJson = False) -> None:
    """Show what a checkpoint holds: by default the newest of the run."""
    from orchestrator.runs.checkpoints import checkpoints_at

    checkpoints, only = checkpoints_at(uri)
    name = only or checkpoints.names()[-1]
    state = checkpoints.load(name)
    tensors = {
        kind: {key: list(value.shape) for key, value in getattr(state, kind).items()}
        for kind in ("networks", "optimizers")
    }
    manifest = checkpoints.manifest(name)
    if as_json:
        print_result(json.dumps({"name": name, "manifest": manifest, **tensors}, indent=2))
        return
    words = {"name": name, **{k: str(v) for k, v in manifest.items() if k != "files"}}
    for kind, shapes in tensors.items():
        words[kind] = f"{len(shapes)} tensors, {sum(map(math.prod, shapes.values())):,} values"
    print_result(table(list(words.items())))
    print_next_steps(f"orchestrator checkpoints verify {uri}")
