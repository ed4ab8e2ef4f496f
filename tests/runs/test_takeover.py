"""Two drivers that resume a run at once, in a real S3 store whose requests take long."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from services.faulty_s3 import Delay, Faults, FaultyS3, faulty_s3
from services.s3 import BUCKET, S3Server
from support.fakes import without_clock
from support.small_runs import only_run, pack_pairs, write_job
from support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server]

SETTINGS = ["train.images=96", "train.checkpoint_every=16", "train.log_every=4"]
SETTINGS += ["train.validate_every=48", "cluster.workers=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("takeover"))


def start(job: Path, proxy: FaultyS3) -> "subprocess.Popen[str]":
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator", "run", "--local", str(job), *sets, "--resume"]
    environment = os.environ | proxy.environment
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def kill_first_driver(job: Path, proxy: FaultyS3) -> None:
    """Start a run, and kill its driver after its first checkpoint."""
    proxy.faults = Faults(delays=(Delay("PUT", "manifest.json", 0),))
    driver = start(job, proxy)
    wait_until(lambda: proxy.counts["PUT manifest.json"] > 1, 300, "a checkpoint")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()


@pytest.mark.parametrize(
    "delays",
    [
        (Delay("PUT", "drivers/000002.json", 0.9, gather=2),),
        (Delay("LIST", "drivers/", 0.9, gather=2), Delay("HEAD", "drivers/", 0.9)),
    ],
    ids=["the lease is written", "the lease is looked for"],
)
def test_one_of_two_drivers_that_resume_a_run_at_once_goes_on(
    delays: tuple[Delay, ...],
    data: str,
    tmp_path: Path,
    running_s3: S3Server,
) -> None:
    storage = f"s3://{BUCKET}/{tmp_path.name}"
    job = write_job(tmp_path, data, storage)
    with faulty_s3(running_s3) as proxy:
        kill_first_driver(job, proxy)
        proxy.faults = Faults(delays=delays)
        drivers = [start(job, proxy) for _ in range(2)]
        printed = [driver.communicate(timeout=400)[1] for driver in drivers]
        assert all(proxy.counts[f"{each.method} {each.key}"] >= each.gather for each in delays)
    assert sorted(driver.returncode for driver in drivers) == [0, 75], printed
    refused = next(text for text, driver in zip(printed, drivers, strict=True) if driver.returncode)
    errors = [line for line in refused.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "at the same moment" in errors[0]
    assert "Traceback" not in refused
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    names = without_clock(run.data.metrics)
    for name in names:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert len(set(steps)) == len(steps), f"{name}: each point once"
    losses = [m.step for m in client.get_metric_history(run.info.run_id, "generator/loss")]
    assert losses == list(range(4, 97, 4))
    assert len(client.search_model_versions("name='small'")) == 1
