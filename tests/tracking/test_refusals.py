"""Each refusal of MLflow is one line with its own advice, and only what may pass is retried."""

import fcntl
import os
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.server.security_utils import INVALID_HOST_MSG
from mlflow.store.db_migrations.versions import __path__ as revisions

from orchestrator.config.paths import tracking_uri_problem
from orchestrator.errors import EnvironmentProblem
from orchestrator.tracking.client import MlflowProblem, artifact_errors, connect
from orchestrator.tracking.explain import explain
from orchestrator.tracking.mlflow_runs import check_tracking
from services.databases import create_mlflow_database
from services.disks import fill
from services.ports import free_port
from services.scripted_http import certify, scripted_http, tunnelling_proxy


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("MLFLOW_TRACKING"):
            monkeypatch.delenv(name)


def refused(uri: str) -> MlflowProblem:
    """The error of connecting to ``uri`` and creating an experiment there."""
    before = time.monotonic()
    with (
        pytest.raises(MlflowProblem) as error,
        connect(uri, retries=0, timeout_s=1) as client,
    ):
        client.create_experiment("new")
    assert time.monotonic() - before < 15
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
    return error.value


ANSWERS = {
    "no password": (401, "You are not authenticated.", "MLFLOW_TRACKING_USERNAME and MLFLOW_"),
    "no permission": (
        403,
        '{"error_code": "PERMISSION_DENIED", "message": "No permission"}',
        "No permission; ask for the permission",
    ),
    "a gateway": (
        401,
        '{"detail": "Not authenticated"}',
        "Not authenticated'}; a proxy or another",
    ),
    "wrong host": (403, INVALID_HOST_MSG, "--allowed-hosts"),
    "wrong path": (404, "<html>nginx</html>", "under a prefix, add that to tracking.uri"),
    "login page": (200, "<!doctype html>", "web page or a redirect instead of MLflow's API"),
    "redirect": (302, "", "web page or a redirect instead of MLflow's API"),
    "too large": (413, "<html>", "client_max_body_size"),
    "other refusal": (405, "<html><b>Method not allowed</b></html>", "(405): Method not allowed"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_does_not_pass_has_its_own_advice(case: str) -> None:
    status, body, advice = ANSWERS[case]
    with scripted_http(status, body) as uri:
        error = refused(uri)
    assert advice in str(error)
    assert not error.may_pass


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_that_is_not_ready_is_retried(status: int) -> None:
    with scripted_http(status) as uri:
        error = refused(uri)
    assert f"is not ready (status {status})" in str(error)
    assert error.may_pass


def test_a_wrong_password_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    with scripted_http(401) as uri:
        message = str(refused(uri))
    assert "refuses MLFLOW_TRACKING_USERNAME (401)" in message
    assert "geheim" not in message


def test_a_server_that_is_down_or_silent_is_retried_and_bounded() -> None:
    down = refused(f"http://127.0.0.1:{free_port()}")
    assert down.may_pass
    assert "does not answer: connection refused; start the server" in str(down)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = refused(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert silent.may_pass
    assert "does not answer in time" in str(silent)


def test_an_unknown_host_name_is_named() -> None:
    assert "has a host name that is unknown here" in str(refused("http://mlflow.invalid:5000"))


def test_certificates_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = certify(tmp_path / "good.pem")
    with scripted_http(200, "{}", good) as uri:
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(error := refused(uri))
        assert not error.may_pass
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/no/such.pem")
        assert "there is no certificate file /no/such.pem" in str(refused(uri))
        plain = refused(uri.replace("https", "http"))
        assert "write https:// in tracking.uri" in str(plain)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(good))
        with connect(uri):
            pass
    for name, days, text in (("1.2.3.4", 1, "for another name"), ("127.0.0.1", -1, "expired")):
        file = certify(tmp_path / f"{days}.pem", name, days)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(file))
        with scripted_http(200, "{}", file) as uri:
            assert text in str(refused(uri))
    with scripted_http(200, "{}") as uri:
        assert "write http:// in tracking.uri" in str(refused(uri.replace("http", "https")))


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_that_does_not_reach_mlflow_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_http(200, "{}") as uri:
        monkeypatch.setenv(variable, f"http://me:geheim@127.0.0.1:{free_port()}")
        error = refused(uri)
        assert not error.may_pass
        assert f"out of reach through the proxy of {variable.upper()}" in str(error)
        assert "`export NO_PROXY=127.0.0.1`" in str(error)
        assert "geheim" not in str(error)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with connect(uri):
            pass


def test_a_proxy_that_refuses_or_cannot_deliver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, may_pass in ((403, False), (407, False), (503, True)):
        with scripted_http(status, "<html>proxy</html>") as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy)
            error = refused("http://mlflow.cluster:5000")
        assert "NO_PROXY=mlflow.cluster" in str(error)
        assert error.may_pass is may_pass


def test_a_process_that_is_stuck_while_it_creates_the_database_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.client.LOCK_TIMEOUT_S", 0.3)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of this descriptor alone, so as by another process
        error = refused(f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        os.close(folder)
    assert error.may_pass
    assert "is locked by another process" in str(error)


@pytest.mark.parametrize(
    ("status", "problem", "may_pass"),
    [(403, "refuses this user (403): Permission denied;", False), (503, "is not ready", True)],
)
def test_what_mlflow_answers_through_a_proxy_is_not_blamed_on_the_proxy(
    status: int, problem: str, may_pass: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certify(tmp_path / "server.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    answer = (status, "Permission denied", certificate)
    with tunnelling_proxy() as proxy, scripted_http(*answer) as uri:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        error = refused(uri)
    assert problem in str(error)
    assert error.may_pass is may_pass


def test_mlflow_without_a_permission_is_told_from_a_proxy_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scripted_http(403, "Permission denied") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert "refuses this user (403)" in str(refused("http://mlflow.cluster:5000"))


def revision(number: int) -> str:
    """The id of a schema in a file name of MLflow, such as 0584bdc529eb_....py."""
    files = sorted(Path(next(iter(revisions))).glob("*_*.py"))
    return files[number].name.partition("_")[0]


def damage(database: Path, kind: str) -> None:
    content = database.read_bytes()
    if kind == "text":
        database.write_text("hello " * 1000)
    elif kind == "cut":
        database.write_bytes(content[:100_000])
    elif kind == "folder":
        database.unlink()
        database.mkdir()
    else:
        with sqlite3.connect(database) as connection:
            if kind == "other":
                database.write_bytes(b"")
                connection.execute("CREATE TABLE experiments(x INT)")
            else:
                new = {"older": revision(0), "newer": "ffffffffffff"}[kind]
                connection.execute("UPDATE alembic_version SET version_num = ?", (new,))
        connection.close()


FILES = {
    "text": "is not an SQLite database",
    "cut": "is a damaged SQLite database; restore a backup",
    "folder": "is a folder; set tracking.uri to a file",
    "older": "`mlflow db upgrade 'sqlite:///",
    "newer": "install the MLflow that wrote it",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_database_of_this_mlflow_is_explained(kind: str, tmp_path: Path) -> None:
    database = create_mlflow_database(tmp_path / "mlflow.db")
    damage(database, kind)
    error = refused(f"sqlite:///{database}")
    assert FILES[kind] in str(error)
    assert not error.may_pass


def test_a_database_of_another_program_is_explained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("CREATE TABLE experiments(x INT)")
    error = refused(f"sqlite:///{tmp_path}/mlflow.db")
    assert "is a database of another program" in str(error)
    assert "Traceback" not in capfd.readouterr().err


def test_a_locked_database_is_retried(tmp_path: Path) -> None:
    database = create_mlflow_database(tmp_path / "mlflow.db")
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    error = refused(f"sqlite:///{database}")
    other.close()
    assert "is locked by another process" in str(error)
    assert error.may_pass


def test_a_full_and_a_read_only_disk_are_named(tmp_path: Path) -> None:
    disk, read_only = tmp_path / "disk", tmp_path / "read-only"
    disk.mkdir()
    read_only.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    try:
        uri = f"sqlite:///{create_mlflow_database(disk / 'mlflow.db')}"
        with connect(uri):
            pass  # creates the default experiment
        fill(disk)
        error = refused(uri)
        assert "is on a full disk; free some space" in str(error)
        assert not error.may_pass
        subprocess.run(["mount", "-o", "bind,ro", str(disk), str(read_only)], check=True)
        error = refused(f"sqlite:///{read_only}/mlflow.db")
        subprocess.run(["umount", "-l", str(read_only)], check=True)
        assert "is read-only; make the file and its folder writable" in str(error)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("postgresql://me:geheim@127.0.0.1:1/x", "pip install 'psycopg[binary]'"),
        ("postgresql+psycopg2://me:geheim@127.0.0.1:1/x", "connection refused|psycopg2-binary"),
        ("mysql+pymysql://me:geheim@127.0.0.1:1/x", "connection refused|pip install pymysql"),
    ],
)
def test_a_missing_database_driver_is_named(uri: str, advice: str) -> None:
    message = str(refused(uri))
    assert any(text in message.lower() for text in advice.lower().split("|"))
    assert "geheim" not in message


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("file:///old/mlruns", "mlflow migrate-filestore"),
        ("s3://bucket/mlflow", "starts with s3://, which MLflow does not know"),
        ("htp://host", "starts with htp://"),
        ("http:///path", "has no valid host and port"),
        ("mlruns", "neither a server nor a database"),
        ("http://[::1", "has no valid host and port"),
        ("http://host:99999", "has no valid host and port"),
        ("postgresql://me:p[w@host/x", "such as %5B for ["),
        ("http://[::1]:5000", None),
        ("postgresql://u:p@h:notaport/x", "has no valid host and port"),
        ("postgresql://h1:1,h2:2/x", "has no valid host and port"),  # as SQLAlchemy says
        ("postgresql:///x?host=h1:1&host=h2:2", None),
        ("postgresql://u:p@[::1]:5432/x", None),
        ("postgresql+psycopg2://u:p@h/x", None),
        ("databricks://profile", None),
    ],
)
def test_an_address_that_mlflow_does_not_know_is_a_mistake(uri: str, problem: str | None) -> None:
    found = tracking_uri_problem(uri)
    assert found is None if problem is None else found and problem in found


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MLFLOW_HTTP_REQUEST_TIMEOUT", "5s"), ("MLFLOW_TRACKING_INSECURE_TLS", "maybe")],
)
def test_a_wrong_setting_of_mlflow_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    error = refused("https://127.0.0.1:9")
    assert not error.may_pass
    assert f"; correct or unset {variable}" in str(error)


def test_a_missing_package_of_an_artifact_store_is_named() -> None:
    with (
        pytest.raises(MlflowProblem, match="pip install google-cloud-storage"),
        artifact_errors("gs://b/x"),
    ):
        raise ModuleNotFoundError("No module named 'google'", name="google")


def test_an_older_server_is_told_from_a_wrong_path() -> None:
    text = "API request to endpoint /api/2.0/mlflow/logged-models failed with error code 404 != 200"
    found = explain("http://h:5000", RuntimeError(text))
    assert "upgrade the server" in found.advice
    assert not found.may_pass


def test_a_deleted_experiment_is_found_before_a_run(tmp_path: Path) -> None:
    uri = f"sqlite:///{create_mlflow_database(tmp_path / 'mlflow.db')}"
    with connect(uri) as client:
        number = client.create_experiment("cats")
        client.delete_experiment(number)
    with pytest.raises(EnvironmentProblem) as error:
        check_tracking(uri, "cats")
    assert f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x {number}" in str(error.value)
    check_tracking(uri, "dogs")
    check_tracking(f"sqlite:///{tmp_path}/none.db", "dogs")
    assert not (tmp_path / "none.db").exists()
