"""deploy/compose.yaml, the Dockerfile and the scripts, checked without a container engine."""

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.ports import free_port
from services.scripted_http import scripted_http
from services.stack import BIN, DEPLOY, ROOT

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )


def test_hadolint_passes_the_dockerfile_and_fails_a_bad_one(
    tmp_path: Path,
) -> None:
    result = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert (result.returncode, result.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && apt-get install curl\n")
    assert run(BIN / "hadolint", bad).returncode != 0


def test_shellcheck_passes_the_scripts() -> None:
    scripts = sorted(DEPLOY.rglob("*.sh"))
    assert len(scripts) >= 2
    result = run(BIN / "shellcheck", *scripts)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_compose_files_follow_the_compose_specification(tmp_path: Path) -> None:
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    files = sorted(DEPLOY.glob("compose*.yaml"))
    assert len(files) == 2
    assert run(*check, *files).returncode == 0
    bad = tmp_path / "compose.yaml"
    bad.write_text((DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_drops:"))
    assert run(*check, bad).returncode != 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_privileges_than_it_needs(name: str) -> None:
    service = COMPOSE["services"][name]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not service.get("privileged")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    mounts = [str(volume).partition(":")[0] for volume in service.get("volumes", [])]
    assert all(m in COMPOSE["volumes"] or m in ("/tmp", "/home/orchestrator") for m in mounts)


def test_only_mlflow_reaches_its_database_and_no_secret_is_in_the_file() -> None:
    services = COMPOSE["services"]
    connected = [name for name in SERVICES if "database" in services[name].get("networks", [])]
    assert connected == ["mlflow", "postgres"]
    assert COMPOSE["networks"]["database"] == {"internal": True}
    values = [str(v) for s in services.values() for v in s.get("environment", {}).values()]
    assert not [v for v in values if re.search(r"://[^/@]*:[^/@]*@|[0-9a-f]{20}", v)]
    users_of = {
        secret: [name for name in SERVICES if secret in services[name]["secrets"]]
        for secret in COMPOSE["secrets"]
    }
    jobs = ["head", "worker"]
    assert [secret for secret, users in users_of.items() if set(jobs) & set(users)] == [
        "ray_auth_token", "mlflow_credentials", "s3_jobs",
    ]  # fmt: skip
    assert users_of["mlflow_admin_password"] == ["mlflow", "setup"]
    assert users_of["s3_admin"] == ["setup"]


def test_the_image_runs_as_a_user_and_contains_only_files_of_the_repository() -> None:
    lines = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    last_stage = lines[[n for n, line in enumerate(lines) if line.startswith("FROM ")][-1] :]
    assert [line for line in last_stage if line.startswith("USER ")] == ["USER 10001:10001"]
    assert [line for line in lines if line.startswith("ADD ")] == []
    sources = [
        source
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in [word for word in line.split()[1:] if not word.startswith("--")][:-1]
    ]
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    tracked = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    assert {"requirements.lock", "orchestrator", "models", "jobs"} <= set(sources)
    for source in sources:
        assert any(path == source or path.startswith(f"{source}/") for path in tracked), source
        assert f"!{source}" in sent, source
    assert sent[1] == "*"


def test_the_image_has_the_locked_cuda_and_the_versions_of_cloud_nodes() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    nodes = (DEPLOY / "cloud" / "setup.sh").read_text()
    cuda = re.findall(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert re.findall(r"^ARG BASE=nvidia/cuda:(\d+\.\d+)", dockerfile, re.M) == cuda
    assert COMPOSE["services"]["head"]["build"]["args"]["BASE"] in (
        "${BASE:-" + base + "}" for base in re.findall(r"^ARG BASE=(.*)", dockerfile, re.M)
    )
    uv = re.findall(r"^ARG UV=.*:([\d.]+)", dockerfile, re.M)
    assert re.findall(r"uv==([\d.]+)", nodes) == uv
    python = re.findall(r"--python (\S+)", dockerfile)
    assert re.findall(r"PYTHON:-([\d.]+)", nodes) == python == ["3.11"]


def test_secrets_are_readable_by_their_owner_only_and_created_once(tmp_path: Path) -> None:
    script, folder = DEPLOY / "compose-secrets.sh", tmp_path / "secrets"
    assert run(script, folder).returncode == 0
    files = {path.name: path for path in folder.iterdir()}
    assert set(COMPOSE["secrets"]) == set(files) - {".gitignore"}
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o600"}
    before = {name: path.read_text() for name, path in files.items()}
    again = run(script, folder)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)
    assert {name: path.read_text() for name, path in files.items()} == before
    assert run(script, tmp_path / "others").returncode == 0
    same = [n for n in before if (tmp_path / "others" / n).read_text() == before[n]]
    assert same == [".gitignore"]


def test_a_service_without_its_secret_fails_with_a_message(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SECRETS": str(tmp_path)}
    result = run(DEPLOY / "containers/start.sh", "mlflow", env=environ)
    assert (result.returncode, result.stderr) == (
        3,
        f"start.sh: missing or empty secret: {tmp_path}/mlflow_admin_password\n",
    )
    assert run(DEPLOY / "containers/start.sh", "mlfow", env=environ).returncode == 2


def test_setup_says_why_it_cannot_create_the_user_of_jobs(tmp_path: Path) -> None:
    run(DEPLOY / "secrets.sh", tmp_path / "secrets")
    create_user = runpy.run_path(str(DEPLOY / "containers/setup.py"))["create_user"]
    exists = '{"error_code": "RESOURCE_ALREADY_EXISTS"}'
    with scripted_http(400, exists) as uri:
        create_user(uri, tmp_path / "secrets")
    with scripted_http(401, "You are not authenticated.") as uri, pytest.raises(SystemExit) as end:
        create_user(uri, tmp_path / "secrets")
    assert "HTTP Error 401: Unauthorized: You are not authenticated." in str(end.value)
    with pytest.raises(SystemExit, match="Connection refused"):
        create_user(f"http://127.0.0.1:{free_port()}", tmp_path / "secrets")
