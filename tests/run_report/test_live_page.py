"""The live page over HTTP, without MLflow and with it, while points are added."""

import copy
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.load import load_job
from orchestrator.console import ProgressReport
from orchestrator.errors import EnvironmentProblem
from orchestrator.run_report.live_page import LivePage, PageServer
from orchestrator.run_report.run_address import RunAddress
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.replay import spool_folder
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.storage.base import Storage
from orchestrator.tracking.spool import MetricsRecord, Spool
from orchestrator.training.loop import Outcome
from support.listening import exposed, listening
from support.logged_runs import logged_run
from support.report_page import ReportPage
from support.small_runs import pack_pairs, write_job
from support.waiting import wait_until

NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunAddress:
    """A run with two points in MLflow and none on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return logged_run(tmp_path, "a-1", {"loss": {8: 0.5, 16: 0.25}}, {"samples": [8]})


def spool_of(address: RunAddress) -> Spool:
    return Spool(spool_folder(address.name) / address.mlflow_run_id)


def storage_of(address: RunAddress) -> Storage:
    assert address.storage is not None
    return address.storage


def add(spool: Spool, step: int, value: float) -> None:
    spool.add_metrics(MetricsRecord({"loss": value}, step, step))


@contextmanager
def serving(page: LivePage) -> Iterator[int]:
    closing = threading.Event()
    with PageServer(page, 0) as server:
        thread = threading.Thread(target=server.serve_until, args=(closing,))
        thread.start()
        yield server.server_port
        closing.set()
        thread.join(20)
        assert not thread.is_alive()


def ask(
    port: int, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def test_points_that_are_added_without_mlflow_appear_in_the_page(
    address: RunAddress, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").unlink()
    spool = spool_of(address)
    add(spool, 8, 0.5)
    live = LivePage(address)
    with serving(live) as port:
        status, content, headers = ask(port)
        assert status == 200
        page = ReportPage(content.decode())
        assert page.series("loss") == {8: 0.5}
        assert "there is no MLflow database" in page.text
        same = ask(port, **{"If-None-Match": headers["ETag"]})
        assert same[:2] == (304, b"")
        add(spool, 16, 0.125)
        spool.add_image("samples", np.zeros((8, 8, 3), np.uint8), 16, 1)
        wait_until(
            lambda: ask(port, **{"If-None-Match": headers["ETag"]})[0] == 200, 60, "a newer page"
        )
        page = ReportPage(ask(port)[1].decode())
        assert page.series("loss") == {8: 0.5, 16: 0.125}
        assert [attrs["data-at"] for attrs in page.of("img")] == ["16"]


def test_reading_a_spool_changes_nothing_of_it(address: RunAddress) -> None:
    spool = spool_of(address)
    add(spool, 24, 1.0)
    file = spool.folder / "records.jsonl"
    with file.open("ab") as half:
        half.write(b'{"format": 2, "metr')  # a line that is being written
    before = file.read_bytes()
    page = ReportPage(LivePage(address).version.content.decode())
    assert page.series("loss") == {8: 0.5, 16: 0.25, 24: 1.0}
    assert file.read_bytes() == before


def test_what_both_have_counts_once_and_records_of_the_storage_too(address: RunAddress) -> None:
    spool = spool_of(address)
    for step, value in ((16, 99.0), (32, 2.0)):  # MLflow has 16 already
        add(spool, step, value)
    spool.add_image("samples", np.full((9, 9, 3), 77, np.uint8), 32, 1)
    storage = storage_of(address)
    UnsentRecords(storage, address.name, address.mlflow_run_id, spool).save()
    for file in spool.folder.iterdir():  # as on another machine
        file.unlink()
    page = ReportPage(LivePage(address).version.content.decode())
    assert page.series("loss") == {8: 0.5, 16: 0.25, 32: 2.0}
    assert [attrs["data-at"] for attrs in page.of("img")] == ["8", "32"]
    assert "Records that MLflow lacks 3" in page.text


def test_damaged_records_of_one_driver_leave_those_of_another(address: RunAddress) -> None:
    spool, storage = spool_of(address), storage_of(address)
    for term, step in ((1, 24), (2, 32)):
        add(spool, step, 2.0)
        UnsentRecords(storage, address.name, address.mlflow_run_id, spool, term=term).save()
    for file in spool.folder.iterdir():  # as on another machine
        file.unlink()
    storage.put(f"{address.name}/unsent/000001/records.jsonl", b"[")
    page = ReportPage(LivePage(address).version.content.decode())
    assert page.series("loss") == {8: 0.5, 16: 0.25, 24: 2.0, 32: 2.0}
    assert "unsent/000001/records.jsonl is damaged" in page.text


def test_a_run_without_points_has_a_page_that_waits(tmp_path: Path) -> None:
    page = ReportPage(LivePage(logged_run(tmp_path, "b-2", {})).version.content.decode())
    assert "No points have been logged yet" in page.text


def test_what_mlflow_had_stays_when_it_is_gone(address: RunAddress, tmp_path: Path) -> None:
    live = LivePage(address)
    (tmp_path / "mlflow.db").unlink()
    add(spool_of(address), 24, 1.0)
    live.refresh()
    page = ReportPage(live.version.content.decode())
    assert page.series("loss") == {8: 0.5, 16: 0.25, 24: 1.0}
    assert [attrs["data-at"] for attrs in page.of("img")] == ["8"]


def test_a_page_that_cannot_be_made_keeps_the_last_one_and_says_why(
    address: RunAddress, tmp_path: Path
) -> None:
    live = LivePage(address)
    before = live.version
    (tmp_path / "runs/a-1/job.yaml").write_text("{")
    live.refresh()
    page = ReportPage(live.version.content.decode())
    assert live.version.tag != before.tag
    assert page.series("loss") == {8: 0.5, 16: 0.25}
    assert "Not refreshed:" in page.text
    assert "job.yaml is damaged" in page.text


def test_other_hosts_names_and_paths_are_refused(address: RunAddress) -> None:
    with serving(LivePage(address)) as port:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::", ""):
            assert ask(port, Host=host)[0] == 421, host
        for host in (f"127.0.0.1:{port}", "localhost:9", f"[::1]:{port}", "LOCALHOST"):
            assert ask(port, Host=host)[0] == 200, host
        assert ask(port, "/etc/passwd")[0] == 404
        assert ask(port, "/../../etc/passwd")[0] == 404
        assert ask(port, method="POST")[0] == 501
        status, content, headers = ask(port, method="HEAD")
        assert (status, content) == (200, b"")
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["X-Frame-Options"] == "DENY"


def test_the_page_may_ask_its_own_server_alone(address: RunAddress) -> None:
    page = ReportPage(LivePage(address).version.content.decode())
    [policy] = [str(m["content"]) for m in page.of("meta") if m.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    assert policy.endswith("connect-src 'self'")
    assert [line.split("(")[0] for line in page.requests()] == ["fetch"]
    assert 'fetch("/"' in page.contents["script"]


def test_nothing_is_read_when_nobody_looks(
    address: RunAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LivePage(address)
    made = []
    monkeypatch.setattr(live, "refresh", lambda: made.append(1))
    monkeypatch.setattr("orchestrator.run_report.live_page.IDLE_S", 0.0)
    live.refresh_if_due()
    assert made == []
    monkeypatch.setattr("orchestrator.run_report.live_page.IDLE_S", 60.0)
    live.asked()
    live.refresh_if_due()
    assert made == [1]


def test_a_port_in_use_is_refused_with_the_option(address: RunAddress) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"port {port} of 127.0.0.1.*--port 0"):
            PageServer(LivePage(address), port)


@pytest.mark.slow
def test_watch_listens_on_this_machine_alone_and_ends_on_ctrl_c(
    address: RunAddress, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "orchestrator", "watch", "runs/a-1", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        found = listening(process.pid)
        assert found
        assert exposed(found) == set()
        status, content, _ = ask(int(url.rstrip("/").rpartition(":")[2]))
        assert status == 200
        assert ReportPage(content.decode()).series("loss") == {8: 0.5, 16: 0.25}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.slow
def test_a_training_is_watched_without_mlflow_from_its_first_point_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reported: dict[str, dict[int, float]] = {}
    pages: dict[int, tuple[ReportPage, dict[str, dict[int, float]]]] = {}

    def watched(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        def look(report: ProgressReport) -> None:
            show(report)
            for name, value in report.points.items():
                reported.setdefault(name, {}).setdefault(report.images_seen, value)
            if report.images_seen in (4, 16) and report.images_seen not in pages:
                address = RunAddress(
                    context.name, context.run.run_id, NOBODY, context.storage(), context.record
                )
                page = ReportPage(LivePage(address).version.content.decode())
                pages[report.images_seen] = page, copy.deepcopy(reported)

        return train_in_process(context, look, stop)

    job = write_job(tmp_path / "x", pack_pairs(tmp_path))
    run_job(load_job(job, ["train.images=24", "train.log_every=4", "register=null"]), watched)
    assert pages.keys() == {4, 16}
    for page, expected in pages.values():
        assert f"MLflow at {NOBODY}" in page.text
        assert page.points["metrics"].keys() == expected.keys()
        assert {name: page.series(name) for name in expected} == expected
