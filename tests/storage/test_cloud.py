"""Failures and settings of Google Cloud Storage and Azure; the contract is in test_storage.py."""

import sys
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.loading.stream import ShardStream
from orchestrator.diagnostics import doctor
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.storage.cloud_settings import CloudPlace
from orchestrator.storage.open import open_storage
from services.azurite import ACCOUNT, KEY, AzureServer
from services.fixtures_clouds import error_of
from services.gcs import GoogleServer, write_service_account
from services.ports import free_port
from support.sample_sets import job_for


def contents(uri: str) -> dict[str, bytes]:
    storage = open_storage(uri)
    return {key: storage.get(key) for key in storage.list() if "report" not in key}


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("gs://bucket", CloudPlace(False, "bucket", "")),
        ("gs://bucket/a/b", CloudPlace(False, "bucket", "a/b")),
        ("az://container/a", CloudPlace(True, "container", "a")),
        (
            "abfss://container@account.dfs.core.windows.net/a/b",
            CloudPlace(True, "container", "a/b", "account"),
        ),
        ("abfs://c@a.blob.core.windows.net", CloudPlace(True, "c", "", "a")),
    ],
)
def test_the_spellings_of_a_place_are_understood(uri: str, place: CloudPlace) -> None:
    assert CloudPlace.parse(uri) == place


@pytest.mark.parametrize(
    "uri", ["gs://", "az:///x", "abfss://container/x", "gs://a b/c", "gs://a@b/c", "gs://b/../c"]
)
def test_a_uri_that_is_incomplete_or_has_credentials_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"; use |has credentials in it"):
        open_storage(uri)


def test_a_missing_bucket_is_named(cloud: str) -> None:
    missing = open_storage(cloud.replace("//tests/", "//nowhere/"))
    for use in (missing.get, missing.list, missing.delete, lambda key: missing.put(key, b"x")):
        error = error_of(lambda use=use: use("key"))  # type: ignore[misc]
        assert isinstance(error, EnvironmentProblem)
        assert "'nowhere'" in str(error)
        assert "create it" in str(error)


def test_refused_credentials_name_the_variables_but_no_secret(
    cloud: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    variables = {
        "gs": ("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "other.json")),
        "az": ("AZURE_STORAGE_ACCOUNT_KEY", "cHJpdmF0ZQ=="),
    }
    write_service_account(tmp_path / "other.json")
    name, value = variables[urlsplit(cloud).scheme]
    open_storage(cloud).put("key", b"x")
    monkeypatch.setenv(name, value)
    storage = open_storage(cloud)
    for use in (storage.get, storage.size, storage.list, storage.delete):
        error = error_of(lambda use=use: use("key"))  # type: ignore[misc]
        assert isinstance(error, EnvironmentProblem)
        assert "refused with 403" in str(error)
        assert name in str(error)
        shown = "".join(traceback.format_exception(error))
        assert "cHJpdmF0ZQ" not in shown
        assert "Bearer" not in shown
        assert "Debug source" not in shown


def test_renewed_credentials_are_used_after_a_refusal(
    gcs: str, running_gcs: GoogleServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_storage(gcs).put("key", b"x")
    write_service_account(tmp_path / "file.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "file.json"))
    storage = open_storage(gcs)
    with pytest.raises(EnvironmentProblem, match="refused with 403"):
        storage.get("key")
    (tmp_path / "file.json").write_bytes(running_gcs.credentials.read_bytes())
    assert storage.get("key") == b"x"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "the file with the credentials cannot be opened"),
        ('{"private": "value"}', "the credentials are no service account or user login"),
        ('"a-private-text"', "the credentials are no service account or user login"),
        ('{"type": "external_account"}', "external_account are not supported"),
    ],
)
def test_a_file_without_credentials_is_named(
    gcs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, cause: str
) -> None:
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    error = error_of(lambda: open_storage(gcs).get("key"))
    assert isinstance(error, EnvironmentProblem)
    assert cause in str(error)
    assert "private" not in str(error)


def test_missing_credentials_of_google_name_the_ways_to_log_in(
    gcs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a machine outside of Google's cloud, where nothing answers for it."""
    address = f"127.0.0.1:{free_port()}"
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    with pytest.raises(
        EnvironmentProblem, match=r"no credentials.*GOOGLE_APPLICATION_CRED.*gcloud"
    ):
        open_storage(gcs).get("key")


@pytest.mark.server
def test_missing_credentials_of_azure_name_the_variables(
    az: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", f"http://127.0.0.1:{free_port()}/identity")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    with pytest.raises(EnvironmentProblem, match=r"no credentials for .*AZURE_STORAGE_ACCOUNT_KEY"):
        open_storage(az).get("key")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "not base64")
    with pytest.raises(EnvironmentProblem, match="the account key is not valid base64"):
        open_storage(az).get("key")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(
        EnvironmentProblem, match=r"no storage account is given; set AZURE_STORAGE_"
    ):
        open_storage(az).get("key")


@pytest.mark.server
def test_a_place_may_name_its_account(az: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    place = az.replace("az://tests/", f"abfss://tests@{ACCOUNT}.dfs.core.windows.net/")
    storage = open_storage(place)
    storage.put("key", b"x")
    assert storage.get("key") == b"x"
    assert storage.uri == place


@pytest.mark.server
@pytest.mark.parametrize("key", [f"AccountKey={KEY}", "SharedAccessSignature=?sv=2021&sig=private"])
def test_a_connection_string_of_azure_is_used(
    az: str, running_azurite: AzureServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    for name in running_azurite.environment:
        monkeypatch.delenv(name)
    text = f"AccountName={ACCOUNT};{key};BlobEndpoint={running_azurite.endpoint}/;"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    storage = open_storage(az)
    if "private" not in key:
        storage.put("key", b"x")
        assert storage.get("key") == b"x"
        return
    error = error_of(lambda: storage.get("key"))
    assert "refused with 403" in str(error)
    assert "private" not in "".join(traceback.format_exception(error))


def test_a_connection_string_gives_the_address_of_its_account(
    clean_cloud: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = CloudPlace.parse("az://container/a")
    name = "AZURE_STORAGE_CONNECTION_STRING"
    monkeypatch.setenv(
        name,
        "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=YQ==;"
        "EndpointSuffix=core.chinacloudapi.cn",
    )
    assert place.endpoint() == "https://mine.blob.core.chinacloudapi.cn"
    assert place.azure_config()["account_key"] == "YQ=="
    monkeypatch.setenv(name, "UseDevelopmentStorage=true")
    assert place.endpoint() == "http://127.0.0.1:10000"
    monkeypatch.setenv(name, "AccountKey=cHJpdmF0ZQ==")
    error = error_of(lambda: open_storage("az://container/a").get("key"))
    assert "names no account" in str(error)
    assert "cHJpdmF0ZQ" not in str(error)


def test_folder_markers_are_not_listed_and_empty_objects_are(
    gcs: str, running_gcs: GoogleServer
) -> None:
    storage, prefix = open_storage(gcs), gcs.removeprefix("gs://tests/")
    storage.put("folder/x", b"1")
    storage.put("empty", b"")
    for marker in ("folder/", "other/"):  # as the console creates them
        running_gcs.objects[f"{prefix}/{marker}"] = (b"", 1, "")
    assert storage.list() == ["empty", "folder/x"]
    assert storage.list("fold") == ["folder/x"]


def test_keys_that_obstore_cannot_list_are_explained(gcs: str, running_gcs: GoogleServer) -> None:
    running_gcs.objects[f"{gcs.removeprefix('gs://tests/')}/a//b"] = (b"1", 1, "")
    with pytest.raises(EnvironmentProblem, match="a key below it has an empty part or a dot"):
        open_storage(gcs).list()
    del running_gcs.objects[f"{gcs.removeprefix('gs://tests/')}/a//b"]


@pytest.mark.parametrize("key", ["a b/ä%20+#?&.bin", "x=1,2;3/~[c]*'\"(d)!@$^.tar"])
def test_unusual_characters_in_a_key_are_kept(cloud: str, key: str) -> None:
    storage = open_storage(cloud)
    storage.put(key, b"x")
    assert storage.list() == [key]
    assert storage.list(key[:-2]) == [key]
    assert storage.get(key) == b"x"
    storage.delete(key)
    assert storage.list() == []


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(EnvironmentProblem, match=r"need the package obstore; .*pip install -e"):
        open_storage("gs://bucket/prefix").get("key")


def test_a_folder_of_images_is_packed_to_a_bucket_and_read_by_the_loader(
    cloud: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 7)
        Image.new("RGB", (16, 16), colour).save(tmp_path / "images" / f"{number:02}.png")
    for to in (f"{cloud}/set", str(tmp_path / "set")):
        arguments = [
            "data", "pack", str(tmp_path / "images"), to, "--size", "16", "--no-pairs",
            "--validation-share", "0.25",
        ]  # fmt: skip
        result = CliRunner().invoke(app.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    remote, local = (
        list(ShardStream(job_for(uri, image_size=16), 0, 1).validation())
        for uri in (f"{cloud}/set", str(tmp_path / "set"))
    )
    assert remote
    for one, two in zip(remote, local, strict=True):
        assert torch.equal(one.images, two.images)
    arguments = ["data", "cp", f"{cloud}/set", str(tmp_path / "back")]
    assert CliRunner().invoke(app.app, arguments, catch_exceptions=False).exit_code == 0
    assert contents(str(tmp_path / "back")) == contents(f"{cloud}/set")


def test_doctor_writes_reads_and_leaves_a_bucket_empty(cloud: str) -> None:
    assert doctor.check_storage(cloud, cloud).found == f"{cloud} is readable and writable"
    assert open_storage(cloud).list() == []


@pytest.mark.parametrize(
    ("uri", "setting"),
    [
        ("gs://bucket/x", "GOOGLE_BASE_URL"),
        ("az://container/x", "AZURE_STORAGE_ENDPOINT"),
        ("az://container/x", "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
@pytest.mark.parametrize("url", ["http://[1", "nonsense", "http://h:99999"])
def test_an_endpoint_that_is_not_an_address_is_named_with_its_setting(
    uri: str, setting: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_STORAGE_USE_EMULATOR", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    given = f"BlobEndpoint={url};AccountKey=eA==" if setting.endswith("STRING") else url
    monkeypatch.setenv(setting, given)
    with pytest.raises(EnvironmentProblem, match=f"{setting}: .* is not a valid address"):
        open_storage(uri).get("key")
