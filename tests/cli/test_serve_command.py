"""`orchestrator serve` as a user starts and stops it."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from support.listening import exposed, listening
from support.served import Client, to_png, write_model
from support.small import scattered_model

pytestmark = pytest.mark.server
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", scattered_model("pix2pix").eval())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "serve", *arguments]


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[Client, "subprocess.Popen[str]"]]:
    port = free_port()
    process = subprocess.Popen(
        command(str(folder), "--engine", "torch", "--port", str(port), *arguments),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("serving "):
                break
        deadline, client = time.monotonic() + 60, Client(port)
        while True:
            try:
                assert client.get("/ready").status == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield client, process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_listens_on_loopback_serves_and_ends_without_an_error(
    number: signal.Signals, folder: Path
) -> None:
    image = np.full((3, 16, 16), 255, np.uint8)
    expected = scattered_model("pix2pix").sample(torch.tensor([9]), torch.ones(1, 3, 16, 16))
    with started(folder) as (client, process):
        answer = client.post_image("/v1/translate?seed=9", to_png(image))
        levels = (expected[0].double() + 1) * 127.5
        assert np.abs(answer.pixels - levels.numpy()).max() < 0.51
        found = listening(process.pid)
        assert found
        assert not exposed(found)
        process.send_signal(number)
        assert process.wait(30) == 0


def test_off_loopback_it_wants_a_token_that_only_its_owner_can_read(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    with started(folder, "--host", "0.0.0.0", "--token-file", str(file)) as (client, _):
        image = to_png(np.zeros((3, 16, 16), np.uint8))
        assert client.post_image("/v1/translate", image).status == 401
        with_token = {"authorization": f"Bearer {TOKEN}"}
        assert client.post_image("/v1/translate", image, **with_token).status == 200


def refused(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(command(*arguments), check=False, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, lines[0]


def test_mistakes_end_with_one_line_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    open_file, short = tmp_path / "open", tmp_path / "short"
    open_file.write_text(TOKEN)
    open_file.chmod(0o644)
    short.write_text("secret")
    short.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases: list[tuple[tuple[str, ...], int, str]] = [
            ((str(folder), "--host", "0.0.0.0"), 2, "--token-file"),
            ((str(folder), "--host", "192.0.2.1", "--token-file", str(short)), 2, "no token"),
            ((str(folder), "--token-file", str(open_file)), 3, "mode 600"),
            ((str(folder), "--token-file", str(tmp_path / "none")), 3, "cannot be read"),
            ((str(folder), "--port", port), 3, f"127.0.0.1:{port}"),
            (("nothing", "--tracking-uri", f"sqlite:///{tmp_path}/x.db"), 2, "no MLflow database"),
        ]
        for arguments, code, says in cases:
            found, line = refused(*arguments)
            assert (found, says in line) == (code, True), line


def test_a_damaged_model_is_not_served(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    code, line = refused(str(folder), "--port", "0")
    assert (code, "weights.safetensors" in line) == (4, True), line
