"""The storage contract on a folder and on servers of each cloud; the failures of folder and S3."""

import errno
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.errors import DataError, EnvironmentProblem, TryAgain, UsageError
from orchestrator.storage.base import NotFound, Storage, StorageOutage
from orchestrator.storage.open import open_storage
from services.cutting_proxy import CuttingProxy
from services.ports import free_port
from services.s3 import S3Server

SERVERS = [pytest.param(name, marks=pytest.mark.server) for name in ("s3", "az")]


@pytest.fixture(params=["folder", "gcs", *SERVERS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "store"))
    return open_storage(request.getfixturevalue(request.param))


def test_get_returns_what_put_wrote(storage: Storage) -> None:
    data = bytes(range(256)) * 5000
    storage.put("a/b/data.bin", data)
    assert storage.get("a/b/data.bin") == data
    assert storage.size("a/b/data.bin") == len(data)
    assert storage.exists("a/b/data.bin")


def test_an_empty_object_exists(storage: Storage) -> None:
    storage.put("empty", b"")
    assert storage.get("empty") == b""
    assert storage.get_range("empty", 0, 0) == b""
    assert storage.exists("empty")


def test_a_second_put_replaces_the_first(storage: Storage) -> None:
    storage.put("key", b"a longer first text")
    storage.put("key", b"second")
    assert storage.get("key") == b"second"


@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 1000), (17, 300), (999, 1), (5, 0)])
def test_a_range_is_a_slice_of_the_object(storage: Storage, start: int, length: int) -> None:
    data = bytes(i * 7 % 251 for i in range(1000))
    storage.put("key", data)
    assert storage.get_range("key", start, length) == data[start : start + length]


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (500, 5)])
def test_a_range_past_the_end_is_a_data_error(storage: Storage, start: int, length: int) -> None:
    storage.put("key", b"0123456789")
    with pytest.raises(DataError, match="key is truncated"):
        storage.get_range("key", start, length)


def test_a_missing_key_is_not_found(storage: Storage) -> None:
    storage.put("folder/key", b"x")
    for key in ("nothing", "folder", "folder/nothing", "folder/key/below"):
        assert not storage.exists(key)
        for read in (storage.get, storage.size, lambda key: storage.get_range(key, 0, 1)):
            with pytest.raises(NotFound, match=key):
                read(key)


def test_keys_are_listed_by_prefix_and_sorted(storage: Storage) -> None:
    assert storage.list() == []
    for key in ("b/2", "b/10", "a", "b2/x", "b/deep/er"):
        storage.put(key, b"x")
    assert storage.list() == ["a", "b/10", "b/2", "b/deep/er", "b2/x"]
    assert storage.list("b") == ["b/10", "b/2", "b/deep/er", "b2/x"]
    assert storage.list("b/") == ["b/10", "b/2", "b/deep/er"]
    assert storage.list("b/d") == ["b/deep/er"]
    assert storage.list("c/d/") == []
    assert storage.list("a/") == [], "nothing is below a key"


def test_delete_removes_a_key_and_ignores_a_missing_one(storage: Storage) -> None:
    storage.put("key", b"x")
    storage.delete("key")
    assert not storage.exists("key")
    storage.delete("key")


def test_put_if_absent_does_not_overwrite(storage: Storage) -> None:
    assert storage.put_if_absent("manifest", b"first")
    assert not storage.put_if_absent("manifest", b"second")
    assert not storage.put_if_absent("manifest", b"first"), "even with equal content"
    assert storage.get("manifest") == b"first"


def test_exactly_one_of_many_concurrent_writers_wins(storage: Storage) -> None:
    barrier = threading.Barrier(8)

    def write(number: int) -> bool:
        barrier.wait()
        return storage.put_if_absent("manifest", b"%d" % number * 1000)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert storage.get("manifest") == b"%d" % won.index(True) * 1000


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b"])
def test_an_invalid_key_is_rejected(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="is not a valid key"):
        storage.put(key, b"x")


def test_a_pickled_storage_contains_only_its_uri(storage: Storage) -> None:
    storage.put("key", b"x")
    pickled = pickle.dumps(storage)
    assert len(pickled) < 200 + 2 * len(storage.uri)  # a folder also holds its path
    assert b"secret" not in pickled
    again = pickle.loads(pickled)
    assert again.uri == storage.uri
    assert again.get("key") == b"x"


def test_a_file_uri_opens_the_folder(tmp_path: Path) -> None:
    open_storage(f"file://{tmp_path}/with%20space").put("key", b"x")
    assert (tmp_path / "with space" / "key").read_bytes() == b"x"


@pytest.mark.parametrize("uri", ["gcs://bucket/x", "https://host/x", "file://host/x", "S3://b/x"])
def test_an_unknown_uri_is_rejected_with_the_known_kinds(uri: str) -> None:
    with pytest.raises(UsageError, match=r"use a folder, file:///folder, s3://.*gs://.* or az://"):
        open_storage(uri)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("s3://b/a/../c", "use s3://b/c"),
        ("s3://b/a/./c/", "use s3://b/a/c"),
        ("s3://b//c", "use s3://b/c"),
        ("s3://b/../..", "use s3://b"),
        ("s3://", "use s3://bucket/prefix"),
        ("s3:///c", "use s3://bucket/prefix"),
        ("s3://[1", "use s3://bucket/prefix"),
        ("s3://a b/c", "use s3://bucket/prefix"),
        ("s3:/b/c", "write s3://"),
        ("file:/c", "write file://"),
    ],
)
def test_a_uri_that_names_another_place_than_it_seems_is_rejected(uri: str, problem: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(problem)}$"):
        open_storage(uri)


def test_credentials_in_a_uri_are_rejected_and_not_shown() -> None:
    with pytest.raises(UsageError, match="has credentials in it") as error:
        open_storage("s3://key:hunter22@bucket/x")
    assert "hunter22" not in str(error.value)


@pytest.mark.parametrize("url", ["http://[1", "127.0.0.1:9000", "http://h:99999", "http://"])
def test_an_endpoint_that_is_not_an_address_is_named_with_its_variable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(EnvironmentProblem, match=r"AWS_ENDPOINT_URL: .* is not a valid address"):
        open_storage("s3://bucket/x").get("key")


def test_an_unfinished_write_is_not_listed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    (tmp_path / ".key.123.aside").write_bytes(b"half")
    storage.put("key", b"whole")
    assert storage.list() == ["key"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".key.123.aside", "key"]


def test_a_write_error_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(EnvironmentProblem, match=r"loop/key cannot be used.*permissions"):
        open_storage(str(tmp_path / "loop")).put("key", b"x")


@pytest.mark.parametrize(
    ("root", "key", "in_the_way"),
    [
        ("", "file/key", "file is a file"),
        ("", "file/deeper/key", "file is a file"),
        ("", "folder", "folder is a folder"),
        ("file", "key", "file is a file"),
    ],
)
def test_a_write_below_a_file_or_onto_a_folder_names_what_is_in_the_way(
    tmp_path: Path, root: str, key: str, in_the_way: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    storage = open_storage(str(tmp_path / root))
    with pytest.raises(EnvironmentProblem, match=f"cannot be written: .*/{in_the_way}; move"):
        storage.put(key, b"x")
    if root == "":
        assert not storage.exists("file/key")


def empty_out(root: Path) -> None:
    shutil.move(root, root.with_name("away"))
    root.mkdir()


def put_others_in_place(root: Path) -> None:
    empty_out(root)
    (root / "other").mkdir()
    (root / "other" / "key").write_text("of a mount that was missing once before")


def move_away(root: Path) -> None:
    shutil.move(root, root.with_name("away"))


USES: list[Callable[[Storage], object]] = [
    lambda storage: storage.put("run/new", b"x"),
    lambda storage: storage.put_if_absent("run/new", b"x"),
    lambda storage: storage.put("new", b"x"),
    lambda storage: storage.get("run/key"),
    lambda storage: storage.get_range("run/key", 0, 1),
    lambda storage: storage.exists("run/key"),
    lambda storage: storage.list("run/"),
    lambda storage: storage.list(),
    lambda storage: storage.delete("run/key"),
]


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("vanish", [move_away, empty_out, put_others_in_place])
def test_a_folder_that_was_there_is_never_created_again(
    tmp_path: Path, vanish: Callable[[Path], None], pickled: bool
) -> None:
    root = tmp_path / "store"
    storage = open_storage(str(root))
    storage.put("run/key", b"here")
    if pickled:
        storage = pickle.loads(pickle.dumps(storage))
    vanish(root)
    left = sorted(tmp_path.rglob("*"))
    uses = (
        USES if vanish is not put_others_in_place else [use for use in USES if use is not USES[7]]
    )
    for use in uses:
        with pytest.raises(StorageOutage, match="store was there and is gone, or is empty") as why:
            use(storage)
        assert (why.value.exit_code, why.value.retry) == (3, True)
    assert sorted(tmp_path.rglob("*")) == left
    shutil.rmtree(root, ignore_errors=True)
    shutil.move(root.with_name("away"), root)
    assert storage.get("run/key") == b"here"
    storage.put("run/new", b"x")


def test_a_set_whose_root_is_empty_now_is_away_and_one_with_a_lost_shard_is_not(
    tmp_path: Path,
) -> None:
    storage = open_storage(str(tmp_path / "set"))
    for name in ("000000.tar", "index.json"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text("x")
    storage.get("index.json")
    (tmp_path / "set" / "000000.tar").unlink()
    with pytest.raises(NotFound):
        storage.get_range("000000.tar", 0, 1)
    (tmp_path / "set" / "index.json").unlink()
    with pytest.raises(StorageOutage):
        storage.get_range("000000.tar", 0, 1)


def test_what_was_deleted_on_purpose_does_not_look_like_an_outage(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    for key in ("key", "a/key"):
        storage.put(key, b"x")
        storage.delete(key)
        assert not storage.exists(key)
        assert storage.list() == []
        storage.put(key, b"y")
        storage.delete(key)


def test_runs_that_are_only_listed_may_be_removed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{}")
    assert storage.list() == ["old/run.json"]
    shutil.rmtree(tmp_path / "old")
    storage.put("new/run.json", b"{}")
    assert storage.list() == ["new/run.json"]


def test_an_error_of_a_file_server_that_is_gone_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server cannot be stopped here: the errors are those that Linux gives."""
    storage = open_storage(str(tmp_path))
    for number in (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EIO):
        with monkeypatch.context() as patch:
            error = OSError(number, os.strerror(number))
            patch.setattr(Path, "read_bytes", lambda _, error=error: throw(error))
            with pytest.raises(StorageOutage, match="cannot be used"):
                storage.get("key")


def throw(error: Exception) -> None:
    raise error


def test_listing_an_unreadable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for uri, prefix in ((tmp_path / "loop", ""), (tmp_path, "loop/"), (tmp_path, "n" * 300 + "/")):
        with pytest.raises(EnvironmentProblem, match=r"cannot be listed: .*; check the folder's"):
            open_storage(str(uri)).list(prefix)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="file cannot be listed: Not a directory"):
        open_storage(str(tmp_path / "file")).list()


@pytest.mark.server
def test_a_missing_bucket_is_named(s3: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"there is no bucket 'nowhere'.*create it"):
        open_storage("s3://nowhere/prefix").get("key")
    with pytest.raises(EnvironmentProblem, match="there is no bucket 'nowhere'"):
        open_storage("s3://nowhere/prefix").put("key", b"x")


@pytest.mark.server
def test_wrong_credentials_name_the_variables_but_no_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-private")
    with pytest.raises(EnvironmentProblem, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_storage(s3).get("key")
    assert "wrong-and-private" not in str(caught.value)


@pytest.mark.server
def test_missing_credentials_name_the_variables(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(EnvironmentProblem, match=r"without credentials.*set AWS_ACCESS_KEY_ID"):
        open_storage(s3).get("key")


@pytest.mark.server
def test_an_unreachable_endpoint_is_named_and_can_be_retried(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("orchestrator.storage.s3.REQUEST_ATTEMPTS", 1)
    monkeypatch.setattr("orchestrator.storage.s3.READ_REQUEST_ATTEMPTS", 1)
    storage = open_storage(s3)
    message = rf"unreachable at http://127\.0\.0\.1:{port} .*check AWS_ENDPOINT_URL_S3"
    for use in (storage.get, storage.size, storage.list, lambda key: storage.put(key, b"x")):
        with pytest.raises(TryAgain, match=message) as caught:
            use("key")
        assert caught.value.retry


@pytest.fixture
def proxy(
    s3: str, running_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[int], int]], CuttingProxy]]:
    """Start a proxy, given how many answer bytes its n-th connection forwards."""
    made: list[CuttingProxy] = []

    def start(passes: Callable[[int], int]) -> CuttingProxy:
        made.append(CuttingProxy(running_s3.port, passes))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{made[-1].port}")
        return made[-1]

    yield start
    for each in made:
        each.close()


StartProxy = Callable[[Callable[[int], int]], CuttingProxy]


@pytest.mark.server
def test_reading_resumes_where_a_body_was_cut(s3: str, proxy: StartProxy) -> None:
    data = bytes(i * 31 % 253 for i in range(5 << 20))
    open_storage(s3).put("key", data)
    cutting = proxy(lambda _: 2_500_000)
    storage = open_storage(s3)
    assert storage.get("key") == data
    assert cutting.connections == 3
    assert storage.get_range("key", 1000, 4 << 20) == data[1000 : 1000 + (4 << 20)]
    assert cutting.connections > 3


@pytest.mark.server
def test_a_body_that_is_always_cut_can_be_retried_later(s3: str, proxy: StartProxy) -> None:
    open_storage(s3).put("key", b"x" * 100_000)
    proxy(lambda _: 5_000)
    with pytest.raises(TryAgain, match="key was cut in the middle 5 times"):
        open_storage(s3).get("key")


@pytest.mark.server
def test_a_connection_closed_without_an_answer_can_be_retried_later(
    s3: str, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that is shutting down accepts connections and does not answer."""
    monkeypatch.setattr("orchestrator.storage.s3.READ_REQUEST_ATTEMPTS", 1)
    proxy(lambda _: 0)
    with pytest.raises(TryAgain, match=r"ConnectionClosedError.*AWS_ENDPOINT_URL_S3"):
        open_storage(s3).get("key")


@pytest.mark.server
def test_put_if_absent_returns_true_if_only_the_answer_was_lost(s3: str, proxy: StartProxy) -> None:
    """The server writes, the connection breaks, and the retry is refused with 412."""
    only_continue = len(b"HTTP/1.1 100 Continue\r\n\r\n")
    breaking = proxy(lambda n: only_continue if n == 1 else 1 << 30)
    storage = open_storage(s3)
    assert storage.put_if_absent("manifest", b"mine")
    assert breaking.connections == 2
    assert storage.get("manifest") == b"mine"
    assert not storage.put_if_absent("manifest", b"mine")
