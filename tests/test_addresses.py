"""Addresses of servers as users give them."""

from pathlib import Path

import pytest

from orchestrator.addresses import split_address, storage_uri_problem


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", ("gcs", "127.0.0.1", 6379)),
        ("[::1]:6379", ("gcs", "::1", 6379)),
        ("head", ("gcs", "head", None)),
        ("http://u:p@head:8265/x", ("http", "head", 8265)),
    ],
)
def test_an_address_is_split(address: str, expected: tuple[str, str, int | None]) -> None:
    parts = split_address(address, "gcs")
    assert (parts.scheme, parts.hostname, parts.port) == expected


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://[1", "it has a \\[ without a \\]"),
        ("[1, 2]", "what is in \\[ \\] is not an IP address"),
        ("head:99999", "its port is not between 1 and 65535"),
        ("head:x", "its port is not a number"),
        ("head:0", "its port is 0"),
        ("http://", "it has no host"),
        (":6379", "it has no host"),
        ("http://me%3Asecret%40head:1", "its host has a %"),
        ("http://me:secret@head:x", "its port is not a number"),
        ("http://me:secret@\u210d\u2100", "it is not a URL"),
    ],
)
def test_an_address_that_is_not_valid_says_why(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}") as error:
        split_address(address, "gcs")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/dev/null", "/dev"),
        ("/proc/self/mem", "/proc"),
        ("/sys", "/sys"),
        ("file:///dev/null", "/dev"),
        ("/tmp/../proc/1", "/proc"),
        ("/dev/shm/../null", "/dev"),
    ],
)
def test_a_place_among_the_systems_own_files_is_refused(path: str, folder: str) -> None:
    problem = f"is in {folder}, which holds the system's state and no files; use a folder"
    assert storage_uri_problem(path) == problem


@pytest.mark.parametrize("path", ["/dev/shm/runs", "/device", "/data/proc", "proc", "runs"])
def test_a_place_that_looks_alike_is_none_of_the_systems(path: str) -> None:
    assert storage_uri_problem(path) is None


def test_a_link_to_the_systems_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("/proc")
    assert "is in /proc" in (storage_uri_problem(str(tmp_path / "runs" / "x")) or "")
    assert storage_uri_problem(f"/proc/self/cwd/{Path(__file__).name}") is None
