"""Ray's token is created for its owner alone, and Ray itself accepts it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.ray_token import protect_token

READ_BY_RAY = """
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import AuthenticationTokenLoader
ensure_token_if_auth_enabled(create_token_if_missing=False)
print(AuthenticationTokenLoader.instance().has_token())
"""


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_token_is_for_its_owner_alone_and_read_by_ray(tmp_path: Path) -> None:
    protect_token({"HOME": str(tmp_path)})
    file = tmp_path / ".ray" / "auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert len(file.read_text()) == 64
    assert list(file.parent.iterdir()) == [file]
    environ = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    answer = subprocess.run(
        [sys.executable, "-c", READ_BY_RAY],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout == "True\n", answer.stderr


@pytest.mark.parametrize("address", [{}, {"RAY_ADDRESS": "head:6379"}])
def test_a_token_that_others_can_read_is_kept_and_hidden(
    tmp_path: Path, address: dict[str, str]
) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("old")
    file.chmod(0o644)
    protect_token({"HOME": str(tmp_path), **address})
    assert (file.read_text(), mode(file)) == ("old", 0o600)


@pytest.mark.parametrize(
    "environ",
    [
        {"RAY_AUTH_TOKEN": "t"},
        {"RAY_AUTH_TOKEN_PATH": "/elsewhere"},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_ADDRESS": "head:6379"},
    ],
)
def test_no_token_is_created_where_none_is_needed(tmp_path: Path, environ: dict[str, str]) -> None:
    protect_token({"HOME": str(tmp_path), **environ})
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_cannot_be_written_is_left_to_ray(tmp_path: Path) -> None:
    protect_token({"HOME": str(tmp_path / "missing")})
    assert not (tmp_path / "missing").exists()
