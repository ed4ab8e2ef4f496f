"""Outages and broken connections of Google Cloud Storage and Azure, and forked processes."""

import multiprocessing
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.storage.open import open_storage
from services.azurite import ACCOUNT, AzureServer
from services.cutting_proxy import CuttingProxy
from services.fixtures_clouds import error_of
from services.ports import free_port
from services.scripted_http import scripted_http

ENDPOINTS = {"gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
StartProxy = Callable[[Callable[[int], int]], CuttingProxy]


def at(uri: str, monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """Send the requests for ``uri`` to another address; return the variable that says so."""
    name = ENDPOINTS[urlsplit(uri).scheme]
    account = f"/{ACCOUNT}" if name.startswith("AZURE") else ""
    monkeypatch.setenv(name, address + account)
    return name


def test_an_unreachable_endpoint_is_named_and_can_be_retried(
    cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    variable = at(cloud, monkeypatch, f"http://127.0.0.1:{port}")
    monkeypatch.setattr("orchestrator.storage.cloud.WRITE_ATTEMPTS", 1)
    storage = open_storage(cloud)
    for use in (storage.get, storage.size, storage.list, lambda key: storage.put(key, b"x")):
        error = error_of(lambda use=use: use("key"))  # type: ignore[misc]
        assert isinstance(error, TryAgain)
        assert f"unreachable at http://127.0.0.1:{port}" in str(error)
        assert f"check {variable}" in str(error)


def test_a_busy_server_can_be_retried_later(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_http(503, "<Error><Code>ServerBusy</Code></Error>") as address:
        at(cloud, monkeypatch, address)
        with pytest.raises(TryAgain, match="answered 503 ServerBusy"):
            open_storage(cloud).get("key")


@pytest.fixture
def proxy(
    cloud: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StartProxy]:
    """Start a proxy, given how many answer bytes its n-th connection forwards."""
    made: list[CuttingProxy] = []

    def start(passes: Callable[[int], int]) -> CuttingProxy:
        running = "running_gcs" if cloud.startswith("gs") else "running_azurite"
        server = request.getfixturevalue(running)
        port = server.port if isinstance(server, AzureServer) else urlsplit(server.url).port
        assert port is not None
        made.append(CuttingProxy(port, passes))
        at(cloud, monkeypatch, f"http://127.0.0.1:{made[-1].port}")
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_reading_resumes_where_a_body_was_cut(cloud: str, proxy: StartProxy) -> None:
    data = bytes(i * 31 % 253 for i in range(5 << 20))
    open_storage(cloud).put("key", data)
    cutting = proxy(lambda _: 2_500_000)
    storage = open_storage(cloud)
    assert storage.get("key") == data
    assert cutting.connections == 3
    assert storage.get_range("key", 1000, 4 << 20) == data[1000 : 1000 + (4 << 20)]
    assert cutting.connections > 3


def test_a_body_that_is_always_cut_can_be_retried_later(cloud: str, proxy: StartProxy) -> None:
    open_storage(cloud).put("key", b"x" * 100_000)
    proxy(lambda _: 5_000)
    with pytest.raises(TryAgain, match=r"key is unreachable at http://127\.0\.0\.1"):
        open_storage(cloud).get("key")


def test_put_if_absent_returns_true_if_only_the_answer_was_lost(
    cloud: str, proxy: StartProxy
) -> None:
    """The server writes, the connection breaks, and the retry is refused."""
    breaking = proxy(lambda n: 0 if n == 1 else 1 << 30)
    storage = open_storage(cloud)
    assert storage.put_if_absent("manifest", b"mine")
    assert breaking.connections >= 2
    assert storage.get("manifest") == b"mine"
    assert not storage.put_if_absent("manifest", b"mine")


def test_a_forked_process_gets_an_error_where_obstore_would_hang(gcs: str) -> None:
    storage = open_storage(gcs)
    storage.put("key", b"x")
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(EnvironmentProblem, match=r"was forked .* method spawn"),
    ):
        pool.apply(storage.get, ("key",))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(storage.get, ("key",)) == b"x"
