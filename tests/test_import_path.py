"""The current folder on the import path of this process and of its children."""

import os
import sys
from pathlib import Path

import pytest

from orchestrator.import_path import PACKAGE_ROOT, leave_out_current_folder


@pytest.fixture(autouse=True)
def no_effect_on_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", "")


def test_the_current_folder_is_dropped_by_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(link), "../other"]))
    monkeypatch.setattr(sys, "path", ["", ".", str(folder), str(link), "/elsewhere"])
    leave_out_current_folder()
    assert sys.path == ["/elsewhere"]
    assert os.environ["PYTHONPATH"] == str(tmp_path / "other")
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_the_folder_of_the_package_stays_for_the_children_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(PACKAGE_ROOT)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    leave_out_current_folder()
    assert sys.path == ["", "/elsewhere"]
    assert os.environ["PYTHONPATH"] == PACKAGE_ROOT


def test_a_current_folder_that_was_deleted_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getcwd() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", getcwd)
    before = list(sys.path)
    leave_out_current_folder()
    assert sys.path == before
