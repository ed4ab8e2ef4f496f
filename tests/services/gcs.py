"""A small Google Cloud Storage in memory: the part of its XML API that obstore uses.

The emulators there are speak the JSON API only. This one follows the reference of the XML API:
ranges, `x-goog-if-generation-match: 0`, pages of a list (short ones, so that tests see several),
and the codes of its errors. It checks each request's token, a JWT that the service account signed.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

BUCKET = "tests"
PAGE = 3
"""Most keys in one answer to a list."""


@dataclass
class GoogleServer:
    """A running server with one empty bucket."""

    credentials: Path
    """The service account's file."""
    public_key: rsa.RSAPublicKey
    url: str = ""
    objects: dict[str, tuple[bytes, int, str]] = field(default_factory=dict)
    """Content, generation and writer by key."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    generations: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000))

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the address and the credentials."""
        return {
            "GOOGLE_BASE_URL": self.url,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.credentials),
        }


@contextlib.contextmanager
def google_server(folder: Path) -> Iterator[GoogleServer]:
    """Run the server within a with block; its credentials are in ``folder``."""
    credentials = folder / "service-account.json"
    store = GoogleServer(credentials, write_service_account(credentials))

    class Handler(_Handler):
        pass

    Handler.store = store
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        store.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield store
        server.shutdown()


def write_service_account(path: Path) -> rsa.RSAPublicKey:
    """Write the file of a new service account, as the console gives it out."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1234",
        "private_key": pem.decode(),
        "client_email": "tests@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    path.write_text(json.dumps(account))
    return key.public_key()


class _Handler(BaseHTTPRequestHandler):
    store: GoogleServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a test cuts connections
            super().handle()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._refuse():
            return
        writer = self.headers.get("x-goog-meta-writer", "")
        with self.store.lock:
            if (
                self.headers.get("x-goog-if-generation-match") == "0"
                and self._key in self.store.objects
            ):
                self._error(412, "PreconditionFailed")
                return
            generation = next(self.store.generations)
            self.store.objects[self._key] = (body, generation, writer)
        self._answer(200, b"", {"ETag": _etag(body), "x-goog-generation": str(generation)})

    def do_GET(self) -> None:
        if self._refuse():
            return
        if not self._key:
            self._list()
            return
        if (found := self.store.objects.get(self._key)) is None:
            self._error(404, "NoSuchKey")
            return
        body, generation, writer = found
        headers = {
            "ETag": _etag(body),
            "x-goog-generation": str(generation),
            "x-goog-meta-writer": writer,
            "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT",
        }
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(span[1]), min(int(span[2] or len(body)), len(body) - 1)
            if first >= len(body):
                self._error(416, "InvalidRange")
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self._answer(206, body[first : last + 1], headers)
        else:
            self._answer(200, body, headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        if self._refuse():
            return
        if self.store.objects.pop(self._key, None) is None:
            self._error(404, "NoSuchKey")
        else:
            self._answer(204)

    def _list(self) -> None:
        """Answer with a page of keys and, with a delimiter, of the folders below the prefix."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token", "")
        keys, folders = [], set()
        for key in sorted(self.store.objects):
            inner = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in inner:
                folders.add(prefix + inner.partition(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        entries = sorted([*keys, *folders])
        left = [entry for entry in entries if entry > after]
        parts = []
        for entry in left[:PAGE]:
            if entry in folders:
                parts.append(f"<CommonPrefixes><Prefix>{escape(entry)}</Prefix></CommonPrefixes>")
                continue
            content, generation, _ = self.store.objects[entry]
            parts.append(
                f"<Contents><Key>{escape(entry)}</Key><Generation>{generation}</Generation>"
                "<MetaGeneration>1</MetaGeneration>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{escape(_etag(content))}</ETag><Size>{len(content)}</Size></Contents>"
            )
        more, token = len(left) > PAGE, ""
        if more:
            token = f"<NextContinuationToken>{escape(left[PAGE - 1])}</NextContinuationToken>"
        body = (
            "<?xml version='1.0' encoding='UTF-8'?>"
            "<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}"
            "</ListBucketResult>"
        )
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _refuse(self) -> bool:
        """Answer a request without a valid token, or to another bucket; return whether it was."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            self._error(401, "AuthenticationRequired")
        elif not _is_signed(token, self.store.public_key):
            self._error(403, "AccessDenied")
        elif self._path[0] != BUCKET:
            self._error(404, "NoSuchBucket")
        else:
            return False
        return True

    @property
    def _path(self) -> tuple[str, str]:
        bucket, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        return bucket, unquote(key)

    @property
    def _key(self) -> str:
        return self._path[1]

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode())

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def _is_signed(token: str, key: rsa.RSAPublicKey) -> bool:
    signed, _, signature = token.rpartition(".")
    try:
        decoded = base64.urlsafe_b64decode(signature + "==")
        key.verify(decoded, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True
