"""What limits growth: figures measured here, and what they come to on 8, 256 and 4,096 GPUs.

    python -m benchmarks.scale measure order index     measures, and keeps in figures.json
    python -m benchmarks.scale table                   the tables of docs/scale.md
    python -m benchmarks.scale table --images-per-s 100 --usd-per-1000-gets 0.0005

Needs the dev and stack extras: SeaweedFS, an MLflow server and Ray run for some of the groups.
"""

import argparse
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

from benchmarks.scale.figures import FILE, GROUPS, keep, load, measure
from benchmarks.scale.table import Assumed, markdown, rows, sizes


def number_above_0(text: str) -> float:
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
    measuring.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all by default")
    measuring.add_argument("--figures", type=Path, default=FILE)
    telling = commands.add_parser("table", help="what they come to")
    telling.add_argument("--figures", type=Path, default=FILE)
    for field in fields(Assumed):
        flag = f"--{field.name.replace('_', '-')}"
        kind = str if field.name == "job" else number_above_0
        telling.add_argument(flag, type=kind, default=field.default)
    options = parser.parse_args()
    if options.command == "table":
        if not options.figures.is_file():
            parser.error(f"there are no figures in {options.figures}; see measure")
        figures = load(options.figures)
        jobs = [n.removeprefix("parameters_") for n in figures if n.startswith("parameters_")]
        if options.job not in jobs:
            parser.error(f"there is no job {options.job!r}; there are {', '.join(jobs)}")
        given = {field.name: getattr(options, field.name) for field in fields(Assumed)}
        sys.stdout.write(f"{markdown(rows(figures, Assumed(**given)))}\n{sizes(figures)}")
        return
    if unknown := [group for group in options.groups if group not in GROUPS]:
        parser.error(f"there is no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    for group in options.groups or GROUPS:
        measured = measure(group)
        keep(group, measured, options.figures)
        print(json.dumps({group: measured}, indent=1))


if __name__ == "__main__":
    main()
