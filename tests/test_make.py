"""Targets of the Makefile about dependencies: the SBOM, and what `make audit` says.

Each runs the recipe as make prints it, with other programs in place of those that need a network.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = "requirements.lock"


def recipe(target: str) -> str:
    """The shell commands of a target, without those of `setup`."""
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=setup", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def locked_packages() -> dict[str, set[str]]:
    """Hashes by NAME==VERSION, from the text of the lock."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / LOCK).read_text().splitlines():
        if match := re.match(r"([^\s=]+==[^\s;]+)", line):
            found[match[1]] = newest = set()
        newest |= set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
    return found


@pytest.mark.slow
def test_the_sbom_lists_each_locked_package_with_its_hashes(tmp_path: Path) -> None:
    for name in (LOCK, "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    script = recipe("sbom").replace(".venv/bin", str(Path(sys.executable).parent))
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "ailed to fetch" in done.stderr or "client error" in done.stderr:
        pytest.skip("no package index answers, from which uv gets cyclonedx-bom")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "dist/sbom.cdx.json").read_text())
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["name"] == "ray-image-orchestrator"
    listed = {}
    for component in made["components"]:
        name, version = component["name"], component["version"]
        assert component["purl"] == f"pkg:pypi/{name}@{version}"
        hashes = [each for place in component["externalReferences"] for each in place["hashes"]]
        assert {each["alg"] for each in hashes} == {"SHA-256"}
        listed[f"{name}=={version}"] = {each["content"] for each in hashes}
    assert len(listed) > 200
    assert listed == locked_packages()


@pytest.mark.parametrize(
    ("answer", "code", "said", "expected"),
    [
        ("No known vulnerabilities found", 0, "No known vulnerabilities found", 0),
        (
            "No known vulnerabilities found\na  Dependency not found on PyPI and could not be "
            "audited: a (1)\nb  Dependency not found on PyPI and could not be audited: b (2)",
            0, "audit: the index has no answer for 2 packages; they were not checked", 0,
        ),
        ("Found 1 known vulnerability in 1 package\na 1 PYSEC-1", 1, "PYSEC-1", 1),
        ("Traceback\nConnectionError", 1, "audit: no answer, so nothing was checked", 0),
    ],
)  # fmt: skip
def test_an_audit_claims_no_more_than_was_checked(
    answer: str, code: int, said: str, expected: int, tmp_path: Path
) -> None:
    program = tmp_path / "uvx"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    program.chmod(0o755)
    script = recipe("audit").replace(".venv/bin", str(tmp_path))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert said in done.stdout
    assert ("No known vulnerabilities" in done.stdout) == (said == answer)
    assert done.returncode == expected
