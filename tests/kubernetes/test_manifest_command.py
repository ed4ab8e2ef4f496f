"""`orchestrator manifest` on the command line, and the package that knows Kubernetes."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.config.load import load_job
from support.manifests import ROOT, read_documents
from support.printed_jobs import job_of, workers


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@mlflow:5000")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", "s3://hidden-runs")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app.app, ["manifest", *arguments])

    return call


def test_the_command_prints_only_documents_and_no_values_of_the_environment(
    run: Callable[..., Result],
) -> None:
    path = ROOT / "jobs" / "pix2pix.yaml"
    done = run(str(path), "--set", "train.batch_size=8", "--deadline", "3600", "--retries", "0")
    assert done.exit_code == 0, done.stderr
    config_map, job = read_documents(done.stdout)
    assert config_map["data"]["pix2pix.yaml"] == path.read_text()
    assert load_job(path).job.cluster.max_workers == workers([config_map, job])["replicas"] == 2
    spec = job["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (3600, 0)
    said = done.stdout + done.stderr
    assert "hunter22" not in said
    assert "hidden-runs" not in said
    names = "MLFLOW_TRACKING_URI, ORCHESTRATOR_DATA, ORCHESTRATOR_STORAGE"
    assert f"the job reads {names} from ConfigMap orchestrator-environment" in done.stderr


def test_an_image_by_tag_is_noted_and_one_by_digest_is_kept(run: Callable[..., Result]) -> None:
    path = str(ROOT / "jobs" / "pix2pix.yaml")
    assert "orchestrator:0.2.0 is a tag, which may lead" in run(path).stderr
    for tag in ("host:5000/orchestrator", "host:5000/orchestrator:0.2.0"):
        assert f"{tag} is a tag, which may lead" in run(path, "--image", tag).stderr
        pinned = f"{tag}@sha256:{'0a' * 32}"
        done = run(path, "--image", pinned)
        assert "is a tag" not in done.stderr
        spec = job_of(read_documents(done.stdout))["rayClusterSpec"]
        for template in (spec["headGroupSpec"], spec["workerGroupSpecs"][0]):
            (container,) = template["template"]["spec"]["containers"]
            assert container["image"] == pinned
    assert "is a tag" not in run(path, "--cluster", "orchestrator").stderr, "it has its own image"


def test_kubectl_reads_two_objects(run: Callable[..., Result], tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = run(str(ROOT / "jobs" / "pix2pix.yaml"))
    (tmp_path / "job.yaml").write_text(done.stdout)
    (tmp_path / "kustomization.yaml").write_text("resources: [job.yaml]\n")
    command = ["kubectl", "kustomize", str(tmp_path)]
    seen = subprocess.run(command, capture_output=True, text=True, check=True)
    assert read_documents(seen.stdout) == read_documents(done.stdout)


def test_only_one_package_knows_kubernetes() -> None:
    knows = re.compile(r"(?i)kuber|kubectl|kueue|ray\.io/|nvidia\.com")
    packages = ("orchestrator/kubernetes/", "orchestrator/cli/manifest.py")
    files = [*ROOT.glob("orchestrator/**/*.py"), *ROOT.glob("models/**/*.py")]
    found = [f.relative_to(ROOT).as_posix() for f in files if knows.search(f.read_text())]
    assert [name for name in found if not name.startswith(packages)] == []
    assert found
