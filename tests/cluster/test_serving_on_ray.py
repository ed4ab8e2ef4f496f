"""`orchestrator serve --cluster` on a real Ray cluster: the same application, in replicas."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from services.ports import free_port
from services.ray_cluster import RayCluster, ray_cluster
from support.listening import exposed, listening
from support.served import Client, to_png, write_model
from support.small import scattered_model
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]
TOKEN = "a-token-of-this-cluster"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), {"PYTHONPATH": str(ROOT)}) as cluster:
        yield cluster


def environ(cluster: RayCluster) -> dict[str, str]:
    return {**cluster.environ, "RAY_ADDRESS": cluster.gcs_address}


def test_two_replicas_draw_what_the_model_draws_behind_the_token(
    cluster: RayCluster, tmp_path: Path
) -> None:
    model = scattered_model("pix2pix").eval()
    folder, token, port = write_model(tmp_path / "model", model), tmp_path / "token", free_port()
    token.write_text(TOKEN)
    token.chmod(0o600)
    command = [sys.executable, "-m", "orchestrator", "serve", str(folder), "--cluster"]
    command += ["--replicas", "2", "--engine", "torch", "--port", str(port)]
    command += ["--token-file", str(token)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environ(cluster), stdout=file, stderr=file)
    try:
        wait_until(
            lambda: "stop with Ctrl-C" in log.read_text() or process.poll() is not None,
            300,
            "the service",
        )
        assert process.poll() is None, log.read_text()
        client = Client(port, {"authorization": f"Bearer {TOKEN}"})
        images = np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16), np.uint8)
        given = torch.from_numpy(images).float() / 127.5 - 1
        expected = (model.sample(torch.arange(24), given).double() + 1) * 127.5

        def ask(seed: int) -> float:
            answer = client.post_image(f"/v1/translate?seed={seed}", to_png(images[seed]))
            assert answer.status == 200, answer.body
            return float(np.abs(answer.pixels - expected[seed].numpy()).max())

        with ThreadPoolExecutor(8) as pool:
            assert max(pool.map(ask, range(24))) < 0.51
        assert Client(port).post_image("/v1/translate", to_png(images[0])).status == 401
        titles = [p.info["cmdline"] or [""] for p in psutil.process_iter(["cmdline"])]
        replicas = [title for title in titles if "ServeReplica:orchestrator:model" in title[0]]
        assert len(replicas) == 2
        assert not any(TOKEN in " ".join(title) for title in titles)
        proxies = [
            p.pid for p in psutil.process_iter(["cmdline"])
            if "ProxyActor" in " ".join(p.info["cmdline"] or [])
        ]  # fmt: skip
        found = {each for pid in proxies for each in listening(pid)}
        assert not {each for each in exposed(found) if each[1] == str(port)}
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, log.read_text()
    assert TOKEN not in log.read_text()
    with pytest.raises(OSError, match="refused"):
        client.get("/health")


def test_a_damaged_model_is_refused_before_a_replica_starts(
    cluster: RayCluster, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", scattered_model("pix2pix").eval())
    (folder / "weights.safetensors").write_bytes(b"damaged")
    command = [sys.executable, "-m", "orchestrator", "serve", str(folder), "--cluster"]
    done = subprocess.run(
        command, env=environ(cluster), check=False, capture_output=True, text=True
    )
    assert done.returncode == 4, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "weights.safetensors" in errors[0]
