"""A request to MLflow that is under way while another driver takes over."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.errors import Superseded
from orchestrator.runs.lease import Fence, lease_key
from orchestrator.storage.base import Storage, WrappedStorage
from orchestrator.storage.open import open_storage
from orchestrator.tracking import RunRef, Tracker
from services.mlflow_server import MlflowServer
from services.proxy import Proxy, proxy_to
from support.mlflow_runs import start_tiny_run
from support.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow]

QUIET_S = 8.0


@pytest.fixture
def proxy(running_mlflow: MlflowServer) -> Iterator[Proxy]:
    with proxy_to("127.0.0.1", running_mlflow.port) as proxy:
        yield proxy
        proxy.release()


def take_over(run: RunRef, proxy: Proxy, folder: Path, quiet_s: float, held_s: float) -> None:
    """Train steps 1 to 3 and steps 2 to 4, while the first request of the former is held."""
    storage = open_storage(str(folder / "runs"))
    fences = [Fence(storage, "small-1", term) for term in (1, 2)]
    through_proxy = RunRef(f"http://127.0.0.1:{proxy.port}", run.experiment_id, run.run_id)
    proxy.held_words = b"runs/log-batch"
    first = Tracker(through_proxy, folder / "first", fences[0].check)
    for step in (1, 2, 3):
        first.log_metrics({"loss": step / 8}, step)
    assert proxy.is_holding.wait(180)
    storage.put(lease_key("small-1", 2), b"{}")
    second = Tracker(run, folder / "second", fences[1].check, quiet_s=quiet_s)
    for step in (2, 3, 4):
        second.log_metrics({"loss": step / 8}, step)
    time.sleep(held_s)
    proxy.release()
    second.close()
    first.close()


def points(run: RunRef) -> list[tuple[int, float]]:
    history = MlflowClient(run.tracking_uri).get_metric_history(run.run_id, "loss")
    return sorted((point.step, point.value) for point in history)


def test_a_driver_waits_for_the_requests_of_one_before_it_that_may_live(
    running_mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    run = start_tiny_run(running_mlflow.uri)
    take_over(run, proxy, tmp_path, quiet_s=QUIET_S, held_s=2)
    assert points(run) == [(step, step / 8) for step in (1, 2, 3, 4)], "each point once"


def test_a_request_that_is_held_for_longer_repeats_points_with_their_values(
    running_mlflow: MlflowServer, proxy: Proxy, tmp_path: Path
) -> None:
    run = start_tiny_run(running_mlflow.uri)
    sent = MlflowClient(running_mlflow.uri)
    take_over(run, proxy, tmp_path, quiet_s=0, held_s=QUIET_S)
    wait_until(lambda: len(sent.get_metric_history(run.run_id, "loss")) == 6, 180, "all points")
    assert points(run) == [(step, step / 8) for step in (1, 2, 2, 3, 3, 4)]


class SuspendedOnce(WrappedStorage):
    """The process is suspended while the storage answers, and another driver takes over."""

    def __init__(self, inner: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(inner)
        self._monkeypatch = monkeypatch

    def size(self, key: str) -> int:
        try:
            return super().size(key)
        finally:
            if not self.inner.exists(key):
                self.inner.put(key, b"{}")
                now = time.time()
                self._monkeypatch.setattr(time, "time", lambda: now + 3600)


def test_an_answer_of_before_a_suspension_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SuspendedOnce(open_storage(str(tmp_path)), monkeypatch)
    with pytest.raises(Superseded):
        Fence(storage, "small-1", 1).check()
