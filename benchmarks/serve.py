"""Compare `orchestrator serve` with the bare model and with `mlflow models serve`, in turn.

    python -m benchmarks.serve --image-size 64 --rounds 3
    python -m benchmarks.serve --swaps 100              # new versions under 16 clients
    python -m benchmarks.serve --requests 100000        # an hour's requests in fast motion: memory

A pix2pix with random weights is registered and served. Clients are coroutines of this process, on
the same cores. "bare" is the engine in a process of its own, without HTTP and PNG, in batches of a
size that is chosen as the service does.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from orchestrator.models.base import ModelConfig
from orchestrator.registry import registry
from orchestrator.registry.aliases import force
from services.ports import free_port
from support.registries import make_registry, register_random
from support.served import to_png

NAME, ALIAS = "drawer", "champion"
CLIENTS = (1, 8, 64)
STARTING_S = 300


class Figures(NamedTuple):
    """What the clients saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    failed: int


class Request(NamedTuple):
    """A request that the clients repeat."""

    port: int
    path: str
    kind: str
    body: bytes

    @property
    def encoded(self) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {self.kind}\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


async def ask(request: Request, until: float, most: int, times: list[float]) -> int:
    """Repeat a request on one connection; return how many failed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", request.port)
    encoded, failed, count = request.encoded, 0, 0
    while time.monotonic() < until and count < most:
        started = time.monotonic()
        writer.write(encoded)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        failed += b" 200 " not in head.split(b"\r\n")[0]
        times.append(time.monotonic() - started)
        count += 1
    writer.close()
    return failed


def load(request: Request, clients: int, seconds: float = 1e9, most: int = 1 << 60) -> Figures:
    """Ask with so many clients at a time, for so long or so many times."""

    async def run() -> int:
        until = time.monotonic() + seconds
        return sum(
            await asyncio.gather(*(ask(request, until, most, times) for _ in range(clients)))
        )

    times: list[float] = []
    started = time.monotonic()
    failed = asyncio.run(run())
    taken = time.monotonic() - started
    p50, p99, longest = (1000 * float(q) for q in np.quantile(times, [0.5, 0.99, 1.0]))
    return Figures(len(times) / taken, p50, p99, longest, failed)


@contextmanager
def server(command: list[str], url: str, environ: Mapping[str, str]) -> Iterator[psutil.Process]:
    """Run a server until the block ends; it has started when it answers at ``url``."""
    log = Path(tempfile.mkstemp(prefix="server-")[1])
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + STARTING_S
        while True:
            try:
                urlopen(url, timeout=5).close()
                break
            except URLError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            whole = psutil.Process(process.pid)
            family = [*whole.children(recursive=True), whole]
            for each in family:
                each.terminate()
            psutil.wait_procs(family, 30)
        log.unlink()


def serve_command(uri: str, port: int, engine: str, *more: str) -> list[str]:
    command = [sys.executable, "-m", "orchestrator", "serve", f"{NAME}@{ALIAS}", "--engine", engine]
    return [*command, "--port", str(port), "--tracking-uri", uri, *more]


def bare(folder: Path, engine: str, size: int, seconds: float) -> float:
    """Return images/s of the engine alone, in a process of its own."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from orchestrator.serving.served_version import load_version\n"
        "served = load_version(Path(sys.argv[1]), engine=sys.argv[2])\n"
        "size, n = int(sys.argv[3]), served.max_batch\n"
        "inputs = np.arange(n), np.full((n, 3, size, size), 255, np.uint8)\n"
        "served.engine.draw(*inputs)\n"
        "started, count = time.monotonic(), 0\n"
        "while time.monotonic() < started + float(sys.argv[4]):\n"
        "    served.engine.draw(*inputs)\n"
        "    count += n\n"
        "print(count / (time.monotonic() - started), n)\n"
    )
    command = [sys.executable, "-c", code, str(folder), engine, str(size), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


def drawing(size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A drawing of a few lines: uint8 (3, H, W)."""
    image = np.full((3, size, size), 255, np.uint8)
    image[:, size // 4 : -size // 4, size // 4] = 0
    image[:, size // 4, size // 4 : -size // 4] = 0
    return image


def compare(uri: str, folder: Path, options: argparse.Namespace) -> None:
    """Print requests/s and times of each server, round by round."""
    size = options.image_size
    picture = drawing(size)
    as_json = {"inputs": (picture[None] / 127.5 - 1).round(4).tolist(), "params": {"seed": 0}}
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        alone = bare(folder, options.engine, size, options.seconds)
        found.setdefault("bare", []).append(alone)
        print(f"round {number}  bare {alone:8.1f} images/s", flush=True)
        port = free_port()
        request = Request(port, "/v1/translate?seed=0", "image/png", to_png(picture))
        command = serve_command(uri, port, options.engine)
        with server(command, f"http://127.0.0.1:{port}/ready", {}):
            show("orchestrator", request, options, found)
        if options.no_mlflow:
            continue
        port = free_port()
        request = Request(port, "/invocations", "application/json", json.dumps(as_json).encode())
        command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve"]
        command += ["-m", f"models:/{NAME}@{ALIAS}", "--env-manager", "local", "-p", str(port)]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {"MLFLOW_TRACKING_URI": uri, "PATH": path}
        with server(command, f"http://127.0.0.1:{port}/ping", environ):
            show("mlflow", request, options, found)
    print("median of the rounds:")
    for title, values in found.items():
        print(f"  {title:24} {np.median(values):8.1f} /s")


def show(
    title: str, request: Request, options: argparse.Namespace, found: dict[str, list[float]]
) -> None:
    load(request, 4, seconds=1)  # warms it up
    for clients in CLIENTS:
        seen = load(request, clients, options.seconds)
        found.setdefault(f"{title}, {clients} clients", []).append(seen.per_s)
        print(
            f"         {title:12} {clients:3} clients {seen.per_s:8.1f} /s   "
            f"p50 {seen.p50_ms:7.1f} ms   p99 {seen.p99_ms:7.1f} ms   failed {seen.failed}",
            flush=True,
        )


def swap(uri: str, options: argparse.Namespace) -> None:
    """Move the alias again and again under 16 clients; print failures, times and memory."""
    port = free_port()
    request = Request(
        port, "/v1/translate?seed=0", "image/png", to_png(drawing(options.image_size))
    )
    command = serve_command(uri, port, options.engine, "--refresh-s", "0.2")
    with server(command, f"http://127.0.0.1:{port}/ready", {}) as process:
        steady = load(request, 16, options.seconds)
        print(f"without swaps: p99 {steady.p99_ms:.0f} ms, longest {steady.longest_ms:.0f} ms")
        for number in range(options.swaps):
            force(f"{NAME}/{2 - number % 2}", ALIAS, "benchmark", uri)
            wanted = f'version{{role="main"}} {2 - number % 2}.0'
            while True:
                seen = load(request, 16, 1.0)
                text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
                report(number, seen, process)
                if wanted in text:
                    break


def report(number: int, seen: Figures, process: psutil.Process) -> None:
    memory = process.memory_info().rss / 1e6
    print(
        f"{number:6} {seen.per_s:7.1f} /s  p50 {seen.p50_ms:.0f} p99 {seen.p99_ms:.0f} longest "
        f"{seen.longest_ms:.0f} ms  failed {seen.failed}  {memory:.0f} MB  "
        f"{process.num_fds()} files {process.num_threads()} threads",
        flush=True,
    )


def soak(uri: str, options: argparse.Namespace) -> None:
    """Print the memory of the service while it answers many requests."""
    port = free_port()
    request = Request(
        port, "/v1/translate?seed=0", "image/png", to_png(drawing(options.image_size))
    )
    command = serve_command(uri, port, options.engine)
    with server(command, f"http://127.0.0.1:{port}/ready", {}) as process:
        for number in range(10):
            seen = load(request, 16, most=options.requests // 160)
            report(number, seen, process)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--engine", choices=["onnx", "torch"], default="onnx")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--no-mlflow", action="store_true")
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--requests", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serve-")))
        uri = make_registry(folder)
        config = ModelConfig.model_validate(
            {"name": "pix2pix", "image_size": options.image_size, "filters": options.filters}
        )
        for _ in range(2):
            register_random(uri, NAME, config, {})
        force(f"{NAME}/1", ALIAS, "benchmark", uri)
        pulled = registry.pull(f"{NAME}/1", folder / "pulled", uri)
        if options.swaps:
            swap(uri, options)
        elif options.requests:
            soak(uri, options)
        else:
            compare(uri, pulled, options)


if __name__ == "__main__":
    main()
