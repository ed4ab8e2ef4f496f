"""Checks of this machine: each reports what it found, and a remedy if it fails."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.diagnostics import doctor
from orchestrator.diagnostics.doctor import MachineRequirements, run_checks
from services.databases import create_mlflow_database
from services.scripted_http import other_protocol, scripted_http
from support.mlflow_runs import start_tiny_run


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def without_access(folder: Path) -> Iterator[None]:
    """Keep this process out of ``folder`` within the block; root becomes another user for that."""
    folder.chmod(0)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_this_machine_passes_with_defaults_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "ORCHESTRATOR_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    nothing = int(closed_port().rpartition(":")[2])
    checks = run_checks(MachineRequirements(serve_port=nothing), {})
    names = ["python", "torch", "ray", "ray authentication", "ray cluster", "ray files"]
    assert [check.name for check in checks] == [*names, "mlflow", "storage", "encryption", "disk"]
    assert {check.status for check in checks if check.name != "disk"} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_without_a_job_mlflow_and_storage_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pw@{closed_port()}")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "store"))
    checks = {check.name: check for check in run_checks(MachineRequirements(), {})}
    assert checks["mlflow"].found.startswith("MLflow at http://***@127.0.0.1:")
    assert checks["storage"].found == f"{tmp_path}/store is readable and writable"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_missing_folders_are_checked_but_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = tmp_path / "not" / "there" / "yet"
    checks = run_checks(
        MachineRequirements(f"sqlite:///{deep}/mlflow.db", f"{scheme}{deep}/runs"), {}
    )
    assert {check.status for check in checks if check.name != "disk"} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert doctor.check_storage(str(tmp_path / "runs"), "runs").status == "ok"
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_an_old_python_fails() -> None:
    check = doctor.check_python((3, 10, 2))
    assert (check.status, check.found) == ("fail", "3.10.2")
    assert check.remedy == "install Python 3.11 or newer"


@pytest.mark.parametrize(("version", "status"), [("2.55.1", "fail"), ("2.56.0", "ok")])
def test_a_ray_with_known_vulnerabilities_fails(version: str, status: str) -> None:
    assert doctor.check_ray(version).status == status


def test_missing_gpus_fail_without_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here = doctor.check_torch(1, on_cluster=False)
    assert (here.status, doctor.check_torch(1, on_cluster=True).status) == ("fail", "warn")
    assert here.found.endswith("no GPU here, but cluster.gpus_per_worker is 1")
    assert here.remedy.endswith("with --set cluster.gpus_per_worker=0")


@pytest.mark.parametrize(
    ("environ", "status", "found"),
    [
        ({}, "ok", "RAY_AUTH_MODE is not set; a local cluster creates its own token"),
        (
            {"RAY_ADDRESS": "h:1"},
            "warn",
            "RAY_AUTH_MODE is not set, so the default of Ray's version applies",
        ),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, "ok", "token"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "fail",
            "RAY_AUTH_MODE=token, but no token was found",
        ),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "warn",
            "disabled: anyone who reaches the cluster can run code on it",
        ),
        ({"RAY_AUTH_MODE": "maybe"}, "fail", "RAY_AUTH_MODE=maybe is not a valid mode"),
    ],
)
def test_the_authentication_mode_is_checked(
    environ: dict[str, str], status: str, found: str
) -> None:
    check = doctor.check_ray_authentication(environ)
    assert (check.status, check.found) == (status, found)
    assert bool(check.remedy) == (status != "ok")


def test_a_cluster_must_answer_and_none_is_started() -> None:
    assert doctor.check_ray_cluster({}).status == "ok"
    with scripted_http(200) as uri:
        address = uri.removeprefix("http://")
        assert doctor.check_ray_cluster({"RAY_ADDRESS": address}).found == f"{address} answers"
        assert doctor.check_ray_cluster({"RAY_ADDRESS": f"ray://{address}"}).status == "ok"
    check = doctor.check_ray_cluster({"RAY_ADDRESS": f"ray://{address}"})
    assert check.status == "fail"
    assert check.found.startswith(f"ray://{address} does not answer: ")


def test_the_address_of_the_jobs_api_is_for_submit_only() -> None:
    with scripted_http(200) as uri:
        check = doctor.check_ray_cluster({"RAY_ADDRESS": uri})
    assert (check.status, check.found) == ("warn", f"{uri} answers")
    assert check.remedy.endswith("is for `orchestrator submit`; unset it for `orchestrator run`")


def test_an_address_of_something_that_is_no_web_server_tells_nothing_of_a_cluster() -> None:
    with other_protocol() as uri:
        environ = {"RAY_API_SERVER_ADDRESS": uri, "RAY_AUTH_MODE": "disabled"}
        assert doctor.check_ray_authentication(environ).found.startswith("disabled: ")


@pytest.mark.parametrize("address", ["ray://host:port", "ray://", "ray://[::1"])
def test_an_invalid_address_fails(address: str) -> None:
    environ = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    assert doctor.check_ray_authentication(environ).status == "warn"
    assert doctor.check_ray_cluster({"RAY_ADDRESS": address}).status == "fail"


@pytest.mark.parametrize(
    ("code", "status", "found"),
    [(200, "ok", "answers"), (401, "fail", "(401)"), (500, "fail", "(status 500)")],
)
def test_an_mlflow_server_must_be_healthy(code: int, status: str, found: str) -> None:
    with scripted_http(code, "{}" if code == 200 else "") as uri:
        secret = uri.replace("//", "//me:pw@")
        check = doctor.check_mlflow(secret, uri.replace("//", "//***@"))
    assert check.status == status
    assert check.found.endswith(found)
    assert "pw" not in check.found + check.remedy


def test_an_mlflow_server_that_does_not_answer_fails() -> None:
    address = closed_port()
    check = doctor.check_mlflow(f"http://{address}", "${env:MLFLOW_TRACKING_URI}")
    assert check.status == "fail"
    assert "${env:MLFLOW_TRACKING_URI} does not answer: " in check.found
    assert address not in check.found
    assert "tracking.uri" in check.remedy


def test_a_proxy_before_mlflow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{closed_port()}")
    with scripted_http(200, "{}") as uri:
        check = doctor.check_mlflow(uri, uri)
    assert check.status == "fail"
    assert "through the proxy of HTTP_PROXY" in check.found
    assert "NO_PROXY=127.0.0.1" in check.remedy


def test_a_moved_folder_fails_with_the_command_that_corrects_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    start_tiny_run(f"sqlite:///{create_mlflow_database(tmp_path / 'old/mlflow.db')}")
    (tmp_path / "old").rename(tmp_path / "new")
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    check = doctor.check_mlflow(uri, uri, "tiny")
    assert check.status == "fail"
    assert f"was moved from {tmp_path}/old" in check.found
    assert f"`orchestrator relocate {tmp_path}/new`" in check.remedy


def test_a_database_in_a_folder_that_is_not_writable_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    check = doctor.check_mlflow(uri, uri)
    assert (check.status, check.found) == ("fail", f"{tmp_path} is not writable, for {uri}")


def test_a_tracking_uri_of_another_scheme_fails() -> None:
    check = doctor.check_mlflow("file:///x/mlruns", "file:///x/mlruns")
    assert check.status == "fail"
    assert "mlflow migrate-filestore" in check.remedy


def test_a_storage_that_is_not_writable_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = doctor.check_storage(str(tmp_path / "file"), "${env:STORE}")
    assert check.status == "fail"
    assert "${env:STORE}" in check.found
    assert str(tmp_path) not in check.found
    assert doctor.check_storage("ftp://x", "ftp://x").status == "fail"


@pytest.mark.server
def test_a_bucket_is_written_read_and_left_empty(s3: str) -> None:
    from orchestrator.storage.open import open_storage

    assert doctor.check_storage(s3, s3).found == f"{s3} is readable and writable"
    assert open_storage(s3).list() == []


@pytest.mark.server
def test_an_unreachable_bucket_fails(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = closed_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{address}")
    monkeypatch.setattr("orchestrator.storage.s3.REQUEST_ATTEMPTS", 1)
    check = doctor.check_storage(s3, s3)
    assert check.status == "fail"
    assert f"{s3} is unreachable at http://{address}" in check.found


def test_little_free_disk_space_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 62)
    check = doctor.check_disk(str(tmp_path / "not" / "there"))
    assert (check.status, check.remedy[:13]) == ("warn", "free up 10 GB")


def test_a_folder_that_this_user_may_not_look_into_fails_its_own_checks(tmp_path: Path) -> None:
    doctor.check_mlflow(f"sqlite:///{create_mlflow_database(tmp_path / 'x.db')}", "")  # imports
    private = tmp_path / "private"
    (private / "runs").mkdir(parents=True)
    uri = f"sqlite:///{private}/new/mlflow.db"
    with without_access(private):
        storage = doctor.check_storage(f"{private}/runs/new", "runs")
        mlflow = doctor.check_mlflow(uri, uri)
        assert doctor.check_disk(f"{private}/runs/new").name == "disk"
    assert (storage.status, "Permission denied" in storage.found) == ("fail", True)
    assert (mlflow.status, "Permission denied" in mlflow.found) == ("fail", True)
    assert list(private.rglob("*")) == [private / "runs"]


@pytest.mark.parametrize("storage", ["~no-such-user/runs", f"{'a' * 300}/runs"])
def test_a_storage_that_cannot_exist_fails_its_own_check(storage: str) -> None:
    assert doctor.check_storage(storage, storage).status == "fail"
    assert doctor.check_disk(storage).name == "disk"
