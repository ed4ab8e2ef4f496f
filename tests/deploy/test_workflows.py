"""What the repository shows to outsiders: workflows, templates, hooks, citation and site."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.stack import BIN, ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.y*ml"))
FORMS = sorted(GITHUB.glob("ISSUE_TEMPLATE/*_*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.github-issue-forms": FORMS,
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE/config.yml"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


def check(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", schema, *files],
        capture_output=True,
        text=True,
        check=False,
    )


def name(path: Path) -> str:
    return path.name


def jobs_of(workflow: Path) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    return jobs


def steps_of(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in jobs_of(workflow).values():
        yield from job["steps"]


def make_targets() -> set[str]:
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    return {target for rule in rules for target in rule.split()}


def recipe_of(target: str) -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(rf"^{target}:[^\n=]*\n((?:\t.*\n?)+)", makefile, re.M)
    assert rule is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in rule.group(1).splitlines()]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_schema(schema: str) -> None:
    assert SCHEMAS[schema]
    found = check(schema, *SCHEMAS[schema])
    assert found.returncode == 0, found.stdout


def test_the_schema_finds_a_misspelled_key(tmp_path: Path) -> None:
    bad = tmp_path / "check.yaml"
    bad.write_text((GITHUB / "workflows/check.yaml").read_text().replace("runs-on", "run-on"))
    assert check("vendor.github-workflows", bad).returncode == 1


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_a_workflow_calls_only_what_exists(workflow: Path) -> None:
    commands = "\n".join(step.get("run", "") for step in steps_of(workflow))
    called = set(re.findall(r"\bmake ([a-z-]+)", commands))
    scripts = re.findall(r"\.ci/\w+", commands)
    assert called or scripts
    assert called <= make_targets()
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_actions_are_pinned_to_a_major_version(workflow: Path) -> None:
    actions = [step["uses"] for step in steps_of(workflow) if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", action)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_a_workflow_may_only_read(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    assert not [job for job in jobs_of(workflow).values() if "permissions" in job]


def test_check_lints_and_runs_the_fast_tests_and_nightly_the_whole_suite() -> None:
    runs = {path.stem: [step.get("run") for step in steps_of(path)] for path in WORKFLOWS}
    assert {"make check", "make test-fast", "make docs"} <= set(runs["check"])
    assert any(".ci/run" in (run or "") for run in runs["nightly"])


def test_pre_commit_runs_what_make_check_runs() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    subprocess.run([BIN / "pre-commit", "validate-config", config], check=True)
    (repo,) = yaml.safe_load(config.read_text())["repos"]
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    commands = recipe_of("check")
    assert hooks["structure"]["entry"] in commands
    for hook, command in (("ruff-check", "ruff check"), ("ruff-format", "ruff format")):
        assert command in hooks[hook]["entry"]
        assert any(command in line for line in commands)


def test_the_citation_and_the_security_policy_have_the_version_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]
    minor = project["version"].rpartition(".")[0]
    assert f"| {minor}.x | yes |" in (ROOT / "SECURITY.md").read_text()


def test_the_lock_has_all_dependencies_and_names_no_host() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    names = {re.sub("[._]", "-", re.split(r"[\[<>=~! ]", entry)[0].lower()) for entry in wanted}
    assert names - locked == set()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_a_document_links_only_to_files_that_exist(document: str) -> None:
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", (ROOT / document).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_contributing_names_only_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", text)) <= make_targets()


def test_the_site_names_only_pages_and_modules_that_exist() -> None:
    """`make docs` finds more; this is quick enough to run with all tests."""
    pages = re.findall(r"[\w/-]+\.md\b", (ROOT / "mkdocs.yml").read_text())
    assert [page for page in pages if not (ROOT / "docs" / page).exists()] == []
    texts = [page.read_text() for page in (ROOT / "docs/api").glob("*.md")]
    modules = [module for text in texts for module in re.findall(r"^::: (\S+)", text, re.M)]
    assert len(modules) > 10
    files = {module: ROOT / (module.replace(".", "/") + ".py") for module in modules}
    assert [module for module, file in files.items() if not file.is_file()] == []
