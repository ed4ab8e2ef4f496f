"""The README's commands, run as they stand in a folder that a new user has."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()


def block_after(marker: str) -> list[str]:
    """The commands of the first console block after ``marker``."""
    block = re.search(r"```console\n(.*?)```", README[README.index(marker) :], re.DOTALL)
    assert block is not None
    commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
    return [command.partition("  #")[0].strip() for command in commands]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's jobs, of which the quickstart is cut to a twentieth epoch."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    job = folder / "jobs/quickstart.yaml"
    text, count = re.subn(r"epochs: \d+", "epochs: 0.05", job.read_text())
    assert count == 1
    job.write_text(text)
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VIRTUAL_ENV")}
    environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,  # a busy machine takes minutes for the training
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_by_hand_work_one_after_the_other(folder: Path) -> None:
    commands = block_after("tests/test_readme.py runs this block")
    assert len(commands) >= 8
    said = {}
    for command in commands:
        done = shell(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
        said[" ".join(command.split()[1:3])] = done.stdout + done.stderr
    assert (
        "1,868 samples" in said["plan jobs/quickstart.yaml"]
        or "fetched first" in said["plan jobs/quickstart.yaml"]
    )
    assert "registered pix2pix-quickstart version 1" in said["run jobs/quickstart.yaml"]
    assert "candidate" in said["models ls"]
    drawings = {path.name for path in (folder / "demo/drawings").glob("*.png")}
    coloured = {path.name for path in (folder / "demo/coloured").glob("*.png")} - {"grid.png"}
    assert len(drawings) == 201
    assert coloured == drawings
    assert Image.open(folder / "demo/coloured" / min(coloured)).size == (64, 64)


def test_the_two_commands_are_targets_that_do_what_the_readme_says() -> None:
    assert block_after("## Two commands") == ["make demo", "make test"]
    demo = shell("make -n demo", ROOT).stdout
    assert "jobs/quickstart.yaml" in demo
    lines = shell("make -n test", ROOT).stdout.splitlines()
    # A make within `make test` has lines of its own about folders.
    clusters, rest = [line for line in lines if "-m pytest" in line]
    assert " -m ray " in clusters
    assert ' -m "not ray" ' in rest, "all that the first call leaves out"


def test_every_file_that_the_docs_link_to_exists() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_job_file_can_be_executed_and_says_what_it_is(job: Path) -> None:
    assert os.access(job, os.X_OK)
    first, *rest = job.read_text().splitlines()
    assert first == "#!/usr/bin/env -S orchestrator run"
    assert sum(line.startswith("# ") for line in rest[:14]) >= 4
