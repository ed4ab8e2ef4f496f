"""Reads from a real S3 server through a proxy that injects faults."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from orchestrator.errors import DataError, EnvironmentProblem, TryAgain
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage
from orchestrator.storage.retrying import RetryingStorage
from services.faulty_s3 import Faults, FaultyS3, faulty_s3
from services.s3 import S3Server
from support.waiting import wait_until

pytestmark = pytest.mark.server

DATA = Random(5).randbytes(3_000_000)


@pytest.fixture
def proxy(s3: str, running_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Proxy of a server that has DATA under ``key``; reads time out after 1 s instead of 10."""
    open_storage(s3).put("key", DATA)
    monkeypatch.setattr("orchestrator.storage.s3.READ_TIMEOUT_S", 1.0)
    with faulty_s3(running_s3) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        yield proxy


def test_without_faults_the_proxy_forwards_everything(s3: str, proxy: FaultyS3) -> None:
    storage = open_storage(s3)
    for size in (0, 1, 100_000, 5 << 20):
        data = Random(size).randbytes(size)
        storage.put(f"a/{size}", data)
        assert storage.get(f"a/{size}") == data
    assert storage.get_range("key", 1000, 2_000_000) == DATA[1000:2_001_000]
    assert storage.put_if_absent("once", b"x")
    assert not storage.put_if_absent("once", b"y")
    assert not storage.exists("nothing")
    storage.delete("once")
    assert storage.list() == ["a/0", "a/1", "a/100000", "a/5242880", "key"]
    assert set(proxy.counts) == {"objects"}


def test_a_connection_is_reused(proxy: FaultyS3) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.connect()
    ours = connection.sock.getsockname()
    for _ in range(5):
        connection.request("GET", "/tests/none")
        answer = connection.getresponse()
        assert answer.status in (403, 404)
        answer.read()
        assert connection.sock is not None
        assert connection.sock.getsockname() == ours
    connection.close()


def test_only_reads_of_objects_get_faults(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.READ_REQUEST_ATTEMPTS", 1)
    proxy.faults = Faults(slow_down=1.0)
    storage = open_storage(s3)
    storage.put("other", b"x")
    assert storage.list() == ["key", "other"]
    assert storage.size("key") == len(DATA)
    assert not proxy.counts
    with pytest.raises(TryAgain):
        storage.get("key")


def test_a_seed_determines_the_faults(s3: str, running_s3: S3Server) -> None:
    def statuses() -> list[int]:
        with faulty_s3(running_s3, seed=3, slow_down=0.3, forbidden=0.3) as proxy:
            found = []
            for _ in range(20):
                connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
                connection.request("GET", "/tests/none/none")
                found.append(connection.getresponse().status)
                connection.close()
            return found

    first = statuses()
    assert {503, 403} < set(first) | {0}
    assert statuses() == first


def test_slow_down_can_be_retried_after_botocore_gave_up(s3: str, proxy: FaultyS3) -> None:
    proxy.faults = Faults(slow_down=1.0)
    with pytest.raises(TryAgain, match=rf"127\.0\.0\.1:{proxy.port} answered 503 SlowDown"):
        open_storage(s3).get_range("key", 0, 10)
    assert proxy.counts == {"objects": 3, "slow_down": 3}


def test_reading_resumes_after_a_body_stalled(s3: str, proxy: FaultyS3) -> None:
    storage = open_storage(s3)
    assert storage.get_range("key", 0, 1) == DATA[:1]
    proxy.faults = Faults(stalled=0.5, stall_s=600)
    started = time.monotonic()
    while proxy.counts["stalled"] < 1:
        assert storage.get_range("key", 5, 2_000_000) == DATA[5:2_000_005]
    assert time.monotonic() - started >= 1


def test_a_body_that_always_stalls_times_out(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.READ_ATTEMPTS", 2)
    proxy.faults = Faults(stalled=1.0, stall_s=600)
    started = time.monotonic()
    with pytest.raises(TryAgain, match="key was cut in the middle 2 times"):
        open_storage(s3).get("key")
    assert time.monotonic() - started >= 2
    assert proxy.counts["stalled"] == 2


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """Port of a server that answers each connection with ``pieces``, one every 0.2 s."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(65536)
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.2)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


HEAD = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 1000000\r\n\r\n'


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        pytest.param([b""] * 10_000, "ReadTimeoutError", id="no answer"),
        pytest.param([HEAD, *[b"x"] * 10_000], "cut in the middle", id="a slow body"),
    ],
)
def test_a_server_that_hardly_answers_times_out(
    s3: str, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], message: str
) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr("orchestrator.storage.s3.MIN_BODY_BYTES_PER_S", 1 << 20)
    monkeypatch.setattr("orchestrator.storage.s3.READ_ATTEMPTS", 2)
    with answering(*pieces) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        with pytest.raises(TryAgain, match=message):
            open_storage(s3).get("key")


def write_credentials(path: Path, key: str, secret: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


@pytest.fixture
def credentials(proxy: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with credentials that the server rejects as expired."""
    path = tmp_path / "credentials"
    write_credentials(path, "oldkey", "old-and-private")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    proxy.faults = Faults(expired_keys=frozenset({"oldkey"}))
    return path


def test_expired_credentials_are_reported_without_a_secret(
    s3: str, proxy: FaultyS3, credentials: Path
) -> None:
    with pytest.raises(EnvironmentProblem, match=r"have expired \(ExpiredToken\); renew") as caught:
        open_storage(s3).get("key")
    assert "old-and-private" not in str(caught.value)
    assert proxy.counts["expired"] == 2, "the file is read once more, not repeatedly"


def test_credentials_renewed_in_a_file_are_used(
    s3: str, proxy: FaultyS3, credentials: Path
) -> None:
    storage = open_storage(s3)
    uses: list[Callable[[], object]] = [
        lambda: storage.get_range("key", 0, 3),
        lambda: storage.put("other", b"x"),
        lambda: storage.put_if_absent("once", b"x"),
        lambda: storage.size("key"),
    ]
    real = proxy.server.environment
    for use in uses:
        write_credentials(credentials, "oldkey", "old")
        proxy.faults = Faults(expired_keys=frozenset({"oldkey", real["AWS_ACCESS_KEY_ID"]}))
        with pytest.raises(EnvironmentProblem):
            use()
        write_credentials(credentials, real["AWS_ACCESS_KEY_ID"], real["AWS_SECRET_ACCESS_KEY"])
        proxy.faults = Faults(expired_keys=frozenset({"oldkey"}))
        use()
    assert storage.list() == ["key", "once", "other"]


@pytest.mark.slow
def test_reads_through_all_faults_return_the_right_bytes(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.s3.READ_REQUEST_ATTEMPTS", 1)
    monkeypatch.setattr("orchestrator.storage.retrying.MIN_PAUSE_S", 0.05)
    proxy.faults = Faults(slow_down=0.05, reset=0.01, truncated=0.01, stalled=0.003, stall_s=3)
    storage = RetryingStorage(open_storage(s3), timeout_s=60)

    def read(seed: int) -> int:
        draw = Random(seed)
        length = draw.randrange(1, 100_000)
        start = draw.randrange(len(DATA) - length)
        assert storage.get_range("key", start, length) == DATA[start : start + length]
        return length

    with ThreadPoolExecutor(8) as pool:
        lengths = list(pool.map(read, range(2000)))
    counts = storage.counters.snapshot()
    assert counts.bytes_read == sum(lengths)
    assert counts.requests == 2000 + counts.retries
    assert proxy.counts["objects"] > 2000
    for name, least in (("slow_down", 70), ("reset", 8), ("truncated", 8), ("stalled", 1)):
        share = proxy.counts[name] / proxy.counts["objects"]
        assert proxy.counts[name] >= least
        assert share == pytest.approx(getattr(proxy.faults, name), rel=0.8)


def test_a_short_outage_only_delays_the_reads(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.storage.retrying.MAX_PAUSE_S", 1.0)
    storage = RetryingStorage(open_storage(s3), timeout_s=60)
    assert storage.get_range("key", 0, 9) == DATA[:9]
    is_over = threading.Event()

    def read_repeatedly(number: int) -> None:
        start = number
        while not is_over.is_set():
            assert storage.get_range("key", start, 50_000) == DATA[start : start + 50_000]
            start = (start + 100) % 10_000

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_repeatedly, number) for number in range(4)]
        try:
            wait_until(lambda: proxy.counts["objects"] > 20, 60, "reads")
            proxy.outage(2)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", proxy.port))
            wait_until(lambda: storage.counters.snapshot().retries > 3, 60, "retries")
        finally:
            is_over.set()
        for reader in readers:
            reader.result()
    assert storage.oldest_request() is None


def test_an_outage_longer_than_the_timeout_is_a_data_error(
    s3: str, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = RetryingStorage(open_storage(s3), timeout_s=2)
    assert storage.get_range("key", 0, 9) == DATA[:9]
    proxy.outage(600)
    started = time.monotonic()
    message = (
        r"/key bytes 0-8 could not be read for \d+ s, in \d+ attempts; "
        r"the last error: is unreachable"
    )
    with pytest.raises(DataError, match=message) as caught:
        storage.get_range("key", 0, 9)
    assert time.monotonic() - started >= 2
    assert caught.value.exit_code == 4


def test_a_refusal_after_successful_reads_is_retried(s3: str, proxy: FaultyS3) -> None:
    storage = RetryingStorage(open_storage(s3), timeout_s=60)
    proxy.faults = replace(proxy.faults, forbidden=1.0)
    with pytest.raises(EnvironmentProblem, match="403 AccessDenied"):
        storage.get("key")
    assert proxy.counts["objects"] == 1, "nothing was read yet, so it is raised at once"
    proxy.faults = Faults()
    assert storage.get("key") == DATA
    proxy.faults = Faults(forbidden=1.0)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(storage.get, "key")
        wait_until(lambda: proxy.counts["forbidden"] > 2, 60, "a retry")
        proxy.faults = Faults()
        assert read.result() == DATA


def test_a_missing_object_is_reported_at_once(s3: str, proxy: FaultyS3) -> None:
    storage = RetryingStorage(open_storage(s3), timeout_s=60)
    with pytest.raises(NotFound, match="nothing does not exist"):
        storage.get("nothing")
    assert proxy.counts["objects"] == 1
