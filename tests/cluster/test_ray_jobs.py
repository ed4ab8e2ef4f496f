"""Jobs on a real Ray cluster and a real MLflow server.

The cluster is started in a folder with a job file of the project, shortened as a user would in an
editor, so that the commands here are those that a user types.
"""

import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.entities import Run

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.storage.open import open_storage
from services.mlflow_server import MlflowServer
from services.proxy import proxy_to
from services.ray_cluster import RayCluster, ray_cluster
from support.drawings import draw_pairs
from support.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]
SMALL = (
    "--set", "model.filters=4",
    "--set", "model.discriminator_filters=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jobs/pix2pix.yaml, shortened, its packed data and its runs."""
    folder = tmp_path_factory.mktemp("cluster")
    pairs = draw_pairs(folder / "pairs", count=20, size=256)
    pack_folder(pairs, str(folder / "data/openmoji-256"), size=256, validation_share=0.2)
    job = folder / "jobs/pix2pix.yaml"
    job.parent.mkdir()
    shutil.copy(ROOT / "jobs/pix2pix.yaml", job)
    short = job.read_text().replace("epochs: 200", "epochs: 0.5")
    job.write_text(short.replace("generator: unet", "filters: 4\n  discriminator_filters: 4"))
    return folder


@pytest.fixture(scope="module")
def cluster(places: Path, running_mlflow: MlflowServer) -> Iterator[RayCluster]:
    environ = {
        "ORCHESTRATOR_DATA": str(places / "data"),
        "ORCHESTRATOR_STORAGE": str(places / "runs"),
        "MLFLOW_TRACKING_URI": running_mlflow.uri,
    }
    with ray_cluster(places, environ) as cluster:
        yield cluster


def newest_run(server: MlflowServer, experiment: str) -> Run:
    client = mlflow.MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id], order_by=["start_time DESC"])[0]


def test_ray_job_submit_as_typed_trains_and_registers(
    cluster: RayCluster, running_mlflow: MlflowServer, places: Path
) -> None:
    done = cluster.call("ray", "job", "submit", "jobs/pix2pix.yaml", cwd=places)
    assert done.returncode == 0, done.stdout
    run = newest_run(running_mlflow, "pix2pix")
    assert run.info.status == "FINISHED"
    assert 0 < run.data.metrics["validation/l1"] < 2
    client = mlflow.MlflowClient(running_mlflow.uri)
    version = client.get_model_version_by_alias("pix2pix", "candidate")
    assert version.run_id == run.info.run_id
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "job")}
    assert names == {"job/pix2pix.yaml", "job/resolved.yaml"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.batch_size=5"], "train.batch_size: 5 cannot be split over 2 workers"),
        (
            ["--resume", "--init-from", "runs/one"],
            "--init-from starts a new run and --resume resumes",
        ),
    ],
)
def test_submit_passes_its_options_to_the_driver_and_returns_its_exit_code(
    cluster: RayCluster, options: list[str], message: str
) -> None:
    done = cluster.call("orchestrator", "submit", "jobs/pix2pix.yaml", *options, *SMALL, cwd=ROOT)
    assert done.returncode == 2, done.stdout
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert re.search(r"ray job logs raysubmit_\w+ --follow", done.stdout)


def test_an_uploaded_checkout_trains_and_a_stopped_job_is_marked_as_killed(
    cluster: RayCluster, running_mlflow: MlflowServer, tmp_path: Path
) -> None:
    """The folder is uploaded without what .rayignore names; `ray job stop` gives 130."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("jobs", "orchestrator", "models", ".rayignore"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    process = subprocess.Popen(
        [
            "orchestrator", "submit", "jobs/pix2pix.yaml", "--working-dir", str(copy),
            "--set", "name=uploaded", *SMALL,
        ],
        cwd=tmp_path, env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if "images/s" in line:
            break
    job_id = re.search(r"raysubmit_\w+", text)
    assert job_id is not None, text
    stopped = cluster.call("ray", "job", "stop", job_id.group(), cwd=ROOT)
    rest = process.communicate(timeout=240)[0]
    assert process.returncode == 130, text + rest + stopped.stdout
    run = newest_run(running_mlflow, "pix2pix")
    assert run.info.run_name.startswith("uploaded-")
    assert run.info.status == "KILLED"


def test_ctrl_c_during_a_run_on_its_own_cluster_gives_130_and_a_killed_run(
    cluster: RayCluster, running_mlflow: MlflowServer
) -> None:
    environ = {k: v for k, v in cluster.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        ["orchestrator", "run", "jobs/pix2pix.yaml", "--set", "name=interrupted", *SMALL],
        cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "images/s" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=240)[1]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    run = newest_run(running_mlflow, "pix2pix")
    assert run.info.run_name.startswith("interrupted-")
    assert run.info.status == "KILLED"


def worker_processes(cluster: RayCluster) -> list[int]:
    """Process ids of the cluster's Ray Train workers, oldest first."""
    found, storage = [], cluster.environ["ORCHESTRATOR_STORAGE"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_worker = "".join(process.cmdline()).startswith("ray::RayTrainWorker")
            if is_worker and process.environ().get("ORCHESTRATOR_STORAGE") == storage:
                found.append(process.pid)
    return sorted(found)


def test_a_killed_worker_and_a_cut_log_stream_neither_stop_the_job_nor_repeat_its_output(
    cluster: RayCluster, running_mlflow: MlflowServer, places: Path
) -> None:
    """The run resumes from the newest checkpoint, and submit follows it to its end."""
    with proxy_to("127.0.0.1", int(cluster.address.rpartition(":")[2])) as proxy:
        process = subprocess.Popen(
            [
                "orchestrator", "submit", "jobs/pix2pix.yaml", "--set", "name=killed", *SMALL,
                "--address", f"http://127.0.0.1:{proxy.port}",
                "--set", "train.epochs=20", "--set", "train.checkpoint_every=40",
                "--set", "train.validate_every=4000", "--set", "train.sample_every=4000",
            ],
            cwd=ROOT, env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        runs = open_storage(str(places / "runs"))
        wait_until(
            lambda: any(k.startswith("killed-") and "manifest" in k for k in runs.list()),
            300,
            "a checkpoint",
            poll_s=0.2,
        )
        os.kill(worker_processes(cluster)[-1], signal.SIGKILL)
        proxy.cut()
        text = process.communicate(timeout=300)[0]
        assert proxy.num_cut > 0
    assert process.returncode == 0, text
    assert text.count("checkpoints in") == 1, "each line of the log once"
    run = newest_run(running_mlflow, "pix2pix")
    assert run.info.run_name.startswith("killed-")
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(running_mlflow.uri)
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "generator/loss")]
    assert steps == sorted(set(steps)), "each point once"
    epoch = open_set(str(places / "data/openmoji-256/train")).num_samples
    assert steps[-1] == math.ceil(20 * epoch / 4) * 4
