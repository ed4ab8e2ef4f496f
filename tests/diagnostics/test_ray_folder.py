"""The folder of a Ray cluster that is started here, with temporary folders as machines have."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.diagnostics.doctor import check_ray_folder
from orchestrator.diagnostics.ray_folder import choose_ray_folder, find_folder_problem
from orchestrator.errors import EnvironmentProblem

LONGEST_SOCKET = "session_2026-11-29_05-52-20_123456_4194304/sockets/plasma_store"
AF_UNIX_LIMIT = 107


@pytest.fixture
def short() -> Iterator[Path]:
    """A short folder in place of /tmp."""
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="s"))
    yield made
    shutil.rmtree(made)


def choose(environ: dict[str, str], fallback: Path) -> Path | None:
    return choose_ray_folder(environ, fallback)


def test_a_long_tmpdir_gives_a_private_short_folder(tmp_path: Path, short: Path) -> None:
    long = tmp_path / ("scratch_of_a_scheduler" * 4)
    long.mkdir()
    chosen = choose({"TMPDIR": str(long)}, short)
    assert chosen is not None
    assert chosen.parent.parent == short
    assert stat.S_IMODE(chosen.parent.stat().st_mode) == 0o700
    assert choose({"TMPDIR": str(long)}, short) == chosen, "the same each time"
    assert len(os.fsencode(chosen / LONGEST_SOCKET)) <= AF_UNIX_LIMIT
    chosen.parent.chmod(0o777)
    other = choose({"TMPDIR": str(long)}, short)
    assert other != chosen, "other users may have written to it"


def test_the_longest_folder_that_is_accepted_leaves_room_for_rays_sockets() -> None:
    for length in range(30, 60):
        folder = "/" + "x" * (length - 1)
        fits = len(f"{folder}/ray/{LONGEST_SOCKET}") <= AF_UNIX_LIMIT
        assert fits or "bytes, and Ray's sockets leave room" in find_folder_problem(folder)
    assert find_folder_problem("/" + "ü" * 20), "bytes count, not characters"


@pytest.mark.parametrize(
    ("folder", "problem"),
    [("", "not an absolute path"), ("tmp", "not an absolute path"), ("/dev/null", "not a folder")],
)
def test_a_tmpdir_that_is_no_folder_is_not_used(folder: str, problem: str, short: Path) -> None:
    assert problem in find_folder_problem(folder)
    chosen = choose({"TMPDIR": folder}, short)
    assert chosen is not None
    assert chosen.is_relative_to(short)


def test_a_tmpdir_that_does_not_exist_is_rays_to_create(short: Path) -> None:
    assert choose({"TMPDIR": f"{short}/new"}, short) is None
    assert not (short / "new").exists()


def test_a_full_disk_is_not_used(small_disk: Path, short: Path) -> None:
    link = short / "d"
    link.symlink_to(small_disk)
    assert "0.3 MB free" in find_folder_problem(str(link))
    chosen = choose({"TMPDIR": str(link)}, short)
    assert chosen is not None
    assert chosen.is_relative_to(short)


def test_a_read_only_disk_is_not_used() -> None:
    assert find_folder_problem("/proc") != ""
    assert find_folder_problem("/sys") != ""


def test_a_bad_ray_tmpdir_is_an_error_that_names_it(short: Path) -> None:
    environ = {"RAY_TMPDIR": "/" + "x" * 80, "TMPDIR": "/tmp"}
    with pytest.raises(
        EnvironmentProblem, match=r"^Ray cannot use RAY_TMPDIR=/xxx.*: its path has 81"
    ):
        choose(environ, short)
    check = check_ray_folder(environ)
    assert check.status == "fail"
    assert check.remedy.startswith("set RAY_TMPDIR to a writable folder with a short path")
    assert check_ray_folder({**environ, "RAY_ADDRESS": "10.0.0.1:6379"}).status == "warn"


def test_no_usable_folder_at_all_is_an_error_that_names_both(short: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"Ray cannot use TMPDIR=/dev/null: .*RAY_TMPDIR"):
        choose({"TMPDIR": "/dev/null"}, Path("/proc"))
    with pytest.raises(EnvironmentProblem, match=r"Ray cannot use /proc: .*set RAY_TMPDIR"):
        choose({}, Path("/proc"))


def test_a_good_tmpdir_is_left_to_ray(short: Path) -> None:
    assert choose({"TMPDIR": str(short)}, Path("/proc")) is None
    assert check_ray_folder({"TMPDIR": str(short)}).found == str(short)
