"""What `make audit` says, with another program in place of pip-audit."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def recipe(target: str) -> str:
    """The shell commands of a target, without those of `setup`."""
    command = ["make", "--dry-run", "--assume-old=setup", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


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
