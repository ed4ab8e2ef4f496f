"""Records of runs in a storage: which runs have not finished, and records of other versions."""

import json
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.runs.record import RunRecord, newest_unfinished_run
from orchestrator.runs.resume import find_orphaned_run
from orchestrator.storage.open import open_storage


def run_record(**changes: str) -> RunRecord:
    return RunRecord(
        **{
            "run": "small-1",
            "job": "small",
            "mlflow_run_id": "a",
            "experiment_id": "0",
            "data_digest": "d",
            **changes,
        }
    )


def test_the_newest_unfinished_run_of_a_job_is_found(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert newest_unfinished_run(storage, "small") is None
    for name, job in (
        ("small-1", "small"),
        ("small-2", "small"),
        ("small-3", "small"),
        ("small-big-4", "small-big"),
    ):
        run_record(run=name, job=job).write(storage, "name: x\n")
    run_record(run="small-3").mark_finished(storage)
    storage.put("small-9/run.json", b"no json")
    assert newest_unfinished_run(storage, "small") == run_record(run="small-2")


def test_a_record_in_an_older_format_is_refused_and_by_default_a_new_run_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(str(tmp_path))
    run_record().write(storage, "name: x\n")
    values = json.loads(storage.get("small-1/run.json"))
    del values["format"]
    storage.put("small-1/run.json", json.dumps(values).encode())
    message = (
        r"small-1/run\.json has format 1, and this version of the orchestrator reads format 2; "
        "finish the run with the version that started it, or start a new run with --no-resume"
    )
    with pytest.raises(UsageError, match=message):
        newest_unfinished_run(storage, "small")
    with pytest.raises(UsageError, match=message):
        RunRecord.read(storage, "small-1")
    assert find_orphaned_run(storage, "small", "name: x\n", "d") is None
    assert "starting a new run: small-1/run.json has format 1" in capsys.readouterr().err
