"""Records that MLflow lacks outlive the machine that made them: they are in the run's storage."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from orchestrator.config.load import load_job
from orchestrator.errors import Superseded, UsageError
from orchestrator.runs import unsent as unsent_module
from orchestrator.runs.driver import run_job
from orchestrator.runs.replay import replay_run
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.tracking.spool import MetricsRecord, Record, Spool, TextRecord
from services.mlflow_server import MlflowServer
from support.fakes import without_clock
from support.mlflow_runs import runs_of
from support.small_runs import pack_pairs, write_job
from support.waiting import wait_until

RUN, ID = "small-1", "a" * 32


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs"))


def fill(spool: Spool, steps: range, timestamp_ms: int = 1) -> None:
    for step in steps:
        spool.add_metrics(MetricsRecord({"loss": step / 4}, step, timestamp_ms))
        if step % 4 == 0:
            pixels = np.random.default_rng(step).integers(0, 255, (8, 8, 3), np.uint8)
            spool.add_image("samples", pixels, step, timestamp_ms)
            spool.add_text(TextRecord("notes.txt", f"after {step}", step, timestamp_ms))


def unsent(storage: Storage, spool: Spool) -> UnsentRecords:
    return UnsentRecords(storage, RUN, ID, spool)


def records(spool: Spool) -> list[Record]:
    """All unsent records; the position of a picture in its folder does not count."""
    found: list[Record] = []
    while batch := spool.next_batch(1000):
        found += batch.records
        spool.mark_sent(batch)
    return found


def described(found: list[Record]) -> list[tuple[str, int]]:
    return [(type(record).__name__, record.images_seen) for record in found]


EXPECTED = [
    (kind, step)
    for step in range(1, 11)
    for kind in ("MetricsRecord", *(("ImageRecord", "TextRecord") if step % 4 == 0 else ()))
]


def test_another_machine_gets_each_record_once_and_in_order(
    storage: Storage, tmp_path: Path
) -> None:
    first = Spool(tmp_path / "first")
    fill(first, range(1, 11))
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "first").glob("*.png")}
    unsent(storage, first).save()
    shutil.rmtree(tmp_path / "first")
    second = Spool(tmp_path / "second")
    assert unsent(storage, second).restore() == len(EXPECTED)
    assert unsent(storage, second).restore() == 0, "it has them"
    found = {path.name: path.read_bytes() for path in (tmp_path / "second").glob("*.png")}
    assert found == pictures
    assert len(pictures) == 2
    third = Spool(tmp_path / "second")
    assert described(records(third)) == EXPECTED, "they are on the disk"


def test_what_is_sent_is_deleted_with_the_next_checkpoint(storage: Storage, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, range(1, 11))
    kept = unsent(storage, spool)
    kept.save()
    assert len(storage.list(f"{RUN}/unsent/")) == 3
    batch = spool.next_batch(4)
    assert batch is not None
    spool.mark_sent(batch)
    picture = spool.next_batch(1)
    assert picture is not None
    spool.mark_sent(picture)
    kept.save()
    assert len(storage.list(f"{RUN}/unsent/")) == 2
    records(spool)
    kept.save()
    assert storage.list() == []
    fill(spool, range(11, 13))
    kept.save()
    again = Spool(tmp_path / "again")
    unsent(storage, again).restore()
    assert [step for _, step in described(records(again))] == [11, 12, 12, 12]


def test_the_records_of_two_machines_are_merged_by_their_steps(
    storage: Storage, tmp_path: Path
) -> None:
    """The first machine comes back with a spool that the second one has partly seen."""
    first = Spool(tmp_path / "first")
    fill(first, range(1, 7))
    unsent(storage, first).save()
    fill(first, range(7, 9))  # after its last checkpoint
    second = Spool(tmp_path / "second")
    unsent(storage, second).restore()
    fill(second, range(7, 11), timestamp_ms=2)
    unsent(storage, second).save()
    again = Spool(tmp_path / "first")
    assert unsent(storage, again).restore() == 6, "steps 7 to 10 of the second one"
    merged = records(again)
    steps = [record.images_seen for record in merged]
    assert steps == sorted(steps)
    metrics = [r for r in merged if isinstance(r, MetricsRecord)]
    assert [r.images_seen for r in metrics] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 8, 9, 10]


def test_a_driver_that_was_superseded_writes_and_deletes_nothing(
    storage: Storage, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise Superseded("another driver has taken over")

    spool = Spool(tmp_path / "spool")
    late = UnsentRecords(storage, RUN, ID, spool, check_fence=refuse)
    fill(spool, range(1, 11))
    with pytest.raises(Superseded):
        late.save()
    assert storage.list() == []
    unsent(storage, spool).save()
    before = storage.list()
    records(spool)
    with pytest.raises(Superseded):
        late.save()
    assert storage.list() == before


def test_a_late_write_of_a_superseded_driver_leaves_the_records_of_its_successor(
    storage: Storage, tmp_path: Path
) -> None:
    """It had asked for its fence before it was suspended, so nothing refuses the write."""
    first, second, third = (Spool(tmp_path / name) for name in ("first", "second", "third"))
    late = UnsentRecords(storage, RUN, ID, first, term=1)
    fill(first, range(1, 5))
    late.save()
    successor = UnsentRecords(storage, RUN, ID, second, term=2)
    assert successor.restore() == 6
    fill(second, range(5, 9))
    successor.save()
    kept = [key for key in storage.list() if "/unsent/000001/" in key]
    assert not kept, "its successor has them"
    fill(first, range(5, 6), timestamp_ms=2)
    late.save()
    found = UnsentRecords(storage, RUN, ID, third, term=3)
    assert found.restore() == 12 + 1
    assert set(described(records(third))) == {(kind, step) for kind, step in EXPECTED if step < 9}
    found.save()
    assert storage.list() == []


def test_records_of_versions_without_terms_are_restored(storage: Storage, tmp_path: Path) -> None:
    spool, again = Spool(tmp_path / "spool"), Spool(tmp_path / "again")
    fill(spool, range(1, 9))
    unsent(storage, spool).save()
    for key in storage.list():
        storage.put(key.replace("/000000/", "/"), storage.get(key))
        storage.delete(key)
    found = UnsentRecords(storage, RUN, ID, again, term=4)
    assert found.restore() == 12
    assert set(described(records(again))) == {(kind, step) for kind, step in EXPECTED if step < 9}
    found.save()
    assert storage.list() == []


def restored(storage: Storage, folder: Path) -> list[tuple[str, int]]:
    spool = Spool(folder)
    unsent(storage, spool).restore()
    return described(records(spool))


def test_one_wrong_byte_loses_at_most_one_record_and_says_so(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, range(1, 11))
    unsent(storage, spool).save()
    key = f"{RUN}/unsent/000000/records.jsonl"
    whole = storage.get(key)
    header = whole.index(b"\n") + 1
    for number, at in enumerate(range(0, len(whole), 37)):
        storage.put(key, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        caplog.clear()
        found = restored(storage, tmp_path / str(number))
        (message,) = caplog.messages
        assert "is damaged: " in message or "is of MLflow run" in message or "format" in message
        assert "\n" not in message
        lost = Counter(EXPECTED) - Counter(found)
        assert not Counter(found) - Counter(EXPECTED)
        if at >= header:
            assert 1 <= lost.total() <= 2, "two, if the byte was the end of a line"
            assert (
                f"{lost.total()} of {len(EXPECTED)} records that MLflow lacks are lost" in message
            )


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": 1}', b"[" * 9999])
def test_what_is_no_list_of_records_is_passed_over_with_one_line(
    storage: Storage, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put(f"{RUN}/unsent/000000/records.jsonl", content)
    spool = Spool(tmp_path / "spool")
    fill(spool, range(1, 11))
    assert unsent(storage, spool).restore() == 0
    (message,) = caplog.messages
    assert "unsent/000000/records.jsonl is damaged" in message
    unsent(storage, spool).save()
    assert restored(storage, tmp_path / "again") == EXPECTED


def test_a_damaged_or_missing_picture_is_lost_alone(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    fill(spool, range(1, 11))
    unsent(storage, spool).save()
    one, two = (key for key in storage.list(f"{RUN}/unsent/") if key.endswith(".png"))
    storage.put(one, storage.get(two))
    storage.delete(two)
    expected = [entry for entry in EXPECTED if entry[0] != "ImageRecord"]
    assert restored(storage, tmp_path / "again") == expected
    assert "2 of 14 records that MLflow lacks are lost" in caplog.text


@pytest.mark.parametrize(("limit", "value"), [("MAX_BYTES", 500), ("MAX_IMAGE_BYTES", 300)])
def test_more_than_fits_is_left_out_from_the_newest_on_and_counted(
    storage: Storage,
    tmp_path: Path,
    limit: str,
    value: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(unsent_module, limit, value)
    spool = Spool(tmp_path / "spool")
    fill(spool, range(1, 11))
    kept = unsent(storage, spool)
    kept.save()
    kept.save()
    (message,) = caplog.messages
    found = restored(storage, tmp_path / "again")
    assert 0 < len(found) < len(EXPECTED)
    assert found == EXPECTED[: len(found)]
    left_out = len(EXPECTED) - len(found)
    assert message.startswith(f"{left_out} records that MLflow lacks are too many")
    assert caplog.messages[1].startswith(f"{left_out} records that MLflow lacks were too many")


def test_a_record_of_a_file_elsewhere_is_not_taken(storage: Storage, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.add_image("samples", np.zeros((8, 8, 3), np.uint8), 4, 1)
    unsent(storage, spool).save()
    key = f"{RUN}/unsent/000000/records.jsonl"
    (picture,) = (tmp_path / "spool").glob("*.png")
    first, line = storage.get(key).splitlines(keepends=True)
    hostile = line.replace(picture.name.encode(), b"../../../etc/hostname.png")
    crc = zlib.crc32(hostile)
    header = {**json.loads(first), "crc32": [crc], "images": {"../../../etc/hostname.png": "0"}}
    storage.put(key, json.dumps(header).encode() + b"\n" + hostile)
    assert restored(storage, tmp_path / "again") == []


SETTINGS = ["train.images=160", "train.checkpoint_every=8", "train.log_every=4"]
SETTINGS += ["train.sample_every=16", "train.validate_every=16", "register=null"]


def logged(client: MlflowClient, experiment: str) -> tuple[dict[str, list[int]], list[str]]:
    """The steps of each metric and of each picture of the one run, without those of the clock."""
    (run,) = runs_of(client, experiment)
    names = without_clock(run.data.metrics)
    steps = {
        name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
    files = (file.path for file in client.list_artifacts(run.info.run_id, "images"))
    return steps, sorted("+".join(f.split("+")[:3]) + f[-4:] for f in files)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("unsent"))


def command(job: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *options]


def settings_for(server: MlflowServer, experiment: str, *more: str) -> list[str]:
    return [*SETTINGS, f"tracking.uri={server.uri}", f"tracking.experiment={experiment}", *more]


def as_options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def new_machine(folder: Path) -> dict[str, str]:
    """The environment of a machine with an empty temporary folder."""
    folder.mkdir()
    return os.environ | {"TMPDIR": str(folder)}


@pytest.mark.server
@pytest.mark.slow
def test_a_machine_that_is_lost_while_mlflow_is_down_takes_no_record_with_it(
    fragile_mlflow: MlflowServer, data: str, tmp_path: Path
) -> None:
    whole, lost = (f"{name}-{uuid.uuid4().hex}" for name in ("whole", "lost"))
    job, whole_job = write_job(tmp_path / "lost", data), write_job(tmp_path / "whole", data)
    run_job(load_job(whole_job, settings_for(fragile_mlflow, whole)))
    client = MlflowClient(fragile_mlflow.uri)
    options = as_options(settings_for(fragile_mlflow, lost))
    for number in range(2):
        environment = new_machine(tmp_path / f"machine {number}")
        driver = subprocess.Popen(
            command(job, "--resume", *options), env=environment, stderr=subprocess.DEVNULL
        )
        wait_for_checkpoint(job, 3 + 5 * number)
        fragile_mlflow.kill()
        wait_for_checkpoint(job, 6 + 5 * number)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert list(job.parent.glob("runs/*/unsent/*/records.jsonl"))
        shutil.rmtree(tmp_path / f"machine {number}")
        fragile_mlflow.start()
    environment = new_machine(tmp_path / "last machine")
    subprocess.run(
        command(job, "--resume", *options), env=environment, check=True, capture_output=True
    )
    expected, found = logged(client, whole), logged(client, lost)
    assert found == expected
    assert len(expected[0]["generator/loss"]) == 40
    assert len(expected[1]) >= 20
    assert not list(job.parent.glob("runs/*/unsent/*/*")), "all are sent"


def wait_for_checkpoint(job: Path, number: int) -> None:
    wait_until(lambda: num_saved(job) >= number, 180, f"checkpoint {number}", poll_s=0.01)


def num_saved(job: Path) -> int:
    """Number of the newest checkpoint, from 1 on: one comes after 8 images each."""
    names = [path.parent.name for path in job.parent.glob("runs/*/checkpoints/*/manifest.json")]
    return int(max(names, default="0").partition("-")[0]) // 8


@pytest.mark.server
@pytest.mark.slow
def test_the_command_that_a_run_prints_sends_what_is_unsent_from_any_machine(
    fragile_mlflow: MlflowServer, data: str, tmp_path: Path
) -> None:
    whole, job = (write_job(tmp_path / name, data) for name in ("whole", "down"))
    names = [f"{name}-{uuid.uuid4().hex}" for name in ("whole", "down")]
    run_job(load_job(whole, settings_for(fragile_mlflow, names[0])))
    settings = settings_for(fragile_mlflow, names[1], "tracking.retry_timeout_s=2")
    driver = subprocess.Popen(
        command(job, *as_options(settings)),
        env=new_machine(tmp_path / "machine"),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_checkpoint(job, 3)
    fragile_mlflow.kill()
    _, printed = driver.communicate(timeout=300)
    assert driver.returncode == 0, printed
    shutil.rmtree(tmp_path / "machine")
    (line,) = [line for line in printed.splitlines() if "orchestrator tracking replay" in line]
    program, *arguments = shlex.split(line)
    assert program == "orchestrator"

    def replay(*given: str, machine: str = "other") -> subprocess.CompletedProcess[str]:
        (tmp_path / machine).mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *given],
            env=os.environ | {"TMPDIR": str(tmp_path / machine)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    down = replay(*arguments)
    assert (down.returncode, down.stderr.count("\n")) == (3, 1), down.stderr
    assert "does not answer" in down.stderr
    fragile_mlflow.start()
    sent = replay(*arguments, machine="third")
    assert sent.returncode == 0, sent.stderr
    assert "sent to MLflow at http" in sent.stdout
    assert "of them from the storage" in sent.stdout
    client = MlflowClient(fragile_mlflow.uri)
    assert logged(client, names[1]) == logged(client, names[0])
    for machine in ("third", "other"):
        again = replay(*arguments, machine=machine)
        assert again.returncode == 0, again.stderr
    assert "lacks nothing" in again.stdout or "sent to MLflow" in again.stdout
    assert logged(client, names[1]) == logged(client, names[0])
    assert not list(job.parent.glob("runs/*/unsent/*/*"))
    mistyped = replay("tracking", "replay", f"{arguments[2]}x", *arguments[3:])
    assert mistyped.returncode == 2
    assert f"did you mean '{arguments[2]}'?" in mistyped.stderr


@pytest.mark.parametrize("name", ["", "../x", "a//b", "/etc", "x" * 300])
def test_a_name_that_is_none_is_a_usage_error(name: str, storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        replay_run(name, storage, "http://127.0.0.1:1")


def test_a_database_that_is_not_there_is_not_created(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no MLflow database at"):
        replay_run("x", storage, f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
