"""Copying sets between storages: content, verification and resuming."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.copy import copy_sets
from orchestrator.errors import DataError
from orchestrator.storage.open import open_storage
from support.tars import write_noise_set


def contents(uri: str) -> dict[str, bytes]:
    storage = open_storage(uri)
    return {key: storage.get(key) for key in storage.list()}


@pytest.fixture
def both(tmp_path: Path) -> str:
    """A training set of several shards and a validation set, with their licence."""
    write_noise_set(tmp_path / "from/train", list(range(20)))
    write_noise_set(tmp_path / "from/validation", [100, 101])
    (tmp_path / "from/LICENSE.txt").write_text("CC")
    return str(tmp_path / "from")


@pytest.mark.server
def test_sets_are_copied_to_a_bucket_and_back(both: str, s3: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = copy_sets(both, f"{s3}/sets/", lambda *at: seen.append(at))
    assert summary.uris == (f"{s3}/sets/train", f"{s3}/sets/validation")
    assert (summary.num_samples, summary.num_kept) == (22, 0)
    assert seen[-1][0] == seen[-1][1] > 0
    assert contents(f"{s3}/sets") == contents(both)
    CliRunner().invoke(
        app.app, ["data", "cp", f"{s3}/sets", str(tmp_path / "back")], catch_exceptions=False
    )
    assert contents(str(tmp_path / "back")) == contents(both)


def test_one_set_is_copied_alone(both: str, tmp_path: Path) -> None:
    copy_sets(f"{both}/train", str(tmp_path / "to"))
    assert contents(str(tmp_path / "to")) == contents(f"{both}/train")
    assert check_set(str(tmp_path / "to")).ok


def test_a_resumed_copy_skips_the_shards_that_exist(both: str, tmp_path: Path) -> None:
    to = tmp_path / "to"

    class Interrupted(BaseException):
        pass

    def progress(done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        copy_sets(f"{both}/train", str(to), progress)
    there = {path: path.stat().st_ino for path in to.glob("*.tar")}
    assert there
    assert not (to / "index.json").exists()
    summary = copy_sets(f"{both}/train", str(to))
    assert summary.num_kept == len(there)
    assert {path: path.stat().st_ino for path in there} == there
    assert contents(str(to)) == contents(f"{both}/train")
    assert copy_sets(f"{both}/train", str(to)).num_kept == summary.num_shards


def test_another_set_is_not_overwritten(both: str, tmp_path: Path) -> None:
    write_noise_set(tmp_path / "to", [7])
    before = contents(str(tmp_path / "to"))
    with pytest.raises(
        DataError, match=r"another packed set at .*to; remove .*to, or choose another destination"
    ):
        copy_sets(f"{both}/train", str(tmp_path / "to"))
    assert contents(str(tmp_path / "to")) == before
    (tmp_path / "to/index.json").unlink()
    with pytest.raises(DataError, match=r"000000\.tar already exists with other content"):
        copy_sets(f"{both}/train", str(tmp_path / "to"))


@pytest.mark.parametrize("name", ["000001.tar", "000001.tar.idx"])
def test_corrupt_files_are_not_copied(both: str, tmp_path: Path, name: str) -> None:
    path = Path(both, "train", name)
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"train/{name} is corrupt: .*`orchestrator data check"):
        copy_sets(both, str(tmp_path / "to"))
    assert not (tmp_path / "to/train/index.json").exists()
    assert not (tmp_path / "to/train" / name).exists()


def test_a_source_without_a_set_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no packed set at"):
        copy_sets(str(tmp_path), str(tmp_path / "to"))
