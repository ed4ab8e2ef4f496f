"""MLflow carries a request out and answers too late, with an error, or not at all."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from orchestrator.tracking import RunRef, Tracker
from orchestrator.tracking.sender import Sender
from orchestrator.tracking.spool import MetricsRecord, Spool, TextRecord
from services.faulty_mlflow import Fault, FaultyMlflow, faulty_mlflow
from services.mlflow_server import MlflowServer
from support.mlflow_runs import start_tiny_run

pytestmark = [pytest.mark.server, pytest.mark.slow]

STEPS = list(range(4, 41, 4))
PICTURES = [(key, step) for step in (20,) for key in ("samples", "validation/fixed")]


@pytest.fixture(scope="module")
def proxy(running_mlflow: MlflowServer) -> Iterator[FaultyMlflow]:
    with faulty_mlflow(running_mlflow.port) as proxy:
        yield proxy


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (40, 24, 3), np.uint8)


def fill(spool: Spool, timestamp_ms: int = 1000) -> None:
    """Add ten points of two metrics, two pictures and a text."""
    for step in STEPS:
        spool.add_metrics(MetricsRecord({"loss": step / 8, "nan": np.nan}, step, timestamp_ms))
        for number, (key, at) in enumerate(PICTURES):
            if at == step:
                spool.add_image(key, pixels(number), step, timestamp_ms)
        if step == 40:
            spool.add_text(TextRecord("notes.txt", f"after {step}", step, timestamp_ms))


def check_each_once(client: MlflowClient, run: RunRef, folder: Path) -> None:
    for key in ("loss", "nan"):
        assert [m.step for m in client.get_metric_history(run.run_id, key)] == STEPS
    assert [m.value for m in client.get_metric_history(run.run_id, "loss")] == [
        step / 8 for step in STEPS
    ]
    files = [file.path for file in client.list_artifacts(run.run_id, "images")]
    places: dict[str, Counter[tuple[str, int]]] = {".png": Counter(), "webp": Counter()}
    for path in files:
        key, _, step = path.removeprefix("images/").split("+")[:3]
        places[path[-4:]][key.replace("~", "/"), int(step)] += 1
    assert places[".png"] == places["webp"] == Counter(PICTURES)
    for path in files:
        if path.endswith(".png"):
            key, _, step = path.removeprefix("images/").split("+")[:3]
            number = PICTURES.index((key.replace("~", "/"), int(step)))
            with Image.open(client.download_artifacts(run.run_id, path, str(folder))) as image:
                assert np.array_equal(np.asarray(image), pixels(number))
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    text = client.download_artifacts(run.run_id, "notes.txt", str(folder))
    assert Path(text).read_text() == "after 40"


def forget_artifact_stores() -> None:
    """MLflow's client keeps the address at which it first used a run's files."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


def send_through(proxy: FaultyMlflow, run: RunRef, spool: Spool) -> int:
    """Send until it works; return the number of attempts."""
    forget_artifact_stores()
    sender = Sender(replace(run, tracking_uri=proxy.uri), spool)
    for attempt in range(1, 20):
        try:
            sender.send()
        except Exception:  # as the tracker, which goes on after any error
            continue
        forget_artifact_stores()
        return attempt
    raise AssertionError("it never worked")


@pytest.mark.parametrize("retries", [0, 1], ids=["by this code", "by MLflow's client"])
@pytest.mark.parametrize("fault", ["late", "500", "dropped"])
def test_each_call_in_turn_is_repeated_without_a_second_effect(
    fault: Fault,
    retries: int,
    proxy: FaultyMlflow,
    running_mlflow: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if fault == "late" else "60")
    client, number, num_retried = MlflowClient(running_mlflow.uri), 0, 0
    while True:
        number += 1
        run, folder = start_tiny_run(running_mlflow.uri), tmp_path / str(number)
        spool = Spool(folder / "spool")
        fill(spool)
        proxy.arm(fault, number)
        num_retried += send_through(proxy, run, spool) > 1
        is_past_the_end = proxy.num_calls < number
        proxy.arm(None)
        folder.mkdir(exist_ok=True)
        check_each_once(client, run, folder)
        if is_past_the_end:
            break
    assert number > 10, "calls in which there was a fault"
    assert retries or num_retried > 10


def test_a_picture_of_which_only_the_first_file_arrived_is_completed_by_another_machine(
    proxy: FaultyMlflow, running_mlflow: MlflowServer, tmp_path: Path
) -> None:
    """The other machine has trained the step again: its own picture has another name."""
    client, run = MlflowClient(running_mlflow.uri), start_tiny_run(running_mlflow.uri)
    first, second = Spool(tmp_path / "first"), Spool(tmp_path / "second")
    fill(first)
    fill(second, timestamp_ms=2000)

    class Lost(Exception):
        pass

    def lose(*_: object) -> None:
        raise Lost

    sender, uploads = Sender(run, first), 0
    with pytest.MonkeyPatch.context() as patch:
        log = MlflowClient.log_artifact

        def log_one(*given: object) -> None:
            nonlocal uploads
            uploads += 1
            log(*given) if uploads <= 1 else lose()  # type: ignore[arg-type]

        patch.setattr(MlflowClient, "log_artifact", log_one)
        with pytest.raises(Lost):
            sender.send()
    Sender(run, second).send()
    Sender(run, first).send()  # the first machine comes back
    check_each_once(client, run, tmp_path)


def test_an_older_text_does_not_replace_a_newer_one(
    running_mlflow: MlflowServer, tmp_path: Path
) -> None:
    client, run = MlflowClient(running_mlflow.uri), start_tiny_run(running_mlflow.uri)
    for step in (40, 20):
        spool = Spool(tmp_path / str(step))
        spool.add_text(TextRecord("notes.txt", f"after {step}", step, 1))
        Sender(run, spool).send()
    text = client.download_artifacts(run.run_id, "notes.txt", str(tmp_path))
    assert Path(text).read_text() == "after 40"


def test_a_damaged_picture_does_not_keep_the_records_after_it_from_mlflow(
    running_mlflow: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, run = MlflowClient(running_mlflow.uri), start_tiny_run(running_mlflow.uri)
    spool = Spool(tmp_path / "spool")
    for number, content in enumerate((b"", b"no picture", None, "cut")):
        spool.add_image("samples", pixels(number), number, 1)
        (path,) = (tmp_path / "spool").glob(f"{number:012d}-*.png")
        if content is None:
            path.unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    spool.add_metrics(MetricsRecord({"loss": 1.0}, 8, 1))
    assert Sender(run, spool).send() == 5
    assert caplog.text.count("is damaged or gone and is not sent") == 4
    assert [m.step for m in client.get_metric_history(run.run_id, "loss")] == [8]


def test_a_server_that_is_slow_at_each_call_gets_all_of_a_run_of_many_metrics(
    proxy: FaultyMlflow, running_mlflow: MlflowServer, tmp_path: Path
) -> None:
    """40 metrics: a request for the history of each would take 40 times the delay."""
    client, run = MlflowClient(running_mlflow.uri), start_tiny_run(running_mlflow.uri)
    tracker = Tracker(replace(run, tracking_uri=proxy.uri), tmp_path)
    proxy.arm(None)
    forget_artifact_stores()
    proxy.delay_s = 1.0
    try:
        for step in range(1, 51):
            tracker.log_metrics({f"metric/{number}": step for number in range(40)}, step)
        tracker.log_image("samples", pixels(0), 50)
        start = time.monotonic()
        tracker.close(timeout_s=120)
    finally:
        proxy.delay_s = 0.0
        forget_artifact_stores()
    assert proxy.num_calls <= 12
    for number in range(40):
        history = client.get_metric_history(run.run_id, f"metric/{number}")
        assert [m.step for m in history] == list(range(1, 51))
    assert len(list(client.list_artifacts(run.run_id, "images"))) == 2
    assert time.monotonic() - start < 120
