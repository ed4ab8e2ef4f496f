"""Whose token files are accepted."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import EnvironmentProblem
from orchestrator.serving.access import is_private, read_token

TOKEN = "a-token-of-enough-length"
USER = 10001


@pytest.mark.parametrize(
    ("mode", "owner", "accepted"),
    [
        (0o600, USER, True),
        (0o400, USER, True),
        (0o440, USER, False),
        (0o604, USER, False),
        (0o620, USER, False),
        (0o400, 0, True),
        (0o440, 0, True),
        (0o640, 0, True),
        (0o460, 0, False),
        (0o444, 0, False),
        (0o441, 0, False),
        (0o402, 0, False),
    ],
)
def test_only_the_owner_or_the_group_that_root_chose_may_read_a_token(
    mode: int, owner: int, accepted: bool
) -> None:
    assert is_private(0o100000 | mode, owner) == accepted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_same_file_is_accepted_of_root_and_refused_of_another_user(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o440)
    os.chown(file, 0, USER)
    assert read_token(file) == TOKEN
    os.chown(file, USER, USER)
    with pytest.raises(EnvironmentProblem, match="others may read the token"):
        read_token(file)
