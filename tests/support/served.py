"""A running service in this process, and a client for it."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from orchestrator.models.base import GenerativeModel
from orchestrator.registry.bundle import Source, write_bundle, write_source
from orchestrator.serving.access import AccessOptions
from orchestrator.serving.app import make_app
from orchestrator.serving.engines import EngineChoice
from orchestrator.serving.limits import Limits
from orchestrator.serving.served_version import ServedVersion, load_version
from orchestrator.serving.service import DrawingService
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.serving.version_slot import VersionSlot


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        found: str = self.json["error"]
        return found

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image of the body, uint8 (C, H, W)."""
        return to_levels(self.body)

    @property
    def images(self) -> NDArray[np.uint8]:
        """The images of a JSON answer, uint8 (B, C, H, W)."""
        return np.stack([to_levels(base64.b64decode(each["png"])) for each in self.json["images"]])


class Client:
    """Asks a service; one connection at a time."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self.port, self.headers = port, dict(headers or {})

    def ask(self, method: str, path: str, content: bytes | None = None, /, **named: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {name.replace("_", "-"): value for name, value in named.items()}
        try:
            connection.request(method, path, content, {**self.headers, **headers})
            answer = connection.getresponse()
            return Answer(
                answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            )
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, content: Any, **headers: str) -> Answer:
        headers = {"content_type": "application/json", **headers}
        return self.ask("POST", path, json.dumps(content).encode(), **headers)

    def post_image(self, path: str, image: bytes, **headers: str) -> Answer:
        kind = headers.pop("content_type", "image/png")
        return self.ask("POST", path, image, content_type=kind, **headers)


def to_levels(encoded: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(encoded))
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def to_png(levels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 (C, H, W)."""
    pixels, buffer = levels.transpose(1, 2, 0), io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_model(folder: Path, model: GenerativeModel, version: int = 1) -> Path:
    """Write a model as `models pull` does."""
    write_bundle(folder, model.config, model.inference_module().state_dict(), {}, "# A card\n")
    write_source(folder, Source(model.config.name, version))
    return folder


def slot_of(
    folder: Path,
    metrics: ServiceMetrics,
    role: str = "main",
    engine: EngineChoice = "torch",
    limits: Limits | None = None,
) -> VersionSlot:
    """A slot that serves the model in a folder, for good."""

    def load(serving: int | None) -> ServedVersion | None:
        if serving is not None:
            return None
        return load_version(folder, engine=engine, limits=limits, observe=metrics.observe_batch)

    return VersionSlot(role, load, metrics)


def service_of(main: VersionSlot, limits: Limits | None = None, **others: Any) -> DrawingService:
    return DrawingService(main, main.metrics, limits or Limits(), **{"refresh_s": 0, **others})


@contextmanager
def running(service: DrawingService, access: AccessOptions | None = None) -> Iterator[Client]:
    """Run a service in another thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    started, problems, servers = threading.Event(), [], []

    async def serve() -> None:
        app = make_app(service, access or AccessOptions())
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        servers.append(server)
        asyncio.get_running_loop().call_later(0.05, started.set)
        await server.serve(sockets=[listening])

    def run() -> None:
        try:
            service.load()
            asyncio.run(serve())
        except BaseException as error:
            problems.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        started.wait()
        if problems:
            raise problems[0]
        yield Client(listening.getsockname()[1])
    finally:
        for server in servers:
            server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def serving(
    folder: Path, model: GenerativeModel, limits: Limits | None = None, **options: Any
) -> Iterator[Client]:
    """Serve a model with PyTorch."""
    write_model(folder, model)
    slot = slot_of(folder, ServiceMetrics(), limits=limits)
    with running(service_of(slot, limits, **options)) as client:
        yield client
