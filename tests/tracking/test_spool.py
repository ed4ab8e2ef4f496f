"""The spool on a disk that is really full, and on one that takes half a line."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from orchestrator.tracking import RunRef, Tracker
from orchestrator.tracking import spool as spool_module
from orchestrator.tracking.spool import Picture, Points, Spool, Text
from services.disks import fill
from services.mlflow_server import MlflowServer

PICTURE = np.zeros((64, 64, 3), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def points(step: int) -> Points:
    return Points({"loss": float(step)}, step, 1)


def steps_in(spool: Spool) -> list[int]:
    """Everything that the spool gives to a sender, in that order."""
    found: list[int] = []
    while portion := spool.next_portion(7):
        found += [record.images_seen for record in portion.records]
        spool.mark_sent(portion)
    return found


def lines(folder: Path) -> list[int]:
    text = (folder / "records.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line)["images_seen"] for line in text.splitlines()]


def test_records_that_a_full_disk_does_not_take_are_written_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(small_disk / "run")
    for step in range(10):
        spool.add_points(points(step))
    ballast = fill(small_disk)
    for step in range(10, 3000):
        spool.add_points(points(step))
    spool.add_picture("samples", NOISE, 3000, 1)
    spool.write_waiting()
    on_disk = lines(small_disk / "run")
    assert 10 <= len(on_disk) < 100, "the last block of the file had some room"
    assert on_disk == list(range(len(on_disk))), "no half line"
    assert spool.num_in_memory() == 3000 - len(on_disk)
    assert spool.num_lost == 1, "the picture"
    (told,) = caplog.messages
    assert "cannot be written: No space left on device. Training goes on" in told
    ballast.unlink()
    spool.add_text(Text("notes.txt", "there is room again", 3001, 1))
    spool.add_picture("samples", PICTURE, 3002, 1)
    spool.write_waiting()
    assert spool.num_in_memory() == 0
    spool.close()
    expected = [*range(3000), 3001, 3002]
    assert lines(small_disk / "run") == expected
    another_process = Spool(small_disk / "run")
    assert another_process.num_unsent() == 3002
    assert steps_in(another_process) == expected
    assert len(caplog.messages) == 1


def test_what_waits_in_memory_is_sent_from_there_each_record_once_and_in_order(
    small_disk: Path,
) -> None:
    spool = Spool(small_disk / "run")
    for step in range(20):
        spool.add_points(points(step))
    ballast = fill(small_disk)
    for step in range(20, 500):
        spool.add_points(points(step))
    assert steps_in(spool) == list(range(500))
    assert spool.num_unsent() == 0
    for step in range(500, 800):
        spool.add_points(points(step))
    portion = spool.next_portion(100)
    assert portion is not None
    ballast.unlink()
    spool.mark_sent(portion)
    assert steps_in(spool) == list(range(600, 800))
    spool.add_points(points(800))
    assert steps_in(spool) == [800]


def test_a_training_on_a_full_disk_loses_no_point_while_the_server_is_there(
    running_mlflow: MlflowServer, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(small_disk)
    client = MlflowClient(running_mlflow.uri)
    run = client.create_run("0").info.run_id
    tracker = Tracker(RunRef(running_mlflow.uri, "0", run), small_disk / "spool")
    for step in range(2500):
        tracker.metrics({"loss": float(step)}, step)
        if step == 1000:
            time.sleep(2)  # the sender is half way then
    tracker.picture("samples", NOISE, 2500)
    tracker.close()
    history = client.get_metric_history(run, "loss")
    assert [metric.step for metric in history] == list(range(2500))
    assert [metric.value for metric in history] == list(range(2500))
    told = caplog.text
    assert told.count("No space left on device") == 1
    assert "1 records or pictures were lost" in told


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from orchestrator.tracking.spool import Points, Spool

spool = Spool(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(40):
    spool.add_points(Points({"loss": 0.5}, step, 1))
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
        '{"timestamp_ms": 1, "points": {"loss": 0.5}, "images_seen": 0}\n'
    )
    assert on_disk + in_memory == 40
    assert lines(tmp_path) == list(range(40))


def test_memory_is_bounded_where_there_is_no_disk_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "MAX_IN_MEMORY", 10)
    (tmp_path / "run").write_text("a file, where a folder is needed")
    spool = Spool(tmp_path / "run")
    for step in range(25):
        spool.add_points(points(step))
    assert (spool.num_in_memory(), spool.num_lost) == (10, 15)
    assert len(caplog.messages) == 1
    assert steps_in(spool) == list(range(10)), "the oldest"
    spool.close()


def test_what_a_machine_without_power_left_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with_zeros = Spool(folder)
    for step in range(3):
        with_zeros.add_points(points(step))
    with_zeros.close()
    content = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    content[1] = b"\0" * (len(content[1]) - 1) + b"\n"
    (folder / "records.jsonl").write_bytes(b"".join(content))
    (folder / "sent").write_text("")
    assert steps_in(Spool(folder)) == [0, 2]


def test_a_spool_that_someone_deletes_begins_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    for step in range(5):
        spool.add_points(points(step))
    assert steps_in(spool) == [0, 1, 2, 3, 4]
    spool.add_points(points(5))
    shutil.rmtree(tmp_path / "run")
    assert steps_in(spool) == []
    spool.add_points(points(6))
    spool.add_points(points(7))
    assert steps_in(spool) == [6, 7]
    spool.close()
    shutil.rmtree(tmp_path / "run")
    assert spool.num_unsent() == 0


def test_a_picture_goes_with_its_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    spool.add_picture("samples", PICTURE, 4, 1)
    portion = spool.next_portion(10)
    assert portion is not None
    (record,) = portion.records
    assert isinstance(record, Picture)
    assert record.path.exists()
    spool.mark_sent(portion)
    assert list((tmp_path / "run").glob("*.png")) == []
