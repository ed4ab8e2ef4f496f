"""The probe of a storage: each thing that a store can do wrong is reported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.open import open_storage
from orchestrator.storage.probe import probe_storage


def overwrite(storage: Storage) -> Callable[..., bool]:
    def put_if_absent(key: str, data: bytes) -> bool:
        storage.put(key, data)
        return True

    return put_if_absent


@pytest.mark.parametrize(
    ("operation", "replacement", "reported"),
    [
        ("get", lambda inner: lambda key: inner.get(key)[:-1], "returned other bytes than"),
        ("size", lambda inner: lambda key: inner.size(key) + 1, "returned other bytes than"),
        ("get_range", lambda inner: lambda key, *_: inner.get(key), "returned another range"),
        ("list", lambda inner: lambda prefix="": [], "did not list a new object"),
        ("put_if_absent", overwrite, "replaced an object in a write on condition"),
        ("put_if_absent", lambda inner: lambda *a: inner.put_if_absent(*a) and False, "took a new"),
        ("put", lambda inner: lambda *_: None, "did not replace an object"),
        ("delete", lambda inner: lambda key: None, "still had an object that was deleted"),
    ],
)
def test_what_a_store_does_wrong_is_reported(
    operation: str,
    replacement: Callable[[Storage], Callable[..., object]],
    reported: str,
    tmp_path: Path,
) -> None:
    inner = open_storage(str(tmp_path))
    broken = WrappedStorage(inner)
    setattr(broken, operation, replacement(inner))
    assert reported in "; ".join(probe_storage(broken))


def test_a_storage_that_works_is_left_empty(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert probe_storage(storage) == []
    assert storage.list() == []
