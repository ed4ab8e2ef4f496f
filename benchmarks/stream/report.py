"""Render medians over the rounds as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.stream.kinds import Kind

OURS, CEILING = "orchestrator", "decoding"
Rounds = Mapping[str, Sequence[Mapping[str, Any]]]
"""Results of all rounds by tool; a failed one has ``error``."""


def table(kind: Kind, count: int, rounds: Rounds) -> str:
    """Render the table of one kind of data, one row per tool."""
    rows = [
        f"**{kind.title}**, {count:,} samples",
        "",
        "| | samples/s | ours / this | first batch, s | CPU s per 1,000 | peak PSS, MiB "
        "| on disk, MiB | samples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tool, results in rounds.items():
        ended = [result for result in results if "error" not in result]
        good = [result for result in ended if not result["sampled"]]
        if not good:
            rows.append(f"| {tool} | failed: {_first_line(results)} | | | | | | |")
            continue
        speeds = [result["samples_per_s"] for result in good]
        peaks = [result["peak_pss_mib"] for result in ended if result["sampled"]]
        cells = [
            f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
            _ratio(rounds.get(OURS, ()), results),
            f"{_median(good, 'first_batch_s'):.2f}",
            f"{_median(good, 'cpu_s_per_1000'):.2f}",
            f"{max(peaks):,.0f}" if peaks and tool != CEILING else "",
            f"{_median(good, 'disk_mib'):,.0f}",
            _samples(results, count),
        ]
        rows.append(f"| {tool} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *_starts(rounds)])


def _median(results: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.median(float(result[name]) for result in results)


def _ratio(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> str:
    """Return the median speed ratio over rounds in which both tools finished."""
    ratios = [
        mine["samples_per_s"] / other["samples_per_s"]
        for mine, other in zip(ours, theirs, strict=False)
        if "error" not in mine and "error" not in other and not mine["sampled"]
    ]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def _samples(results: Sequence[Mapping[str, Any]], count: int) -> str:
    """Describe missing, repeated and unknown samples over all rounds."""
    problems = []
    failed = sum("error" in result for result in results)
    if failed:
        problems.append(f"{failed} of {len(results)} runs failed: {_first_line(results)}")
    good = [result for result in results if "error" not in result]
    for name in ("missing", "repeated", "unknown"):
        numbers = [result[name] for result in good]
        if any(numbers):
            problems.append(f"{name}: {', '.join(map(str, numbers))}")
    if any(result["delivered"] != count for result in good):
        problems.append(f"delivered: {', '.join(str(result['delivered']) for result in good)}")
    return "; ".join(problems) or "all, once"


def _first_line(results: Sequence[Mapping[str, Any]]) -> str:
    return next(str(result["error"]) for result in results if "error" in result)


def _starts(rounds: Rounds) -> list[str]:
    good = [result for result in rounds.get("ray", ()) if "error" not in result]
    if not good:
        return []
    return [f"Starting Ray, not counted above: {_median(good, 'startup_s'):.1f} s.", ""]
