"""RAY_ADDRESS before Ray sees it, with control stores that answer as a head of Ray 2.60 does."""

import contextlib
import importlib.metadata
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.diagnostics import ray_address
from orchestrator.diagnostics.doctor import check_ray_cluster, require_ray_cluster
from orchestrator.diagnostics.ray_address import is_on_loopback_only, parse_address
from orchestrator.errors import EnvironmentProblem

RAY = importlib.metadata.version("ray")
TOKEN = "t" * 32


def reply(version: str) -> bytes:
    """A CheckAliveReply: a status, the version, one raylet that is alive."""
    return b"\n\x00\x12" + bytes([len(version)]) + version.encode() + b" \x01"


@contextlib.contextmanager
def control_store(
    version: str = RAY, token: str = "", tls: Any = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """A control store of Ray that requires ``token``, if any."""

    def check_alive(request: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if token and sent != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return reply(version)

    handlers = {"CheckAlive": grpc.unary_unary_rpc_method_handler(check_alive)}
    server = grpc.server(ThreadPoolExecutor(2))
    service = ray_address.CHECK_ALIVE.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    if tls is None:
        port = server.add_insecure_port(f"{host}:0")
    else:
        port = server.add_secure_port(f"{host}:0", tls)
    server.start()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def problem(address: str, **environ: str) -> str:
    """The line that `run` prints; doctor finds the same."""
    given = {"RAY_ADDRESS": address, **environ}
    with pytest.raises(EnvironmentProblem) as refused:
        require_ray_cluster(given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1", "has no port"),
        ("host:port", "is malformed"),
        (":6379", "is malformed"),
        (" 10.0.0.1:6379", "is malformed"),
        ("10.0.0.1:6379/x", "is malformed"),
        ("10.0.0.1:99999", "is malformed"),
        ("[::1", "is malformed"),
        ("redis://10.0.0.1:6379", "unknown scheme redis://"),
        ("ray://", "is malformed"),
    ],
)
def test_a_malformed_address_is_a_line_with_the_format(address: str, said: str) -> None:
    line = problem(address)
    assert f"RAY_ADDRESS={address}" in line
    assert said in line
    assert "write HOST:PORT" in line
    assert check_ray_cluster({"RAY_ADDRESS": address}).status == "fail"


def test_an_address_is_parsed_with_the_default_ports() -> None:
    assert parse_address("ray://head") == ray_address.RayAddress("ray", "head", 10001)
    assert parse_address("[::1]:6379") == ray_address.RayAddress("gcs", "::1", 6379)
    assert parse_address("[::1]:6379").is_loopback
    assert not parse_address("10.0.0.1:6379").is_loopback


def test_a_head_that_answers_is_used() -> None:
    with control_store() as address:
        assert require_ray_cluster({"RAY_ADDRESS": address}) == parse_address(address)
        assert check_ray_cluster({"RAY_ADDRESS": address}).status == "ok"
    assert "does not answer" in problem(address)
    assert require_ray_cluster({"RAY_ADDRESS": "local"}) is None
    assert require_ray_cluster({}) is None


def test_a_missing_and_a_wrong_token_are_told_apart() -> None:
    with control_store(token=TOKEN) as address:
        missing, wrong = (
            problem(address),
            problem(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x" * 32),
        )
        right = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        assert require_ray_cluster(right) is not None
    assert "requires a token; set RAY_AUTH_MODE=token" in missing
    assert "rejects this token" in wrong
    assert TOKEN not in missing + wrong
    assert "no token was found" in problem(address, RAY_AUTH_MODE="token")
    assert "RAY_AUTH_MODE=maybe is not a valid mode" in problem(address, RAY_AUTH_MODE="maybe")


def test_another_version_of_ray_is_named() -> None:
    with control_store(version="2.41.0") as address:
        assert f"runs Ray 2.41.0, and here is Ray {RAY}" in problem(address)


def test_a_port_that_listens_and_does_not_answer_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        line = problem(f"127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - start < 5
    assert "accepts connections and gave no answer within 0.5 s" in line


def test_tls_on_one_side_only_is_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    pair = [(key.read_bytes(), certificate.read_bytes())]
    here = {
        "RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": str(certificate),
        "RAY_TLS_SERVER_KEY": str(key), "RAY_TLS_SERVER_CERT": str(certificate),
    }  # fmt: skip
    with control_store(tls=grpc.ssl_server_credentials(pair)) as address:
        assert require_ray_cluster({"RAY_ADDRESS": address, **here}) is not None
        assert problem(address).endswith("set RAY_USE_TLS=1 if it uses TLS")
    with control_store() as address:
        assert problem(address, **here).endswith("unset RAY_USE_TLS if the head has no TLS")
        assert "RAY_TLS_CA_CERT is not set" in problem(address, RAY_USE_TLS="1")
        assert "No such file" in problem(address, **{**here, "RAY_TLS_CA_CERT": "/none"})


def test_auto_without_a_cluster_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.process_iter", lambda fields: [])
    line = problem("auto", TMPDIR=str(tmp_path))
    assert "RAY_ADDRESS=auto, and no Ray cluster runs on this machine" in line
    (tmp_path / "ray").mkdir()
    with control_store(token=TOKEN) as address:
        (tmp_path / "ray/ray_current_cluster").write_text(address)
        auto = {"RAY_ADDRESS": "auto", "TMPDIR": str(tmp_path), "RAY_AUTH_TOKEN": TOKEN}
        assert require_ray_cluster(auto) == parse_address(address)
    assert "(RAY_ADDRESS=auto) does not answer" in problem("auto", TMPDIR=str(tmp_path))


def test_the_address_of_the_jobs_api_is_refused_by_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = problem(f"http://user:pass@127.0.0.1:{server.getsockname()[1]}")
    assert "for `orchestrator submit`" in line
    assert "pass@" not in line


def test_a_head_on_loopback_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with control_store() as address:
        assert is_on_loopback_only(parse_address(address), {}) != (
            ray_address.machine_address() == "127.0.0.1"
        )
        monkeypatch.setattr(ray_address, "machine_address", lambda: "127.0.0.2")
        assert is_on_loopback_only(parse_address(address), {})
        set_already = {ray_address.LOOPBACK_VARIABLE: "0"}
        assert not is_on_loopback_only(parse_address(address), set_already)
    with control_store(host="0.0.0.0") as address:
        port = address.rpartition(":")[2]
        assert not is_on_loopback_only(parse_address(f"127.0.0.1:{port}"), {})
    assert not is_on_loopback_only(parse_address("10.0.0.1:1"), {})
