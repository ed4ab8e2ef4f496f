"""Storage in a local or mounted folder."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.home_folder import expand_home
from orchestrator.storage.base import NotFound, Storage, validate_key


class FolderStorage(Storage):
    """Storage in a folder, which the first write creates."""

    def __init__(self, root: Path) -> None:
        self._root = expand_home(root).absolute()
        self.uri = str(self._root)

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``."""
        with self._translated_errors(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``."""
        with self._translated_errors(key), self._path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise self._truncated(key, start, length, len(data))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` to a temporary file, flush it to disk and rename it."""
        path = self._path(key)
        with self._translated_errors(key), self._temporary_file(path, data) as temporary:
            os.replace(temporary, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` to a temporary file and link it, which only one caller can do."""
        path = self._path(key)
        with self._translated_errors(key), self._temporary_file(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted, without unfinished writes."""
        top = self._root / prefix.rpartition("/")[0]
        found = (
            Path(folder, name).relative_to(self._root).as_posix()
            for folder, _, names in os.walk(top, onerror=self._raise_unless_missing)
            for name in names
            if not (name.startswith(".") and name.endswith(".aside"))
        )
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Delete ``key``; its folder stays."""
        with contextlib.suppress(NotFound), self._translated_errors(key):
            self._path(key).unlink()

    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``."""
        path = self._path(key)
        with self._translated_errors(key):
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def _path(self, key: str) -> Path:
        return self._root / validate_key(key)

    def _raise_unless_missing(self, error: OSError) -> None:
        """Raise for a folder that os.walk could not read and would skip: it may hold keys."""
        below_a_key = isinstance(error, NotADirectoryError) and self._root.is_dir()
        if isinstance(error, FileNotFoundError) or below_a_key:
            return
        raise EnvironmentProblem(
            f"{error.filename or self.uri} cannot be listed: {error.strerror or error}; "
            "check the folder's permissions, and that its disk is mounted"
        ) from error

    @contextlib.contextmanager
    def _temporary_file(self, path: Path, data: bytes) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.aside")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_folder(path.parent)

    @contextlib.contextmanager
    def _translated_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self._not_found(key) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.uri}/{key} cannot be used: {error.strerror or error}; "
                "check the folder's permissions and the free space on its disk"
            ) from error


def _fsync_folder(folder: Path) -> None:
    """Make a new entry in ``folder`` survive a power cut; fsync of the file does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
