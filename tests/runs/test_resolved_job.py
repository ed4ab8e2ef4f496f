"""A resolved job has absolute paths, and is stored and compared as given."""

import pickle
from pathlib import Path

from orchestrator.runs.resolved_job import resolve_job
from services.fixtures_jobs import Load
from support.plain_jobs import VALID


def test_paths_are_absolute_and_the_rendering_stays_as_given(load: Load, tmp_path: Path) -> None:
    loaded = load(VALID, "storage=runs")
    resolved = resolve_job(loaded)
    assert resolved.job.data.train == f"{tmp_path}/cats/train"
    assert resolved.storage().uri == f"{tmp_path}/runs"
    assert resolved.rendered == loaded.render()
    assert "train: cats/train" in resolved.rendered


def test_it_can_be_sent_to_a_process_in_another_folder_with_other_sections(
    load: Load, tmp_path: Path
) -> None:
    resolved = resolve_job(load(VALID, "storage=runs")).with_sections(storage=f"{tmp_path}/other")
    received = pickle.loads(pickle.dumps(resolved))
    assert received.job == resolved.job
    assert received.job.storage == f"{tmp_path}/other"
    assert received.rendered == resolved.rendered
    assert "storage: runs" in received.rendered
