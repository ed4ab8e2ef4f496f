"""`orchestrator up` as a user types it: three real servers, a real job on them, and no way past.

One stack is started for all tests here. They come in the order in which a user meets the things.
"""

import base64
import json
import os
import re
import signal
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import mlflow
import pytest
from botocore.exceptions import ClientError

from services.ray_cluster import BIN
from services.routes import mlflow_routes, ray_dashboard_routes
from support.drawings import draw_pairs

JOB = """\
#!/usr/bin/env -S orchestrator run
name: tiny
model: {name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4,
        receptive_field: 16, norm: instance}
data:
  train: ${env:ORCHESTRATOR_DATA}/tiny/train
  validation: ${env:ORCHESTRATOR_DATA}/tiny/validation
train: {epochs: 1, batch_size: 4}
cluster: {workers: 1}
tracking: {uri: "${env:MLFLOW_TRACKING_URI}", experiment: tiny}
storage: ${env:ORCHESTRATOR_STORAGE}
register: {name: tiny}
"""
FOLDER = ".orchestrator/stack"
HOLDERS = {"env", "mlflow/users.ini", "s3/identities.json", "s3/security.toml"}
"""The files of a stack that hold secrets, beside secrets/."""


@dataclass
class Stack:
    """A project's folder with a stack that runs, and all that its commands have printed."""

    project: Path
    said: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.project / FOLDER

    @property
    def environ(self) -> dict[str, str]:
        """A shell's that has read `env`."""
        command = f"set -e; source {FOLDER}/env; env -0"
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.project, env=plain(), capture_output=True, check=True
        )
        return dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair)

    def start(self, *command: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=plain() if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *command: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = self.start(*command, environ=environ)
        text = process.communicate(timeout=900)[0]
        self.said.append(text)
        return process.returncode, text

    def state(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    def pid(self, service: str) -> int:
        return int(self.state()["processes"][service]["pid"])

    def secrets(self) -> set[bytes]:
        """Every secret, and how a password looks in a request."""
        found = {file.read_bytes() for file in (self.folder / "secrets").iterdir()}
        environ = self.environ
        login = f"admin:{environ['MLFLOW_TRACKING_PASSWORD']}".encode()
        keys = {environ["AWS_ACCESS_KEY_ID"].encode(), base64.b64encode(login)}
        key = (self.folder / "s3/grpc.key").read_bytes().splitlines()[1]
        assert all(len(secret) >= 20 for secret in found | keys | {key})
        return found | keys | {key}


def plain() -> dict[str, str]:
    """The environment of a user who has set nothing."""
    foreign = ("RAY_", "MLFLOW_", "AWS_", "ORCHESTRATOR_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    project = tmp_path_factory.mktemp("project")
    job = project / "jobs/tiny.yaml"
    job.parent.mkdir()
    job.write_text(JOB)
    job.chmod(0o755)
    made = Stack(project)
    code, text = made.call("orchestrator", "up", "--num-cpus", "2")
    assert code == 0, text
    try:
        yield made
    finally:
        code, text = made.call("orchestrator", "down", "--delete", "--yes")
        assert code == 0, text
        assert not made.folder.exists()
        assert processes_of(made) == {}


def processes_of(stack: Stack) -> dict[int, str]:
    """Id and command line of each process that the stack has started, by their environment."""
    mark = f"ORCHESTRATOR_STACK={stack.folder}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {pid: line for pid, line in found.items() if line}


def listening_of(sessions: set[int]) -> set[tuple[str, str]]:
    """(address in hexadecimal, title) for each port that processes of these sessions listen on."""
    owners = {}
    for entry in Path("/proc").iterdir():
        try:
            session = int((entry / "stat").read_text().rpartition(") ")[2].split()[3])
            if session not in sessions:
                continue
            title = (entry / "cmdline").read_text().partition("\0")[0].strip()
            for link in (entry / "fd").iterdir():
                for inode in re.findall(r"socket:\[(\d+)\]", str(link.readlink())):
                    owners[inode] = title
        except (OSError, ValueError):
            continue
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return {(line[1], owners[line[9]]) for line in lines if line[3] == "0A" and line[9] in owners}


def answer(method: str, url: str, headers: Mapping[str, str] | None = None) -> int:
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_up_tells_the_addresses_and_a_second_up_starts_nothing(stack: Stack) -> None:
    first = stack.said[0]
    before = stack.state()
    for line in (
        "ray     running  http://127.0.0.1:",
        "mlflow  running  http://127.0.0.1:",
        "s3      running  http://127.0.0.1:",
        f"ray: token in {FOLDER}/secrets/ray-token",
        f"mlflow: user admin, password in {FOLDER}/secrets/mlflow-password",
        f"source {FOLDER}/env",
    ):
        assert line in first
    code, text = stack.call("orchestrator", "up")
    assert code == 0, text
    for service in ("ray", "mlflow", "s3"):
        assert f"{service} runs already" in text
    assert stack.state() == before
    code, text = stack.call("orchestrator", "status", "--json")
    services = json.loads(text[: text.rindex("]") + 1])
    assert [one["name"] for one in services] == ["ray", "mlflow", "s3"]
    assert all(one["state"] == "running" for one in services)
    assert all(one["pid"] == stack.pid(one["name"]) for one in services)


def test_a_job_trains_there_and_nothing_listens_beyond_loopback_nor_shows_a_secret(
    stack: Stack,
) -> None:
    environ, secrets = stack.environ, stack.secrets()
    draw_pairs(stack.project / "pairs", count=20, size=16)
    code, text = stack.call(
        "orchestrator", "data", "pack", "pairs", "s3://data/tiny", "--size", "16",
        environ={k: v for k, v in environ.items() if k != "RAY_ADDRESS"},
    )  # fmt: skip
    assert code == 0, text
    process = stack.start("orchestrator", "submit", "jobs/tiny.yaml", environ=environ)
    sessions = {stack.pid(service) for service in ("ray", "mlflow", "s3")}
    listening, lines = set(), set()
    while process.poll() is None:
        listening |= listening_of(sessions)
        lines |= {file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if there(file)}
        time.sleep(1)
    assert process.stdout is not None
    text = process.stdout.read()
    stack.said.append(text)
    assert process.returncode == 0, text
    assert "registered tiny version 1" in text
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:")
    beyond = {title for address, title in listening if not address.startswith(loopback)}
    # torch gives its meeting point no address to listen on: docs/operations.md tells of it.
    # A title also has the method that runs.
    assert {title.partition(".")[0] for title in beyond} <= {"ray::RayTrainWorker"}
    assert len(listening) > 15, "8 of SeaweedFS, 1 of MLflow and 7 of Ray at least"
    assert any(b"orchestrator" in line for line in lines)
    assert not [line for line in lines for secret in secrets if secret in line]


def there(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:
        return False


def test_secrets_are_in_no_log_record_database_artifact_or_object(stack: Stack) -> None:
    environ, secrets = stack.environ, stack.secrets()
    ray = Path(stack.state()["ray_folder"])
    holders = {
        str(file.relative_to(stack.folder))
        for root in (stack.folder, ray)
        for file in root.rglob("*")
        if file.is_file() and any(secret in file.read_bytes() for secret in secrets)
    }
    names = {f"secrets/{file.name}" for file in (stack.folder / "secrets").iterdir()}
    assert holders == names | HOLDERS | {"s3/grpc.key"}
    for name in holders:
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600, name
    assert list(ray.rglob("job-driver-*.log")), "the job's own log was among them"

    s3 = boto3.client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    stored = {}
    for bucket in ("data", "runs"):
        for item in s3.list_objects_v2(Bucket=bucket)["Contents"]:
            stored[item["Key"]] = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    kinds = {key.rpartition("/")[2] for key in stored}
    assert {"run.json", "job.yaml", "manifest.json"} <= kinds, "what the job has written"

    headers = {"Authorization": f"Bearer {(stack.folder / 'secrets/ray-token').read_text()}"}
    url = f"{environ['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
        stored["the Jobs API"] = reply.read()
    assert b"jobs/tiny.yaml" in stored["the Jobs API"]
    stored["what the commands printed"] = "".join(stack.said).encode()
    assert not [name for name, data in stored.items() for one in secrets if one in data]


RAY_OPEN = {
    ("GET", "/"): "the page that asks for the token",
    ("GET", "/favicon.ico"): "its picture",
    ("GET", "/api/authentication_mode"): "tells the page that there is a token",
    ("GET", "/api/gcs_healthz"): "health, no data",
    ("GET", "/api/healthz"): "health, no data",
    ("GET", "/api/local_raylet_healthz"): "health, no data",
}
MLFLOW_OPEN = {
    "/health": "health, no data",
    "/ajax-api/3.0/mlflow/server-info": "tells a client what it may ask for; no data",
    "/api/3.0/mlflow/server-info": "the same",
    "/static-files/path": "the page's scripts and pictures",
}


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "a wrong token"])
def test_no_route_of_rays_dashboard_answers(stack: Stack, token: str | None) -> None:
    """Jobs and Serve among them, as Ray's source has them."""
    routes = ray_dashboard_routes()
    assert {("POST", "/api/jobs/"), ("PUT", "/api/serve/applications/")} <= set(routes)
    address = stack.environ["RAY_API_SERVER_ADDRESS"]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answers = {route: answer(route[0], address + route[1], headers) for route in routes}
    answering = {route for route, code in answers.items() if code not in (401, 403)}
    assert answering <= set(RAY_OPEN)
    assert len(answers) - len(answering) > 50
    agent = f"http://127.0.0.1:{stack.state()['ports']['ray agent']}"
    assert answer("POST", f"{agent}/api/job_agent/jobs/", headers) in (401, 403)
    assert answer("GET", f"{agent}/logs/", headers) in (401, 403)


def test_no_route_of_mlflow_answers(stack: Stack, tmp_path: Path) -> None:
    routes = mlflow_routes(tmp_path)
    assert ("POST", "/api/2.0/mlflow/runs/create") in routes
    assert ("PUT", "/api/2.0/mlflow-artifacts/artifacts/artifact_path") in routes
    address = stack.environ["MLFLOW_TRACKING_URI"]
    answers = {route: answer(route[0], address + route[1]) for route in routes}
    answering = {path for (_, path), code in answers.items() if code not in (401, 403)}
    assert answering <= set(MLFLOW_OPEN)
    assert len(answers) > 1000
    wrong = {"Authorization": f"Basic {base64.b64encode(b'admin:password').decode()}"}
    for method, path in routes[::50]:  # each costs a password's hash
        assert answer(method, address + path, wrong) in (401, 403) or path in MLFLOW_OPEN
    # A page of another site that has a name for 127.0.0.1.
    assert answer("GET", f"{address}/", {"Host": "example.org"}) == 403


def test_s3_asks_for_signatures_and_its_helpers_for_tokens(stack: Stack) -> None:
    address, ports = stack.environ["AWS_ENDPOINT_URL_S3"], stack.state()["ports"]
    for method, path in (("GET", "/"), ("GET", "/data"), ("PUT", "/data/x"), ("DELETE", "/runs")):
        assert answer(method, address + path) == 403
    for helper, path in (
        ("filer", "/"), ("filer", "/buckets/data/"), ("master", "/dir/assign"),
        ("master", "/vol/grow"), ("volume", "/1,01"),
    ):  # fmt: skip
        assert answer("GET", f"http://127.0.0.1:{ports[helper]}{path}") in (401, 403, 404)
    import grpc

    for helper in ("master grpc", "volume grpc", "filer grpc"):
        with grpc.insecure_channel(f"127.0.0.1:{ports[helper]}") as channel:
            call = channel.unary_unary("/filer_pb.SeaweedFiler/Ping")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_doctor_is_content_with_it(stack: Stack) -> None:
    from orchestrator.diagnostics.doctor import check_ray_authentication, check_ray_cluster

    environ = stack.environ
    assert check_ray_authentication(environ).status == "ok"
    assert check_ray_cluster(environ).status == "ok"


def test_what_was_killed_is_started_again_with_everything_in_it(stack: Stack) -> None:
    before = stack.environ
    ray = stack.pid("ray")
    for service in ("s3", "mlflow"):
        os.kill(stack.pid(service), signal.SIGKILL)
    code, text = stack.call("orchestrator", "status")
    assert code == 3
    assert "error: not running: mlflow, s3; start what is missing: orchestrator up" in text
    # Keys of another store, or those from before a rotation, which a shell still has.
    foreign = {"AWS_ACCESS_KEY_ID": "F" * 20, "AWS_SECRET_ACCESS_KEY": "f" * 40}
    code, text = stack.call("orchestrator", "up", environ={**plain(), **foreign})
    assert code == 0, text
    assert "ray runs already" in text
    assert stack.pid("ray") == ray
    stranger = boto3.client(
        "s3",
        endpoint_url=before["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=foreign["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=foreign["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        stranger.list_buckets()
    assert stack.environ == before
    code, text = stack.call("orchestrator", "models", "ls", environ=stack.environ)
    assert code == 0, text
    assert "tiny" in text
    code, text = stack.call("orchestrator", "data", "ls", "s3://data/tiny/train", environ=before)
    assert code == 0, text


def test_a_service_that_does_not_start_shows_its_log_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    broken = Stack(tmp_path)
    database = broken.folder / "mlflow/mlflow.db"
    database.parent.mkdir(parents=True)
    (broken.folder / "state.json").write_text("{}")
    database.write_text("this is no database\n" * 1000)
    code, text = broken.call("orchestrator", "up")
    assert code == 3, text
    assert "error: mlflow has ended:" in text
    assert "file is not a database" in text
    assert f"the whole log: {FOLDER}/logs/mlflow.log" in text
    assert processes_of(broken) == {}
    assert not database.with_name("users.ini").stat().st_mode & 0o077


def test_mlflow_takes_the_password_that_env_has(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.environ.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
