"""The storage interface: bytes by key.

Keys are plain relative paths such as ``train/000000.tar``: no empty parts, no ``..``, no slash
at either end, because object stores disagree about all of these.
"""

from abc import ABC, abstractmethod

from orchestrator.errors import DataError, OrchestratorError


class NotFound(OrchestratorError):
    """There is nothing under the key that was asked for."""

    exit_code = 3


class Storage(ABC):
    """Bytes by key. Every method may raise EnvironmentProblem or, for passing faults, TryAgain.

    Safe to share between threads, and to pickle: another process gets the URI and connects
    by itself.
    """

    uri: str
    """Where this is; ``open_storage(uri)`` opens it again in any process on this machine."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """All the bytes under ``key``. Raises NotFound."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``. Raises NotFound; DataError if fewer exist."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key``, whole or not at all, over whatever was there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` if nothing is under ``key``; exactly one of several callers gets True."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove ``key``; nothing happens if it is not there."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Number of bytes under ``key``. Raises NotFound."""

    def exists(self, key: str) -> bool:
        """Whether there is something under ``key``."""
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def forget(self, key: str, start: int, length: int) -> None:  # noqa: B027 - only caches do
        """Drop what a cache holds of these bytes, which were found to be damaged."""

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"{self.uri}/{key} does not exist")

    def _cut_off(self, key: str, start: int, length: int, got: int) -> DataError:
        return DataError(
            f"{self.uri}/{key} ends too early: {length} bytes were expected from byte {start} "
            f"and {got} are there; it was cut or replaced after it had been written"
        )


class WrappedStorage(Storage):
    """Another storage, ``inner``; subclasses change how some of it is done."""

    def __init__(self, inner: Storage) -> None:
        self.uri = inner.uri
        self.inner = inner

    def get(self, key: str) -> bytes:
        """All the bytes under ``key``."""
        return self.inner.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        return self.inner.get_range(key, start, length)

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key``."""
        self.inner.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` if nothing is under ``key``."""
        return self.inner.put_if_absent(key, data)

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """Remove ``key``."""
        self.inner.delete(key)

    def size(self, key: str) -> int:
        """Number of bytes under ``key``."""
        return self.inner.size(key)

    def exists(self, key: str) -> bool:
        """Whether there is something under ``key``."""
        return self.inner.exists(key)

    def forget(self, key: str, start: int, length: int) -> None:
        """Drop what a cache holds of these bytes."""
        self.inner.forget(key, start, length)


def checked_key(key: str) -> str:
    """``key`` itself. Raises ValueError if stores disagree about keys like it."""
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is no plain key such as 'train/000000.tar'")
    return key
