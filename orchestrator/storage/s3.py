"""Storage in an S3 bucket through boto3, the only place where training talks to S3."""

import contextlib
import itertools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import OrchestratorError, TryAgain
from orchestrator.storage import s3_errors, s3_settings
from orchestrator.storage.base import Storage, validate_key
from orchestrator.storage.s3_errors import endpoint
from orchestrator.storage.s3_settings import CHECKSUMS, CONDITIONAL_WRITES

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3.client import S3Client

CHUNK_BYTES = 1 << 20
"""Most bytes read from a body at once; smaller pieces cost time."""
REQUEST_ATTEMPTS = 6
"""Attempts of botocore for a failing request, with growing pauses."""
READ_REQUEST_ATTEMPTS = 3
"""The same for reads: training reads through storage/retrying.py, which logs what it waits for."""
READ_TIMEOUT_S = 10.0
"""Longest silence of the server during a read; then the rest is requested again."""
MIN_BODY_BYTES_PER_S = 64 << 10
"""A body slower than this counts as cut, however regularly its bytes arrive."""
READ_ATTEMPTS = 5
"""Attempts to read a body that is cut in the middle, each from where the previous one stopped."""
EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "400")
"""Answers to credentials that were valid once. The answer to a HEAD has no code but 400."""

_Response = TypeVar("_Response")
_jitter = random.Random()


class S3Storage(Storage):
    """Storage in a bucket of any S3-compatible server.

    Endpoint and credentials are read from the standard AWS settings: AWS_ENDPOINT_URL_S3,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, or a profile; what else a bucket
    needs from the variables in s3_settings.py.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[bool, S3Client] = {}
        self._process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Storage, (self._bucket, self._prefix.rstrip("/"))

    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``; their number is checked."""
        return self._read(key, 0, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start``: one ranged GET if nothing fails."""
        return self._read(key, start, length) if length else b""

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` in one PUT, whose checksum the server verifies."""
        with self._translated_errors(key):
            self._put(self._at(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` in one conditional PUT.

        The object carries a token of its writer: if a connection breaks after the write was
        applied, the automatic retry is refused because of this caller's own object. A store that
        refuses or ignores conditions is asked whether the key exists, which two writers can do at
        once.
        """
        from botocore.exceptions import ClientError

        token = uuid.uuid4().hex
        request = {**self._at(key), "IfNoneMatch": "*", "Metadata": {"writer": token}}
        with self._translated_errors(key):
            try:
                if s3_settings.lacks(endpoint(), CONDITIONAL_WRITES):
                    return self._put_after_look(key, data)
                is_proved = s3_settings.honors_conditions(endpoint())
                if not is_proved and self.exists(key):
                    return False
                self._put(request, data)
                if not is_proved:
                    self._prove_conditions(request, data)
            except ClientError as error:
                status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                if s3_settings.refuses_conditions(error):
                    s3_settings.note_lack(endpoint(), CONDITIONAL_WRITES)
                    return self._put_after_look(key, data)
                if status == 409:
                    raise TryAgain(
                        f"{self.uri}/{key} is being written by another process"
                    ) from error
                if status != 412:
                    raise
                found = self._send(lambda s3: s3.head_object(**self._at(key)))
                return found["Metadata"].get("writer") == token
        return True

    def _prove_conditions(self, request: dict[str, Any], data: bytes) -> None:
        """Repeat a conditional write, to find out whether the store ignores conditions."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            self._put(request, data)
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 412:
                s3_settings.note_conditions(endpoint())
        except (BotoCoreError, HTTPClientError):
            pass  # the write itself has succeeded; the next one tries again
        else:
            s3_settings.note_lack(endpoint(), CONDITIONAL_WRITES)

    def _put_after_look(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        self._put(self._at(key), data)
        return True

    def _put(self, request: dict[str, Any], data: bytes) -> None:
        """Write ``data``, without the newer checksums if the store refuses them."""
        from botocore.exceptions import ClientError

        request = {**request, **s3_settings.encryption(), "Body": data}
        try:
            self._send(lambda s3: s3.put_object(**request))
        except ClientError as error:
            if s3_settings.lacks(endpoint(), CHECKSUMS) or not s3_settings.refuses_checksums(error):
                raise
            s3_settings.note_lack(endpoint(), CHECKSUMS)
            with self._lock:
                self._clients = {}
            self._send(lambda s3: s3.put_object(**request))

    def list(self, prefix: str = "") -> list[str]:
        """Return all keys that start with ``prefix``, sorted, without folder markers."""
        query: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        query |= s3_settings.payer()
        with self._translated_errors(prefix):
            pages = self._send(lambda s3: [*s3.get_paginator("list_objects_v2").paginate(**query)])
        entries = itertools.chain.from_iterable(page.get("Contents", []) for page in pages)
        found = [entry["Key"].removeprefix(self._prefix) for entry in entries]
        return sorted(key for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Delete ``key``; do nothing if it does not exist."""
        with self._translated_errors(key):
            self._send(lambda s3: s3.delete_object(**self._at(key)))

    def size(self, key: str) -> int:
        """Return the number of bytes of ``key``."""
        with self._translated_errors(key):
            return self._send(lambda s3: s3.head_object(**self._at(key)))["ContentLength"]

    def settings(self) -> tuple[str, ...]:
        """Return the variables of s3_settings.py that are set, and what the store lacks."""
        return s3_settings.describe(endpoint())

    def _at(self, key: str) -> dict[str, Any]:
        place = {"Bucket": self._bucket, "Key": self._prefix + validate_key(key)}
        return place | s3_settings.payer()

    def _send(self, send: Callable[["S3Client"], _Response], reading: bool = False) -> _Response:
        """Return ``send(client)``; try once more with a new client if the credentials have expired.

        They may have been renewed in a file, which only a new client reads.
        """
        from botocore.exceptions import ClientError

        client = self._client(reading)
        try:
            return send(client)
        except ClientError as error:
            if error.response["Error"].get("Code") not in EXPIRED_CODES:
                raise
        return send(self._client(reading, stale=client))

    def _client(self, reading: bool, stale: "S3Client | None" = None) -> "S3Client":
        """Return this process's client: a forked child must not share its parent's connections.

        A ``stale`` client is replaced, unless another thread has already done so.
        """
        import boto3

        with self._lock:
            is_stale = stale is not None and self._clients.get(reading) is stale
            if is_stale or self._process != os.getpid():
                self._clients, self._process = {}, os.getpid()
                self._session = boto3.session.Session()
            if reading not in self._clients:
                self._clients[reading] = _connect(self._session, reading, self._bucket)
            return self._clients[reading]

    def _read(self, key: str, start: int, length: int | None) -> bytes:
        """Return ``length`` bytes from ``start``, or all; resume a body where it was cut.

        botocore retries requests but not bodies. The ETag prevents mixing two versions.
        """
        from urllib3.exceptions import HTTPError

        got = bytearray()
        request = self._at(key)
        for attempt in range(READ_ATTEMPTS):
            if attempt:
                time.sleep(0.1 * 2**attempt * _jitter.uniform(0.5, 1))
            first = start + len(got)
            last = "" if length is None else str(start + length - 1)
            if first or last:
                request["Range"] = f"bytes={first}-{last}"
            with self._translated_errors(key, start, length):
                reply = self._send(lambda s3: s3.get_object(**request), reading=True)
                request["IfMatch"] = reply["ETag"]
                end = first + reply["ContentLength"]
                if length is not None and end < start + length:
                    raise self._truncated(key, start, length, end - start)
                length = end - start if length is None else length
                with contextlib.suppress(HTTPError):
                    _receive(reply["Body"], got, start + length - first)
            if len(got) == length:
                return bytes(got)
        raise TryAgain(f"{self.uri}/{key} was cut in the middle {READ_ATTEMPTS} times")

    @contextlib.contextmanager
    def _translated_errors(
        self, key: str, start: int = 0, length: int | None = None
    ) -> Iterator[None]:
        """Translate botocore errors into ours, whose texts never contain a secret."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            yield
        except ClientError as error:
            raise self._explain(error, key, start, length or 0) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise s3_errors.explain_failure(error, self.uri) from error

    def _explain(
        self, error: "ClientError", key: str, start: int, length: int
    ) -> OrchestratorError:
        code, status = s3_errors.code_and_status(error)
        if status == 404 and code != "NoSuchBucket":
            return self._not_found(key)
        if status == 416:
            return self._truncated(key, start, length, 0)
        if status == 412:
            return TryAgain(f"{self.uri}/{key} was replaced while it was being read")
        return s3_errors.explain_refusal(error, self.uri, self._bucket)


def _receive(body: Any, got: bytearray, length: int) -> None:
    """Append up to ``length`` bytes to ``got``, until the body ends or is too slow.

    Raises urllib3's HTTPError if the body is cut or stalls.
    """
    deadline = time.monotonic() + READ_TIMEOUT_S + length / MIN_BODY_BYTES_PER_S
    with body as raw:
        # read() waits for a whole piece, and each byte restarts its timeout.
        while piece := raw.read1(CHUNK_BYTES):
            got += piece
            if time.monotonic() > deadline:
                return


def _connect(session: Any, reading: bool, bucket: str) -> "S3Client":
    """Return a client for reading, which gives up early, or for writing, which does not."""
    from botocore.config import Config

    common = Config(signature_version="s3v4", max_pool_connections=32)
    retries: Any = {"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS}
    # connect_timeout bounds stalled uploads too: at 5 s a loaded machine lost most of them.
    own = Config(connect_timeout=60, read_timeout=60, retries=retries)
    if reading:
        own = Config(
            connect_timeout=READ_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries=retries | {"total_max_attempts": READ_REQUEST_ATTEMPTS},
            response_checksum_validation="when_required",  # only read() would check it
        )
    config = common.merge(own).merge(s3_settings.client_config(session, endpoint(), bucket))
    client: S3Client = session.client("s3", config=config)
    return client
