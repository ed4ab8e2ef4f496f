"""Downloads are verified and cached, and their failures are explained."""

import hashlib
from pathlib import Path

import pytest

from orchestrator.errors import DataError, EnvironmentProblem
from orchestrator.package_download import Download, cache_folder

CONTENT = b"some data"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "orchestrator"


def download(script: str, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Download:
    return Download("data.bin", sha256, ("sh", "-c", script), advice="do this")


def test_a_file_is_downloaded_once_and_cached(cache: Path, tmp_path: Path) -> None:
    counted = download(f"echo x >> {tmp_path}/log; printf 'some data' > whatever.name")
    assert [counted.get().read_bytes() for _ in range(3)] == [CONTENT] * 3
    assert (tmp_path / "log").read_text() == "x\n"
    assert [path.name for path in cache.iterdir()] == ["data.bin"]


def test_a_file_put_into_the_cache_by_hand_is_used(cache: Path) -> None:
    cache.mkdir()
    (cache / "data.bin").write_bytes(CONTENT)
    assert download("exit 1").get() == cache / "data.bin" == cache_folder() / "data.bin"


def test_a_file_other_than_the_pinned_one_is_refused_and_not_cached(cache: Path) -> None:
    with pytest.raises(DataError, match=r"not the expected .* the registry serves another file"):
        download("printf 'other data' > x").get()
    assert list(cache.iterdir()) == []


def test_a_corrupt_file_in_the_cache_is_named(cache: Path) -> None:
    cache.mkdir()
    (cache / "data.bin").write_bytes(b"some dat")
    with pytest.raises(DataError, match=f"remove {cache}/data.bin to fetch it again"):
        download("exit 1").get()


def test_a_failed_download_gives_the_reason_and_the_advice(cache: Path) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        download("echo no network >&2; exit 1").get()
    assert str(caught.value).endswith(
        f"failed (no network); do this; or put data.bin at {cache}/data.bin"
    )


def test_a_missing_client_is_named() -> None:
    missing = Download("x", "0" * 64, ("no-such-client",), advice="install it")
    with pytest.raises(EnvironmentProblem, match="no-such-client is not installed; install it"):
        missing.get()


def test_a_command_that_writes_nothing_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="wrote no file; do this"):
        download("true").get()
