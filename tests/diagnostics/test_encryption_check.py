"""Servers that are reached in clear text over a network."""

import pytest

from orchestrator.diagnostics.doctor import check_encryption


@pytest.fixture(autouse=True)
def no_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "endpoint", "named"),
    [
        ("http://u:secret@10.0.0.1:5000", "", ["MLflow at http://10.0.0.1:5000"]),
        ("http://mlflow:5000", "http://u:secret@s3:8333",
         ["MLflow at http://mlflow:5000", "S3 at http://s3:8333"]),
        ("https://mlflow:5000", "http://[fd00::1]:8333", ["S3 at http://[fd00::1]:8333"]),
        ("https://mlflow:5000", "https://s3:8333", []),
        ("http://127.0.0.1:5000", "http://localhost:8333", []),
        ("http://[::1]:5000", "http://127.1.2.3:8333", []),
        ("sqlite:////x/mlflow.db", "", []),
        ("postgresql://db/x", "http://s3:99999", []),
    ],
)  # fmt: skip
def test_servers_on_other_machines_without_tls_are_named(
    uri: str, endpoint: str, named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    check = check_encryption(uri, "s3://bucket/runs")
    assert check.status == ("warn" if named else "ok")
    if named:
        assert check.found.endswith(f"in clear text to {', '.join(named)}")
        assert "https://" in check.remedy
    assert "secret" not in check.found


def test_the_endpoint_of_another_store_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:8333")
    assert check_encryption("sqlite:////x", "/runs").status == "ok"
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://gcs:4443")
    assert "the storage at http://gcs:4443" in check_encryption("sqlite:////x", "gs://b/x").found
