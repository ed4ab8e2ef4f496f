"""Print what a scan has found in a folder, and write the whole report."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.output import print_result
from orchestrator.console import log_info
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.data.prepare.folder_scan import FolderScan


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
