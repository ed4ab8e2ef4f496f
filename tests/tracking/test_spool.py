"""The spool on a disk that is really full, and on one that accepts half a line."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from orchestrator.errors import EnvironmentProblem
from orchestrator.tracking import RunRef, Tracker
from orchestrator.tracking import spool as spool_module
from orchestrator.tracking.spool import ImageRecord, MetricsRecord, Spool, TextRecord
from services.disks import fill
from services.mlflow_server import MlflowServer
from support.waiting import wait_until

pytestmark = pytest.mark.server

BLACK = np.zeros((64, 64, 3), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def record(step: int) -> MetricsRecord:
    return MetricsRecord({"loss": float(step)}, step, 1)


def steps_in(spool: Spool) -> list[int]:
    """The steps of all records that a sender gets, in that order."""
    found: list[int] = []
    while batch := spool.next_batch(7):
        found += [record.images_seen for record in batch.records]
        spool.mark_sent(batch)
    return found


def steps_on_disk(folder: Path) -> list[int]:
    text = (folder / "records.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line)["images_seen"] for line in text.splitlines()]


def test_records_that_do_not_fit_on_a_full_disk_are_written_when_there_is_space(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(small_disk / "run")
    for step in range(10):
        spool.add_metrics(record(step))
    ballast = fill(small_disk)
    for step in range(10, 3000):
        spool.add_metrics(record(step))
    spool.add_image("samples", NOISE, 3000, 1)
    spool.flush_memory()
    on_disk = steps_on_disk(small_disk / "run")
    assert 10 <= len(on_disk) < 100, "the last block of the file had some space"
    assert on_disk == list(range(len(on_disk))), "no partial line"
    assert spool.num_in_memory() == 3000 - len(on_disk)
    assert spool.num_lost == 1, "the image"
    (message,) = caplog.messages
    assert "cannot be written: No space left on device. Training continues" in message
    ballast.unlink()
    spool.add_text(TextRecord("notes.txt", "there is space again", 3001, 1))
    spool.add_image("samples", BLACK, 3002, 1)
    spool.flush_memory()
    assert spool.num_in_memory() == 0
    spool.close()
    expected = [*range(3000), 3001, 3002]
    assert steps_on_disk(small_disk / "run") == expected
    another_process = Spool(small_disk / "run")
    assert another_process.num_unsent() == 3002
    assert steps_in(another_process) == expected
    assert len(caplog.messages) == 1


def test_records_in_memory_are_sent_from_there_once_and_in_order(
    small_disk: Path,
) -> None:
    spool = Spool(small_disk / "run")
    for step in range(20):
        spool.add_metrics(record(step))
    ballast = fill(small_disk)
    for step in range(20, 500):
        spool.add_metrics(record(step))
    assert steps_in(spool) == list(range(500))
    assert spool.num_unsent() == 0
    for step in range(500, 800):
        spool.add_metrics(record(step))
    batch = spool.next_batch(100)
    assert batch is not None
    ballast.unlink()
    spool.mark_sent(batch)
    assert steps_in(spool) == list(range(600, 800))
    spool.add_metrics(record(800))
    assert steps_in(spool) == [800]


def test_a_run_on_a_full_disk_loses_no_metrics_while_the_server_is_up(
    running_mlflow: MlflowServer, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(small_disk)
    client = MlflowClient(running_mlflow.uri)
    run = client.create_run("0").info.run_id
    tracker = Tracker(RunRef(running_mlflow.uri, "0", run), small_disk / "spool")
    for step in range(2500):
        tracker.log_metrics({"loss": float(step)}, step)
        if step == 1000:
            sent = lambda: client.get_metric_history(run, "loss")  # noqa: E731
            wait_until(sent, 180, "the first points, from memory")
    tracker.log_image("samples", NOISE, 2500)
    tracker.close()
    history = client.get_metric_history(run, "loss")
    assert [metric.step for metric in history] == list(range(2500))
    assert [metric.value for metric in history] == list(range(2500))
    assert caplog.text.count("No space left on device") == 1
    assert "1 records or images were lost" in caplog.text


def test_a_disk_that_accepts_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from orchestrator.tracking.spool import MetricsRecord, Spool

spool = Spool(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(40):
    spool.add_metrics(MetricsRecord({"loss": 0.5}, step, 1))
print((Path(sys.argv[1]) / "records.jsonl").read_bytes().count(b"\\n"), spool.num_in_memory())
assert (Path(sys.argv[1]) / "records.jsonl").read_bytes().endswith(b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
spool.close()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    on_disk, in_memory = map(int, ended.stdout.split())
    assert on_disk == 1000 // len(
        '{"format": 2, "timestamp_ms": 1, "metrics": {"loss": 0.5}, "images_seen": 0}\n'
    )
    assert on_disk + in_memory == 40
    assert steps_on_disk(tmp_path) == list(range(40))


def test_memory_is_bounded_without_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "MAX_IN_MEMORY", 10)
    (tmp_path / "run").write_text("a file, where a folder is needed")
    spool = Spool(tmp_path / "run")
    for step in range(25):
        spool.add_metrics(record(step))
    assert (spool.num_in_memory(), spool.num_lost) == (10, 15)
    assert len(caplog.messages) == 1
    assert steps_in(spool) == list(range(10)), "the oldest"
    spool.close()


def test_a_line_broken_by_a_power_loss_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with_zeros = Spool(folder)
    for step in range(3):
        with_zeros.add_metrics(record(step))
    with_zeros.close()
    content = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    content[1] = b"\0" * (len(content[1]) - 1) + b"\n"
    (folder / "records.jsonl").write_bytes(b"".join(content))
    (folder / "sent").write_text("")
    assert steps_in(Spool(folder)) == [0, 2]


def test_a_deleted_spool_starts_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    for step in range(5):
        spool.add_metrics(record(step))
    assert steps_in(spool) == [0, 1, 2, 3, 4]
    spool.add_metrics(record(5))
    shutil.rmtree(tmp_path / "run")
    assert steps_in(spool) == []
    spool.add_metrics(record(6))
    spool.add_metrics(record(7))
    assert steps_in(spool) == [6, 7]
    spool.close()
    shutil.rmtree(tmp_path / "run")
    assert spool.num_unsent() == 0


def test_a_sent_image_is_deleted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    spool.add_image("samples", BLACK, 4, 1)
    batch = spool.next_batch(10)
    assert batch is not None
    (image,) = batch.records
    assert isinstance(image, ImageRecord)
    assert image.path.exists()
    spool.mark_sent(batch)
    assert list((tmp_path / "run").glob("*.png")) == []


@pytest.mark.parametrize(
    "outside", ["/{}", "../precious.png", "..", "", "sub/1-0123abcd.png", None, 7]
)
def test_a_record_of_a_file_elsewhere_is_skipped_and_the_file_kept(
    tmp_path: Path, outside: str | int | None
) -> None:
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"precious")
    file = outside.format(precious.relative_to("/")) if isinstance(outside, str) else outside
    image = {"format": 2, "timestamp_ms": 1, "image": "samples", "file": file, "images_seen": 4}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text(json.dumps(image) + "\n")
    spool = Spool(tmp_path / "run")
    spool.add_metrics(record(8))
    batches = [batch for _ in range(2) if (batch := spool.next_batch(10))]
    assert [r for batch in batches for r in batch.records if isinstance(r, ImageRecord)] == []
    assert steps_in(spool) == [8]
    assert precious.read_bytes() == b"precious"


def test_a_spool_can_be_used_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "run")
    spool.add_metrics(record(1))
    spool.close()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "run").stat().st_uid + 1)
    with pytest.raises(
        EnvironmentProblem, match=r"belongs to user .*; send its records as that user"
    ):
        Spool(tmp_path / "run")
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_records_in_an_older_format_are_refused(tmp_path: Path) -> None:
    line = {"timestamp_ms": 1, "points": {"loss": 1.5}, "images_seen": 4}
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    message = (
        r"records\.jsonl have format 1, and this version of the orchestrator reads format 2; send "
        "them with the version that wrote them, or delete the folder"
    )
    with pytest.raises(EnvironmentProblem, match=message):
        Spool(tmp_path)
