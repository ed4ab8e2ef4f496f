"""Storage in Google Cloud Storage and Azure Blob Storage through obstore, the extra `cloud`.

Credentials and endpoints come from the environment: cloud_settings.py.
"""

import contextlib
import itertools
import math
import os
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.storage.base import NotFound, Storage, validate_key
from orchestrator.storage.cloud_errors import explain, is_missing_key, is_past_the_end
from orchestrator.storage.cloud_settings import CloudPlace

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig

READ_ATTEMPTS = 3
"""Attempts of obstore for a failing read; training reads through storage/retrying.py."""
WRITE_ATTEMPTS = 6
READ_TIMEOUT_S = 10.0
"""Longest silence of the server during a read; then obstore requests the rest again. Also for
connecting."""
MIN_READ_S, MIN_WRITE_S = 600.0, 60.0
"""Time limit of a request for few bytes. A read may be of a whole object, whose size is unknown."""
MIN_BYTES_PER_S = 64 << 10
"""What a larger request gets on top."""
_process: dict[str, int] = {}
"""The process that has used obstore, whose threads do not survive a fork: a child would hang."""


class CloudStorage(Storage):
    """Storage in a bucket of Google Cloud Storage or a container of Azure Blob Storage."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._place = CloudPlace.parse(self.uri)
        self._prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        self._lock = threading.Lock()
        self._stores: dict[tuple[bool, int], GCSStore | AzureStore] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CloudStorage, (self.uri,)

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``."""
        with self._translated_errors(key):
            return self._store(reading=True).get(self._path(key)).bytes().to_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``: one ranged GET if nothing fails."""
        if not length:
            return b""
        with self._translated_errors(key, start, length):
            store = self._store(reading=True, num_bytes=length)
            data = store.get_range(self._path(key), start=start, length=length).to_bytes()
        if len(data) != length:
            raise self._truncated(key, start, length, len(data))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` in one PUT, which readers see whole or not at all."""
        with self._translated_errors(key):
            store = self._store(reading=False, num_bytes=len(data))
            store.put(self._path(key), data, use_multipart=False)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` in one conditional PUT.

        The object carries a token of its writer: if a connection breaks after the write was
        applied, the automatic retry is refused because of this caller's own object.
        """
        token = uuid.uuid4().hex
        with self._translated_errors(key):
            from obstore.exceptions import AlreadyExistsError

            store, path = self._store(reading=False, num_bytes=len(data)), self._path(key)
            try:
                store.put(path, data, mode="create", attributes={"writer": token})
            except AlreadyExistsError:
                return store.get(path).attributes.get("writer") == token
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted, without folder markers.

        obstore lists whole folders. Of those beside a prefix that ends in a part of a name, only
        the ones that match are listed.
        """
        start = self._prefix + prefix
        folder, _, name = start.rpartition("/")
        with self._translated_errors(prefix):
            store = self._store(reading=True)
            folders, found = [folder], []
            if name:
                beside = store.list_with_delimiter(folder or None)
                folders = [each for each in beside["common_prefixes"] if each.startswith(start)]
                found = [meta for meta in beside["objects"] if meta["path"].startswith(start)]
            for each in folders:
                found += itertools.chain.from_iterable(store.list(each or None))
            paths = {meta["path"] for meta in found if meta["size"] or _exists(store, meta["path"])}
        return sorted(path.removeprefix(self._prefix) for path in paths)

    def delete(self, key: str) -> None:
        """Delete ``key``; do nothing if it does not exist."""
        with contextlib.suppress(NotFound), self._translated_errors(key):
            self._store(reading=False).delete(self._path(key))

    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``."""
        with self._translated_errors(key):
            return self._store(reading=True).head(self._path(key))["size"]

    def _path(self, key: str) -> str:
        return self._prefix + validate_key(key)

    def _store(self, reading: bool, num_bytes: int = 0) -> "GCSStore | AzureStore":
        """Return the client for requests of about this size, which share its connections."""
        limit_s = (MIN_READ_S if reading else MIN_WRITE_S) + num_bytes / MIN_BYTES_PER_S
        rounded = 2 ** math.ceil(math.log2(limit_s))
        if _process.setdefault("id", os.getpid()) != os.getpid():
            raise EnvironmentProblem(
                f"{self.uri} cannot be used in a process that was forked from one that has used "
                "such a place; start the process with the method spawn"
            )
        with self._lock:
            if (reading, rounded) not in self._stores:
                self._stores[reading, rounded] = self._connect(reading, rounded)
            return self._stores[reading, rounded]

    def _connect(self, reading: bool, limit_s: float) -> "GCSStore | AzureStore":
        from obstore.store import AzureStore, GCSStore

        options: ClientConfig = {
            "timeout": timedelta(seconds=limit_s),
            "connect_timeout": timedelta(seconds=READ_TIMEOUT_S),
            "allow_http": self._place.endpoint().startswith("http://"),
        }
        if reading:
            options["read_timeout"] = timedelta(seconds=READ_TIMEOUT_S)
        attempts = READ_ATTEMPTS if reading else WRITE_ATTEMPTS
        retries: RetryConfig = {"max_retries": attempts - 1}
        common: Any = {"client_options": options, "retry_config": retries}
        if self._place.is_azure:
            return AzureStore(self._place.bucket, config=self._place.azure_config(), **common)
        return GCSStore(self._place.bucket, **common)

    @contextlib.contextmanager
    def _translated_errors(self, key: str, start: int = 0, length: int = 0) -> Iterator[None]:
        """Translate obstore's errors into ours, whose texts never contain a secret."""
        try:
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise EnvironmentProblem(
                f"{self.uri}: gs:// and az:// need the package obstore; get it with "
                f"`{install_command('cloud')}`"
            ) from error
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            # `from None`: obstore's text is a long dump that may quote a credential file.
            raise self._explain(str(error), key, start, length) from None

    def _explain(self, text: str, key: str, start: int, length: int) -> OrchestratorError:
        """Return our error for the text of obstore's."""
        if is_missing_key(text):
            return self._not_found(key)
        if is_past_the_end(text):
            return self._truncated(key, start, length, 0)
        found = explain(text, f"{self.uri}/{key}".rstrip("/"), self._place)
        if not found.retry:
            with self._lock:  # the next use reads renewed credentials
                self._stores = {}
        return found


def _exists(store: "GCSStore | AzureStore", path: str) -> bool:
    """Whether an empty object is one: obstore lists the folder marker ``a/`` as ``a``."""
    try:
        store.head(path)
    except FileNotFoundError:
        return False
    return True
