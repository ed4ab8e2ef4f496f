"""The recipes in jobs/recipes: each says how to run it, and each has its page and its data."""

import re
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.config.load import load_job
from orchestrator.models.base import build_model
from support.commands import all_commands

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "jobs/recipes").glob("*.yaml"))
PAGE = (ROOT / "docs/recipes.md").read_text()


def header(path: Path) -> str:
    """The comment at the top of a job file, without its first two lines."""
    lines = path.read_text().splitlines()
    end = next(n for n, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[2:end])


def commands_in(text: str) -> list[list[str]]:
    """The commands that are indented or follow a prompt, as words."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?:  |\$ )(orchestrator .*)$", joined, re.MULTILINE)
    return [shlex.split(each, comments=True) for each in found]


def parse(words: list[str]) -> dict[str, Any]:
    """Parse a command without running it. Raises click's errors for what it does not know."""
    known = all_commands()
    path = max((p for p in known if tuple(words[1 : 1 + len(p)]) == p), key=len)
    context = known[path].make_context(" ".join(path), words[1 + len(path) :])
    parameters: dict[str, Any] = context.params
    return parameters


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_its_command_its_data_its_time_and_what_to_expect(path: Path) -> None:
    text = header(path)
    job = load_job(path, environ={}).job
    assert job.name == path.stem
    assert job.register_as is not None
    assert job.register_as.name == path.stem
    first = commands_in(text)[0]
    assert first == ["orchestrator", "run", f"jobs/recipes/{path.stem}.yaml"]
    assert "Data: " in text
    assert re.search(r"Took \d+ (minutes|seconds)", text)
    assert "Expect" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_recipe_can_be_given(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands_in(header(path)):
        parameters = parse(words)
        if words[1] == "run":
            assert parameters["job"] == path.relative_to(ROOT)
            assert len(parameters["overrides"] or ()) == words.count("--set")
            load_job(path, parameters["overrides"] or (), environ={})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_its_model_and_its_picture_on_the_page(path: Path) -> None:
    build_model(load_job(path, environ={}).job.model)
    assert f"(../jobs/recipes/{path.name})" in PAGE
    picture = re.search(rf"!\[[^\]]+\]\((assets/recipes/{path.stem}\.png)\)", PAGE)
    assert picture is not None
    with Image.open(ROOT / "docs" / picture[1]) as image:
        assert image.width >= 4 * 64


def test_jobs_that_share_a_folder_for_their_data_want_the_same_data() -> None:
    wanted = defaultdict(set)
    for path in (ROOT / "jobs").rglob("*.yaml"):
        data = load_job(path, environ={}).job.data
        if data.source is not None:
            wanted[str(data.train)].add(data.source.model_dump_json())
    assert {folder: each for folder, each in wanted.items() if len(each) > 1} == {}
