"""Paths that start with ~."""

from pathlib import Path

import pytest

from orchestrator.config.paths import to_absolute, to_absolute_tracking_uri
from orchestrator.errors import UsageError
from orchestrator.home_folder import expand_home
from orchestrator.local_stack.folder import StackFolder
from orchestrator.storage.open import open_storage


def test_the_home_folder_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/runs") == Path("/home/me/runs")
    assert expand_home("runs/~x") == Path("runs/~x")
    assert to_absolute("~/runs", Path("/here")) == "/home/me/runs"
    assert to_absolute_tracking_uri("sqlite:///~/m.db", Path("/")) == "sqlite:////home/me/m.db"


def test_a_user_who_does_not_exist_is_a_mistake_of_the_path() -> None:
    path = "~no-such-user/runs"
    for use in (
        expand_home,
        open_storage,
        lambda path: to_absolute(path, Path("/here")),
        lambda path: to_absolute_tracking_uri(f"sqlite:///{path}", Path("/here")),
        lambda path: StackFolder(Path(path)),
    ):
        with pytest.raises(UsageError, match="there is no user no-such-user on "):
            use(path)
