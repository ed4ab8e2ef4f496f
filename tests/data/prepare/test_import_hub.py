"""`data import hf://...` with the real client and a local Hub."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from orchestrator.data.prepare.hub_source import HubDataset, parse_hub_uri
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from services.hub import FakeHub, fake_hub
from support.imports import encoded, import_data, packed, seeds

URI = "hf://datasets/org/name"
ALL = ("--validation-share", "0")


def table(*numbers: int) -> bytes:
    cells = [{"bytes": encoded(n), "path": None} for n in numbers]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"image": cells}), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {
        "README.md": b"# x",
        "data/train-00000-of-00001.parquet": table(0, 1, 2),
        "data/test-00000-of-00001.parquet": table(7),
        "checkpoint.bin": b"1",
    }
    with fake_hub(files) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        url = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        yield hub


@pytest.mark.parametrize("revision", ["", "@main"])
def test_the_parquet_files_of_a_dataset_are_packed(
    hub: FakeHub, tmp_path: Path, revision: str
) -> None:
    import_data(f"{URI}{revision}", tmp_path / "out")
    assert seeds(packed(tmp_path / "out/train")) == [0, 1, 2]
    assert seeds(packed(tmp_path / "out/validation")) == [7]
    asked = [path for path in hub.asked if "/resolve/" in path]
    assert asked
    assert not any("README" in path or "checkpoint" in path for path in asked)


def test_a_dataset_of_images_with_metadata_is_packed(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"a/x.png": encoded(3), "a/metadata.jsonl": b'{"file_name": "x.png", "text": "t"}'}
    import_data(f"{URI}/a", tmp_path / "out", *ALL)
    (sample,) = packed(tmp_path / "out/train")
    assert seeds([sample]) == [3]
    assert sample.captions == ["t"]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "does not exist, or needs a login: .* HF_TOKEN"),
        (401, "RepoNotFound", "does not exist, or needs a login"),
        (401, "", "does not exist, or needs a login|cannot be downloaded"),
        (403, "GatedRepo", "asks its users to accept terms: .* HF_TOKEN"),
        (403, "", "cannot be downloaded"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: FakeHub, tmp_path: Path, status: int, code: str, message: str
) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(EnvironmentProblem, match=rf"^hf://datasets/org/name.*({message})") as error:
        import_data(URI, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1


def test_a_revision_that_does_not_exist_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="there is no revision v9; check its name"):
        import_data(f"{URI}@v9", tmp_path / "out")


def test_without_a_network_the_error_is_one_line(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"cannot be downloaded \(.*\); check the n") as e:
        import_data(URI, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match=r"cannot be downloaded .*HF_HUB_OFFLINE") as e:
        import_data(URI, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1


def test_a_dataset_that_was_downloaded_is_packed_without_a_network(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_data(URI, tmp_path / "out")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    import_data(URI, tmp_path / "again")
    assert seeds(packed(tmp_path / "again/train")) == [0, 1, 2]


def test_a_folder_that_the_dataset_lacks_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the dataset has no folder german"):
        import_data(f"{URI}/german", tmp_path / "out")


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EnvironmentProblem, match=r"needs the package huggingface_hub; .*pip in"):
        import_data(URI, tmp_path / "out")


def test_a_dataset_without_images_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"README.md": b"# x"}
    with pytest.raises(DataError, match="holds no images"):
        import_data(URI, tmp_path / "out")


def test_an_address_names_a_dataset_a_revision_and_a_folder(tmp_path: Path) -> None:
    assert parse_hub_uri("hf://datasets/a-b/c.d") == HubDataset("a-b/c.d")
    assert parse_hub_uri("hf://datasets/a/b@refs%2Fx/") == HubDataset("a/b", "refs%2Fx")
    assert parse_hub_uri("hf://datasets/a/b@v1/en/x") == HubDataset("a/b", "v1", "en/x")
    for uri in ("hf://a/b", "hf://datasets/a", "hf://models/a/b", "hf://datasets/a/b@"):
        with pytest.raises(UsageError, match=r"is not the address of a dataset; expected hf:"):
            import_data(uri, tmp_path / "out")
