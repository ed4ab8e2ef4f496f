"""A project in a folder with an unusual name: trained, resumed, moved, and its model pulled."""

import shutil
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.errors import EnvironmentProblem
from orchestrator.registry.bundle import load_bundle
from orchestrator.registry.registry import list_models, pull
from orchestrator.runs.driver import run_job
from orchestrator.tracking.places import apply_relocation, find_relocation
from services.databases import create_mlflow_database
from support.sampling import sample_folder
from support.small_runs import JOB, pack_pairs

pytestmark = pytest.mark.slow  # the folder they share is trained once

NAME = "a?b #c 50% x%20y Größe it's"
URI = "sqlite:///mlflow.db"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job whose places are relative, after a run that failed at its very end."""
    folder = tmp_path_factory.mktemp("projects") / NAME
    folder.mkdir()
    pack_pairs(folder)
    create_mlflow_database(folder / "mlflow.db")
    (folder / "my job.yaml").write_text(JOB.format(data="data", folder=".", storage="runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_job(load_job("my job.yaml"))
    (finished,) = folder.glob("runs/*/finished.json")
    finished.unlink()
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, relocated, as the current folder."""
    copy = tmp_path / f"copy of {NAME}"
    shutil.copytree(trained, copy)
    apply_relocation(find_relocation(copy / "mlflow.db"))
    monkeypatch.chdir(copy)
    return copy


def versions() -> list[int]:
    return [found.version for found in list_models(URI)]


def test_a_run_is_resumed_and_its_model_samples(project: Path, trained: Path) -> None:
    run_job(load_job("my job.yaml"), resume=True)
    assert len(list(project.glob("runs/*/run.json"))) == 1
    assert versions() == [2, 1]
    for version in versions():
        pull(f"small/{version}", Path(f"model {version}"), URI)
    model = load_bundle(Path("model 2"))
    places = Path("pairs/A"), Path("out")
    written = sample_folder(model, model.config, *places, seed=0, batch_size=4)
    assert len(written) == 20
    assert sorted(path.name for path in project.parent.iterdir()) == [project.name]
    assert [path.name for path in trained.parent.iterdir()] == [NAME]
    assert len(list(trained.glob("mlartifacts/models/*"))) == 1, "nothing is in the original"


def test_nothing_is_trained_or_pulled_in_a_moved_folder_until_it_is_relocated(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = project.rename(project.with_name("elsewhere"))
    monkeypatch.chdir(moved)
    for act in (
        lambda: run_job(load_job("my job.yaml"), resume=True),
        lambda: run_job(load_job("my job.yaml"), resume=False),
        lambda: pull("small", Path("model"), URI),
    ):
        with pytest.raises(EnvironmentProblem, match="run `orchestrator relocate"):
            act()
    assert len(list(moved.glob("runs/*"))) == 1
    apply_relocation(find_relocation(moved / "mlflow.db"))
    pull("small", Path("model"), URI)
    assert not project.exists()


def test_a_model_without_its_files_is_named(project: Path) -> None:
    shutil.rmtree(project / "mlartifacts")
    with pytest.raises(EnvironmentProblem, match=r"files of small, version 1 are not there: .*"):
        pull("small", Path("model"), URI)


def test_no_record_has_the_place_of_the_folder(trained: Path) -> None:
    records = [path for path in trained.glob("runs/**/*") if path.suffix in (".json", ".yaml")]
    assert {path.name for path in records} >= {"run.json", "job.yaml", "000001.json"}
    for path in records:
        assert str(trained.parent) not in path.read_text(), path
