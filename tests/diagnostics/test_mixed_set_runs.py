"""Jobs on several training sets: planned, checked, and killed and resumed on two workers."""

import json
import pickle
import sys
from pathlib import Path

import pytest

from orchestrator.cli import app
from orchestrator.config.job import Job
from orchestrator.config.load import load_job
from orchestrator.data.loading.training_set import open_training_sets
from orchestrator.diagnostics.compare_runs import compare
from orchestrator.diagnostics.job_checks import check_data
from orchestrator.diagnostics.local_run import Interruption, LocalRun, train_rank
from orchestrator.diagnostics.plan import make_plan
from orchestrator.diagnostics.resume_check import shorten_job
from support.packed_sets import write_set
from support.ranks import WORLD_SIZE, on_two_ranks
from support.small import small_config

STEPS, BATCH = 14, 4


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job on sets of 12 and 7 samples, mixed 3 to 1."""
    monkeypatch.chdir(tmp_path)
    config = small_config("vae")
    for name, count, first in (("photos", 12, 0), ("drawings", 7, 50), ("validation", 5, 100)):
        write_set(tmp_path / name, config, count, first)
    train = [{"path": "photos", "weight": 3}, {"path": "drawings", "weight": 1}]
    content = {
        "name": "mixed",
        "model": config.model_dump(mode="json"),
        "data": {"train": train, "validation": "validation", "threads": 1, "shuffle_streams": 6},
        "train": {"epochs": 8, "batch_size": BATCH, "ema_decay": 0.9},
    }
    path = tmp_path / "mixed.yaml"
    path.write_text(json.dumps(content))  # which is YAML, too
    return path


def test_the_plan_shows_each_set_with_its_weight_and_how_often_it_is_seen(job: Path) -> None:
    made = make_plan(load_job(job))
    assert made.total_images == 8 * 19
    assert made.train.num_samples == 19
    lines = [line.strip() for line in made.render().splitlines()]
    (line,) = (each for each in lines if each.startswith(f"{job.parent}/photos (12 samples"))
    assert line.endswith(", weight 3: 75 % of the images, seen 9.50 times")
    shown = json.loads(made.json())
    assert [each["passes"] for each in shown["mixed"]] == [9.5, pytest.approx(38 / 7)]
    assert "mixed by weight (19 samples, digest " in made.render()
    (job.parent / "drawings/index.json").unlink()
    missing = make_plan(load_job(job))
    assert missing.total_images is None
    assert f"{job.parent}/drawings (missing), weight 1" in missing.render()


def test_sets_that_differ_end_plan_and_run_with_exit_code_4(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(job.parent / "labelled", small_config("gated_pixelcnn", image_size=16, channels=1), 9)
    sets = "data.train=[{path: photos, weight: 1}, {path: labelled, weight: 1}]"
    for command in (["plan"], ["run", "--local"]):
        monkeypatch.setattr(sys, "argv", ["orchestrator", *command, str(job), "--set", sets])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 4
        errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
        assert len(errors) == 1
        assert f"{job.parent}/photos has the classes (none), and " in errors[0]
        assert f"{job.parent}/labelled has the classes 0, 1, 2" in errors[0]
    check = check_data(load_job(job, [sets]))
    assert check.status == "fail"
    assert check_data(load_job(job)).found == "photos and drawings fit: 19 samples"


def killed_and_resumed(rank: int, out: Path) -> None:
    """Train without interruption, then killed after an odd number of images, and resumed."""
    job = pickle.loads((out / "job.pickle").read_bytes())
    for name, interruption in (
        ("whole", None),
        ("killed", Interruption(30, killed=True)),
        ("killed", None),
    ):
        (out / name).mkdir(exist_ok=True)
        train_rank(LocalRun(job, out / name, WORLD_SIZE), rank, interruption)


@pytest.mark.slow
def test_two_workers_killed_and_resumed_end_with_the_bits_of_the_uninterrupted_run(
    job: Path, tmp_path: Path
) -> None:
    loaded = load_job(job).job
    assert isinstance(loaded, Job)
    assert open_training_sets(loaded.data).num_samples == 19
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(shorten_job(loaded, STEPS)))
    on_two_ranks(killed_and_resumed, tmp_path)
    whole, killed = (LocalRun(loaded, tmp_path / n).artifacts() for n in ("whole", "killed"))
    assert whole.state.images_seen == STEPS * BATCH
    assert killed.num_repeated > 0, "steps after the newest checkpoint were repeated"
    checks = compare(whole, killed)
    assert len(checks) > 3
    assert [check for check in checks if check.difference] == []
