"""A folder as storage keeps nothing of writers that were killed, and no empty folders."""

import os
import threading
import time
from pathlib import Path

from orchestrator.storage.open import open_storage

HOUR = 3600


def leave(path: Path, *, age_s: float) -> Path:
    """Write what a process leaves that is killed while it writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half a")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_the_next_write_of_a_key_removes_its_old_leftovers_and_no_others(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("run/lease.json", b"1")
    old = leave(tmp_path / "run/.lease.json.1.aside", age_s=HOUR)
    new = leave(tmp_path / "run/.lease.json.2.aside", age_s=1)
    of_another = leave(tmp_path / "run/.run.json.3.aside", age_s=HOUR)
    hidden = leave(tmp_path / "run/.lease.json.notes", age_s=HOUR)
    storage.put("run/lease.json", b"2")
    assert [path.exists() for path in (old, new, of_another, hidden)] == [False, True, True, True]


def test_the_folder_of_the_last_deleted_key_is_removed_with_its_leftovers(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for key in ("run/checkpoints/1/a", "run/checkpoints/1/b", "run/checkpoints/2/a"):
        storage.put(key, b"x")
    leave(tmp_path / "run/checkpoints/1/.b.1.aside", age_s=HOUR)
    storage.delete("run/checkpoints/1/a")
    assert (tmp_path / "run/checkpoints/1/b").exists()
    storage.delete("run/checkpoints/1/b")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["2"]


def test_a_folder_that_is_being_written_to_and_the_top_stay(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("run/checkpoints/1/a", b"x")
    leave(tmp_path / "run/checkpoints/1/.b.1.aside", age_s=1)
    storage.delete("run/checkpoints/1/a")
    assert (tmp_path / "run/checkpoints/1").is_dir()
    storage.put("run/record", b"x")
    storage.delete("run/record")
    assert (tmp_path / "run").is_dir()


def test_a_write_to_a_folder_that_others_empty_does_not_fail(tmp_path: Path) -> None:
    """One thread writes, another deletes: the folder goes and comes thousands of times."""
    storage, over = open_storage(str(tmp_path)), threading.Event()
    storage.put("run/other/key", b"x")

    def delete() -> None:
        while not over.is_set():
            open_storage(str(tmp_path)).delete("run/busy/key")

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for number in range(300):
            storage.put("run/busy/key", str(number).encode())
    finally:
        over.set()
        thread.join()
