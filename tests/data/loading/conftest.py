"""A packed set of single images, and storage that counts requests."""

import pytest

from support.sample_sets import CountingStorage, write_singles


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingStorage]:
    return CountingStorage.install(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_singles(tmp_path_factory.mktemp("set"))
