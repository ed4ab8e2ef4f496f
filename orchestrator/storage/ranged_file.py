"""A key of a storage as a read-only Python file, for libraries that take one."""

import io

from orchestrator.storage.base import Storage


class RangedFile(io.RawIOBase):
    """Reads ranges of a key. Raises NotFound if it does not exist, and what ``Storage`` raises."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._size = storage.size(key)
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; it may be beyond the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to ``size`` bytes with one ranged request; by default all that remain."""
        remaining = max(0, self._size - self._position)
        length = remaining if size is None or size < 0 else min(size, remaining)
        data = self._storage.get_range(self._key, self._position, length) if length else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read all bytes that remain."""
        return self.read()

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill ``buffer`` as far as there are bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
