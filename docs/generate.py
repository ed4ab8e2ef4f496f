"""Write the files that are generated from the models and their jobs.

    python docs/generate.py            write them (make generate)
    python docs/generate.py --check    list the stale ones; exit code 1 if there are any

They are jobs/schema.json, docs/models/README.md, docs/models/<model>.md and the table of models in
README.md. A page includes what people write about a model: docs/models/results/<model>.md (results
with command, machine and commit; absolute links) and docs/models/pictures/<model>.png.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the project need not be installed

from model_pages import GENERATED, render_page  # noqa: E402
from model_tables import insert_families, render_overview  # noqa: E402

from orchestrator.config.json_schema import job_schema  # noqa: E402
from orchestrator.registry.catalog import build_catalog  # noqa: E402


def main() -> int:
    """Write the generated files, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="list stale files, write nothing")
    check = parser.parse_args().check
    expected = render_all()
    stale = find_stale(expected)
    for path in stale:
        if check:
            sys.stderr.write(f"{path} is stale: run `make generate`\n")
        elif path in expected:
            (ROOT / path).write_text(expected[path])
            sys.stderr.write(f"wrote {path}\n")
        else:
            (ROOT / path).unlink()
            sys.stderr.write(f"removed {path}: there is no such model\n")
    return int(check and bool(stale))


def render_all() -> dict[str, str]:
    """Return the text of every generated file by path, the same in every environment."""
    entries = build_catalog(ROOT / "jobs", environ={})
    return {
        "README.md": insert_families((ROOT / "README.md").read_text(), entries),
        "jobs/schema.json": json.dumps(job_schema(), indent=2) + "\n",
        "docs/models/README.md": render_overview(entries),
        **{f"docs/models/{entry.model}.md": render_page(entry, ROOT) for entry in entries},
    }


def find_stale(expected: Mapping[str, str]) -> list[str]:
    """Return the files that are missing or differ from ``expected``, and pages without a model."""
    stale = [
        path
        for path, text in expected.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]
    pages = sorted((ROOT / "docs/models").glob("*.md"))
    paths = [page.relative_to(ROOT).as_posix() for page in pages if GENERATED in page.read_text()]
    return stale + [path for path in paths if path not in expected]


if __name__ == "__main__":
    sys.exit(main())
