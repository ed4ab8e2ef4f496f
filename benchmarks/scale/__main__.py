"""Measure the costs that grow with the cluster and extrapolate them to 8, 256 and 4,096 GPUs.

    python -m benchmarks.scale measure order index     measure and save to figures.json
    python -m benchmarks.scale table                   print the tables of docs/scale.md
    python -m benchmarks.scale table --images-per-s 100 --usd-per-1000-gets 0.0005

Needs the dev and stack extras: some groups start SeaweedFS, an MLflow server or Ray.
"""

import argparse
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

from benchmarks.scale.figures import FILE, GROUPS, load_figures, measure, save_figures
from benchmarks.scale.table import (
    Assumptions,
    build_rows,
    render_checkpoint_sizes,
    render_table,
)


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure groups of figures")
    measuring.add_argument("groups", nargs="*", help=f"any of {', '.join(GROUPS)}; default: all")
    measuring.add_argument("--figures", type=Path, default=FILE)
    printing = commands.add_parser("table", help="print the extrapolated table")
    printing.add_argument("--figures", type=Path, default=FILE)
    for field in fields(Assumptions):
        flag = f"--{field.name.replace('_', '-')}"
        kind = str if field.name == "job" else positive_number
        printing.add_argument(flag, type=kind, default=field.default)
    options = parser.parse_args()
    if options.command == "table":
        if not options.figures.is_file():
            parser.error(f"{options.figures} does not exist; run measure first")
        figures = load_figures(options.figures)
        jobs = [n.removeprefix("parameters_") for n in figures if n.startswith("parameters_")]
        if options.job not in jobs:
            parser.error(f"there is no job {options.job!r}; use one of {', '.join(jobs)}")
        given = {field.name: getattr(options, field.name) for field in fields(Assumptions)}
        table = render_table(build_rows(figures, Assumptions(**given)))
        sys.stdout.write(f"{table}\n{render_checkpoint_sizes(figures)}")
        return
    if unknown := [group for group in options.groups if group not in GROUPS]:
        parser.error(f"there is no group {unknown[0]!r}; use any of {', '.join(GROUPS)}")
    for group in options.groups or GROUPS:
        measured = measure(group)
        save_figures(group, measured, options.figures)
        print(json.dumps({group: measured}, indent=1))


if __name__ == "__main__":
    main()
