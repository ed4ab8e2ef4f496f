"""The distribution has a name of its own, and every printed install line works from a clone."""

import os
import re
import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path

import pytest

from orchestrator.distribution import DISTRIBUTION, install_command
from orchestrator.errors import UsageError
from orchestrator.kubernetes.options import ManifestOptions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "Makefile")),
    *(path for folder in ("docs", "deploy", "jobs") for path in (ROOT / folder).rglob("*")),
    *(ROOT / "orchestrator").rglob("*.py"),
]
LINE = re.compile(r"pip install[^\n`\"]*?(?:orchestrator|\.)\[[^\n`\"]*|orchestrator\[\w+\]")


def install_lines() -> list[tuple[str, str]]:
    """Every line, with its file, that tells a person to install this package or its extras."""
    found = []
    for path in TEXTS:
        if path.is_file() and path.suffix not in (".png", ".svg"):
            text = path.read_text(errors="replace")
            found += [(path.name, match.strip()) for match in LINE.findall(text)]
    return found


def test_every_install_line_is_of_the_form_that_works_from_a_clone() -> None:
    lines = install_lines()
    assert len(lines) >= 2
    extras = [*PROJECT["optional-dependencies"], "{extra}"]
    allowed = {f"pip install -e '.[{extra}]'" for extra in extras}
    assert [(name, line) for name, line in lines if line not in allowed] == []


def test_the_command_of_an_extra_names_one_that_exists() -> None:
    calls = [
        extra
        for path in (ROOT / "orchestrator").rglob("*.py")
        for extra in re.findall(r"install_command\(['\"](\w+)['\"]\)", path.read_text())
    ]
    assert sorted(set(calls)) == ["cloud", "data", "evaluation", "export", "hub", "lmdb", "stack"]
    assert set(calls) <= set(PROJECT["optional-dependencies"])
    assert install_command("stack") == "pip install -e '.[stack]'"


def test_the_metadata_that_pip_builds_has_our_name_and_the_extras(tmp_path: Path) -> None:
    code = (
        "import sys, hatchling.build as build\n"
        "print(build.prepare_metadata_for_build_editable(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = tmp_path / done.stdout.split()[-1]
    built = Parser().parsestr((folder / "METADATA").read_text())
    assert built["Name"] == DISTRIBUTION != "orchestrator"
    assert set(built.get_all("Provides-Extra", ())) >= {"data", "stack"}
    assert PROJECT["scripts"] == {"orchestrator": "orchestrator.__main__:main"}
    shown = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--version"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == f"orchestrator {PROJECT['version']}\n"


def test_a_manifest_without_a_known_version_asks_for_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.kubernetes.options.installed_version", lambda: None)
    assert ManifestOptions(image="mine:1").image_name == "mine:1"
    with pytest.raises(UsageError, match="give --image"):
        _ = ManifestOptions().image_name
