"""Folders under /tmp: nobody else's is used, and nobody else may look into ours."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cluster.ray_trainer import scratch_folder
from orchestrator.private_folder import private_folder
from orchestrator.runs.replay import spool_folder

Use = Callable[[], Path]


def scratch() -> Path:
    with scratch_folder("ray-train", "cats") as folder:
        return folder


USES: dict[str, Use] = {"spool": lambda: spool_folder("cats"), "scratch": scratch}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Something that makes folders in the temporary directory, which is ``tmp_path`` here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return USES[request.param]


def test_the_folder_is_made_for_this_user_alone_and_found_again(use: Use, tmp_path: Path) -> None:
    folder = use()
    (private,) = tmp_path.iterdir()
    assert private.name == f"orchestrator-{os.getuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert use() == folder
    assert private in folder.parents


def test_a_folder_that_others_can_write_to_is_not_used(use: Use, tmp_path: Path) -> None:
    planted = tmp_path / f"orchestrator-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    folder = use()
    assert planted not in folder.parents
    assert list(planted.iterdir()) == []
    own = tmp_path / folder.relative_to(tmp_path).parts[0]
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_a_link_to_a_folder_elsewhere_is_not_followed(use: Use, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    link = tmp_path / f"orchestrator-{os.getuid()}"
    link.symlink_to(elsewhere)
    assert link not in use().parents
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_the_folder_of_another_user_is_not_used(use: Use, tmp_path: Path) -> None:
    planted = tmp_path / f"orchestrator-{os.getuid()}"
    planted.mkdir(0o700)
    os.chown(planted, 12345, 12345)
    assert planted not in use().parents
    assert list(planted.iterdir()) == []


def test_a_folder_that_others_could_only_read_is_hidden_and_kept(tmp_path: Path) -> None:
    old = tmp_path / f"orchestrator-{os.getuid()}"
    old.mkdir()
    old.chmod(0o755)
    assert private_folder("orchestrator", tmp_path) == old
    assert stat.S_IMODE(old.stat().st_mode) == 0o700
