"""Start a real S3 server for tests: SeaweedFS, one process on 127.0.0.1."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .ports import free_ports

ACCESS_KEY = "testaccesskey"
SECRET_KEY = "testsecretkey0123"
BUCKET = "tests"
PORTS = 8
"""Number of consecutive ports of the server, the first for the S3 gateway."""


@dataclass(frozen=True)
class S3Server:
    """A running server with one empty bucket."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the address and the credentials."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def s3_server(folder: Path, wait_s: float = 180) -> Iterator[S3Server]:
    """Run a server that stores its data in ``folder`` within a with block."""
    port = free_ports(PORTS)
    (folder / "data").mkdir(parents=True)
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(folder, port),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
    try:
        deadline = time.monotonic() + wait_s
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        server = S3Server(port)
        _create_bucket(server)
        yield server
    finally:
        _stop(process)


def _command(folder: Path, port: int) -> list[str]:
    weed = Path(sys.executable).with_name("weed")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    flags = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": port + 1,
        "master.port.grpc": port + 2,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 1024,
        "master.heartbeatInterval": "100ms",
        "master.electionTimeout": "1s",
        "volume.port": port + 3,
        "volume.port.grpc": port + 4,
        "volume.max": 1000,
        "volume.preStopSeconds": 0,
        "volume.minFreeSpace": "512MiB",
        "filer": "true",
        "filer.port": port + 5,
        "filer.port.grpc": port + 6,
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.port": port,
        "s3.port.grpc": port + 7,
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    binary = str(weed) if weed.exists() else shutil.which("weed") or "weed"
    options = [f"-{name}={value}" for name, value in flags.items()]
    return [binary, "-logtostderr=true", "-v=0", "server", *options]


def _is_ready(port: int) -> bool:
    """Whether the gateway and its filer answer and the master has a volume server."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            pass
        with urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/dir/status", timeout=2) as reply:
            return bool(json.load(reply)["Topology"].get("Free", 0) > 0)
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return False


def _create_bucket(server: S3Server) -> None:
    import boto3

    boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    ).create_bucket(Bucket=BUCKET)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM, then SIGKILL: the server may wait forever for its own connections."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
