"""deploy/compose.yaml and the image: read by linters, and its processes run without an engine."""

import base64
import configparser
import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.stack import BIN, DEPLOY, POSTGRES, ROOT, Stack, running_stack

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )


def test_hadolint_finds_nothing_in_the_dockerfile_and_something_in_a_bad_one(
    tmp_path: Path,
) -> None:
    found = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && apt-get install curl\n")
    assert run(BIN / "hadolint", bad).returncode != 0


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    scripts = sorted(DEPLOY.rglob("*.sh"))
    assert len(scripts) >= 2
    found = run(BIN / "shellcheck", *scripts)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_compose_files_follow_the_compose_specification(tmp_path: Path) -> None:
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    files = sorted(DEPLOY.glob("compose*.yaml"))
    assert len(files) == 2
    assert run(*check, *files).returncode == 0
    bad = tmp_path / "compose.yaml"
    bad.write_text((DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_drops:"))
    assert run(*check, bad).returncode != 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
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


def test_only_mlflow_reaches_its_database_and_no_secret_is_written_in_a_file() -> None:
    services = COMPOSE["services"]
    on_it = [name for name in SERVICES if "database" in services[name].get("networks", [])]
    assert on_it == ["mlflow", "postgres"]
    assert COMPOSE["networks"]["database"] == {"internal": True}
    values = [str(v) for s in services.values() for v in s.get("environment", {}).values()]
    assert not [v for v in values if re.search(r"://[^/@]*:[^/@]*@|[0-9a-f]{20}", v)]
    holders = {
        secret: [name for name in SERVICES if secret in services[name]["secrets"]]
        for secret in COMPOSE["secrets"]
    }
    jobs = ["head", "worker"]
    assert [secret for secret, by in holders.items() if set(jobs) & set(by)] == [
        "ray_auth_token", "mlflow_credentials", "s3_jobs",
    ]  # fmt: skip
    assert holders["mlflow_admin_password"] == ["mlflow", "setup"]
    assert holders["s3_admin"] == ["setup"]


def test_the_image_runs_as_a_user_and_holds_only_files_of_the_repository() -> None:
    lines = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    last = lines[[n for n, line in enumerate(lines) if line.startswith("FROM ")][-1] :]
    assert [line for line in last if line.startswith("USER ")] == ["USER 10001:10001"]
    assert [line for line in lines if line.startswith("ADD ")] == []
    sources = [
        source
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in [word for word in line.split()[1:] if not word.startswith("--")][:-1]
    ]
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    tracked = run("git", "ls-files", cwd=ROOT).stdout.splitlines()
    assert {"requirements.lock", "orchestrator", "models", "jobs"} <= set(sources)
    for source in sources:
        assert any(path == source or path.startswith(f"{source}/") for path in tracked), source
        assert f"!{source}" in kept, source
    assert kept[1] == "*"


def test_the_image_has_the_cuda_of_the_lock_and_what_cloud_nodes_have() -> None:
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


def test_secrets_belong_to_their_owner_alone_and_are_made_once(tmp_path: Path) -> None:
    script, folder = DEPLOY / "compose-secrets.sh", tmp_path / "secrets"
    assert run(script, folder).returncode == 0
    files = {path.name: path for path in folder.iterdir()}
    assert set(COMPOSE["secrets"]) == set(files) - {".gitignore"}
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o600"}
    before = {name: path.read_text() for name, path in files.items()}
    again = run(script, folder)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert {name: path.read_text() for name, path in files.items()} == before
    assert run(script, tmp_path / "others").returncode == 0
    same = [n for n in before if (tmp_path / "others" / n).read_text() == before[n]]
    assert same == [".gitignore"]


def test_a_service_without_its_secret_says_so_and_does_not_start(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SECRETS": str(tmp_path)}
    found = run(DEPLOY / "containers/start.sh", "mlflow", env=environ)
    assert (found.returncode, found.stderr) == (
        3,
        f"start.sh: no secret in {tmp_path}/mlflow_admin_password\n",
    )
    assert run(DEPLOY / "containers/start.sh", "mlfow", env=environ).returncode == 2


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    # Short, for Ray keeps Unix sockets in it; PostgreSQL's user must get through to its own folder.
    with tempfile.TemporaryDirectory(prefix="st-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with running_stack(Path(folder)) as running:
            yield running


def answer(url: str, headers: dict[str, str] | None = None, body: Any = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json"} if data else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, head | (headers or {})), timeout=30
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def basic(user: str, password: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


JOB = """
import os, boto3, mlflow
client = mlflow.MlflowClient()
experiment = client.create_experiment("from-a-job")
run = client.create_run(experiment).info.run_id
client.log_text(run, "through the server into S3", "note.txt")
client.set_terminated(run)
s3 = boto3.client("s3")
s3.put_object(Bucket="runs", Key="x/y", Body=b"z")
assert s3.list_objects_v2(Bucket="runs")["KeyCount"] == 1
for call in (
    lambda: s3.put_object(Bucket="mlflow", Key="x", Body=b""),
    lambda: s3.list_objects_v2(Bucket="mlflow"),
    lambda: s3.create_bucket(Bucket="more"),
):
    try:
        call()
    except s3.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", error
    else:
        raise SystemExit("the jobs' keys open what is not theirs")
print("experiment", experiment)
"""


def test_a_job_with_the_token_reaches_mlflow_and_its_buckets_and_no_others(stack: Stack) -> None:
    jobs = f"{stack.url('dashboard')}/api/jobs/"
    assert answer(jobs)[0] == 401
    assert answer(jobs, {"Authorization": "Bearer " + "0" * 64})[0] == 403
    assert answer(jobs, body={"entrypoint": "true"})[0] == 401
    token = {"Authorization": f"Bearer {(stack.secrets / 'ray_auth_token').read_text().strip()}"}
    script = stack.folder / "job.py"
    script.write_text(JOB)
    status, text = answer(jobs, token, {"entrypoint": f"python {script}"})
    assert status == 200, text
    job, deadline = f"{jobs}{json.loads(text)['submission_id']}", time.monotonic() + 90
    while (state := json.loads(answer(job, token)[1]))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, state
        time.sleep(0.3)
    printed = json.loads(answer(f"{job}/logs", token)[1])["logs"]
    assert state["status"] == "SUCCEEDED", printed

    nodes = json.loads(answer(f"{stack.url('dashboard')}/nodes?view=summary", token)[1])
    states = [node["raylet"]["state"] for node in nodes["data"]["summary"]]
    assert states == ["ALIVE", "ALIVE"]

    # What the job has logged is there for the administrator, and not for another user.
    admin = basic("admin", (stack.secrets / "mlflow_admin_password").read_text().strip())
    api = f"{stack.url('mlflow')}/api/2.0/mlflow"
    other = {"username": "other", "password": "another-password"}
    assert answer(f"{api}/users/create", admin, other)[0] == 200
    experiment = re.findall(r"experiment (\d+)", printed)[0]
    place = f"{api}/experiments/get?experiment_id={experiment}"
    assert answer(place, admin)[0] == 200
    assert answer(place, basic(*other.values()))[0] == 403


def test_mlflow_and_s3_answer_nobody_without_credentials(stack: Stack) -> None:
    experiments = f"{stack.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"
    config = configparser.ConfigParser()
    config.read(stack.secrets / "mlflow_credentials")
    user = config["mlflow"]["mlflow_tracking_username"]
    jobs = basic(user, config["mlflow"]["mlflow_tracking_password"])
    assert answer(experiments)[0] == 401
    assert answer(experiments, basic(user, "wrong"))[0] == 401
    assert answer(experiments, jobs)[0] == 200
    assert answer(experiments, jobs | {"Host": "evil.example"})[0] == 403
    users = f"{stack.url('mlflow')}/api/2.0/mlflow/users/create"
    assert answer(users, jobs, {"username": "mine", "password": "another-password"})[0] == 403
    assert answer(stack.url("seaweedfs"))[0] == 403
    assert answer(f"{stack.url('seaweedfs')}/runs/x/y")[0] == 403


def test_mlflow_keeps_its_records_in_postgresql(stack: Stack) -> None:
    import psycopg2

    password = (stack.secrets / "postgres_password").read_text().strip()
    place: dict[str, Any] = {"host": "127.0.0.1", "port": stack.ports["postgres"]}
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(**place, user="mlflow", dbname="mlflow", passfile="/dev/null")
    connection = psycopg2.connect(**place, user="mlflow", dbname="mlflow", password=password)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT username FROM users WHERE username IN ('admin', 'trainer')")
        assert len(cursor.fetchall()) == 2
        cursor.execute("SELECT count(*) FROM experiments")
        assert cursor.fetchone() is not None
    connection.close()


def test_setup_may_run_again(stack: Stack) -> None:
    stack.start("setup")
    assert stack.processes["setup"].wait(60) == 0, stack.log("setup")
    assert (stack.folder / "setup.log").read_text() == ""


def test_no_secret_is_in_a_command_line_or_a_log(stack: Stack) -> None:
    secrets = {
        value
        for path in stack.secrets.iterdir()
        for value in re.findall(r"\b[0-9a-f]{20,}\b", path.read_text())
    }
    assert len(secrets) == 11
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_text(errors="replace"))
        except OSError:
            continue
    ours = [line for line in lines if str(stack.folder) in line]
    assert {"raylet", "weed", "postgres"} <= {Path(line.split("\0")[0]).name for line in ours}
    assert not [line for line in lines if any(secret in line for secret in secrets)]
    logs = [*stack.folder.glob("*.log"), *stack.folder.glob("r/session_*/logs/**/*.*")]
    assert len(logs) > 10
    texts = [path.read_text(errors="replace") for path in logs if path.is_file()]
    assert not [text for text in texts if any(secret in text for secret in secrets)]
