"""`orchestrator up` as a user runs it: three real services, a job on them, and their protection.

All tests share one stack. They are in the order in which a user comes across the features.
"""

import base64
import json
import os
import signal
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow
import pytest
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

from services.local_stack import (
    FOLDER,
    Stack,
    clean_environment,
    command_lines,
    listening_addresses,
    processes_of,
    status_of,
)
from services.routes import mlflow_routes, ray_dashboard_routes
from support.drawings import draw_pairs

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

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
SECRET_FILES = {"env", "mlflow/users.ini", "s3/identities.json", "s3/security.toml"}
"""Files of a stack outside of secrets/ that contain secrets."""


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


def test_up_prints_the_addresses_and_a_second_up_starts_nothing(stack: Stack) -> None:
    first = stack.outputs[0]
    before = stack.state()
    for line in (
        "ray     running  http://127.0.0.1:",
        "mlflow  running  http://127.0.0.1:",
        "s3      running  http://127.0.0.1:",
        f"ray: token in {FOLDER}/secrets/ray-token",
        f"mlflow: user admin, password in {FOLDER}/secrets/mlflow-password; jobs are the user",
        f"source {FOLDER}/env",
    ):
        assert line in first
    code, text = stack.call("orchestrator", "up")
    assert code == 0, text
    for service in ("ray", "mlflow", "s3"):
        assert f"{service} is already running" in text
    assert stack.state() == before
    code, text = stack.call("orchestrator", "status", "--json")
    services = json.loads(text[: text.rindex("]") + 1])
    assert [service["name"] for service in services] == ["ray", "mlflow", "s3"]
    assert all(service["state"] == "running" for service in services)
    assert all(service["pid"] == stack.pid(service["name"]) for service in services)


def test_a_job_trains_while_all_ports_are_on_loopback_and_no_command_line_has_a_secret(
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
        listening |= listening_addresses(sessions)
        lines |= command_lines()
        time.sleep(1)
    assert process.stdout is not None
    text = process.stdout.read()
    stack.outputs.append(text)
    assert process.returncode == 0, text
    assert "registered tiny version 1" in text
    loopback = ("127.0.0.1:", "::ffff:127.0.0.1:")
    exposed = {title for address, title in listening if not address.startswith(loopback)}
    assert exposed == set()
    assert len(listening) > 15, "at least 8 ports of SeaweedFS, 1 of MLflow and 7 of Ray"
    assert any("orchestrator" in line for line in lines)
    assert not [line for line in lines for secret in secrets if secret.decode() in line]


def test_no_log_database_artifact_or_object_contains_a_secret(stack: Stack) -> None:
    environ, secrets = stack.environ, stack.secrets()
    ray = Path(stack.state()["ray_folder"])
    containing = {
        str(file.relative_to(stack.folder))
        for root in (stack.folder, ray)
        for file in root.rglob("*")
        if file.is_file() and any(secret in file.read_bytes() for secret in secrets)
    }
    names = {f"secrets/{file.name}" for file in (stack.folder / "secrets").iterdir()}
    assert containing == names | SECRET_FILES | {"s3/grpc.key"}
    for name in containing:
        assert stat.S_IMODE((stack.folder / name).stat().st_mode) == 0o600, name
    assert list(ray.rglob("job-driver-*.log")), "the job's log was among them"

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
    assert {"run.json", "job.yaml", "manifest.json"} <= kinds, "the job's objects were among them"

    headers = {"Authorization": f"Bearer {(stack.folder / 'secrets/ray-token').read_text()}"}
    url = f"{environ['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
        stored["Jobs API"] = response.read()
    assert b"jobs/tiny.yaml" in stored["Jobs API"]
    stored["output of commands"] = "".join(stack.outputs).encode()
    assert not [name for name, data in stored.items() for secret in secrets if secret in data]


RAY_PUBLIC = {
    ("GET", "/"): "page that asks for the token",
    ("GET", "/favicon.ico"): "icon of the page",
    ("GET", "/api/authentication_mode"): "whether the page has to ask for a token",
    ("GET", "/api/gcs_healthz"): "health, no data",
    ("GET", "/api/healthz"): "health, no data",
    ("GET", "/api/local_raylet_healthz"): "health, no data",
}
MLFLOW_PUBLIC = {
    "/health": "health, no data",
    "/ajax-api/3.0/mlflow/server-info": "features of the server, no data",
    "/api/3.0/mlflow/server-info": "the same",
    "/static-files/path": "scripts and images of the page",
}


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["no token", "a wrong token"])
def test_every_route_of_the_ray_dashboard_requires_the_token(
    stack: Stack, token: str | None
) -> None:
    """All routes of Ray's source, including Jobs and Serve."""
    routes = ray_dashboard_routes()
    assert {("POST", "/api/jobs/"), ("PUT", "/api/serve/applications/")} <= set(routes)
    address = stack.environ["RAY_API_SERVER_ADDRESS"]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answers = {route: status_of(route[0], address + route[1], headers) for route in routes}
    answering = {route for route, code in answers.items() if code not in (401, 403)}
    assert answering <= set(RAY_PUBLIC)
    assert len(answers) - len(answering) > 50
    agent = f"http://127.0.0.1:{stack.state()['ports']['ray agent']}"
    assert status_of("POST", f"{agent}/api/job_agent/jobs/", headers) in (401, 403)
    assert status_of("GET", f"{agent}/logs/", headers) in (401, 403)


def test_every_route_of_mlflow_requires_the_password(stack: Stack, tmp_path: Path) -> None:
    routes = mlflow_routes(tmp_path)
    assert ("POST", "/api/2.0/mlflow/runs/create") in routes
    assert ("PUT", "/api/2.0/mlflow-artifacts/artifacts/artifact_path") in routes
    address = stack.environ["MLFLOW_TRACKING_URI"]
    answers = {route: status_of(route[0], address + route[1]) for route in routes}
    answering = {path for (_, path), code in answers.items() if code not in (401, 403)}
    assert answering <= set(MLFLOW_PUBLIC)
    assert len(answers) > 1000
    wrong = {"Authorization": f"Basic {base64.b64encode(b'admin:password').decode()}"}
    for method, path in routes[::50]:  # each checks a password, which is slow
        assert status_of(method, address + path, wrong) in (401, 403) or path in MLFLOW_PUBLIC
    # DNS rebinding: a web page with another name for 127.0.0.1.
    assert status_of("GET", f"{address}/", {"Host": "example.org"}) == 403


def test_s3_requires_signatures_and_the_other_servers_require_tokens(stack: Stack) -> None:
    address, ports = stack.environ["AWS_ENDPOINT_URL_S3"], stack.state()["ports"]
    for method, path in (("GET", "/"), ("GET", "/data"), ("PUT", "/data/x"), ("DELETE", "/runs")):
        assert status_of(method, address + path) == 403
    for server, path in (
        ("filer", "/"), ("filer", "/buckets/data/"), ("master", "/dir/assign"),
        ("master", "/vol/grow"), ("volume", "/1,01"),
    ):  # fmt: skip
        assert status_of("GET", f"http://127.0.0.1:{ports[server]}{path}") in (401, 403, 404)
    import grpc

    for server in ("master grpc", "volume grpc", "filer grpc"):
        with grpc.insecure_channel(f"127.0.0.1:{ports[server]}") as channel:
            call = channel.unary_unary("/filer_pb.SeaweedFiler/Ping")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_doctor_passes(stack: Stack) -> None:
    from orchestrator.diagnostics.doctor import check_ray_authentication, check_ray_cluster

    environ = stack.environ
    assert check_ray_authentication(environ).status == "ok"
    assert check_ray_cluster(environ).status == "ok"


def test_killed_services_are_restarted_with_their_data(stack: Stack) -> None:
    before = stack.environ
    ray = stack.pid("ray")
    for service in ("s3", "mlflow"):
        os.kill(stack.pid(service), signal.SIGKILL)
    code, text = stack.call("orchestrator", "status")
    assert code == 3
    assert "error: not running: mlflow, s3; start them with `orchestrator up`" in text
    # A shell may still have the keys of another store, or old ones.
    foreign = {"AWS_ACCESS_KEY_ID": "F" * 20, "AWS_SECRET_ACCESS_KEY": "f" * 40}
    code, text = stack.call("orchestrator", "up", environ={**clean_environment(), **foreign})
    assert code == 0, text
    assert "ray is already running" in text
    assert stack.pid("ray") == ray
    unauthorized = boto3.client(
        "s3",
        endpoint_url=before["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=foreign["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=foreign["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        unauthorized.list_buckets()
    assert stack.environ == before
    code, text = stack.call("orchestrator", "models", "ls", environ=stack.environ)
    assert code == 0, text
    assert "tiny" in text
    code, text = stack.call("orchestrator", "data", "ls", "s3://data/tiny/train", environ=before)
    assert code == 0, text


def test_a_failed_start_prints_the_log_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    broken = Stack(tmp_path)
    database = broken.folder / "mlflow/mlflow.db"
    database.parent.mkdir(parents=True)
    (broken.folder / "state.json").write_text("{}")
    database.write_text("not a database\n" * 1000)
    code, text = broken.call("orchestrator", "up")
    assert code == 3, text
    assert "error: mlflow ended:" in text
    assert "file is not a database" in text
    assert f"full log: {FOLDER}/logs/mlflow.log" in text
    assert processes_of(broken) == {}
    assert not database.with_name("users.ini").stat().st_mode & 0o077


def test_mlflow_accepts_the_password_in_env(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environ.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"


def as_admin(stack: Stack) -> dict[str, str]:
    """Environment of a shell in which a user is MLflow's administrator."""
    password = (stack.folder / "secrets/mlflow-password").read_text()
    return {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}


def test_jobs_are_no_administrators_of_mlflow(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = stack.environ
    assert environ["MLFLOW_TRACKING_USERNAME"] == "trainer"
    for name, value in {**environ, **as_admin(stack)}.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    mlflow.MlflowClient().create_experiment("of the administrator")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "trainer")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", environ["MLFLOW_TRACKING_PASSWORD"])
    names = [found.name for found in mlflow.MlflowClient().search_experiments()]
    assert "tiny" in names
    assert "of the administrator" not in names
    users = get_app_client("basic-auth", environ["MLFLOW_TRACKING_URI"])
    for forbidden in (
        lambda: users.create_user("another", "a-password-of-its-own"),
        lambda: users.update_user_admin("trainer", True),
        lambda: users.update_user_password("admin", "a-password-of-its-own"),
        lambda: users.grant_user_permission("trainer", "experiment", "*", "MANAGE"),
        lambda: mlflow.MlflowClient().get_experiment_by_name("of the administrator"),
    ):
        with pytest.raises(MlflowException, match="Permission denied"):
            forbidden()


def test_up_gives_jobs_a_user_where_the_administrator_has_logged_before(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**stack.environ, **as_admin(stack)}.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    uri = stack.environ["MLFLOW_TRACKING_URI"]
    get_app_client("basic-auth", uri).delete_user("trainer")  # as before there was this user
    (stack.folder / "secrets/mlflow-trainer-password").unlink()
    code, text = stack.call("orchestrator", "up")
    assert code == 0, text
    assert "MLflow's new user trainer, that of jobs, may edit what is there" in text
    for name, value in stack.environ.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("of the administrator")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id)
    client.log_metric(run.info.run_id, "loss", 1.0)
    client.set_registered_model_alias("tiny", "mine", "1")
    # A secret that was deleted is a new one, also for MLflow.
    before = stack.environ["MLFLOW_TRACKING_PASSWORD"]
    (stack.folder / "secrets/mlflow-trainer-password").unlink()
    code, text = stack.call("orchestrator", "up")
    assert code == 0, text
    assert stack.environ["MLFLOW_TRACKING_PASSWORD"] != before
    code, text = stack.call("orchestrator", "models", "ls", environ=stack.environ)
    assert code == 0, text
    assert "tiny" in text
