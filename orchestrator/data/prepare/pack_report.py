"""The report of a scan: a page for the terminal, and pack-report.json with every file."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.prepare.file_facts import FileFacts
from orchestrator.data.prepare.findings import count, human_bytes, printable, wrap
from orchestrator.data.prepare.folder_scan import FolderScan

REPORT_FILE = "pack-report.json"
"""Key of the report beside the packed sets."""
MAX_KINDS = 4
"""Sizes, modes and formats that the page lists."""
_TITLES = {
    "guessed": "guessed (the option in brackets changes it)",
    "changed": "changed",
    "left out": "left out",
    "noted": "to know",
    "refused": "not packable",
}
_COLUMNS = (
    "path", "bytes", "format", "mode", "width", "height", "low", "high", "orientation", "frames",
    "samples", "field", "class", "error",
)  # fmt: skip


def render_report(scan: FolderScan) -> str:
    """Return the report as text of 80 columns."""
    lines = [f"{printable(scan.folder.resolve().name)}: {_sum_up(scan)}"]
    lines += [wrap(f"  {name:<10} {value}", 13) for name, value in _facts(scan) if value]
    for kind, title in _TITLES.items():
        found = [each for each in scan.findings if each.kind == kind]
        texts = [each.refusal() if kind == "refused" else each.line() for each in found]
        lines += ["", title] if texts else []
        for text in texts:
            first, *examples = text.split("\n")
            lines += [wrap(f"  - {first}", 4), *(wrap(f"  {line}", 8) for line in examples)]
    return "\n".join(lines)


def encode_report(scan: FolderScan) -> bytes:
    """Return the whole report as JSON: a line for each file; equal scans give equal bytes."""
    rows = [json.dumps(row) for row in _rows(scan)]
    head = {
        "folder": printable(scan.folder.resolve().name),
        "samples": len(scan.sources),
        "findings": [
            {"kind": f.kind, "text": f.text, "switch": f.advice, "files": list(f.examples)}
            for f in scan.findings
        ],
        "columns": list(_COLUMNS),
    }
    text = json.dumps(head, indent=1)
    return (
        text.removesuffix("\n}") + ',\n "files": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    ).encode()


def _sum_up(scan: FolderScan) -> str:
    total = human_bytes(sum(facts.num_bytes for facts in scan.facts.values()))
    broken = f", {len(scan.broken):,} of them broken" if scan.broken else ""
    return f"{count(len(scan.facts), 'image')}{broken}, {total}"


def _facts(scan: FolderScan) -> Iterator[tuple[str, str]]:
    whole = [facts for facts in scan.facts.values() if not facts.error]
    parts = Counter(source.for_validation for source in scan.sources)
    split = (
        f" ({parts[False]:,} for training, {parts[True]:,} for validation)" if parts[True] else ""
    )
    yield "samples", f"{len(scan.sources):,}{split}, {_describe_fields(scan)}"
    yield "formats", _list_counts(Counter(facts.format for facts in whole))
    yield "modes", _list_counts(Counter(facts.mode for facts in whole))
    yield "values", ", ".join(_value_ranges(whole))
    yield "sizes", _list_counts(Counter(f"{f.width}x{f.height}" for f in whole))
    classes = Counter(source.label for source in scan.sources if source.label is not None)
    yield "classes", _list_counts(Counter({printable(k): v for k, v in classes.items()}))
    captions = sum(source.caption is not None for source in scan.sources)
    yield "captions", f"of {captions:,} samples" if captions else ""


def _value_ranges(whole: list[FileFacts]) -> Iterator[str]:
    """Yield the lowest and the highest value of each kind: 8-bit 0 to 255."""
    extents = [facts.extent for facts in whole if facts.extent]
    for kind in sorted({extent.kind for extent in extents}):
        low = min(extent.low for extent in extents if extent.kind == kind)
        high = max(extent.high for extent in extents if extent.kind == kind)
        yield f"{kind} {low:g} to {high:g}"


def _describe_fields(scan: FolderScan) -> str:
    first = scan.sources[0] if scan.sources else None
    if first is None:
        return "none"
    if first.halves:
        return "pairs of a and b, the halves of each file"
    return "pairs of a and b" if len(first.paths) > 1 else "single images"


def _list_counts(counts: "Counter[str]") -> str:
    """Return the most frequent ones with their numbers: RGB 10, L 2."""
    common = counts.most_common(MAX_KINDS)
    rest = len(counts) - len(common)
    named = [f"{name} {number:,}" for name, number in common]
    return ", ".join([*named, *([f"and {count(rest, 'other')}"] if rest else [])])


def _rows(scan: FolderScan) -> Iterator[tuple[object, ...]]:
    """Yield the columns of each file."""
    used: dict[Path, list[tuple[str, str, str | None]]] = {}
    for source in scan.sources:
        part = {True: "validation/", False: "train/", None: ""}[source.for_validation]
        fields = ("a+b",) if source.halves else ("a", "b")
        fields = fields if source.halves or len(source.paths) > 1 else ("image",)
        for name, file in zip(fields, source.paths, strict=True):
            used.setdefault(file, []).append((part + source.key, name, source.label))
    for path, facts in scan.facts.items():
        samples = used.get(scan.folder / path, [])
        extent = facts.extent
        name, label = samples[0][1:] if samples else ("", None)
        yield (
            printable(path),
            facts.num_bytes,
            facts.format,
            facts.mode,
            facts.width,
            facts.height,
            extent and extent.low,
            extent and extent.high,
            facts.orientation,
            facts.frames,
            [key for key, _, _ in samples],
            name,
            label,
            facts.error,
        )
