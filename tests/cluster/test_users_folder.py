"""Training from a folder whose own modules have the names of ours, of libraries and of Python's."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.data.prepare.pack import pack_folder
from services.ray_cluster import BIN, RayCluster, ray_cluster
from support.drawings import draw_pairs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
JOB = """\
#!/usr/bin/env -S orchestrator run
name: tiny
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {folder}/packed/train, validation: {folder}/packed/validation, threads: 1}}
train: {{images: 16, batch_size: 4}}
cluster: {{workers: 2}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
register: {{name: tiny}}
"""
MINE = 'raise ImportError("this is the module of the user")\n'


def make_users_folder(folder: Path, results: Path) -> Path:
    """Fill ``folder`` with modules that nobody but the user may import, and a job file."""
    for name in ("models/__init__.py", "data/__init__.py", "random.py", "yaml.py", "torch.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MINE)
    for name in ("mlflow", "ray"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").touch()
    write_job(folder, results)
    return folder


def write_job(folder: Path, results: Path) -> None:
    (folder / "job.yaml").write_text(JOB.format(folder=results))
    (folder / "job.yaml").chmod(0o755)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed data set, for all that the jobs read and write."""
    folder = tmp_path_factory.mktemp("results")
    pairs = draw_pairs(folder / "pairs", count=20, size=16)
    pack_folder(pairs, str(folder / "packed"), size=16, validation_share=0.2)
    return folder


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Path:
    return make_users_folder(tmp_path_factory.mktemp("user"), results)


@pytest.fixture(scope="module")
def cluster(users_folder: Path) -> Iterator[RayCluster]:
    """A cluster that was started in the user's folder: its jobs run there.

    Without PYTHONSAFEPATH, `ray start` itself fails there: its client server imports random.py.
    """
    environ = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    with ray_cluster(users_folder, environ) as cluster:
        yield cluster


def call(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    without = ("RAY_ADDRESS", "PYTHONPATH", "PYTHONSAFEPATH")
    clean = {name: value for name, value in os.environ.items() if name not in without}
    path = f"{BIN}:{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=cwd, env={**clean, "PATH": path, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip


def assert_trained(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout
    assert "16/16 images" in done.stdout
    assert "the module of the user" not in done.stdout


@pytest.mark.parametrize("options", [["--local", "--set", "cluster.workers=1"], []])
def test_a_job_trains_in_a_users_folder(users_folder: Path, options: list[str]) -> None:
    assert_trained(call("orchestrator", "run", "job.yaml", *options, cwd=users_folder))


def test_the_module_is_run_in_a_users_folder(users_folder: Path) -> None:
    done = call(sys.executable, "-m", "orchestrator", "validate", "job.yaml", cwd=users_folder)
    assert done.returncode == 0, done.stdout
    done = call(
        sys.executable, "-m", "orchestrator", "validate", "job.yaml",
        cwd=users_folder, PYTHONPATH=f".{os.pathsep}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["ray", "job", "submit", "--", "./job.yaml"],
        ["orchestrator", "submit", "job.yaml"],
        ["orchestrator", "submit", "job.yaml", "--working-dir", "."],
    ],
    ids=" ".join,
)
def test_a_job_is_submitted_from_a_users_folder(
    cluster: RayCluster, users_folder: Path, command: list[str]
) -> None:
    assert_trained(cluster.call(*command, cwd=users_folder, timeout_s=900))


def test_ray_job_submit_uploads_a_users_folder(
    cluster: RayCluster, tmp_path: Path, results: Path
) -> None:
    """Without the modules that Ray's own processes import from the folder, before ours start."""
    folder = make_users_folder(tmp_path / "uploaded", results)
    for name in ("random.py", "yaml.py"):
        (folder / name).unlink()
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "./job.yaml"]
    assert_trained(cluster.call(*command, cwd=folder, timeout_s=900))


def test_a_wheel_trains_in_an_empty_folder(tmp_path: Path, results: Path) -> None:
    wheels, environment = tmp_path / "wheels", tmp_path / "venv"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("orchestrator", "models"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = call(
        sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), cwd=source
    )
    assert done.returncode == 0, done.stdout
    (wheel,) = wheels.glob("*.whl")
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # The libraries of this environment, without the checkout that its .pth files lead to.
    (packages / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"]
    done = call(str(python), *install, str(wheel), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    empty = tmp_path / "empty"
    empty.mkdir()
    write_job(empty, results)
    code = "import orchestrator.models.base as m; print(m.__file__)"
    found = call(str(python), "-c", code, cwd=empty)
    assert found.stdout.startswith(str(packages)), found.stdout
    path = f"{environment}/bin:{BIN}:{os.environ['PATH']}"
    assert_trained(
        call(str(environment / "bin/orchestrator"), "run", "job.yaml", cwd=empty, PATH=path)
    )


def test_the_reason_why_the_controller_cannot_start_is_in_the_error(
    tmp_path: Path, results: Path
) -> None:
    """A package of the cluster is broken; the driver has another environment."""
    broken = tmp_path / "broken/safetensors"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import safetensors.missing\n")
    write_job(tmp_path, results)
    with ray_cluster(tmp_path, {"PYTHONPATH": str(broken.parent)}) as cluster:
        done = call(
            "orchestrator", "run", "job.yaml",
            cwd=tmp_path, RAY_ADDRESS=cluster.gcs_address, RAY_AUTH_MODE="disabled",
        )  # fmt: skip
    assert done.returncode == 5, done.stdout
    reason = "ModuleNotFoundError: No module named 'safetensors.missing'"
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert reason in error
    assert "a restart cannot fix this" in error
    assert "restart: " not in done.stdout


def test_the_reason_why_rays_processes_cannot_start_is_in_the_error(
    users_folder: Path,
) -> None:
    """The job's runtime environment puts the user's random.py before Python's."""
    config = {"runtime_env": {"env_vars": {"PYTHONPATH": str(users_folder)}}}
    done = call(
        "orchestrator", "run", "job.yaml",
        cwd=users_folder, RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(config),
    )  # fmt: skip
    assert done.returncode == 3, done.stdout
    assert "Ray's processes on this node fail while they start: ImportError: " in done.stdout
    assert "this is the module of the user" in done.stdout
