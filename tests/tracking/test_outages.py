"""Real outages: MLflow is down, the driver is killed, two jobs start at once."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.errors import EnvironmentProblem, Stopped
from orchestrator.runs.watchdog import watchdog
from orchestrator.tracking import (
    DRIVER_ID,
    RunRef,
    Tracker,
    finish_run,
    mark_killed,
    reopen_run,
)
from orchestrator.tracking.mlflow_runs import DRIVER_TAG
from services.databases import create_mlflow_database
from services.mlflow_server import MlflowServer
from support.mlflow_runs import logged_steps, runs_of, start_tiny_run
from support.small_runs import only_run, pack_pairs, write_job
from support.waiting import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow]

MARK = "ORCHESTRATOR_TEST_MARK"

DRIVER = """
import json, os, signal, sys
from orchestrator.runs.watchdog import watchdog
from orchestrator.tracking import RunRef, reopen_run
run = RunRef(**json.load(sys.stdin))
reopen_run(run)
with watchdog(run):
    print("watched", flush=True)
    sys.stdin.close()
    signal.pause()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("outages"))


@pytest.fixture
def mark() -> str:
    """Value in the environment of a driver and of all its processes, to find them by."""
    return uuid.uuid4().hex


def marked(mark: str) -> dict[int, str]:
    """The commands of the living processes with that mark, by process id."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if command and process.environ().get(MARK) == mark:  # a zombie has no command
                found[process.pid] = command
    return found


def watchdogs(mark: str) -> list[int]:
    return [pid for pid, command in marked(mark).items() if "orchestrator.runs.watchdog" in command]


def command(job: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets]


def create_mlflow_run(uri: str, **tags: str) -> RunRef:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outages")
    found = client.create_experiment("outages") if experiment is None else experiment.experiment_id
    return RunRef(uri, found, client.create_run(found, tags=tags).info.run_id, retry_timeout_s=180)


def status(run: RunRef) -> str:
    return str(MlflowClient(run.tracking_uri).get_run(run.run_id).info.status)


@pytest.fixture
def sqlite_uri(tmp_path: Path) -> str:
    return f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"


def test_the_run_of_a_killed_driver_becomes_killed_and_can_be_resumed(
    data: str, tmp_path: Path, mark: str
) -> None:
    job = write_job(tmp_path, data)
    settings = ["train.images=160", "train.checkpoint_every=8", "train.log_every=4"]
    long = command(job, *settings, "register=null")
    environment = os.environ | {MARK: mark}
    driver = subprocess.Popen(
        long, stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    wait_until(
        lambda: list(tmp_path.glob("runs/*/checkpoints/*/manifest.json")), 180, "a checkpoint"
    )
    driver.send_signal(signal.SIGSTOP)  # otherwise it may end before it is killed
    (watchdog_pid,) = watchdogs(mark)
    process = psutil.Process(watchdog_pid)
    assert process.ppid() != driver.pid, "Ray kills the driver's children"
    assert os.getsid(watchdog_pid) != driver.pid
    assert process.memory_info().rss < 25_000 * 1024
    assert "mlflow.db" not in marked(mark)[watchdog_pid]
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert only_run(tmp_path).info.status == "RUNNING", "nobody has changed it yet"
    wait_until(lambda: only_run(tmp_path).info.status == "KILLED", 180, "the status KILLED")
    wait_until(lambda: not marked(mark), 180, "the end of all processes")
    again = [*long, "--resume"]
    subprocess.run(again, stderr=subprocess.DEVNULL, check=True, env=environment)
    wait_until(lambda: not marked(mark), 180, "the end of all processes")
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        run.info.run_id, "generator/loss"
    )
    assert [metric.step for metric in history] == list(range(4, 161, 4))


def test_a_watchdog_does_not_touch_a_run_that_ended_or_was_resumed(sqlite_uri: str) -> None:
    run = create_mlflow_run(sqlite_uri, **{DRIVER_TAG: "dead driver"})
    mark_killed(run, "another driver")
    assert status(run) == "RUNNING"
    mark_killed(run, "dead driver")
    assert status(run) == "KILLED"
    reopen_run(run)
    mark_killed(run, "dead driver")
    assert status(run) == "RUNNING"
    finish_run(run, "FINISHED")
    mark_killed(run, DRIVER_ID)
    assert status(run) == "FINISHED"


def test_a_driver_that_resumes_the_run_at_the_same_moment_wins(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_mlflow_run(sqlite_uri, **{DRIVER_TAG: "dead driver"})
    terminate = MlflowClient.set_terminated

    def after_the_new_driver(client: MlflowClient, *given: Any, **more: Any) -> None:
        reopen_run(run)
        terminate(client, *given, **more)

    monkeypatch.setattr(MlflowClient, "set_terminated", after_the_new_driver)
    mark_killed(run, "dead driver")
    assert status(run) == "RUNNING"


def test_a_deleted_database_is_not_created_again(tmp_path: Path) -> None:
    mark_killed(RunRef(f"sqlite:///{tmp_path}/gone/mlflow.db", "1", "abc"), "x")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("error", [None, ValueError, Stopped])
def test_a_watchdog_ends_with_the_block_and_writes_only_a_missing_status(
    sqlite_uri: str,
    mark: str,
    error: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MARK, mark)
    run = create_mlflow_run(sqlite_uri, **{DRIVER_TAG: DRIVER_ID})
    with suppress(ValueError, Stopped), watchdog(run):
        wait_until(lambda: len(watchdogs(mark)) == 1, 180, "the watchdog")
        if error is not None:
            raise error("x")
    wait_until(lambda: not watchdogs(mark), 180, "the end of the watchdog")
    assert status(run) == ("KILLED" if error is Stopped else "RUNNING")


def test_everything_that_the_driver_writes_is_retried_while_the_server_is_down(
    fragile_mlflow: MlflowServer, tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = fragile_mlflow.uri
    client = MlflowClient(uri)
    orphaned, resumed, finished, tracked = (create_mlflow_run(uri) for _ in range(4))
    client.set_terminated(resumed.run_id, "KILLED")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {MARK: mark},
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(json.dumps(asdict(orphaned)))
    driver.stdin.close()
    assert driver.stdout.readline() == "watched\n"
    tracker = Tracker(tracked, tmp_path)
    tracker.log_metrics({"loss": 1.0}, 1)
    wait_until(lambda: logged_steps(client, tracked, "loss") == [1], 180, "the first point")
    fragile_mlflow.kill()
    driver.kill()
    driver.wait()
    tracker.log_metrics({"loss": 2.0}, 2)
    name = f"tiny-{uuid.uuid4().hex}"
    with ThreadPoolExecutor() as pool:
        started = pool.submit(start_tiny_run, uri, 180, name)
        waiting: list[Future[Any]] = [
            started,
            pool.submit(reopen_run, resumed),
            pool.submit(finish_run, finished, "FINISHED"),
            pool.submit(tracker.close),
        ]
        log = ""

        def all_have_logged() -> bool:
            nonlocal log
            log += capsys.readouterr().err
            return log.count(": retrying for up to 180 s: MLflow at http://127.0.0.1:") == 3

        wait_until(all_have_logged, 180, "a line of each call")
        assert not any(each.done() for each in waiting)
        fragile_mlflow.start()
        for each in waiting:
            each.result(180)
    for what in ("starting the MLflow run", "resuming the MLflow run", "the run's status FINISHED"):
        assert f"{what}: retrying" in log
    assert [status(run) for run in (resumed, finished)] == ["RUNNING", "FINISHED"]
    assert logged_steps(client, tracked, "loss") == [1, 2]
    run = started.result()
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.params["model.image_size"]) == ("RUNNING", "16")
    same_name = f"attributes.run_name = '{name}'"
    assert len(client.search_runs([run.experiment_id], same_name)) == 1
    wait_until(lambda: status(orphaned) == "KILLED", 180, "the status KILLED")
    wait_until(lambda: not marked(mark), 180, "the end of all processes")


def test_a_start_whose_answer_was_lost_creates_no_second_run(
    running_mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from requests import ConnectionError as Lost

    create, name = MlflowClient.create_run, f"tiny-{uuid.uuid4().hex}"
    calls = []

    def lose_first_answer(client: MlflowClient, *given: Any, **more: Any) -> Any:
        calls.append(create(client, *given, **more))
        if len(calls) == 1:
            raise Lost("the answer was lost")
        return calls[-1]

    monkeypatch.setattr(MlflowClient, "create_run", lose_first_answer)
    run = start_tiny_run(running_mlflow.uri, 60, name)
    assert [made.info.run_id for made in calls] == [run.run_id]
    assert status(run) == "RUNNING"


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that wants a password."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, refusing: "mysql://user@127.0.0.1:1/mlflow",
        lambda folder, refusing: f"sqlite:///{folder}/no_database",
        lambda folder, refusing: f"sqlite:///{folder}",
        lambda folder, refusing: f"sqlite:///{folder}/no_database/mlflow.db",
        lambda folder, refusing: refusing,
    ],
    ids=["driver", "content", "folder", "parent", "refused"],
)
def test_an_error_that_cannot_pass_is_not_retried(
    make: Callable[[Path, str], str],
    tmp_path: Path,
    refusing: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "no_database").write_text("x" * 5000)
    with pytest.raises(EnvironmentProblem) as error:
        start_tiny_run(make(tmp_path, refusing), retry_timeout_s=300)
    assert error.value.exit_code == 3
    assert "retrying" not in capsys.readouterr().err


def test_two_jobs_that_start_at_once_share_one_new_database(tmp_path: Path) -> None:
    code = """
import sys
import mlflow, mlflow.store.tracking.sqlalchemy_store
from orchestrator.tracking import connect
print("ready", flush=True)
sys.stdin.readline()
with connect(sys.argv[1]) as client:
    print(client.create_run("0", run_name=sys.argv[2]).info.run_id)
"""
    uri = f"sqlite:///{tmp_path}/new folder/mlflow.db"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    outputs = [job.communicate(timeout=180) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    client = MlflowClient(uri)
    runs = client.search_runs(["0"])
    assert {run.info.run_id for run in runs} == {out.strip() for out, _ in outputs}
    assert {run.info.run_name for run in runs} == {"one", "two"}
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["mlflow.db"]


def test_a_run_loses_nothing_if_the_server_is_down_at_its_start_and_from_its_middle_on(
    fragile_mlflow: MlflowServer, data: str, tmp_path: Path, mark: str
) -> None:
    job = write_job(tmp_path, data)
    settings = ["train.images=2400", "train.log_every=40", "train.checkpoint_every=2400"]
    settings += ["train.validate_every=1200", "train.sample_every=1200"]
    name = f"outage-{uuid.uuid4().hex}"
    settings += [f"tracking.uri={fragile_mlflow.uri}", f"tracking.experiment={name}"]
    fragile_mlflow.kill()
    driver = subprocess.Popen(
        command(job, *settings, "register=null"),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {MARK: mark},
    )
    assert driver.stderr is not None
    lines = iter(driver.stderr)
    assert any("starting the MLflow run: retrying for up to 300 s: " in line for line in lines)
    fragile_mlflow.start()
    client = MlflowClient(fragile_mlflow.uri)
    wait_until(lambda: client.get_experiment_by_name(name), 180, "the experiment")
    wait_until(lambda: any(run.data.metrics for run in runs_of(client, name)), 180, "metrics")
    fragile_mlflow.kill()
    log = []
    for line in lines:
        log.append(line)
        if "records to MLflow at" in line:
            break
    assert driver.poll() is None
    assert "does not accept records" in "".join(log)
    fragile_mlflow.start()
    rest = driver.stderr.read()
    assert driver.wait() == 0, rest
    (run,) = runs_of(client, name)
    assert run.info.status == "FINISHED"
    for curve, every in (("generator/loss", 40), ("validation/l1", 1200)):
        history = client.get_metric_history(run.info.run_id, curve)
        assert [metric.step for metric in history] == list(range(every, 2401, every))
    wait_until(lambda: not marked(mark), 180, "the end of all processes")
