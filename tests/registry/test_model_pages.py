"""Generated pages, tables and schema: current, complete, and written for a new model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.models.base import model_module
from orchestrator.registry.catalog import CatalogEntry, build_catalog

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def generate() -> Iterator[ModuleType]:
    """docs/generate.py, which is not part of a package."""
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "docs"))
    yield import_module("generate")
    sys.path[:] = path


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return import_module("model_pages")


@pytest.fixture(scope="module")
def entries() -> dict[str, CatalogEntry]:
    return {entry.model: entry for entry in build_catalog(ROOT / "jobs", environ={})}


def test_the_committed_files_are_current(generate: ModuleType) -> None:
    assert generate.find_stale(generate.render_all()) == [], "run `make generate`"


def test_a_page_has_all_departures_that_the_docstring_lists(
    pages: ModuleType, entries: dict[str, CatalogEntry]
) -> None:
    def plain(text: str) -> str:
        return re.sub(r"[`\\]", "", text)

    for name, entry in entries.items():
        docstring = plain(model_module(name).__doc__)
        listed = docstring[docstring.lower().index("departures") :].partition("\n\n")[0]
        bullets = re.findall(r"^- .+", listed, re.MULTILINE)
        page = plain(pages.render_page(entry, ROOT))
        assert bullets, name
        assert [bullet for bullet in bullets if f"\n{bullet}\n" not in page] == [], name
        assert re.search(r"^## .*[Dd]epartures", page, re.MULTILINE), name


def test_a_page_describes_every_option_and_every_metric(
    pages: ModuleType, entries: dict[str, CatalogEntry]
) -> None:
    for name, entry in entries.items():
        page = pages.render_page(entry, ROOT)
        for option in type(entry.config).model_fields.keys() - {"name"}:
            assert f"\n| `{option}` | " in page, f"{name}: {option}"
        for metric in (*entry.metrics, *(f"validation/{held}" for held in entry.validation)):
            assert f"`{metric}`" in page, f"{name}: {metric}"


def test_a_page_includes_results_and_a_picture(
    pages: ModuleType, entries: dict[str, CatalogEntry], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    assert "## Results" not in pages.render_page(entries["vae"], tmp_path)
    for file, text in (("results/vae.md", "86.76 nats | a_b <c>\n"), ("pictures/vae.png", "")):
        path = tmp_path / "docs/models" / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
    page = pages.render_page(entries["vae"], tmp_path)
    assert "\n## Results\n\n86.76 nats | a_b <c>\n\n## " in page
    assert "](pictures/vae.png)" in page


def test_text_is_escaped_for_markdown() -> None:
    text = import_module("markdown_text")
    assert text.escape("``a_b`` times |x| < 2 * 3") == r"`a_b` times |x| \< 2 \* 3"
    rendered = text.table(("a", "b"), [("|x|", "y\nz")])
    assert rendered == "| a | b |\n| --- | --- |\n| \\|x\\| | y z |"
    values = [None, True, 2.0, 1.000004, 1e-6, (400, 20), "relu"]
    shown = ["null", "true", "2", "1.000004", "1e-06", "[400, 20]", "relu"]
    assert [text.format_value(value) for value in values] == shown


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the generator reads and writes."""
    ignore = shutil.ignore_patterns("__pycache__", "*.png")
    for folder in ("orchestrator", "models", "jobs", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignore)
    pictures = tmp_path / "docs/models/pictures"
    for picture in (ROOT / "docs/models/pictures").iterdir():
        (pictures / picture.name).touch()
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def run(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "docs/generate.py", *options],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_new_model_needs_only_its_module_and_its_job(repository: Path) -> None:
    module, job = repository / "models/tmpmodel.py", repository / "jobs/tmpmodel.yaml"
    vae = (repository / "models/vae.py").read_text()
    module.write_text(re.sub(r'^"""VAE: .*', '"""Tmp model: a copy of the VAE.', vae))
    job.write_text(
        (repository / "jobs/vae.yaml").read_text().replace("name: vae", "name: tmpmodel")
    )
    written = ["README.md", "docs/models/README.md", "docs/models/tmpmodel.md", "jobs/schema.json"]

    checked = run(repository, "--check")
    assert checked.returncode == 1, checked.stderr
    assert sorted(checked.stderr.splitlines()) == [
        f"{path} is stale: run `make generate`" for path in written
    ]
    made = run(repository)
    assert made.returncode == 0, made.stderr
    assert sorted(made.stderr.splitlines()) == [f"wrote {path}" for path in written]
    assert "tmpmodel" in json.loads((repository / "jobs/schema.json").read_text())["$defs"]
    assert "[Tmp model](docs/models/tmpmodel.md)" in (repository / "README.md").read_text()
    assert "\n| [tmpmodel](tmpmodel.md) | " in (repository / "docs/models/README.md").read_text()
    page = (repository / "docs/models/tmpmodel.md").read_text()
    assert "A copy of the VAE." in page
    assert "orchestrator run jobs/tmpmodel.yaml" in page

    module.unlink()
    job.unlink()
    removed = run(repository)
    assert "removed docs/models/tmpmodel.md: there is no such model\n" in removed.stderr
    assert (repository / "README.md").read_text() == (ROOT / "README.md").read_text()
