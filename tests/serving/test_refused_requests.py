"""What a client may not ask for is refused with one line, before it costs anything."""

import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.serving.access import AccessOptions
from orchestrator.serving.limits import Limits
from orchestrator.serving.service_metrics import ServiceMetrics
from support.served import (
    Answer,
    Client,
    running,
    service_of,
    slot_of,
    to_png,
    write_model,
)
from support.small import scattered_model

pytestmark = pytest.mark.server
LIMITS = Limits(bytes=100_000, pixels=1_000_000, images=8, body_s=0.5, timeout_s=20)
WHITE = to_png(np.full((3, 16, 16), 255, np.uint8))
TOKEN = "a-token-of-enough-length"


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """A service of a model that translates, one with classes, one with captions."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    with ExitStack() as stack:
        for name in ("pix2pix", "age_cgan", "text2image", "gan"):
            model = scattered_model(name).eval()
            write_model(folder / name, model)
            slot = slot_of(folder / name, ServiceMetrics(), limits=LIMITS)
            found[name] = stack.enter_context(running(service_of(slot, LIMITS)))
        yield found


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"", "image/png", 415, "no PNG, JPEG or WebP"),
        (b"junk", "image/png", 415, "no PNG, JPEG or WebP"),
        (WHITE[:60], "image/png", 415, "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png", 415, "no PNG"),
        (b"GIF89a" + bytes(100), "image/png", 415, "no PNG"),
        (WHITE, "text/plain", 415, "text/plain; send the bytes of an image: image/png"),
        (WHITE, "multipart/form-data; boundary=x", 415, "multipart/form-data"),
        (png_header(50_000, 50_000), "image/png", 413, "too many pixels; at most 1,000,000"),
        (png_header(1, 2_000_000), "image/png", 413, "1 x 2000000 pixels"),
        (bytes(100_001), "image/png", 413, "at most 100,000 bytes"),
    ],
    ids=[
        "empty", "junk", "cut", "postscript", "gif", "text", "form", "bomb", "thin", "large",
    ],
)  # fmt: skip
def test_what_is_no_usable_image_is_refused(
    clients: dict[str, Client], body: bytes, kind: str, status: int, says: str
) -> None:
    answer = clients["pix2pix"].post_image("/v1/translate", body, content_type=kind)
    assert (answer.status, says in answer.error) == (status, True), answer.error
    assert "\n" not in answer.error


@pytest.mark.parametrize(
    ("model", "path", "content", "status", "says"),
    [
        ("gan", "/v1/sample", {}, 422, "seeds: Field required"),
        ("gan", "/v1/sample", {"seeds": []}, 422, "seeds"),
        ("gan", "/v1/sample", {"seeds": [-1]}, 422, "seeds.0"),
        ("gan", "/v1/sample", {"seeds": [2**53]}, 422, "seeds.0"),
        ("gan", "/v1/sample", {"seeds": [1.5]}, 422, "seeds.0"),
        ("gan", "/v1/sample", {"seeds": list(range(9))}, 422, "9 images are too many"),
        ("gan", "/v1/sample", {"seeds": [1], "sedes": 2}, 422, "sedes"),
        ("gan", "/v1/sample", {"seeds": [1], "class": 2}, 422, "has no classes; leave class"),
        ("gan", "/v1/sample", {"seeds": [1], "caption": "x"}, 422, "takes no caption"),
        ("gan", "/v1/sample", [1], 422, "object"),
        ("gan", "/v1/decode", {"latents": [[0.0]]}, 422, "has 1 numbers; expected"),
        ("gan", "/v1/decode", {"latents": [[1e30]]}, 422, "latents.0.0"),
        ("gan", "/v1/interpolate", {"seeds": [1]}, 422, "seeds"),
        ("gan", "/v1/interpolate", {"seeds": [1, 2], "steps": 9}, 422, "9 images are too many"),
        ("gan", "/v1/sample/rows", {"seed": 1}, 404, "/openapi.json"),
        ("age_cgan", "/v1/sample", {"seeds": [1], "class": 3}, 422, "has classes 0 to 2"),
        ("age_cgan", "/v1/sample", {"seeds": [1], "class": -1}, 422, "has classes 0 to 2"),
        ("age_cgan", "/v1/sample", {"seeds": [1, 2], "classes": [1]}, 422, "1 for 2 images"),
        ("age_cgan", "/v1/sample", {"seeds": [1], "class": 1, "classes": [1]}, 422, "not both"),
        ("text2image", "/v1/sample", {"seeds": [1]}, 422, "give caption"),
        ("text2image", "/v1/sample", {"seeds": [1], "caption": "x" * 10_001}, 422, "caption"),
        ("pix2pix", "/v1/sample", {"seeds": [1]}, 404, "/openapi.json"),
    ],
)
def test_what_the_model_cannot_draw_is_refused(
    clients: dict[str, Client], model: str, path: str, content: Any, status: int, says: str
) -> None:
    answer = clients[model].post(path, content)
    assert (answer.status, says in answer.error) == (status, True), answer.error
    assert "\n" not in answer.error


def test_json_that_is_damaged_or_called_something_else_is_refused(
    clients: dict[str, Client],
) -> None:
    client = clients["gan"]
    damaged = client.ask("POST", "/v1/sample", b"{", content_type="application/json")
    deep = client.ask("POST", "/v1/sample", b"[" * 50_000, content_type="application/json")
    form = client.ask("POST", "/v1/sample", b"seeds=1", content_type="text/plain")
    assert (damaged.status, deep.status, form.status) == (422, 422, 415)
    seed = clients["pix2pix"].post_image("/v1/translate?seed=x", WHITE)
    assert (seed.status, seed.error.split(":")[0]) == (422, "query.seed")


def test_a_body_that_grows_or_stops_is_given_up(clients: dict[str, Client]) -> None:
    head = "POST /v1/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    with socket.create_connection(("127.0.0.1", clients["pix2pix"].port)) as slow:
        slow.sendall((head + "Content-Length: 50\r\n\r\nabc").encode())
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
    with socket.create_connection(("127.0.0.1", clients["pix2pix"].port)) as growing:
        growing.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        for _ in range(8):
            growing.sendall(chunk)
        assert b" 413 " in growing.recv(1000).split(b"\r\n")[0]


def with_token(path: Path, token: str | None, **access: Any) -> AbstractContextManager[Client]:
    model = scattered_model("pix2pix").eval()
    write_model(path, model)
    slot = slot_of(path, ServiceMetrics(), limits=LIMITS)
    return running(service_of(slot, LIMITS), AccessOptions(token, **access))


def test_without_the_token_only_the_page_and_the_state_are_seen(tmp_path: Path) -> None:
    with with_token(tmp_path / "model", TOKEN) as client:

        def ask(path: str, **headers: str) -> Answer:
            return client.post_image(path, WHITE, **headers)

        for path in ("/v1/translate", "/metrics", "/v1/model", "/openapi.json", "/nothing"):
            for given in ({}, {"authorization": "Bearer x"}, {"authorization": TOKEN}):
                answer = ask(path, **given)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in answer.body.decode()
        assert ask("/v1/translate", authorization=f"Bearer {TOKEN}").status == 200
        assert client.get("/health").status == 200
        assert client.get("/ready").json == {"status": "ready"}
        facts = client.get("/v1/model", authorization=f"Bearer {TOKEN}").json
        assert facts["token_required"] is True


def test_a_page_of_another_site_cannot_use_the_service(tmp_path: Path) -> None:
    access = {"hosts": ("localhost", "127.0.0.1", "::1")}
    with with_token(tmp_path / "model", None, **access) as client:
        assert client.get("/ready", host="evil.example").status == 421
        assert client.get("/ready", host="localhost.evil.example:80").status == 421
        assert client.get("/ready", host=f"localhost:{client.port}").status == 200
        assert client.get("/ready", host="[::1]").status == 200
        preflight = client.ask(
            "OPTIONS", "/v1/translate", origin="https://evil.example",
            access_control_request_method="POST",
        )  # fmt: skip
        answer = client.post_image("/v1/translate", WHITE, origin="https://evil.example")
        for each in (preflight, answer):
            assert not any(name.startswith("access-control") for name in each.headers)


def test_when_too_many_wait_the_client_is_told_when_to_ask_again(tmp_path: Path) -> None:
    limits = Limits(waiting=1)
    model = scattered_model("pix2pix").eval()
    write_model(tmp_path / "model", model)
    slot = slot_of(tmp_path / "model", ServiceMetrics(), limits=limits)
    with running(service_of(slot, limits)) as client:
        engine = slot.current.engine
        draw = engine.draw

        def slowly(*inputs: Any) -> Any:
            time.sleep(0.5)
            return draw(*inputs)

        engine.draw = slowly  # type: ignore[method-assign]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.post_image("/v1/translate", WHITE), range(6)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses[0] == 200
    assert statuses[-1] == 429
    busy = [answer for answer in answers if answer.status == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in busy)
    assert "too many images are waiting" in json.loads(busy[0].body)["error"]


def test_a_model_that_fails_answers_500_and_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = scattered_model("pix2pix").eval()
    write_model(tmp_path / "model", model)
    slot = slot_of(tmp_path / "model", ServiceMetrics())
    with running(service_of(slot)) as client:

        def fail(*inputs: Any) -> Any:
            raise RuntimeError("out of memory")

        slot.current.engine.draw = fail  # type: ignore[method-assign]
        answer = client.post_image("/v1/translate", WHITE)
        metrics = client.get("/metrics").body.decode()
    assert (answer.status, answer.error) == (500, "pix2pix/1 could not draw this")
    assert 'draw_errors_total{role="main",version="pix2pix/1"} 1.0' in metrics
    assert "out of memory" in capfd.readouterr().err
