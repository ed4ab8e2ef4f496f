"""Storage: named bytes in a folder or in an S3 bucket, behind one small interface.

This is the only file that imports boto3. Keys are plain relative paths such as
``train/000000.tar``: no empty parts, no ``..``, no slash at either end, because object stores
disagree about all of these.

    open_storage("runs")                    a folder
    open_storage("file:///mnt/runs")        the same
    open_storage("s3://bucket/prefix")      endpoint and credentials the standard AWS way
"""

import contextlib
import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from orchestrator.errors import (
    DataError,
    EnvironmentProblem,
    OrchestratorError,
    TryAgain,
    UsageError,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CHUNK = 1 << 20
"""Bytes read from a body at a time; smaller pieces cost more client time than they save."""
REQUEST_ATTEMPTS = 5
"""How often botocore sends a request that fails, waiting longer each time."""
READ_ATTEMPTS = 5
"""How often a body that is cut in the middle is taken up again before giving up."""


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

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"{self.uri}/{key} does not exist")

    def _cut_off(self, key: str, start: int, length: int, got: int) -> DataError:
        return DataError(
            f"{self.uri}/{key} ends too early: {length} bytes were expected from byte {start} "
            f"and {got} are there; it was cut or replaced after it had been written"
        )


def open_storage(uri: str) -> Storage:
    """The storage at ``uri``: a folder's path, ``file:///...`` or ``s3://bucket/prefix``.

    Connects to nothing yet. Raises UsageError for any other kind of URI.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return FolderStorage(Path(uri))
    parts = urlsplit(uri)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStorage(Path(unquote(parts.path)))
    if scheme == "s3" and parts.netloc:
        return S3Storage(parts.netloc, uri.removeprefix(f"s3://{parts.netloc}").strip("/"))
    raise UsageError(
        f"{uri!r} is no place to store in; use a folder, file:///folder or s3://bucket/prefix"
    )


def _checked(key: str) -> str:
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is no plain key such as 'train/000000.tar'")
    return key


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
            for folder, _, names in os.walk(top)
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
        return self._root / _checked(key)

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


class S3Storage(Storage):
    """Storage in a bucket of any S3-compatible server.

    Endpoint and credentials come the standard AWS way: AWS_ENDPOINT_URL_S3,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, or a profile.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._client_process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return open_storage, (self.uri,)

    def get(self, key: str) -> bytes:
        """All the bytes under ``key``, its length checked."""
        return self._read(key, 0, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``: one ranged GET if nothing goes wrong."""
        return self._read(key, start, length) if length else b""

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` in one PUT, whose checksum the server compares."""
        with self._problems(key):
            self._s3().put_object(**self._at(key), Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` in one conditional PUT.

        The object carries a token of its writer: when a connection breaks after the write was
        applied, the automatic retry is refused because of this caller's own object.
        """
        token = uuid.uuid4().hex
        with self._problems(key):
            try:
                self._s3().put_object(
                    **self._at(key), Body=data, IfNoneMatch="*", Metadata={"writer": token}
                )
            except self._s3().exceptions.ClientError as error:
                status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                if status == 409:
                    raise TryAgain(f"{self.uri}/{key} is being written by another") from error
                if status != 412:
                    raise
                found = self._s3().head_object(**self._at(key))
                return found["Metadata"].get("writer") == token
        return True

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted; folder markers are not among them."""
        with self._problems(prefix):
            pages = self._s3().get_paginator("list_objects_v2")
            found = [
                entry["Key"].removeprefix(self._prefix)
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
                for entry in page.get("Contents", [])
            ]
        return sorted(key for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove ``key``; nothing happens if it is not there."""
        with self._problems(key):
            self._s3().delete_object(**self._at(key))

    def size(self, key: str) -> int:
        """Number of bytes under ``key``."""
        with self._problems(key):
            return self._s3().head_object(**self._at(key))["ContentLength"]

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + _checked(key)}

    def _s3(self) -> "S3Client":
        """This process's client; a forked child must not share its parent's connections."""
        with self._lock:
            if self._client is None or self._client_process != os.getpid():
                self._client, self._client_process = _connect(), os.getpid()
            return self._client

    def _read(self, key: str, start: int, length: int | None) -> bytes:
        """``length`` bytes from ``start``, or all, taking a body up again where it was cut.

        botocore retries requests but not bodies. The ETag keeps pieces of two versions apart.
        """
        from botocore.exceptions import (
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        cuts = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
        got = bytearray()
        request = self._at(key)
        for _ in range(READ_ATTEMPTS):
            first = start + len(got)
            last = "" if length is None else str(start + length - 1)
            if first or last:
                request["Range"] = f"bytes={first}-{last}"
            with self._problems(key, start, length):
                reply = self._s3().get_object(**request)
                request["IfMatch"] = reply["ETag"]
                end = first + reply["ContentLength"]
                if length is not None and end < start + length:
                    raise self._cut_off(key, start, length, end - start)
                length = end - start if length is None else length
                with contextlib.suppress(*cuts):
                    for chunk in reply["Body"].iter_chunks(CHUNK):
                        got += chunk
            if len(got) == length:
                return bytes(got)
        raise TryAgain(f"{self.uri}/{key} was cut in the middle {READ_ATTEMPTS} times over")

    @contextlib.contextmanager
    def _problems(self, key: str, start: int = 0, length: int | None = None) -> Iterator[None]:
        """Turn botocore's errors into ours; their texts never hold a secret."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response["Error"].get("Code", ""))
            status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                raise EnvironmentProblem(
                    f"{self.uri}: there is no bucket {self._bucket!r} at {_endpoint()}; "
                    "create it, or check the name and AWS_ENDPOINT_URL_S3"
                ) from error
            if status == 404:
                raise self._not_found(key) from error
            if status == 416:
                raise self._cut_off(key, start, length or 0, 0) from error
            if status == 412:
                raise TryAgain(f"{self.uri}/{key} was replaced while it was read") from error
            if status in (429, 500, 502, 503, 504):
                raise TryAgain(f"{self.uri}: {_endpoint()} answered {status} {code}") from error
            raise EnvironmentProblem(
                f"{self.uri}: {_endpoint()} refused with {status} {code}; check "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and that they "
                "may use this bucket"
            ) from error
        except BotoCoreError as error:
            raise EnvironmentProblem(
                f"{self.uri} is out of reach at {_endpoint()} ({type(error).__name__}); check "
                "AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE and "
                "the network"
            ) from error


def _endpoint() -> str:
    """Where S3 requests go, for messages; without the credentials some URLs carry."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return urlsplit(url)._replace(query="").geturl().rpartition("@")[2] if url else "AWS"


def _connect() -> "S3Client":
    import boto3
    from botocore.config import Config

    # connect_timeout bounds stalled uploads too: at 5 s a loaded machine lost most of them.
    config = Config(
        signature_version="s3v4",
        connect_timeout=60,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": REQUEST_ATTEMPTS},
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", config=config)
