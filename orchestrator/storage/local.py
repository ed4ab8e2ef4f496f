"""Storage in a folder of this machine, or of a file system that it mounts."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.base import NotFound, Storage, checked_key


class FolderStorage(Storage):
    """Storage in a folder, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.uri = str(self._root)

    def get(self, key: str) -> bytes:
        """All the bytes under ``key``."""
        with self._problems(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``."""
        with self._problems(key), self._path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise self._cut_off(key, start, length, len(data))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` beside its place, flush it to disk and move it there."""
        path = self._path(key)
        with self._problems(key), self._written_aside(path, data) as aside:
            os.replace(aside, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` beside its place and link it there, which only one caller can."""
        path = self._path(key)
        with self._problems(key), self._written_aside(path, data) as aside:
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted; unfinished writes are not among them."""
        top = self._root / prefix.rpartition("/")[0]
        found = (
            Path(folder, name).relative_to(self._root).as_posix()
            for folder, _, names in os.walk(top, onerror=self._refuse_unless_empty)
            for name in names
            if not (name.startswith(".") and name.endswith(".aside"))
        )
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Remove ``key``; the folder around it stays."""
        with contextlib.suppress(NotFound), self._problems(key):
            self._path(key).unlink()

    def size(self, key: str) -> int:
        """Number of bytes under ``key``."""
        path = self._path(key)
        with self._problems(key):
            if path.is_dir():
                raise IsADirectoryError
            return path.stat().st_size

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _refuse_unless_empty(self, error: OSError) -> None:
        """Raise, in os.walk's stead, for a folder that cannot be read: it may be full of keys."""
        below_a_key = isinstance(error, NotADirectoryError) and self._root.is_dir()
        if isinstance(error, FileNotFoundError) or below_a_key:
            return
        raise EnvironmentProblem(
            f"{error.filename or self.uri} cannot be listed: {error.strerror or error}; "
            "check the folder's permissions, and that its disk is mounted"
        ) from error

    @contextlib.contextmanager
    def _written_aside(self, path: Path, data: bytes) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.aside")
        try:
            with aside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield aside
        finally:
            aside.unlink(missing_ok=True)
        _flush_folder(path.parent)

    @contextlib.contextmanager
    def _problems(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self._not_found(key) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.uri}/{key} cannot be used: {error.strerror or error}; "
                "check the folder's permissions and the space on its disk"
            ) from error


def _flush_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut; the file's own fsync does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
