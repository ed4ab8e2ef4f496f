"""Storage in a local or mounted folder."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import EnvironmentProblem
from orchestrator.home_folder import expand_home
from orchestrator.storage.base import NotFound, Storage, StorageOutage, validate_key

LEFTOVER_S = 600.0
"""An unfinished write this old is of a process that was killed."""
ATTEMPTS = 3
_OUTAGES = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EIO)
"""Errors of a network file system whose server is gone; it may come back."""


class FolderStorage(Storage):
    """Storage in a folder, which the first write creates.

    Once something was found or written there, the folder is not created again: a folder that is
    gone, or is empty, is a file system that was unmounted. All methods raise StorageOutage then,
    also in processes to which this object was pickled.
    """

    def __init__(self, root: Path) -> None:
        self._root = expand_home(root).absolute()
        self.uri = str(self._root)
        self._known: str | None = None
        """A folder that must be there: one below the root, or "" for the root; None at first."""
        self._has_files = False
        """Whether the root itself must have files."""

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``."""
        with self._translated_errors(key):
            data = self._path(key).read_bytes()
        self._remember(key)
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``."""
        with self._translated_errors(key), self._path(key).open("rb") as file:
            file.seek(start)
            data = file.read(length)
        self._remember(key)
        if len(data) != length:
            raise self._truncated(key, start, length, len(data))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` to a temporary file, flush it to disk and rename it."""
        path = self._path(key)
        with self._translated_write_errors(key), self._temporary_file(path, data) as temporary:
            is_new = not path.exists()
            os.replace(temporary, path)
            if not is_new:
                _remove_leftovers(path.parent, f"{path.name}.")
        self._remember(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` to a temporary file and link it, which only one caller can do."""
        path, is_new = self._path(key), True
        with self._translated_write_errors(key), self._temporary_file(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                is_new = False
        self._remember(key)
        return is_new

    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted, without unfinished writes."""
        top = self._root / prefix.rpartition("/")[0]
        found = (
            Path(folder, name).relative_to(self._root).as_posix()
            for folder, _, names in os.walk(top, onerror=self._raise_unless_missing)
            for name in names
            if not _is_aside(name)
        )
        keys = sorted(key for key in found if key.startswith(prefix))
        if keys:  # the root is there; whose keys they are, and for how long, is unknown
            self._known = self._known or ""
        else:
            self._check_there()
        return keys

    def delete(self, key: str) -> None:
        """Delete ``key``, and its folder if that is empty now and not at the top."""
        path = self._path(key)
        try:
            with self._translated_errors(key):
                path.unlink()
        except NotFound:
            return
        self._has_files = False  # it may have been the last one
        if self._root in path.parents[2:]:
            _remove_leftovers(path.parent)
            with contextlib.suppress(OSError):  # it is not empty, or someone was faster
                path.parent.rmdir()

    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``."""
        path = self._path(key)
        with self._translated_errors(key):
            if path.is_dir():
                raise IsADirectoryError
            size = path.stat().st_size
        self._remember(key)
        return size

    def _path(self, key: str) -> Path:
        return self._root / validate_key(key)

    def _remember(self, key: str) -> None:
        """Note that ``key`` is there."""
        folder, is_below, _ = key.partition("/")
        if is_below:
            self._known = self._known or folder
        else:
            self._known, self._has_files = self._known or "", True

    def _check_there(self) -> None:
        """Raise StorageOutage if the folder is gone, or an empty one is in its place."""
        if self._known is None:
            return
        with contextlib.suppress(OSError), os.scandir(self._root) as entries:
            is_filled = any(entries) or not self._has_files
            if is_filled and os.path.isdir(self._root / self._known):
                return
        raise StorageOutage(
            f"{self.uri} was there and is gone, or is empty now; mount its file system again, or "
            "restore the folder"
        )

    def _raise_unless_missing(self, error: OSError) -> None:
        """Raise for a folder that os.walk could not read and would skip: it may hold keys."""
        below_a_key = isinstance(error, NotADirectoryError) and self._root.is_dir()
        if isinstance(error, FileNotFoundError) or below_a_key:
            return
        raise _problem(
            f"{error.filename or self.uri} cannot be listed: {error.strerror or error}; "
            "check the folder's permissions, and that its disk is mounted",
            error,
        ) from error

    @contextlib.contextmanager
    def _temporary_file(self, path: Path, data: bytes) -> Iterator[Path]:
        self._check_there()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.aside")
        try:
            with _create(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        try:
            _fsync_folder(path.parent)
        except FileNotFoundError:  # someone has deleted the key already, and its folder
            self._check_there()

    @contextlib.contextmanager
    def _translated_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            self._check_there()
            raise self._not_found(key) from error
        except OSError as error:
            raise self._unusable(key, error) from error

    @contextlib.contextmanager
    def _translated_write_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            path = self._path(key)
            places = [path.parent, *path.parents] if not path.is_dir() else [path]
            in_the_way = next((place for place in places if place.is_file()), path)
            if not in_the_way.exists():
                raise self._unusable(key, error) from error
            raise EnvironmentProblem(
                f"{self.uri}/{key} cannot be written: {in_the_way} is a "
                f"{'folder' if in_the_way.is_dir() else 'file'}; move it away, or use another "
                "folder"
            ) from error
        except FileNotFoundError as error:  # a folder was removed meanwhile
            self._check_there()
            raise self._unusable(key, error) from error
        except OSError as error:
            raise self._unusable(key, error) from error

    def _unusable(self, key: str, error: OSError) -> EnvironmentProblem:
        return _problem(
            f"{self.uri}/{key} cannot be used: {error.strerror or error}; "
            "check the folder's permissions and the free space on its disk",
            error,
        )


def _is_aside(name: str) -> bool:
    """Whether a file of this name is an unfinished write."""
    return name.startswith(".") and name.endswith(".aside")


def _create(path: Path) -> BinaryIO:
    """Create a file; its folder may be deleted by another process as soon as it is made."""
    for _ in range(ATTEMPTS):
        # mkdir says FileExistsError too where the folder goes before it has looked what it is.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    return path.open("xb")


def _remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove old unfinished writes of ``name`` from a folder; without a name, if it has no others.

    They are of processes that were killed.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _is_aside(entry.name):
                if not name:
                    return
            elif entry.name.startswith(f".{name}") and _age_s(entry) > LEFTOVER_S:
                os.unlink(entry.path)


def _age_s(entry: "os.DirEntry[str]") -> float:
    return time.time() - entry.stat().st_mtime


def _problem(message: str, error: OSError) -> EnvironmentProblem:
    return (StorageOutage if error.errno in _OUTAGES else EnvironmentProblem)(message)


def _fsync_folder(folder: Path) -> None:
    """Make a new entry in ``folder`` survive a power cut; fsync of the file does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
