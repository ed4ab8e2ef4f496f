"""Checks of this machine: each reports what it found, and a remedy if it fails."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.diagnostics import doctor
from orchestrator.diagnostics.doctor import MachineRequirements, run_checks


@contextmanager
def server(status: int) -> Iterator[str]:
    """A web server that answers /health with ``status`` and anything else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_this_machine_passes_with_defaults_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checks = run_checks(MachineRequirements(), {})
    names = ["python", "torch", "ray", "ray authentication", "ray cluster", "ray folder"]
    assert [check.name for check in checks] == [*names, "mlflow", "storage", "disk"]
    assert {check.status for check in checks if check.name != "disk"} == {"ok"}
    assert list(tmp_path.iterdir()) == []


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
    with server(200) as address:
        other = doctor.check_ray_cluster({"RAY_ADDRESS": address})
        assert (other.status, "does not speak Ray's protocol" in other.found) == ("fail", True)
        assert doctor.check_ray_cluster({"RAY_ADDRESS": f"ray://{address}"}).status == "ok"
    check = doctor.check_ray_cluster({"RAY_ADDRESS": f"ray://{address}"})
    assert check.status == "fail"
    assert check.found.startswith(f"ray://{address} does not answer: ")


def test_the_address_of_the_jobs_api_is_for_submit_only() -> None:
    with server(200) as address:
        check = doctor.check_ray_cluster({"RAY_ADDRESS": f"http://{address}"})
    assert (check.status, check.found) == ("warn", f"http://{address} answers")
    assert check.remedy.endswith("is for `orchestrator submit`; unset it for `orchestrator run`")


@pytest.mark.parametrize("address", ["ray://host:port", "ray://"])
def test_an_invalid_address_fails(address: str) -> None:
    assert doctor.check_ray_cluster({"RAY_ADDRESS": address}).status == "fail"


@pytest.mark.parametrize(
    ("code", "status", "found"),
    [
        (200, "ok", "answers"),
        (401, "warn", "requires credentials"),
        (500, "fail", "with status 500"),
    ],
)
def test_an_mlflow_server_must_be_healthy(code: int, status: str, found: str) -> None:
    with server(code) as address:
        check = doctor.check_mlflow(f"http://me:pw@{address}", f"http://***@{address}")
    assert check.status == status
    assert check.found.endswith(found)
    assert "pw" not in check.found


def test_an_mlflow_server_that_does_not_answer_fails() -> None:
    address = closed_port()
    check = doctor.check_mlflow(f"http://{address}", "${env:MLFLOW_TRACKING_URI}")
    assert check.status == "fail"
    assert "${env:MLFLOW_TRACKING_URI} does not answer: " in check.found
    assert address not in check.found
    assert "MLFLOW_TRACKING_URI" in check.remedy


def test_a_database_in_a_folder_that_is_not_writable_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    check = doctor.check_mlflow(uri, uri)
    assert (check.status, check.found) == ("fail", f"{tmp_path} is not writable, for {uri}")


def test_a_tracking_uri_of_another_scheme_is_a_warning() -> None:
    assert doctor.check_mlflow("databricks://x", "databricks://x").status == "warn"


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
