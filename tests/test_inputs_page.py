"""docs/inputs.md: each line names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?!input|---)(.+?) \| (.+?) \| (.+?) \|$", re.M)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[str]:
    return [match[0] for match in ROW.finditer((ROOT / "docs/inputs.md").read_text())]


def functions(path: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows())
def test_the_tests_of_a_line_exist(row: str) -> None:
    named = TEST.findall(row.rpartition(" | ")[2])
    assert named, "each line has a test as `tests/path.py::name`"
    for file, name in named:
        assert name in functions(ROOT / file), f"{file} has no {name}"
