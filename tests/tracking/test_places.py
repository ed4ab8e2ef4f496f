"""A folder with MLflow's SQLite file is moved or copied: nothing is written to its old place."""

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.config.paths import sqlite_path, sqlite_uri
from orchestrator.errors import EnvironmentProblem
from orchestrator.tracking import RunRef, reopen_run
from orchestrator.tracking.places import (
    apply_relocation,
    find_databases,
    find_relocation,
    local_path,
    old_folder,
)
from services.databases import create_mlflow_database
from services.disks import fill
from support.mlflow_runs import start_tiny_run


def make_project(folder: Path) -> RunRef:
    """A folder with a database, in which a run has logged its files."""
    folder.mkdir(parents=True)
    return start_tiny_run(sqlite_uri(create_mlflow_database(folder / "mlflow.db")))


def uri_of(folder: Path) -> str:
    return sqlite_uri(folder / "mlflow.db")


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def relocate(folder: Path) -> Path:
    """Do what `orchestrator relocate` does; return the backup."""
    (database,) = find_databases(folder)
    return apply_relocation(find_relocation(database))


def file_of(folder: Path, run: RunRef) -> str:
    """A file of ``run`` as MLflow reads it with the database in ``folder``."""
    client = MlflowClient(uri_of(folder))
    path = client.download_artifacts(run.run_id, "job/tiny.yaml", str(folder))
    return Path(path).read_text()


def test_a_new_run_in_a_moved_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    run = make_project(old)
    old.rename(new)
    with pytest.raises(EnvironmentProblem) as error:
        start_tiny_run(uri_of(new), run_name="tiny-2")
    assert f"{new} was moved from {old}" in str(error.value)
    assert f"`orchestrator relocate '{new}'`" in str(error.value)
    with pytest.raises(EnvironmentProblem, match="was moved from"):
        reopen_run(RunRef(uri_of(new), run.experiment_id, run.run_id))
    assert not old.exists()


def test_a_moved_folder_works_after_relocate(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run = make_project(old)
    old.rename(new)
    before = (new / "mlflow.db").read_bytes()
    backup = relocate(new)
    with closing(sqlite3.connect(backup)) as kept:
        places = kept.execute("SELECT artifact_uri FROM runs").fetchall()
    assert str(old) in places[0][0], "the backup is the database as it was"
    assert (new / "mlflow.db").read_bytes() != before
    assert file_of(new, run).startswith("# tiny")
    second = start_tiny_run(uri_of(new), run_name="tiny-2")
    reopen_run(RunRef(uri_of(new), run.experiment_id, run.run_id))
    assert (new / "mlartifacts" / second.run_id / "artifacts/job/tiny.yaml").exists()
    assert not old.exists()


def test_a_run_in_a_copy_never_writes_into_the_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    run = make_project(original)
    shutil.copytree(original, copy)
    before = digests(original)
    with pytest.raises(EnvironmentProblem, match="which leaves the original as it is"):
        start_tiny_run(uri_of(copy), run_name="tiny-2")
    relocate(copy)
    start_tiny_run(uri_of(copy), run_name="tiny-2")
    assert digests(original) == before
    assert file_of(copy, run).startswith("# tiny")


def test_a_copied_database_without_its_files_still_reads_those_of_the_original(
    tmp_path: Path,
) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    run = make_project(original)
    copy.mkdir()
    shutil.copy(original / "mlflow.db", copy)
    with pytest.raises(EnvironmentProblem, match="was copied from"):
        start_tiny_run(uri_of(copy), run_name="tiny-2")
    found = find_relocation(copy / "mlflow.db")
    assert [path.parent.name for path in found.elsewhere] == [run.run_id]
    apply_relocation(found)
    assert file_of(copy, run).startswith("# tiny")
    second = start_tiny_run(uri_of(copy), run_name="tiny-2")
    assert (copy / "mlartifacts" / second.run_id).exists()


def test_a_folder_with_an_empty_old_place_counts_as_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make_project(old)
    old.rename(new)
    (old / "mlartifacts").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match="was moved from"):
        start_tiny_run(uri_of(new), run_name="tiny-2")


def test_a_folder_that_was_moved_twice_is_relocated_at_once(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    run = make_project(first)
    first.rename(second)
    # As by a version that did not refuse: the second experiment is of the second place.
    client = MlflowClient(uri_of(second))
    number = client.create_experiment("b", artifact_location=(second / "mlartifacts").as_uri())
    other = client.create_run(number).info.run_id
    client.log_text(other, "# tiny b", "job/tiny.yaml")
    second.rename(third)
    relocate(third)
    assert file_of(third, run).startswith("# tiny")
    assert file_of(third, RunRef("", "", other)) == "# tiny b"
    assert find_relocation(third / "mlflow.db").changes == []


def test_files_that_were_moved_up_into_the_parent_are_relocated(tmp_path: Path) -> None:
    project, parent = tmp_path / "a/project", tmp_path / "a"
    run = make_project(project)
    for path in list(project.iterdir()):
        path.rename(parent / path.name)
    with pytest.raises(EnvironmentProblem, match=f"{parent} was moved from {project}"):
        start_tiny_run(uri_of(parent), run_name="tiny-2")
    relocate(parent)
    assert file_of(parent, run).startswith("# tiny")
    second = start_tiny_run(uri_of(parent), run_name="tiny-2")
    assert (parent / "mlartifacts" / second.run_id).exists()
    assert list(project.iterdir()) == []


def test_files_that_were_deleted_or_not_written_yet_are_no_sign_of_a_move(tmp_path: Path) -> None:
    run = make_project(tmp_path / "project")
    client = MlflowClient(uri_of(tmp_path / "project"))
    client.create_experiment("b", artifact_location=(tmp_path / "project/new").as_uri())
    shutil.rmtree(tmp_path / "project/mlartifacts")
    start_tiny_run(uri_of(tmp_path / "project"), run_name="tiny-2")
    reopen_run(RunRef(uri_of(tmp_path / "project"), run.experiment_id, run.run_id))
    assert find_relocation(tmp_path / "project/mlflow.db").changes == []


def test_the_same_folder_by_another_path_is_not_moved(tmp_path: Path) -> None:
    make_project(tmp_path / "project")
    (tmp_path / "link").symlink_to(tmp_path / "project")
    start_tiny_run(uri_of(tmp_path / "link"), run_name="tiny-2")
    assert find_relocation(tmp_path / "link/mlflow.db").changes == []


def test_files_elsewhere_on_purpose_are_left_there(tmp_path: Path) -> None:
    folder, disk = tmp_path / "project", tmp_path / "disk/mlartifacts"
    folder.mkdir()
    disk.mkdir(parents=True)
    uri = sqlite_uri(create_mlflow_database(folder / "mlflow.db"))
    MlflowClient(uri).create_experiment("tiny", artifact_location=disk.as_uri())
    (folder / "mlartifacts").mkdir()
    for number in range(2):
        start_tiny_run(uri, run_name=f"tiny-{number}")
    assert find_relocation(folder / "mlflow.db").changes == []
    assert len(list(disk.iterdir())) == 2


def test_a_failed_change_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make_project(old)
    old.rename(new)
    found = find_relocation(new / "mlflow.db")
    found.changes.append(("runs", "no_such_column", 1, "x"))
    before = (new / "mlflow.db").read_bytes()
    with pytest.raises(EnvironmentProblem, match="nothing was changed"):
        apply_relocation(found)
    assert (new / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("num_backups", [0, 1])
def test_a_full_disk_is_named_and_no_unfinished_backup_is_left(
    num_backups: int, small_disk: Path
) -> None:
    old, new = small_disk / "old", small_disk / "new"
    (old / "mlartifacts/run/artifacts").mkdir(parents=True)
    with closing(sqlite3.connect(old / "mlflow.db")) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, artifact_location TEXT)")
        database.execute("CREATE TABLE runs (artifact_uri TEXT, name TEXT)")
        place = (old / "mlartifacts/run/artifacts").as_uri()
        database.executemany("INSERT INTO runs VALUES (?, ?)", [(place, "x" * 1500)] * 20)
        database.commit()
    old.rename(new)
    found = find_relocation(new / "mlflow.db")
    before = (new / "mlflow.db").read_bytes()
    with fill(small_disk).open("r+b") as ballast:
        size = os.fstat(ballast.fileno()).st_size
        ballast.truncate(size - num_backups * (len(before) + 4096))
    with pytest.raises(EnvironmentProblem, match=r"disk is full; .*free up space for a backup"):
        apply_relocation(found)
    assert (new / "mlflow.db").read_bytes() == before
    assert list(new.glob("*.bak")) == []


def test_a_locked_database_is_not_taken_for_another_file(tmp_path: Path) -> None:
    path = create_mlflow_database(tmp_path / "mlflow.db")
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentProblem, match=r"mlflow\.db cannot be read: .* is locked"):
            find_databases(tmp_path)


def test_a_file_that_is_no_database_of_mlflow_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("x" * 5000)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t(x INT)")
    assert find_databases(tmp_path) == []


NAMES = ("a?b", "c#d", "50%", "x%20y", "sp ace", "Größe", "it's", 'q"q', "a@b:c", "b\\s", "+&;")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_keeps_its_database_and_its_files(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    run = make_project(folder)
    assert sqlite_path(run.tracking_uri) == folder / "mlflow.db"
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert file_of(folder, run).startswith("# tiny")
    assert os.listdir(tmp_path) == [name], "MLflow made no other folder"


def test_places_are_paths_of_this_machine_or_none() -> None:
    assert local_path("file:///a%20b/c%23") == Path("/a b/c#")
    assert local_path("/a b/c#?%20") == Path("/a b/c#?%20")
    for other in ("s3://b/x", "mlflow-artifacts:/1", "models:/m-1", "runs:/1/x", "", "rel/x"):
        assert local_path(other) is None


def test_one_equal_name_is_no_sign_of_a_move(tmp_path: Path) -> None:
    (tmp_path / "mlartifacts/run1").mkdir(parents=True)
    assert old_folder(tmp_path, Path("/old/x/mlartifacts/run1/artifacts")) is None
    (tmp_path / "mlartifacts/run1/artifacts").mkdir()
    assert old_folder(tmp_path, Path("/old/x/mlartifacts/run1/artifacts")) == Path("/old/x")
    assert old_folder(tmp_path, Path("/old/x/run2/artifacts")) is None


def test_an_experiment_that_was_created_beside_another_database_was_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow puts the files of an experiment below the current folder, which has a project."""
    make_project(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "project").mkdir()
    database = create_mlflow_database(tmp_path / "project/mlflow.db")
    experiment = MlflowClient(sqlite_uri(database)).create_experiment("tiny")
    run = start_tiny_run(sqlite_uri(database))
    reopen_run(run)
    assert run.experiment_id == experiment
    place = MlflowClient(sqlite_uri(database)).get_experiment(experiment).artifact_location
    assert place == str(tmp_path / "here/mlruns" / experiment)
    assert find_relocation(database).changes == []

    copied = shutil.copytree(tmp_path / "here", tmp_path / "copy")
    with pytest.raises(EnvironmentProblem, match="was copied from"):
        start_tiny_run(uri_of(copied))
