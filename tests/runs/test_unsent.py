"""Records that MLflow lacks outlive the machine that made them: they are in the run's storage."""

import json
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import Superseded
from orchestrator.runs import unsent as unsent_module
from orchestrator.runs.unsent import UnsentRecords
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.tracking.spool import MetricsRecord, Record, Spool, TextRecord

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
