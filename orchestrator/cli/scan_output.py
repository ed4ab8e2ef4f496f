"""Scan images, print what packing would do to them, and pack them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.output import print_next_steps, print_result, progress_counter, quote
from orchestrator.console import log_info
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.prepare.folder_scan import FolderScan
    from orchestrator.data.prepare.parallel import ParallelMap
    from orchestrator.data.prepare.split import PackSummary


def scan_and_pack(
    scan: "Callable[..., FolderScan]",
    dest: str,
    *,
    jpeg: int | None,
    shard_bytes: int,
    workers: int | None,
    dry_run: bool,
    report: Path,
) -> None:
    """Scan, print the findings, and pack unless ``dry_run``.

    Args:
        scan: called with workers, parallel_map and progress.
        report: file for the whole report of a dry run, or if packing is refused.

    Raises:
        DataError: packing is refused.
    """
    from orchestrator.data.format.write_once import refuse_existing
    from orchestrator.data.prepare.pack import pack_scanned

    if not dry_run:  # before every file is read, which may take long
        refuse_existing(f"{dest.rstrip('/')}/train")
    parallel_map = parallel_map_here()
    with progress_counter("reading") as progress:
        found = scan(workers=workers, parallel_map=parallel_map, progress=progress)
    if dry_run:
        print_dry_run(found, dest, report)
        return
    print_scan(found, report)
    with progress_counter("packing") as progress:
        summary = pack_scanned(
            found,
            dest,
            jpeg=jpeg,
            workers=workers,
            parallel_map=parallel_map,
            shard_bytes=shard_bytes,
            progress=progress,
        )
    log_info(f"what became of every image: {dest.rstrip('/')}/pack-report.json")
    print_summary(summary)


def parallel_map_here() -> "ParallelMap":
    """Return the map over the Ray cluster of RAY_ADDRESS, or over the cores of this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from orchestrator.cluster.ray_map import map_on_ray

        return map_on_ray
    from orchestrator.data.prepare.parallel import map_in_processes

    return map_in_processes


def print_summary(summary: "PackSummary") -> None:
    """Print what was packed, and what to do next."""
    log_info(f"{summary.train_uri}: {summary.num_train:,} training samples")
    log_info(f"{summary.validation_uri}: {summary.num_validation:,} validation samples")
    uri = summary.train_uri
    print_next_steps(f"orchestrator data ls {quote(uri)}", f"orchestrator data check {quote(uri)}")


def print_dry_run(scan: "FolderScan", dest: str, path: Path) -> None:
    """Print the report of a scan. Raises DataError if packing would refuse."""
    from orchestrator.data.format.write_once import refuse_existing
    from orchestrator.data.prepare.pack_report import render_report

    print_result(render_report(scan))
    _write_report(scan, path)
    if scan.refusals:
        raise DataError(f"{scan.where} cannot be packed like this; see the report above")
    refuse_existing(f"{dest.rstrip('/')}/train")


def print_scan(scan: "FolderScan", path: Path) -> None:
    """Print what packing guesses, changes or leaves out; keep the whole report if it refuses."""
    for finding in scan.findings:
        if finding.kind != "refused":
            log_info(f"{finding.kind}: {finding.line()}")
    if scan.refusals:
        _write_report(scan, path)
    scan.require_packable()


def _write_report(scan: "FolderScan", path: Path) -> None:
    from orchestrator.data.prepare.pack_report import encode_report

    try:
        path.write_bytes(encode_report(scan))
    except OSError as error:  # the report above says enough
        log_info(f"--report: {path} cannot be written ({error.strerror}); give another path")
    else:
        log_info(f"every file: {path}")
