"""Storage in an S3 bucket, through boto3. Training reaches S3 through this file alone."""

import contextlib
import itertools
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.storage.base import Storage, checked_key

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

CHUNK = 1 << 20
"""The most bytes taken from a body at a time; small pieces cost more time than they save."""
REQUEST_ATTEMPTS = 6
"""How often botocore sends a request that fails, waiting longer each time."""
READ_REQUEST_ATTEMPTS = 3
"""The same for reads: who reads a lot has storage/retrying.py, which says what it waits for."""
READ_TIMEOUT_S = 10.0
"""The longest silence of a server that is read from; then the rest is asked for anew."""
SLOWEST_BODY = 64 << 10
"""Bytes a second below which a body counts as cut, however regularly its bytes drop in."""
READ_ATTEMPTS = 5
"""How often a body that is cut in the middle is taken up again before giving up."""
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
PASSING_CODES = ("RequestTimeout",)
"""What a server says that is busy or going away; S3 sends RequestTimeout with status 400."""
EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "400")
"""What a server says to credentials that were good once. A HEAD's answer has no code but 400."""

_Answer = TypeVar("_Answer")
_jitter = random.Random()


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
        self._session: Any = None
        self._clients: dict[bool, S3Client] = {}
        self._process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Storage, (self._bucket, self._prefix.rstrip("/"))

    def get(self, key: str) -> bytes:
        """All the bytes under ``key``, its length checked."""
        return self._read(key, 0, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``: one ranged GET if nothing goes wrong."""
        return self._read(key, start, length) if length else b""

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` in one PUT, whose checksum the server compares."""
        with self._problems(key):
            self._ask(lambda s3: s3.put_object(**self._at(key), Body=data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` in one conditional PUT.

        The object carries a token of its writer: when a connection breaks after the write was
        applied, the automatic retry is refused because of this caller's own object.
        """
        from botocore.exceptions import ClientError

        token = uuid.uuid4().hex
        request = {**self._at(key), "IfNoneMatch": "*", "Metadata": {"writer": token}}
        with self._problems(key):
            try:
                self._ask(lambda s3: s3.put_object(**request, Body=data))
            except ClientError as error:
                status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                if status == 409:
                    raise TryAgain(f"{self.uri}/{key} is being written by another") from error
                if status != 412:
                    raise
                found = self._ask(lambda s3: s3.head_object(**self._at(key)))
                return found["Metadata"].get("writer") == token
        return True

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with ``prefix``, sorted; folder markers are not among them."""
        where: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        with self._problems(prefix):
            pages = self._ask(lambda s3: [*s3.get_paginator("list_objects_v2").paginate(**where)])
        entries = itertools.chain.from_iterable(page.get("Contents", []) for page in pages)
        found = [entry["Key"].removeprefix(self._prefix) for entry in entries]
        return sorted(key for key in found if not key.endswith("/"))

    def delete(self, key: str) -> None:
        """Remove ``key``; nothing happens if it is not there."""
        with self._problems(key):
            self._ask(lambda s3: s3.delete_object(**self._at(key)))

    def size(self, key: str) -> int:
        """Number of bytes under ``key``."""
        with self._problems(key):
            return self._ask(lambda s3: s3.head_object(**self._at(key)))["ContentLength"]

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked_key(key)}

    def _ask(self, ask: Callable[["S3Client"], _Answer], reading: bool = False) -> _Answer:
        """What ``ask`` gives; once more with a new client if the credentials have expired.

        They may have been renewed in a file, which no client looks at again.
        """
        from botocore.exceptions import ClientError

        client = self._connected(reading)
        try:
            return ask(client)
        except ClientError as error:
            if error.response["Error"].get("Code") not in EXPIRED_CODES:
                raise
        return ask(self._connected(reading, instead_of=client))

    def _connected(self, reading: bool, instead_of: "S3Client | None" = None) -> "S3Client":
        """This process's client; a forked child must not share its parent's connections."""
        import boto3

        with self._lock:
            stale = instead_of is not None and self._clients.get(reading) is instead_of
            if stale or self._process != os.getpid():
                self._clients, self._process = {}, os.getpid()
                self._session = boto3.session.Session()
            if reading not in self._clients:
                self._clients[reading] = _connect(self._session, reading)
            return self._clients[reading]

    def _read(self, key: str, start: int, length: int | None) -> bytes:
        """``length`` bytes from ``start``, or all, taking a body up again where it was cut.

        botocore retries requests but not bodies. The ETag keeps pieces of two versions apart.
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
            with self._problems(key, start, length):
                reply = self._ask(lambda s3: s3.get_object(**request), reading=True)
                request["IfMatch"] = reply["ETag"]
                end = first + reply["ContentLength"]
                if length is not None and end < start + length:
                    raise self._cut_off(key, start, length, end - start)
                length = end - start if length is None else length
                with contextlib.suppress(HTTPError):
                    _receive(reply["Body"], got, start + length - first)
            if len(got) == length:
                return bytes(got)
        raise TryAgain(f"{self.uri}/{key} was cut in the middle {READ_ATTEMPTS} times over")

    @contextlib.contextmanager
    def _problems(self, key: str, start: int = 0, length: int | None = None) -> Iterator[None]:
        """Turn botocore's errors into ours; their texts never hold a secret."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
        )

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
            if status in PASSING_STATUS or code in PASSING_CODES:
                raise TryAgain(f"{self.uri}: {_endpoint()} answered {status} {code}") from error
            if code.startswith("ExpiredToken"):
                raise EnvironmentProblem(
                    f"{self.uri}: the credentials for {_endpoint()} have expired ({code}); renew "
                    "AWS_SESSION_TOKEN and its keys, or log in again to what AWS_PROFILE names"
                ) from error
            raise EnvironmentProblem(
                f"{self.uri}: {_endpoint()} refused with {status} {code}; check "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and that they "
                "may use this bucket"
            ) from error
        except (ConnectionError, HTTPClientError) as error:
            # A gateway that restarts looks like one that never was: training tries both again.
            raise TryAgain(
                f"{self.uri} is out of reach at {_endpoint()} ({type(error).__name__}); try again "
                "later if the server is restarting, else check AWS_ENDPOINT_URL_S3 and the network"
            ) from error
        except BotoCoreError as error:
            raise EnvironmentProblem(
                f"{self.uri} cannot be used at {_endpoint()} ({type(error).__name__}); check "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION and "
                "AWS_ENDPOINT_URL_S3"
            ) from error


def _endpoint() -> str:
    """Where S3 requests go, for messages; without the credentials some URLs carry."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return urlsplit(url)._replace(query="").geturl().rpartition("@")[2] if url else "AWS"


def _receive(body: Any, got: bytearray, length: int) -> None:
    """Add to ``got`` what comes of ``length`` bytes, until the body ends or is too slow.

    Raises urllib3's HTTPError for a body that is cut or stalls.
    """
    deadline = time.monotonic() + READ_TIMEOUT_S + length / SLOWEST_BODY
    with body as raw:
        # read() waits for a whole piece, and its timeout starts anew with each byte.
        while piece := raw.read1(CHUNK):
            got += piece
            if time.monotonic() > deadline:
                return


def _connect(session: Any, reading: bool) -> "S3Client":
    """A client for reading or for writing: the one gives up early, the other does not."""
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
            response_checksum_validation="when_required",  # it would be checked by read() alone
        )
    client: S3Client = session.client("s3", config=common.merge(own))
    return client
