"""The services of deploy/compose.yaml, run as plain processes without a container engine."""

import base64
import configparser
import contextlib
import json
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.stack import POSTGRES, Stack, running_stack
from support.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    # A short path, for Ray's Unix sockets; PostgreSQL's user must reach its own folder in it.
    with tempfile.TemporaryDirectory(prefix="st-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        with running_stack(Path(folder)) as running:
            yield running


def request(url: str, headers: dict[str, str] | None = None, body: Any = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    defaults = {"Content-Type": "application/json"} if data else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, defaults | (headers or {})), timeout=30
        ) as response:
            return response.status, response.read().decode()
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
        raise SystemExit("the keys of jobs grant access to other buckets")
print("experiment", experiment)
"""


def test_a_job_with_the_token_reaches_mlflow_and_only_its_own_buckets(stack: Stack) -> None:
    jobs = f"{stack.url('dashboard')}/api/jobs/"
    assert request(jobs)[0] == 401
    assert request(jobs, {"Authorization": "Bearer " + "0" * 64})[0] == 403
    assert request(jobs, body={"entrypoint": "true"})[0] == 401
    token = {"Authorization": f"Bearer {(stack.secrets / 'ray_auth_token').read_text().strip()}"}
    script = stack.folder / "job.py"
    script.write_text(JOB)
    status, text = request(jobs, token, {"entrypoint": f"python {script}"})
    assert status == 200, text
    job = f"{jobs}{json.loads(text)['submission_id']}"

    def final_status() -> str | None:
        status = str(json.loads(request(job, token)[1])["status"])
        return None if status in ("PENDING", "RUNNING") else status

    final = wait_until(final_status, 90, "the end of the job", poll_s=0.3)
    printed = json.loads(request(f"{job}/logs", token)[1])["logs"]
    assert final == "SUCCEEDED", printed

    nodes = json.loads(request(f"{stack.url('dashboard')}/nodes?view=summary", token)[1])
    states = [node["raylet"]["state"] for node in nodes["data"]["summary"]]
    assert states == ["ALIVE", "ALIVE"]

    # The administrator sees the experiment of the job, another user does not.
    admin = basic("admin", (stack.secrets / "mlflow_admin_password").read_text().strip())
    api = f"{stack.url('mlflow')}/api/2.0/mlflow"
    other = {"username": "other", "password": "another-password"}
    assert request(f"{api}/users/create", admin, other)[0] == 200
    experiment = re.findall(r"experiment (\d+)", printed)[0]
    url = f"{api}/experiments/get?experiment_id={experiment}"
    assert request(url, admin)[0] == 200
    assert request(url, basic(*other.values()))[0] == 403


def test_mlflow_and_s3_require_credentials(stack: Stack) -> None:
    experiments = f"{stack.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1"
    config = configparser.ConfigParser()
    config.read(stack.secrets / "mlflow_credentials")
    user = config["mlflow"]["mlflow_tracking_username"]
    jobs = basic(user, config["mlflow"]["mlflow_tracking_password"])
    assert request(experiments)[0] == 401
    assert request(experiments, basic(user, "wrong"))[0] == 401
    assert request(experiments, jobs)[0] == 200
    assert request(experiments, jobs | {"Host": "evil.example"})[0] == 403
    users = f"{stack.url('mlflow')}/api/2.0/mlflow/users/create"
    assert request(users, jobs, {"username": "mine", "password": "another-password"})[0] == 403
    assert request(stack.url("seaweedfs"))[0] == 403
    assert request(f"{stack.url('seaweedfs')}/runs/x/y")[0] == 403


def test_mlflow_stores_its_data_in_postgresql(stack: Stack) -> None:
    import psycopg2

    password = (stack.secrets / "postgres_password").read_text().strip()
    server: dict[str, Any] = {"host": "127.0.0.1", "port": stack.ports["postgres"]}
    with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
        psycopg2.connect(**server, user="mlflow", dbname="mlflow", passfile="/dev/null")
    connection = psycopg2.connect(**server, user="mlflow", dbname="mlflow", password=password)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT username FROM users WHERE username IN ('admin', 'trainer')")
        assert len(cursor.fetchall()) == 2
        cursor.execute("SELECT count(*) FROM experiments")
        assert cursor.fetchone() is not None
    connection.close()


def test_setup_can_run_again(stack: Stack) -> None:
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
    commands: list[list[str]] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            commands.append(process.cmdline())
    ours = [command for command in commands if str(stack.folder) in " ".join(command)]
    assert {"raylet", "weed", "postgres"} <= {Path(command[0]).name for command in ours}
    assert not [c for c in commands if any(secret in " ".join(c) for secret in secrets)]
    logs = [*stack.folder.glob("*.log"), *stack.folder.glob("r/session_*/logs/**/*.*")]
    assert len(logs) > 10
    texts = [path.read_text(errors="replace") for path in logs if path.is_file()]
    assert not [text for text in texts if any(secret in text for secret in secrets)]
