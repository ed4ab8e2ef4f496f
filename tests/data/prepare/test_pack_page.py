"""docs/data.md shows what packing really prints."""

import re
from pathlib import Path

from orchestrator.data.prepare.folder_scan import scan_folder
from orchestrator.data.prepare.pack_report import render_report
from support.awkward_folder import write_awkward_folder

PAGE = Path(__file__).parents[3] / "docs/data.md"


def test_the_dry_run_of_the_page_is_the_real_one(tmp_path: Path) -> None:
    shown = re.search(r"```text\n\$ orchestrator data pack .*?\n(.*?)```", PAGE.read_text(), re.S)
    assert shown is not None
    found = scan_folder(write_awkward_folder(tmp_path / "pets"), size=64)
    # The first line has the number of bytes, which depends on the versions of the encoders.
    assert render_report(found).splitlines()[1:] == shown[1].splitlines()[1:]
