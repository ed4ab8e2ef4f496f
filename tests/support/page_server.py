"""A server of the page with the HTTP API of `orchestrator serve`, whose model is arithmetic.

It translates by inverting colours and draws each seed in one colour, so that tests know each pixel.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePath
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image, ImageOps

from orchestrator.page.page_files import ASSETS, CONTENT_SECURITY_POLICY, CONTENT_TYPES

CARD = """\
# drawings

[A paper](https://example.org/paper): it *draws*. <script>alert(1)</script>
[bad](javascript:alert(1)) ![remote](http://example.org/x.png)

| | |
|---|---|
| model | `pix2pix` |
| data | **drawings** |

## Use

```console
$ orchestrator sample model
```

- It draws nothing that it was not shown.
- Another limit.
"""


def facts(**changed: Any) -> dict[str, Any]:
    """Return the reply to /v1/model: a translator, unless changed."""
    return {
        "name": "drawings",
        "version": 7,
        "model": "pix2pix",
        "translates": True,
        "image_size": 32,
        "channels": 3,
        "classes": 0,
        "captions": False,
        "latent_size": 0,
        "rows": False,
        "likelihood": "",
        "hole": None,
        "card": CARD,
        "token_required": False,
        "limits": {"bytes": 10_000_000, "pixels": 20_000_000, "images": 64},
        **changed,
    }


@dataclass
class PageServer:
    """A running server."""

    address: str
    facts: dict[str, Any]
    token: str = ""
    """Asked for if not empty."""
    busy: int = 0
    """Number of requests that will be answered with 429."""
    failing: str = ""
    """Answered to each request with 422 if not empty."""
    delay_s: float = 0.0
    """Time that each reply takes."""
    row_delay_s: float = 0.0
    at_once: int = 0
    """Number of requests that are being answered."""
    most_at_once: int = 0
    requests: list[tuple[str, Any]] = field(default_factory=list)
    """Paths of the API and what came with them: JSON, or bytes of an image."""

    def asked(self, path: str) -> list[Any]:
        """Return what came with the requests to a path."""
        return [given for where, given in self.requests if where.partition("?")[0] == path]


@contextmanager
def page_server(**changed: Any) -> Iterator[PageServer]:
    """Serve within a with block a model with ``facts(**changed)``."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server = PageServer(f"http://127.0.0.1:{listener.server_address[1]}/", facts(**changed))
    listener.page_server = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def colour_of(seed: int, class_: int = 0, caption: str = "") -> tuple[int, int, int]:
    """Return the colour in which an image is drawn."""
    return (40 + 37 * seed % 200, 40 + 60 * class_ % 200, 40 + 11 * len(caption) % 200)


def latent_of(seed: int, size: int) -> list[float]:
    """Return the latent of a seed."""
    return [((seed + 1) * (i + 3) % 7 - 3) / 2 for i in range(size)]


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any
    replies: ClassVar[Mapping[str, str]] = {
        "/v1/translate": "_translate",
        "/v1/sample": "_sample",
        "/v1/sample/rows": "_rows",
        "/v1/latents": "_latents",
        "/v1/decode": "_decode",
        "/v1/interpolate": "_interpolate",
        "/v1/likelihood": "_likelihood",
    }

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    @property
    def state(self) -> PageServer:
        found: PageServer = self.server.page_server
        return found

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/v1/model":
            if self._is_let_in():
                self._json(self.state.facts)
            return
        name = PurePath("index.html" if path == "/" else path.removeprefix("/page/")).name
        if not (ASSETS / name).is_file():
            self._error(HTTPStatus.NOT_FOUND, f"there is no {path}")
            return
        content = (ASSETS / name).read_bytes()
        self._send(content, CONTENT_TYPES[PurePath(name).suffix])

    def do_POST(self) -> None:
        with suppress(ConnectionError):  # the page has stopped
            self._answer()

    def _answer(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        is_json = self.headers["Content-Type"] == "application/json"
        given = json.loads(body) if is_json else body
        self.state.requests.append((self.path, given))
        if not self._is_let_in():
            return
        self.state.at_once += 1
        self.state.most_at_once = max(self.state.most_at_once, self.state.at_once)
        time.sleep(self.state.delay_s)
        self.state.at_once -= 1  # before the reply, after which the next one may come
        if self.state.busy:
            self.state.busy -= 1
            self._error(HTTPStatus.TOO_MANY_REQUESTS, "the queue is full", {"Retry-After": "1"})
        elif self.state.failing:
            self._error(HTTPStatus.UNPROCESSABLE_ENTITY, self.state.failing)
        else:
            getattr(self, self.replies[path])(given)

    def _is_let_in(self) -> bool:
        if not self.state.token or self.headers["Authorization"] == f"Bearer {self.state.token}":
            return True
        self._error(HTTPStatus.UNAUTHORIZED, "a token is needed")
        return False

    # Replies

    def _translate(self, body: bytes) -> None:
        facts = self.state.facts
        received = Image.open(io.BytesIO(body), formats=("PNG",))
        image = received.convert("L" if facts["channels"] == 1 else "RGB")
        image = image.resize((facts["image_size"], facts["image_size"]))
        parse_qs(urlsplit(self.path).query)["seed"][0].encode("ascii")
        version = {"X-Model-Version": str(facts["version"])}
        self._send(_png(ImageOps.invert(image)), "image/png", version)

    def _conditions(self, given: Mapping[str, Any], count: int) -> list[tuple[int, str]]:
        facts = self.state.facts
        classes = given.get("classes", [given.get("class", 0)] * count)
        assert len(classes) == count
        assert facts["classes"] or not {"class", "classes"} & given.keys()
        assert facts["captions"] == ("caption" in given)
        return [(class_, given.get("caption", "")) for class_ in classes]

    def _images(self, colours: list[Any]) -> None:
        size, facts = self.state.facts["image_size"], self.state.facts
        images = [
            {"png": base64.b64encode(_png(Image.new("RGB", (size, size), tuple(c)))).decode()}
            for c in colours
        ]
        self._json({"name": facts["name"], "version": facts["version"], "images": images})

    def _sample(self, given: Mapping[str, Any]) -> None:
        seeds = given["seeds"]
        pairs = zip(seeds, self._conditions(given, len(seeds)), strict=True)
        self._images([colour_of(seed, *condition) for seed, condition in pairs])

    def _rows(self, given: Mapping[str, Any]) -> None:
        seed, size = given["seed"], self.state.facts["image_size"]
        (condition,) = self._conditions(given, 1)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        red, green, blue = colour_of(seed, *condition)
        for row in range(size):
            image = Image.new("RGB", (size, 1), (red, green, (blue + row) % 256))
            line = {"row": row, "png": base64.b64encode(_png(image)).decode()}
            content = json.dumps(line).encode() + b"\n"
            self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
            self.wfile.flush()
            time.sleep(self.state.row_delay_s)
        self.wfile.write(b"0\r\n\r\n")

    def _latents(self, given: Mapping[str, Any]) -> None:
        size = self.state.facts["latent_size"]
        self._json({"latents": [latent_of(seed, size) for seed in given["seeds"]]})

    def _decode(self, given: Mapping[str, Any]) -> None:
        self._conditions(given, len(given["latents"]))
        self._images([[int(128 + 40 * value) for value in z[:3]] for z in given["latents"]])

    def _interpolate(self, given: Mapping[str, Any]) -> None:
        first, last = (np.array(colour_of(seed)) for seed in given["seeds"])
        shares = np.linspace(0, 1, given["steps"])
        self._images([(first + (last - first) * share).astype(int).tolist() for share in shares])

    def _likelihood(self, body: bytes) -> None:
        assert ("class" in parse_qs(urlsplit(self.path).query)) == bool(self.state.facts["classes"])
        image = Image.open(io.BytesIO(body), formats=("PNG",))
        nats = float(np.asarray(image.convert("L")).mean())
        bits = nats / np.log(2) / self.state.facts["image_size"] ** 2
        self._json({"name": self.state.facts["likelihood"], "nats": nats, "bits_per_dim": bits})

    # Sending

    def _json(self, content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self._send(json.dumps(content).encode(), "application/json", headers, status)

    def _error(self, status: int, text: str, headers: Mapping[str, str] = {}) -> None:
        self._json({"error": text}, status, headers)

    def _send(
        self, content: bytes, type_: str, headers: Mapping[str, str] = {}, status: int = 200
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(content)))
        policy = f"{CONTENT_SECURITY_POLICY}; base-uri 'none'; form-action 'none'"
        self.send_header("Content-Security-Policy", policy)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
