"""Storage interface: bytes by key.

Keys are relative paths such as ``train/000000.tar``, without empty parts, ``..`` or a slash at
either end, because object stores treat those differently.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from orchestrator.errors import DataError, EnvironmentProblem, OrchestratorError
from orchestrator.record_reader import MAX_RECORD_BYTES, DamagedRecord
from orchestrator.redaction import mask


class NotFound(OrchestratorError):
    """The key does not exist."""

    exit_code = 3


class StorageOutage(EnvironmentProblem):
    """A storage that was there is gone for now, such as a file system that was unmounted."""

    retry = True


class Storage(ABC):
    """Bytes by key. Every method may raise EnvironmentProblem, or TryAgain for transient errors.

    Safe to share between threads and to pickle: only the URI is pickled, and the other process
    opens its own connection.
    """

    uri: str
    """Location; ``open_storage(uri)`` opens it again in any process on this machine."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``. Raises NotFound."""

    def get_record(self, key: str) -> bytes:
        """Return all bytes of a small file. Raises NotFound, or DamagedRecord if it is large."""
        if (size := self.size(key)) > MAX_RECORD_BYTES:
            where, problem = f"{mask(self.uri)}/{key}", f"{size:,} bytes are too many for a record"
            raise DamagedRecord(where, problem, "restore it from a backup, or remove it")
        return self.get(key)

    def get_valid(self, key: str, is_valid: Callable[[bytes], bool]) -> bytes | None:
        """Return all bytes of ``key``; None if they are not valid, read twice. Raises NotFound.

        They may have been corrupted on the way.
        """
        for _ in range(2):
            data = self.get(key)
            if is_valid(data):
                return data
            self.invalidate(key, 0, len(data))
        return None

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes. Raises NotFound, or DataError if it has fewer."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` to ``key`` atomically, replacing what was there."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` unless ``key`` exists; exactly one of several callers gets True."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete ``key``; do nothing if it does not exist."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``. Raises NotFound."""

    def exists(self, key: str) -> bool:
        """Return whether ``key`` exists."""
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def settings(self) -> tuple[str, ...]:
        """Return settings in use and features that the store was found to lack, for a report."""
        return ()

    def invalidate(self, key: str, start: int, length: int) -> None:  # noqa: B027 - for caches
        """Remove these bytes, which turned out to be corrupt, from a cache."""

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"{self.uri}/{key} does not exist")

    def _truncated(self, key: str, start: int, length: int, got: int) -> DataError:
        return DataError(
            f"{self.uri}/{key} is truncated: expected {length} bytes from byte {start}, got {got}; "
            "it was cut or replaced after it was written"
        )


class WrappedStorage(Storage):
    """Storage that delegates to ``inner``; subclasses override some methods."""

    def __init__(self, inner: Storage) -> None:
        self.uri = inner.uri
        self.inner = inner

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``."""
        return self.inner.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``."""
        return self.inner.get_range(key, start, length)

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` to ``key``."""
        self.inner.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` unless ``key`` exists."""
        return self.inner.put_if_absent(key, data)

    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """Delete ``key``."""
        self.inner.delete(key)

    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``."""
        return self.inner.size(key)

    def invalidate(self, key: str, start: int, length: int) -> None:
        """Remove these bytes from a cache."""
        self.inner.invalidate(key, start, length)


def validate_key(key: str) -> str:
    """Return ``key``. Raises ValueError if it is not a plain relative path."""
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{key!r} is not a valid key; use a relative path such as 'train/000000.tar'"
        )
    return key
