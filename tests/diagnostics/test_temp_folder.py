"""The folder of Ray's sockets: the default one where it works, else a short private one."""

import os
from pathlib import Path

import pytest

from orchestrator.diagnostics.doctor import check_temp_folder
from orchestrator.diagnostics.temp_folder import default_folder, private_folder
from orchestrator.errors import EnvironmentProblem
from orchestrator.private_folder import MAX_RAY_FOLDER_BYTES

LONGEST_SOCKET = "/session_2026-11-29_04-00-00_123456_1234567/sockets/plasma_store"
"""What Ray 2.60 appends to its folder, with the longest process id."""


def test_sockets_in_the_longest_folder_have_a_valid_path() -> None:
    assert MAX_RAY_FOLDER_BYTES + len(LONGEST_SOCKET) <= 107


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/tmp/ray"),
        ({"TMPDIR": "/scratch"}, "/scratch/ray"),
        ({"TMPDIR": "/scratch", "RAY_TMPDIR": "/r"}, "/r/ray"),
    ],
)
def test_ray_keeps_its_files_where_its_variables_say(
    environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_folder(environ) == Path(expected)
    from ray._common.utils import get_default_ray_temp_dir

    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert get_default_ray_temp_dir() == expected


def test_a_short_writable_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with private_folder() as folder:
        assert folder is None
    assert check_temp_folder(os.environ).status == "ok"


@pytest.mark.parametrize("name", ["a_long_name_of_a_batch_system_and_its_job_number", "missing/x"])
def test_a_long_or_missing_tmpdir_gets_a_private_folder_that_is_removed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    if "missing" not in name:
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with private_folder() as private:
        assert private is not None
        assert len(private) + len("/ray") <= MAX_RAY_FOLDER_BYTES
        assert Path(private).stat().st_mode & 0o077 == 0
    assert not Path(private).exists()
    check = check_temp_folder(os.environ)
    assert (check.status, "RAY_TMPDIR" in check.remedy) == ("warn", True)


def test_a_folder_ray_of_another_user_does_not_keep_the_private_one_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").symlink_to("/proc")  # where not even root can write
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("orchestrator.diagnostics.temp_folder.MAX_RAY_FOLDER_BYTES", 200)
    monkeypatch.setattr("orchestrator.diagnostics.temp_folder.SHORT_PARENTS", (str(tmp_path),))
    with private_folder() as private:
        assert private is not None
        assert Path(private).parent == tmp_path


def test_a_full_tmpdir_is_refused(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "file").write_bytes(bytes(size))
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    monkeypatch.setattr("orchestrator.diagnostics.temp_folder.MAX_RAY_FOLDER_BYTES", 200)
    refused = pytest.raises(EnvironmentProblem, match="No space left on device; free up space")
    with refused, private_folder():
        pass
    assert check_temp_folder(os.environ).status == "fail"


def test_without_any_writable_folder_the_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    monkeypatch.setattr("orchestrator.diagnostics.temp_folder.SHORT_PARENTS", ("/proc",))
    with pytest.raises(EnvironmentProblem, match="set RAY_TMPDIR"), private_folder():
        pass
