"""A process without a line in /etc/passwd, as in a container that runs under any user id."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import os, sys
import getpass, pathlib, pwd
from orchestrator.account import complete_account
os.setgid(54321); os.setuid(54321)
try:
    pwd.getpwuid(54321)
except KeyError:
    pass
else:
    sys.exit("54321 exists")
complete_account(os.environ)
home = pathlib.Path.home()
home.joinpath("x").touch()
print(getpass.getuser(), home.stat().st_mode & 0o777 == 0o700, home)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_and_a_home_gets_both(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:-2]:  # pytest makes them for its own user
        folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"uid-54321 True {tmp_path}/home-54321\n", done.stderr


def test_an_account_that_the_system_knows_is_left_alone() -> None:
    from orchestrator.account import complete_account

    environ = {"HOME": "/somewhere", "USER": "ann"}
    before = dict(environ)
    complete_account(environ)
    assert environ == before
