"""The section `s3:` of a job: its driver and its workers follow it, without any variable."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config.load import load_text
from orchestrator.config.s3_section import S3Section
from orchestrator.storage import s3_settings
from services.quirky_s3 import Habit, QuirkyStore, quirky_s3
from support.small_runs import pack_pairs, write_job

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "of-another-provider",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AWS_PROFILE", *s3_settings.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def upload(store: QuirkyStore, folder: Path, bucket: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.objects[f"{bucket}/{path.relative_to(folder)}"] = path.read_bytes()


def run(job: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "orchestrator", "run", "--local", str(job)]
    return subprocess.run(
        [*command, "--set", "cluster.workers=1", *options],
        cwd=job.parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_reads_a_public_bucket_unsigned_and_writes_to_a_private_one(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pack_pairs(tmp_path)
    with quirky_s3("public") as store:
        environment.setenv("AWS_ENDPOINT_URL_S3", store.url)
        upload(store, tmp_path / "data", "public-set")
        job = write_job(tmp_path / "job", "s3://public-set")
        refused = run(job)
        assert refused.returncode == 3
        assert "ORCHESTRATOR_S3_UNSIGNED=1" in refused.stderr
        done = run(job, "s3.unsigned=[public-set]")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_job_writes_encrypted_checkpoints(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = pack_pairs(tmp_path)
    with quirky_s3("encrypted") as store:
        environment.setenv("AWS_ENDPOINT_URL_S3", store.url)
        job = write_job(tmp_path / "job", data, "s3://runs/x")
        assert run(job).returncode == 3
        done = run(job, "s3={encryption: 'aws:kms', encryption_key: key-7}")
        assert done.returncode == 0, done.stderr
        assert any(key.endswith("manifest.json") for key in store.objects)
        assert {*store.encryption.values()} == {("aws:kms", "key-7")}


def test_the_variables_are_those_that_the_storage_reads(
    environment: pytest.MonkeyPatch,
) -> None:
    keys = S3Section(
        unsigned=["a", "b"],
        request_payer="requester",
        encryption="aws:kms",
        encryption_key="k",
    )
    for name, value in keys.variables().items():
        environment.setenv(name, value)
    assert set(s3_settings.VARIABLES) < set(keys.variables())
    assert [s3_settings.is_unsigned(bucket) for bucket in ("a", "b", "c")] == [True, True, False]
    assert s3_settings.payer() == {"RequestPayer": "requester"}
    assert s3_settings.encryption() == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}


def test_a_job_without_the_section_changes_no_variable() -> None:
    text = "name: x\nmodel: {name: pix2pix}\ndata: {train: x}\ntrain: {batch_size: 1, images: 8}\n"
    assert load_text(text, Path("x.yaml"), (), {}).job.variables() == {}


@pytest.mark.slow
@pytest.mark.parametrize("habit", ["no conditions", "ignores conditions"])
def test_a_run_says_once_that_its_store_does_not_keep_two_drivers_apart(
    habit: Habit, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = pack_pairs(tmp_path)
    with quirky_s3(habit) as store:
        environment.setenv("AWS_ENDPOINT_URL_S3", store.url)
        job = write_job(tmp_path / "job", data, "s3://runs/x")
        done = run(job, "train.checkpoint_every=8", "register=null")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("does not support conditional writes") == 1
    (line,) = [each for each in done.stderr.splitlines() if "conditional writes" in each]
    assert line.endswith("so two writers at once may both succeed")
