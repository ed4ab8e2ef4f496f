"""A small S3 in memory with the habits of real stores, which the usual test servers do not have."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Habit = Literal[
    "none", "no conditions", "ignores conditions", "no checksums", "encrypted", "requester pays",
    "public", "other region", "wrong clock",
]  # fmt: skip


@dataclass
class QuirkyStore:
    """What the server holds and has seen."""

    habit: Habit
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    encryption: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """Algorithm and key of each object."""
    refusals: int = 0
    flips: dict[str, int] = field(default_factory=dict)
    """How many reads of each object get one byte wrong, counted down."""


@contextmanager
def quirky_s3(habit: Habit) -> Iterator[QuirkyStore]:
    """Serve a store with one habit; any bucket exists."""
    store = QuirkyStore(habit)

    class Handler(_Handler):
        pass

    Handler.store = store
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        store.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield store
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    store: QuirkyStore
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self._body()
        if self._refuse():
            return
        key, headers = self._key(), self.headers
        conditional = (
            headers.get("If-None-Match") == "*" and self.store.habit != "ignores conditions"
        )
        if conditional and key in self.store.objects:
            self._answer(412, _error("PreconditionFailed"))
            return
        self.store.objects[key] = body
        prefix = "x-amz-server-side-encryption"
        self.store.encryption[key] = (headers.get(prefix), headers.get(f"{prefix}-aws-kms-key-id"))
        self._answer(200)

    def do_GET(self) -> None:
        if self._refuse():
            return
        query = parse_qs(urlsplit(self.path).query)
        key, objects = self._key(), self.store.objects
        if "list-type" in query:
            start = f"{key.rstrip('/')}/{query.get('prefix', [''])[0]}"
            found = [k.partition("/")[2] for k in sorted(objects) if k.startswith(start)]
            items = "".join(f"<Contents><Key>{escape(k)}</Key></Contents>" for k in found)
            self._answer(200, f"<ListBucketResult>{items}</ListBucketResult>".encode())
        elif key not in objects:
            self._answer(404, _error("NoSuchKey"))
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            end = int(wanted[2]) + 1 if wanted[2] else len(objects[key])
            self._answer(206, self._flipped(key, objects[key][int(wanted[1]) : end]))
        else:
            self._answer(200, self._flipped(key, objects[key]))

    do_HEAD = do_GET

    def _flipped(self, key: str, data: bytes) -> bytes:
        if self.command == "HEAD" or not data or not self.store.flips.get(key):
            return data
        self.store.flips[key] -= 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    def do_DELETE(self) -> None:
        if not self._refuse():
            self.store.objects.pop(self._key(), None)
            self._answer(204)

    def _refuse(self) -> bool:
        """Answer a request that the store does not accept; return whether it was one."""
        has, habit = self.headers.get, self.store.habit
        is_put = self.command == "PUT"
        checksum = has("x-amz-sdk-checksum-algorithm") or has("x-amz-trailer")
        refusal: tuple[int, str, str, dict[str, str]] | None = None
        if habit == "no conditions" and has("If-None-Match"):
            refusal = (501, "NotImplemented", "A header you provided is not implemented", {})
        elif habit == "no checksums" and is_put and checksum:
            message = "Unsupported header 'x-amz-sdk-checksum-algorithm'"
            refusal = (400, "InvalidArgument", message, {})
        elif (habit == "encrypted" and is_put and not has("x-amz-server-side-encryption")) or (
            habit == "requester pays" and has("x-amz-request-payer") != "requester"
        ):
            refusal = (403, "AccessDenied", "", {})
        elif habit == "public" and (has("Authorization") or is_put):
            refusal = (
                403,
                "InvalidAccessKeyId" if has("Authorization") else "AccessDenied",
                "",
                {},
            )
        elif habit == "other region":
            refusal = (
                400,
                "AuthorizationHeaderMalformed",
                "",
                {"x-amz-bucket-region": "eu-west-3"},
            )
        elif habit == "wrong clock":
            refusal = (403, "RequestTimeTooSkewed", "", {})
        if refusal is None:
            return False
        status, code, message, headers = refusal
        self.store.refusals += 1
        self._answer(status, _error(code, message), headers)
        return True

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.lstrip("/"))

    def _body(self) -> bytes:
        """Read the body, whose checksum newer clients send after it, in a chunked encoding."""
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return data
        chunks, at = b"", 0
        while size := int(data[at : data.index(b"\r\n", at)].split(b";")[0], 16):
            at = data.index(b"\r\n", at) + 2
            chunks, at = chunks + data[at : at + size], at + size + 2
        return chunks

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        etag = hashlib.md5(body).hexdigest()
        for name, value in {"ETag": f'"{etag}"', **(headers or {})}.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _error(code: str, message: str = "") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>".encode()
