"""An MLflow that is gone, a driver that is killed, two jobs that begin at once: all for real."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from test_run import JOB, the_run
from test_tracking import start, steps, until

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import EnvironmentProblem, Stopped
from orchestrator.runs.watchdog import monitored
from orchestrator.tracking import (
    THIS_DRIVER,
    RunRef,
    Tracker,
    finish_run,
    kill_lost_run,
    reopen_run,
)
from orchestrator.tracking.mlflow_runs import DRIVER_TAG
from services.databases import ready
from services.mlflow_server import MlflowServer
from support.drawings import draw_pairs

MARK = "ORCHESTRATOR_TEST_MARK"

DIES = """
import json, os, signal, sys
from orchestrator.runs.watchdog import monitored
from orchestrator.tracking import RunRef, reopen_run
run = RunRef(**json.load(sys.stdin))
reopen_run(run)
with monitored(run):
    print("watched", flush=True)
    sys.stdin.close()
    signal.pause()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("outages")
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    return str(folder / "data")


@pytest.fixture
def mark() -> str:
    """What a driver has in its environment, and all that it starts, to be found by it."""
    return uuid.uuid4().hex


def marked(mark: str) -> dict[int, str]:
    """The commands of the living processes with that mark, by their ids."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and f"{MARK}={mark}".encode() in (
                (folder / "environ").read_bytes().split(b"\0")
            ):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # else nobody has asked yet how it ended
                    found[int(folder.name)] = command
    return found


def monitors(mark: str) -> list[int]:
    return [pid for pid, command in marked(mark).items() if "orchestrator.runs.watchdog" in command]


def field_of(pid: int, name: str) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith(name))


def write_job(folder: Path, data: str) -> Path:
    ready(folder / "mlflow.db")
    path = folder / "small.yaml"
    path.write_text(JOB.format(data=data, folder=folder, storage=folder / "runs"))
    return path


def command(job: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets]


def new_run(uri: str, **tags: str) -> RunRef:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outages")
    found = client.create_experiment("outages") if experiment is None else experiment.experiment_id
    return RunRef(uri, found, client.create_run(found, tags=tags).info.run_id, retry_timeout_s=180)


def status(run: RunRef) -> str:
    return str(MlflowClient(run.tracking_uri).get_run(run.run_id).info.status)


@pytest.fixture
def sqlite_uri(tmp_path: Path) -> str:
    return f"sqlite:///{ready(tmp_path / 'mlflow.db')}"


def test_a_killed_driver_leaves_a_killed_run_which_goes_on_to_its_end(
    data: str, tmp_path: Path, mark: str
) -> None:
    job = write_job(tmp_path, data)
    settings = ["train.images=160", "train.checkpoint_every=8", "train.log_every=4"]
    long = command(job, *settings, "register=null")
    environment = os.environ | {MARK: mark}
    driver = subprocess.Popen(
        long, stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    until(lambda: list(tmp_path.glob("runs/*/checkpoints/*/manifest.json")))
    driver.send_signal(signal.SIGSTOP)  # else it may come to its end before it is killed
    (monitor,) = monitors(mark)
    assert field_of(monitor, "PPid:") != str(driver.pid), "Ray kills the driver's children"
    assert os.getsid(monitor) != driver.pid
    assert int(field_of(monitor, "VmRSS:")) < 25_000, "kB"
    assert "mlflow.db" not in marked(mark)[monitor]
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert the_run(tmp_path).info.status == "RUNNING", "nobody wrote it yet"
    until(lambda: the_run(tmp_path).info.status == "KILLED")
    until(lambda: marked(mark) == {})
    again = [*long, "--resume"]
    subprocess.run(again, stderr=subprocess.DEVNULL, check=True, env=environment)
    until(lambda: marked(mark) == {})
    run = the_run(tmp_path)
    assert run.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(
        run.info.run_id, "generator/loss"
    )
    assert [metric.step for metric in history] == list(range(4, 161, 4))


def test_a_monitor_of_a_dead_driver_leaves_alone_what_ended_or_goes_on(sqlite_uri: str) -> None:
    run = new_run(sqlite_uri, **{DRIVER_TAG: "the dead one"})
    kill_lost_run(run, "another one")
    assert status(run) == "RUNNING"
    kill_lost_run(run, "the dead one")
    assert status(run) == "KILLED"
    reopen_run(run)
    kill_lost_run(run, "the dead one")
    assert status(run) == "RUNNING"
    finish_run(run, "FINISHED")
    kill_lost_run(run, THIS_DRIVER)
    assert status(run) == "FINISHED"


def test_a_driver_that_takes_the_run_up_in_the_very_moment_wins(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(sqlite_uri, **{DRIVER_TAG: "the dead one"})
    terminate = MlflowClient.set_terminated

    def after_the_new_driver(client: MlflowClient, *given: Any, **more: Any) -> None:
        reopen_run(run)
        terminate(client, *given, **more)

    monkeypatch.setattr(MlflowClient, "set_terminated", after_the_new_driver)
    kill_lost_run(run, "the dead one")
    assert status(run) == "RUNNING"


def test_a_database_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    kill_lost_run(RunRef(f"sqlite:///{tmp_path}/gone/mlflow.db", "1", "abc"), "x")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("error", [None, ValueError, Stopped])
def test_a_monitor_ends_with_the_block_and_writes_only_what_nobody_wrote(
    sqlite_uri: str,
    mark: str,
    error: type[Exception] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MARK, mark)
    run = new_run(sqlite_uri, **{DRIVER_TAG: THIS_DRIVER})
    with suppress(ValueError, Stopped), monitored(run):
        until(lambda: len(monitors(mark)) == 1)
        if error is not None:
            raise error("x")
    until(lambda: monitors(mark) == [])
    assert status(run) == ("KILLED" if error is Stopped else "RUNNING")


def test_all_that_the_driver_writes_waits_for_a_server_that_is_gone(
    fragile_mlflow: MlflowServer, tmp_path: Path, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = fragile_mlflow.uri
    client = MlflowClient(uri)
    lost, gone_on, finished, tracked = (new_run(uri) for _ in range(4))
    client.set_terminated(gone_on.run_id, "KILLED")
    driver = subprocess.Popen(
        [sys.executable, "-c", DIES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {MARK: mark},
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(json.dumps(asdict(lost)))
    driver.stdin.close()
    assert driver.stdout.readline() == "watched\n"
    tracker = Tracker(tracked, tmp_path)
    tracker.metrics({"loss": 1.0}, 1)
    until(lambda: steps(client, tracked, "loss") == [1])
    fragile_mlflow.kill()
    driver.kill()
    driver.wait()
    tracker.metrics({"loss": 2.0}, 2)
    name = f"tiny-{uuid.uuid4().hex}"
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        started = pool.submit(start, uri, 180, name)
        waiting = [
            started,
            pool.submit(reopen_run, gone_on),
            pool.submit(finish_run, finished, "FINISHED"),
            pool.submit(tracker.close),
        ]
        told = ""

        def all_have_told() -> bool:
            nonlocal told
            told += capsys.readouterr().err
            return told.count("waits for up to 180 s: MLflow at http://127.0.0.1:") == 3

        until(all_have_told)
        assert not any(each.done() for each in waiting)
        fragile_mlflow.start()
        for each in waiting:
            each.result(180)
    assert time.monotonic() - began > 3, "the server was gone for a while"
    for what in ("starting the MLflow run", "going on with the MLflow run", "that the run is FIN"):
        assert what in told
    assert [status(run) for run in (gone_on, finished)] == ["RUNNING", "FINISHED"]
    assert steps(client, tracked, "loss") == [1, 2]
    run = started.result()
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.params["model.image_size"]) == ("RUNNING", "16")
    same_name = f"attributes.run_name = '{name}'"
    assert len(client.search_runs([run.experiment_id], same_name)) == 1
    until(lambda: status(lost) == "KILLED")
    until(lambda: marked(mark) == {})


def test_a_start_whose_answer_was_lost_makes_no_second_run(
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
    run = start(running_mlflow.uri, 60, name)
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
        lambda folder, refusing: "ftp://host/mlflow",
        lambda folder, refusing: "mysql://user@127.0.0.1:1/mlflow",
        lambda folder, refusing: "http://127.0.0.1:99999",
        lambda folder, refusing: f"sqlite:///{folder}/no_database",
        lambda folder, refusing: f"sqlite:///{folder}",
        lambda folder, refusing: f"sqlite:///{folder}/no_database/mlflow.db",
        lambda folder, refusing: refusing,
    ],
    ids=["scheme", "driver", "port", "content", "folder", "parent", "refused"],
)
def test_what_is_clearly_a_mistake_is_not_waited_for(
    make: Callable[[Path, str], str],
    tmp_path: Path,
    refusing: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "no_database").write_text("x" * 5000)
    before = time.monotonic()
    with pytest.raises(EnvironmentProblem) as error:
        start(make(tmp_path, refusing), retry_timeout_s=300)
    assert error.value.exit_code == 3
    assert time.monotonic() - before < 60, "busy machines included"
    assert "waits for" not in capsys.readouterr().err


def test_two_jobs_that_begin_at_once_share_one_new_database(tmp_path: Path) -> None:
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
    told = [job.communicate(timeout=180) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    client = MlflowClient(uri)
    runs = client.search_runs(["0"])
    assert {run.info.run_id for run in runs} == {out.strip() for out, _ in told}
    assert {run.info.run_name for run in runs} == {"one", "two"}
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["mlflow.db"]


def test_a_run_whose_server_is_gone_at_its_start_and_from_its_middle_to_its_end_loses_nothing(
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
    assert any("starting the MLflow run waits for up to 300 s: " in line for line in lines)
    fragile_mlflow.start()
    client = MlflowClient(fragile_mlflow.uri)
    until(lambda: client.get_experiment_by_name(name))
    experiment = client.get_experiment_by_name(name).experiment_id
    until(lambda: any(run.data.metrics for run in client.search_runs([experiment])))
    fragile_mlflow.kill()
    told = []
    for line in lines:
        told.append(line)
        if "records wait for MLflow" in line:
            break
    assert driver.poll() is None
    assert "takes no records" in "".join(told)
    fragile_mlflow.start()
    rest = driver.stderr.read()
    assert driver.wait() == 0, rest
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    for curve, every in (("generator/loss", 40), ("validation/l1", 1200)):
        history = client.get_metric_history(run.info.run_id, curve)
        assert [metric.step for metric in history] == list(range(every, 2401, every))
    until(lambda: marked(mark) == {})
